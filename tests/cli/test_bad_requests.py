"""Bad requests end with 2 and a message with value, limit and remedy, before anything is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

P = ("-p", "mountains")


def refused(ran, *told: str) -> None:
    assert ran.code == 2, ran.err
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.err
    for text in told:
        assert text in ran.err


@pytest.mark.parametrize("command", ["generate", "plan"])
@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("0", ["0 px"]),
        ("-1", ["-1", "2048"]),
        ("7", ["7 px", "32"]),
        ("16385", ["16385", "multiple of 8", "16384x16384", "16392x16392"]),
        ("1000000000", ["1000000000", "1048576"]),
        ("1e4", ["1e4", "2048"]),
        ("12x", ["12x", "2048x1024"]),
        ("1×16384", ["1 px"]),  # noqa: RUF001 (people type the real sign)
        ("", ["2048"]),
        ("64x16384", ["4 times"]),
        ("nan", ["nan"]),
        ("٢٠٤٨", ["2048"]),
    ],
)
def test_size(hires: Callable, command: str, size: str, told: list[str]) -> None:
    refused(hires(command, *P, "--size", size), *told)
    assert not list(Path().iterdir())


def test_half_a_size(hires: Callable) -> None:
    refused(hires("generate", *P, "-W", 512), "height_px")


def test_size_said_twice(hires: Callable) -> None:
    refused(hires("generate", *P, "--size", 512, "-W", 512, "-H", 512), "size", "width_px")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "0"], ["steps", "0", "1"]),
        (["--steps", "1001"], ["steps", "1001", "1000"]),
        (["--steps", "many"], ["many"]),
        (["--guidance-scale", "nan"], ["guidance_scale"]),
        (["--cfg-scale", "0.5"], ["guidance_scale", "0.5"]),
        (["--strengths", "0.4,x"], ["0.4,x", "0.4,0.3"]),
        (["--strengths", "1.5"], ["1.5"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--seed", str(2**63)], ["seed"]),
        (["--seed", "3", "--seed", "3"], ["seed 3", "twice"]),
        (["--scheduler", "magic"], ["magic", "ddim"]),
        (["--dtype", "int4"], ["int4", "float32"]),
        (["--method", "magic"], ["magic", "sdedit", "skip"]),
        (["--tile", "100"], ["tile_px", "100", "16"]),
        (["--quality", "101", "--format", "jpeg"], ["quality", "101", "100"]),
        (["--dpi", "inf"], ["dpi"]),
        (["--model", "nobody/nothing"], ["nobody/nothing", "model_index.json", "HF_HUB_OFFLINE"]),
        (["--revision", "zzz"], ["zzz"]),
        (["--memory", "lots"], ["lots", "8GB"]),
        (["--memory", "0"], ["0"]),
        (["--rows", "0"], ["rows"]),
        (["--lora", "x.safetensors:1"], ["x.safetensors", "LoRA"]),
        (["stray"], ["stray"]),
    ],
    ids=" ".join,
)
def test_choices(hires: Callable, words: list[str], told: list[str]) -> None:
    refused(hires("generate", *P, "--size", 512, *words), *told)
    assert not list(Path().iterdir())


def test_all_faults_together(hires: Callable) -> None:
    ran = hires("generate", *P, "--size", 512, "--steps", 0, "--dpi", 0)
    refused(ran, "2 faults", "steps", "dpi")


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_memory_budget(hires: Callable, command: str) -> None:
    ran = hires(command, *P, "--size", 2048, "--memory", "500MB")
    refused(ran, "500.0 MB", "MB of memory for one band", "--memory", "--size")


def test_planned_peak_above_the_machine(hires: Callable) -> None:
    refused(hires("generate", *P, "--size", 131072, "--memory", "900TB"), "this machine has")


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("a.webp", ["webp", "16383", "tiff"]),
        ("", ["output is empty", "-o"]),
        ("d" * 300 + "/x.tif", ["folder", "too long"]),
        ("a.gif", [".gif", ".tif", ".png", ".jpg"]),
        ("a", ["suffix", ".tif"]),
        ("missing/a.tif", ["missing", "does not exist"]),
        ("missing/", ["missing", "does not exist"]),
        ("file/a.tif", ["file", "is a file"]),
        ("here.tif", ["here.tif", "folder"]),
        ("there.tif", ["there.tif", "--overwrite"]),
        ("x" * 300 + ".tif", ["304", "247", "shorter"]),
    ],
)
def test_output(hires: Callable, output: str, told: list[str]) -> None:
    Path("file").write_text("")
    Path("there.tif").write_text("mine")
    (Path("here.tif") / "inside").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    if output == "here.tif":  # a folder gets the default name; one that is in the way is refused
        (Path("here.tif") / "mountains-seed0.tif").mkdir()
        before = sorted(Path().rglob("*"))
    refused(hires("generate", *P, "--size", 16384, "--memory", "9TB", "-o", output), *told)
    assert sorted(Path().rglob("*")) == before
    assert Path("there.tif").read_text() == "mine"


def test_webp_at_16384(hires: Callable) -> None:
    refused(hires("generate", *P, "--size", 16384, "--format", "webp"), "16383", "tiff")


def test_16_bits_where_a_format_holds_8(hires: Callable) -> None:
    refused(hires("generate", *P, "--size", 512, "-o", "a.webp", "--bits", 16), "holds 8 bits")


def test_avif_that_finds_no_memory(hires: Callable) -> None:
    words = ("--size", 16384, "-o", "a.avif", "--memory", "4GB")
    refused(hires("generate", *P, *words), "10.9 GB", "4.0 GB", "larger --memory")


def test_jpeg_limit(hires: Callable) -> None:
    refused(hires("plan", *P, "--size", "65536x65536", "-o", "a.jpg"), "65500", "tiff")


def test_suffix_against_format(hires: Callable) -> None:
    refused(hires("plan", *P, "--size", 512, "-o", "a.png", "--format", "jpeg"), "png", "jpeg")


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write everywhere")
def test_read_only_folder(hires: Callable) -> None:
    folder = Path("locked")
    folder.mkdir(mode=0o500)
    refused(hires("generate", *P, "--size", 512, "-o", folder / "a.tif"), "cannot be written")


def test_folder_without_writing(hires: Callable) -> None:
    """/proc refuses administrators, too."""
    refused(hires("generate", *P, "--size", 512, "-o", "/proc/a.tif"), "cannot be written")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [(b"", "empty"), (b" \r\n", "empty"), (b"sea\0", "U+0000"), (b"\xff\xfe", "UTF-8")],
)
def test_prompt_from_stdin(hires: Callable, prompt: bytes, told: str) -> None:
    refused(hires("generate", "-p", "-", "--size", 512, stdin=prompt), told)


def test_prompt_missing(hires: Callable) -> None:
    refused(hires("generate", "--size", 512), "prompt")


def test_prompt_of_broken_bytes(hires: Callable) -> None:
    refused(hires("generate", "-p", os.fsdecode(b"sea \xff"), "--size", 512), "UTF-8")


def test_control_characters_are_shown_not_sent(hires: Callable) -> None:
    refused(hires("plan", *P, "--size", "\x1b[31m12"), "\\x1b[31m12")


@pytest.mark.parametrize("words", [["info"], ["generate", "--size", "512", "--recipe"]])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.tif", None, "missing.tif"),
        ("noise.tif", b"II*\0\x08\0\0\0junk", "noise.tif"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0", "cut.png"),
        ("page.json", b"<html>", "page.json"),
        ("twice.json", b'{"prompt": "a", "prompt": "b"}', "twice"),
        ("nan.json", b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale"),
        ("foreign.json", b'{"prompt": "a", "sampler": "x"}', "sampler"),
        ("empty.json", b"{}", "prompt"),
    ],
)
def test_files(hires: Callable, words: list[str], name: str, content: bytes, told: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    refused(hires(*words, name), told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[recipe]\nsteps = 0\nsiez = 2\ndpi = "x"\n', ["steps", "siez", "dpi"]),
        (b"[recipe]\nsteps = 4\nsteps = 5\n", ["3"]),
        (b"[recipe]\nguidance_scale = nan\n", ["guidance_scale"]),
        (b'[recipe]\nprompt = "a\0b"\n', ["2"]),
        (b"[recipe]\nprompt = '\xff'\n", ["UTF-8"]),
        (None, ["own.toml"]),
    ],
)
@pytest.mark.parametrize("words", [["presets", "validate"], ["plan", *P, "--preset"]])
def test_presets(hires: Callable, words: list[str], content: bytes, told: list[str]) -> None:
    if content is not None:
        Path("own.toml").write_bytes(content)
    refused(hires(*words, "own.toml"), "own.toml", *told)


def test_empty_preset(hires: Callable) -> None:
    refused(hires("plan", *P, "--preset", ""), 'preset ""', "draft")


def test_unknown_preset(hires: Callable) -> None:
    refused(hires("plan", *P, "--preset", "poster-16"), "poster-16k")
