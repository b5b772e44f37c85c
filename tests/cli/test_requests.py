"""Flags, preset and recipe file become one recipe per image, in this order of weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def plans(ran) -> list[dict]:
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def recipe(ran) -> dict:
    (plan,) = plans(ran)
    return plan["recipe"]


def test_flags_win_over_preset_and_preset_over_file(hires: Callable) -> None:
    Path("old.json").write_text(
        '{"prompt": "sea", "width_px": 512, "height_px": 512, "seed": 4, "dpi": 72, "steps": 9}'
    )
    Path("own.toml").write_text("[recipe]\ndpi = 100\nsteps = 8\n")
    made = recipe(
        hires("plan", "--json", "--recipe", "old.json", "--preset", "own.toml", "--steps", 7)
    )
    assert (made["prompt"], made["seed"], made["dpi"], made["steps"]) == ("sea", 4, 100, 7)


def test_size_flag_replaces_the_presets(hires: Callable) -> None:
    made = recipe(
        hires("plan", "--json", "-p", "sea", "--preset", "wallpaper-4k", "--size", "512x256")
    )
    assert (made["width_px"], made["height_px"]) == (512, 256)


def test_width_and_height(hires: Callable) -> None:
    made = recipe(hires("plan", "--json", "-p", "sea", "-W", 512, "-H", 256))
    assert (made["width_px"], made["height_px"]) == (512, 256)


def test_size_defaults_to_the_models(hires: Callable) -> None:
    from hirescli.models.registry import find_card

    side_px = find_card("builtin").default_px
    made = recipe(hires("plan", "--json", "-p", "sea"))
    assert (made["width_px"], made["height_px"]) == (side_px, side_px) == (512, 512)
    assert find_card("sdxl").default_px == 1024


@pytest.mark.parametrize("name", ["draft", "wallpaper-4k", "panorama-2x1", "poster-16k"])
def test_shipped_presets_plan(hires: Callable, name: str) -> None:
    ran = hires("plan", "--json", "-p", "mountains", "--preset", name)
    assert ran.code in (0, 2)  # 16384 px may be too much for the machine at hand
    assert json.loads(ran.out)["recipe"]["prompt"] == "mountains"


def test_every_flag_reaches_the_recipe(hires: Callable) -> None:
    words = (
        "-p sea -n fog --size 1024 -s 5 -m builtin --steps 6 --guidance-scale 2.5 "
        "--scheduler ddim --method sdedit --strengths 0.5,0.25 --upscale-steps 3 "
        "--upscale-guidance-scale 1.5 --dtype bfloat16 --format tiff --tile 256 "
        "--compression jpeg --quality 80 --dpi 150 --no-metadata --rows 8 --memory 8GiB"
    )
    (plan,) = plans(hires("plan", "--json", *words.split()))
    wanted = {
        "prompt": "sea", "negative_prompt": "fog", "width_px": 1024, "height_px": 1024, "seed": 5,
        "model": "builtin", "steps": 6, "guidance_scale": 2.5, "scheduler": "ddim",
        "method": "sdedit", "upscale_steps": [3, 3, 3, 3], "upscale_guidance_scale": [1.5] * 4,
        "dtype": "bfloat16", "format": "tiff", "tile_px": 256, "compression": "jpeg",
        "quality": 80, "dpi": 150, "metadata": False, "rows": 8,
    }  # fmt: skip
    assert {key: plan["recipe"][key] for key in wanted} == wanted
    assert plan["recipe"]["strengths"][:2] == [0.5, 0.25]
    assert plan["budget_bytes"] == 8 * 2**30


@pytest.mark.parametrize(
    ("words", "outputs"),
    [
        (["-s", "1", "-s", "2"], ["sea-seed1.tif", "sea-seed2.tif"]),
        (["-s", "1", "-s", "2", "-o", "a.png"], ["a-seed1.png", "a-seed2.png"]),
        (["-s", "1", "-s", "2", "-o", "a{seed}b.jpg"], ["a1b.jpg", "a2b.jpg"]),
        (["-s", "7", "-o", "a.tif"], ["a.tif"]),
        (["-s", "7", "-o", "{seed}.tiff"], ["7.tiff"]),
        (["--format", "png"], ["sea-seed0.png"]),
        (["-o", "."], ["sea-seed0.tif"]),
        (["-o", "./"], ["sea-seed0.tif"]),
    ],
    ids=" ".join,
)
def test_outputs(hires: Callable, words: list[str], outputs: list[str]) -> None:
    made = plans(hires("plan", "--json", "-p", "sea", "--size", 512, *words))
    assert [plan["output"] for plan in made] == outputs


def test_further_files_keep_their_formats_with_several_seeds(hires: Callable) -> None:
    words = ("-p", "sea", "--size", 512, "-s", 1, "-s", 2, "-o", "x.tif")
    made = plans(hires("plan", "--json", *words, "--also", "y.print.tif"))
    assert [plan["also"] for plan in made] == [["y-seed1.print.tif"], ["y-seed2.print.tif"]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_suffix_chooses_the_format(hires: Callable, suffix: str) -> None:
    made = recipe(hires("plan", "--json", "-p", "sea", "--size", 512, "-o", f"a.{suffix}"))
    assert made["format"] == {"png": "png", "jpg": "jpeg", "tif": "tiff"}[suffix]


def test_bits_of_a_recipe_that_the_format_does_not_hold_are_left_out(hires: Callable) -> None:
    Path("z16.json").write_text('{"prompt": "sea", "width_px": 64, "height_px": 64, "bits": 16}')
    words = ("plan", "--json", "--recipe", "z16.json")
    assert recipe(hires(*words, "-o", "w.webp"))["bits"] == 8
    assert recipe(hires(*words, "--compression", "jpeg"))["bits"] == 8
    assert recipe(hires(*words, "-o", "w.png"))["bits"] == 16
    Path("jobs.txt").write_text("sea\n")
    batch = ("batch", "jobs.txt", "--dry-run", "--json", "--output-template", "{name}.webp")
    assert recipe(hires(*batch, "--recipe", "z16.json"))["bits"] == 8
    for asked in ((*words, "-o", "w.webp"), (*batch, "--size", 64)):
        ran = hires(*asked, "--bits", 16)
        assert ran.code in (1, 2)
        assert "webp holds 8 bits a sample, not 16" in ran.out + ran.err


def test_the_output_holds_the_bits_of_all_files(hires: Callable) -> None:
    ran = hires("plan", "-p", "a", "--size", 64, "--bits", 16, "-o", "x.jpg", "--also", "x.tif")
    assert ran.code == 2
    assert "make x.tif the output, with -o, and name the other with --also" in ran.err
    ran = hires("plan", "-p", "a", "--size", 64, "--bits", 16, "-o", "x.jpg", "--also", "x.webp")
    assert "leave --bits out" in ran.err


def test_suffix_wins_over_the_presets_format(hires: Callable) -> None:
    Path("own.toml").write_text('[recipe]\nformat = "jpeg"\n')
    ran = hires(
        "plan", "--json", "-p", "sea", "--size", 512, "--preset", "own.toml", "-o", "a.png"
    )
    assert recipe(ran)["format"] == "png"


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("\ufeffsea\r\nat night\n", "sea at night"),
        ("🏔️ mountains", "🏔️ mountains"),
        ("جبال في الليل", "جبال في الليل"),
        ("sea " * 10_000, ("sea " * 10_000).strip()),
    ],
    ids=["bom-crlf", "emoji", "right-to-left", "long"],
)
def test_odd_prompts_work(hires: Callable, prompt: str, cleaned: str) -> None:
    made = recipe(hires("plan", "--json", "-p", "-", "--size", 512, stdin=prompt.encode()))
    assert made["prompt"] == cleaned


def test_foreign_prompt_is_warned_of(hires: Callable) -> None:
    ran = hires("plan", "-p", "a tax form", "--size", 512)
    assert ran.code == 0
    assert "may not follow this prompt" in ran.out
    assert "--model" in ran.out


def test_dry_run_makes_nothing(hires: Callable) -> None:
    ran = hires("generate", "-p", "sea", "--size", 512, "--dry-run")
    assert ran.code == 0
    assert "sea-seed0.tif" in ran.out
    assert not list(Path().iterdir())


def test_dry_run_checks_the_output(hires: Callable) -> None:
    Path("a.tif").write_text("mine")
    assert hires("generate", "-p", "sea", "--size", 512, "--dry-run", "-o", "a.tif").code == 2
    words = ("--dry-run", "-o", "a.tif", "--overwrite")
    assert hires("generate", "-p", "sea", "--size", 512, *words).code == 0
    assert Path("a.tif").read_text() == "mine"


def test_json_tells_errors_too(hires: Callable) -> None:
    ran = hires("generate", "-p", "sea", "--size", 7, "--json")
    error = json.loads(ran.out)
    assert (ran.code, error["event"], error["exit_code"]) == (2, "error", 2)
    assert error["message"] in ran.err


def test_plan_shows_every_fact(hires: Callable) -> None:
    ran = hires("plan", "-p", "sea", "--size", 1024)
    for text in ("1024x1024", "base", "upscale", "steps", "memory", "disk", "time", "seed 0"):
        assert text in ran.out


def test_plan_that_this_machine_cannot_run_is_still_shown(hires: Callable) -> None:
    """The least budget is named in the refusal; a disk too small shows beside the plan."""
    ran = hires("plan", "-p", "sea", "--size", 2048, "--spill", "missing", "--json")
    assert ran.code == 2
    assert "missing" in json.loads(ran.out)["problem"]


def test_what_served_another_format_is_dropped(hires: Callable) -> None:
    sea = '"prompt": "sea", "width_px": 512, "height_px": 512'
    Path("old.json").write_text(f'{{{sea}, "format": "tiff", "tile_px": 256}}')
    assert recipe(hires("plan", "--json", "--recipe", "old.json", "-o", "a.png"))["tile_px"] == 512
    Path("old.json").write_text(f'{{{sea}, "format": "jpeg", "quality": 80}}')
    assert recipe(hires("plan", "--json", "--recipe", "old.json", "-o", "a.tif"))["quality"] == 90
    assert recipe(hires("plan", "--json", "--recipe", "old.json"))["quality"] == 80
    Path("own.toml").write_text('[recipe]\ncompression = "lzw"\n')
    words = ("--json", "-p", "sea", "--preset", "own.toml")
    assert recipe(hires("plan", *words, "-o", "a.jpg"))["compression"] == "deflate"
    assert recipe(hires("plan", *words, "-o", "a.tif"))["compression"] == "lzw"
    assert hires("plan", *words, "-o", "a.jpg", "--tile", 256).code == 2  # said just now
    Path("own.toml").write_text('[recipe]\nformat = "png"\ncompression = "lzw"\n')
    assert hires("plan", *words).code == 2  # at odds with itself


def test_another_size_drops_what_the_old_one_decided(hires: Callable) -> None:
    Path("old.json").write_text(
        '{"prompt": "sea", "width_px": 128, "height_px": 128, "rows": 2, "strengths": [0.9]}'
    )
    same = recipe(hires("plan", "--json", "--recipe", "old.json", "--size", 128))
    assert (same["rows"], same["strengths"]) == (2, [0.9])
    larger = recipe(hires("plan", "--json", "--recipe", "old.json", "--size", 512))
    assert larger["rows"] != 2
    assert 0.9 not in larger["strengths"]
    words = ("--recipe", "old.json", "--size", 512, "--rows", 4)
    assert recipe(hires("plan", "--json", *words))["rows"] == 4
