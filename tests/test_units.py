import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.errors import RequestError
from hirescli.units import (
    format_bytes,
    format_flops,
    format_pixels,
    format_seconds,
    parse_bytes,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "amount_bytes"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5 gb", 15 * 10**8),
        ("64kib", 2**16),
        ("123", 123),
        (123, 123),
        ("7b", 7),
    ],
)
def test_bytes_are_read(text: str | int, amount_bytes: int) -> None:
    assert parse_bytes(text) == amount_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "8G", "-1GB", "0", "0.1b", "8 gigabytes", "1e9", "nan", "٨GB", True, -5]
)
def test_other_amounts_are_refused_by_name(text: str | int) -> None:
    with pytest.raises(RequestError, match=f'"{text}" is .*8GB') as caught:
        parse_bytes(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2048", (2048, 2048)),
        (2048, (2048, 2048)),
        ("2048x1024", (2048, 1024)),
        ("2048×1024", (2048, 1024)),  # noqa: RUF001
        (" 640X480 ", (640, 480)),
        ("7", (7, 7)),  # multiples are not checked here
        ("1000000000", (10**9, 10**9)),
    ],
)
def test_sizes_are_read(text: str | int, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "1e4", "12x", "x12", "-1", "0", "0x8", "1x2x3", "12.5", "٢", "9" * 5000, True, "8 x 8"],
)
def test_other_sizes_are_refused_by_name(text: str | int) -> None:
    with pytest.raises(RequestError, match="size") as caught:
        parse_size(text)
    assert f'"{text}"' in str(caught.value)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_written_size_is_read_back(width_px: int, height_px: int) -> None:
    assert parse_size(f"{width_px}x{height_px}") == (width_px, height_px)


@pytest.mark.parametrize(
    ("amount_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (9_100_000_000, "9.1 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_bytes_are_shown(amount_bytes: int, text: str) -> None:
    assert format_bytes(amount_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (80, "1 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds_are_shown(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_pixels_are_shown() -> None:
    assert format_pixels(2048, 1024) == "2048x1024 px (2.1 MP)"


@pytest.mark.parametrize(
    ("flops", "text"),
    [(4.2e6, "0.0 GFLOP"), (1.23e12, "1.2 TFLOP"), (9.9994e14, "999.9 TFLOP"),
     (9.9996e14, "1.0 PFLOP"), (2.22e19, "22200.0 PFLOP")],
)  # fmt: skip
def test_arithmetic_is_shown_with_few_digits(flops: float, text: str) -> None:
    assert format_flops(flops) == text
