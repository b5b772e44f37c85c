"""Sections and tables: pure text."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hirescli.evaluation.bands import Comparison
from hirescli.evaluation.benchmark import ImageRun
from hirescli.evaluation.case import Outcome
from hirescli.evaluation.decoding import Decode
from hirescli.evaluation.page import section, with_section
from hirescli.evaluation.tables import bands_table, decodes_table, pictures_table, table

COMPARISON = Comparison(
    component="KL decoder",
    width_px=1024,
    height_px=512,
    rows=16,
    passes=32,
    plain_seconds=(4.0, 2.0, 3.0),
    banded_seconds=(3.0, 6.0, 3.6),
    error=1.25e-5,
    exact_px=128,
    plain_from_exact=7e-5,
    banded_from_exact=6e-6,
    planned_peak_bytes=250_000_000,
    plain_peak_bytes=2_000_000_000,
    banded_peak_bytes=300_000_000,
    work=1.1,
)
WHOLE = Decode(512, 512, "plain", Outcome(4.0, 900_000_000), 0.0, 0.0, None)


def cells(paragraphs: list[str]) -> list[list[str]]:
    """The cells of all rows of all tables, heads and rulers left out."""
    tables = [each.splitlines()[2:] for each in paragraphs if each.startswith("|")]
    return [[c.strip() for c in row.strip("|").split("|")] for rows in tables for row in rows]


def test_table() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_ratios() -> None:
    assert COMPARISON.best_ratio == 1.5
    assert COMPARISON.median_ratio == 3.6 / 3.0


def test_bands_table() -> None:
    times, memory = cells(bands_table([COMPARISON]))
    assert times == [
        "KL decoder", "1024x512", "16", "32", "2.00 s (3.00 s)", "3.00 s (3.60 s)",
        "1.50 (1.20)", "1.3e-05",
    ]  # fmt: skip
    assert memory == [
        "KL decoder", "1024x512", "16", "250.0 MB", "300.0 MB", "2.0 GB", "1.10", "128 px",
        "7.0e-05", "6.0e-06",
    ]  # fmt: skip


def test_decodes_table() -> None:
    banded = replace(
        WHOLE,
        way="banded",
        outcome=Outcome(5.0, 300_000_000, 250_000_000, 16, 32),
        max_error=1e-5,
        rmse=2e-6,
        psnr_db=120.0,
    )
    tiled = replace(WHOLE, way="tiled", outcome=Outcome(6.0, 200_000_000, tiles=9))
    size = "512x512"
    assert cells(decodes_table([WHOLE, banded, tiled])) == [
        [size, "whole image", "1", "4.0 s", "900.0 MB", "-", "-", "-", "-"],
        [size, "in bands", "1", "5.0 s", "300.0 MB", "250.0 MB", "1.0e-05", "2.0e-06", "120.0 dB"],
        [size, "diffusers' tiling", "9", "6.0 s", "200.0 MB", "-", "0.0e+00", "0.0e+00", "equal"],
    ]


def test_pictures_table() -> None:
    run = ImageRun(
        width_px=64, height_px=32, stages=1, seconds=2.0, peak_rss_bytes=10**9, journal_share=0.01,
        planned_seconds=3.0, planned_peak_bytes=2 * 10**9, planned_spill_bytes=0,
        sha256="", same_bytes=None,
        file_bytes=1000, readers={"tifffile": "64x32", "libvips": "64x32", "Pillow": "64x32"},
    )  # fmt: skip
    larger = replace(run, width_px=128, height_px=64, seconds=7.0, peak_rss_bytes=12 * 10**8)
    first, grown, read, _ = cells(pictures_table([run, larger]))
    assert first[0] == read[0] == "64x32"
    assert first[2:] == [
        "2.0 s", "-", "3.0 s", "1.0 GB", "-", "2.0 GB", "0 bytes", "1.0 kB", "1.0%",
        "not tried",
    ]  # fmt: skip
    assert grown[2:4] == ["7.0 s", "x3.50"]
    assert grown[5:7] == ["1.2 GB", "x1.20"]


def made(title: str, text: str) -> str:
    return section(title, command=f"hires bench {title}", paragraphs=[text])


def test_a_new_page_has_a_title() -> None:
    page = with_section("", made("a", "one"))
    assert page.splitlines()[:3] == ["# Benchmarks", "", "## a"]


def test_other_sections_stay() -> None:
    page = with_section(with_section("", made("a", "one")), made("b", "two"))
    again = with_section(page, made("a", "three"))
    assert again == with_section(with_section("", made("a", "three")), made("b", "two"))
    assert "one" not in again


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "### z\n\nx"]))))
def test_a_page_holds_the_last_of_each(written: list[tuple[str, str]]) -> None:
    page = ""
    for title, text in written:
        page = with_section(page, made(title, text))
        assert with_section(page, made(title, text)) == page
    for title, text in dict(written).items():
        assert page.count(f"## {title}\n") == 1
        assert made(title, text) in page + "\n"
