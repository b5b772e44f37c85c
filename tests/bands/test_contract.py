"""What every component keeps to in bands: one contract, inherited by each kind of component."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from agreement import (
    assert_exact,
    assert_same_weights,
    decibels,
    noise_and_signal,
    trace_of,
    weights_of,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from models import Family, Inputs, Outputs, Size, in_dtype
from torch import Tensor

import hirescli


@torch.no_grad()
def streamed(family: Family, inputs: Inputs, **options: Any) -> Outputs:
    """One call in bands."""
    module = family.module()
    with hirescli.stream(module, **options):
        return family.call(module, inputs)


def same(one: Any, other: Any) -> bool:
    """Whether two sets of arguments are equal bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


class StreamContract:
    """In bands as in one; a subclass says which family."""

    family: Family

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "size" in metafunc.fixturenames:
            sizes = self.family.sizes
            metafunc.parametrize("size", sizes, ids=[f"{h}x{w}" for h, w in sizes])

    def inputs(self, size: Size | None = None, batch: int = 1, seed: int = 1) -> Inputs:
        made = self.family.inputs(size or self.family.sizes[-1], batch, seed)
        return in_dtype(made, torch.float32)

    def test_equals_plain_at_each_size(self, size: Size) -> None:
        inputs = self.inputs(size)
        made = streamed(self.family, inputs, rows=max(2, size[0] // 4))
        assert_exact(made, self.family.reference(inputs))

    @settings(
        max_examples=3,
        phases=[Phase.explicit, Phase.generate],  # small as drawn; shrinking takes minutes
        suppress_health_check=[HealthCheck.differing_executors],  # nothing is replayed
    )
    @given(data=st.data(), batch=st.integers(1, 2), seed=st.integers(0, 9))
    def test_equals_plain_at_any_rows(self, data: st.DataObject, batch: int, seed: int) -> None:
        size = self.drawn_size(data)
        inputs = self.inputs(size, batch, seed)
        rows = data.draw(st.integers(1, size[0]), "rows")
        assert_exact(streamed(self.family, inputs, rows=rows), self.family.reference(inputs))

    def drawn_size(self, data: st.DataObject) -> Size:
        if self.family.least is None:
            return data.draw(st.sampled_from(self.family.sizes), "size")
        height, width = self.family.least
        tallest = self.family.tallest
        sides = st.tuples(st.integers(height, tallest), st.integers(width, tallest))
        return data.draw(sides, "size")

    def test_bfloat16_loses_no_more_than_plain(self) -> None:
        banded, plain = [0.0, 0.0], [0.0, 0.0]
        module = self.family.module(torch.bfloat16)
        for seed in range(3):  # of one picture alone, rounding is a matter of luck
            inputs = self.inputs(self.family.sizes[0], seed=seed)
            wanted = self.family.reference(inputs)
            half = in_dtype(inputs, torch.bfloat16)
            with torch.no_grad(), hirescli.stream(module, rows=self.family.sizes[0][0] // 3):
                made = self.family.call(module, half)
            assert {t.dtype for t in made} == {torch.bfloat16}
            alone = self.family.plain(half, torch.bfloat16)
            for total, outputs in ((banded, made), (plain, alone)):
                noise, signal = noise_and_signal(outputs, wanted)
                total[0] += noise
                total[1] += signal
        assert decibels(*banded) >= decibels(*plain) - 0.5

    def test_stores_agree_in_every_bit(self, tmp_path: Path) -> None:
        inputs, module = self.inputs(), self.family.module()
        made = {}
        for store in ("device", "host", "disk"):
            options = {"rows": 3, "store": store, "spill": tmp_path}
            with torch.no_grad(), hirescli.stream(module, **options) as report:
                made[store] = self.family.call(module, inputs)
            if self.family.reduces:
                assert (report.peak_disk_bytes > 0) == (store == "disk")
        for store in ("host", "disk"):
            assert all(map(torch.equal, made[store], made["device"])), store
        assert_exact(made["device"], self.family.reference(inputs))
        assert not list(tmp_path.rglob("*")), "spill files are left"

    def test_nothing_else_is_changed(self) -> None:
        """Not the component, not the arguments, not the state of the random numbers."""
        module, inputs = self.family.module(), self.inputs()
        wanted, given_ = self.family.plain(inputs), copy.deepcopy(inputs)
        before, weights, state = trace_of(module), weights_of(module), torch.get_rng_state()
        streamed(self.family, inputs, rows=4)
        assert torch.equal(torch.get_rng_state(), state)
        assert same(inputs, given_)
        assert trace_of(module) == before
        assert_same_weights(module, weights)
        assert all(map(torch.equal, self.family.plain(inputs), wanted))


class LongContract(StreamContract):
    """The rest, which goes through other code than each family's own forward."""

    def test_batch_of_three(self) -> None:
        inputs = self.inputs(self.family.sizes[1], batch=3)
        assert_exact(streamed(self.family, inputs, rows=5), self.family.reference(inputs))

    @pytest.mark.parametrize("rows", [1, 10_000])
    def test_single_rows_and_one_band(self, rows: int) -> None:
        inputs = self.inputs()
        assert_exact(streamed(self.family, inputs, rows=rows), self.family.reference(inputs))

    def test_calls_of_one_context_are_apart(self) -> None:
        """A second call has other latents, text, time and size, and then the first's again."""
        module = self.family.module()
        sizes = (self.family.sizes[-1], self.family.sizes[-2])
        calls = [self.inputs(size, seed=seed) for seed, size in enumerate(sizes)]
        calls.append(calls[0])
        with torch.no_grad(), hirescli.stream(module, rows=4) as report:
            made = [self.family.call(module, inputs) for inputs in calls]
        for outputs, inputs in zip(made, calls, strict=True):
            assert_exact(outputs, self.family.reference(inputs))
        assert all(map(torch.equal, made[0], made[-1]))
        assert report.rows == 4
        assert report.passes >= 1
        assert report.peak_device_bytes + report.peak_host_bytes > 0  # on a CPU, the host's

    def test_weights_are_read_at_each_call(self) -> None:
        family = replace(self.family, _made={})
        module, inputs = family.module(), self.inputs()
        with torch.no_grad(), hirescli.stream(module, rows=4):
            family.call(module, inputs)
            for each in (module, family.module(torch.float64)):
                for parameter in each.parameters():
                    parameter.mul_(0.9)
            made = family.call(module, inputs)
        assert_exact(made, family.reference(inputs))

    def test_strided_arguments(self) -> None:
        """Views such as pipelines make: channels last, batches that are repeats of one."""
        once, inputs = self.inputs(), self.inputs(batch=2)
        for key, value in once.items():
            if isinstance(value, Tensor) and value.ndim == 4:
                view = value.contiguous(memory_format=torch.channels_last)
                inputs[key] = view.expand(2, -1, -1, -1)
        assert_exact(streamed(self.family, inputs, rows=4), self.family.reference(inputs))

    def test_component_is_as_before_after_an_exception(self) -> None:
        module, inputs = self.family.module(), self.inputs()
        wanted, before = self.family.plain(inputs), trace_of(module)

        def fail() -> None:
            with hirescli.stream(module, rows=4):
                self.family.call(module, inputs)
                raise KeyError("ours")

        with pytest.raises(KeyError, match="ours"):
            fail()
        assert trace_of(module) == before
        assert all(map(torch.equal, self.family.plain(inputs), wanted))

    def test_faulty_call_leaves_the_context_usable(self) -> None:
        module, inputs = self.family.module(), self.inputs()
        key = next(k for k, v in inputs.items() if isinstance(v, Tensor) and v.ndim >= 3)
        with torch.no_grad(), hirescli.stream(module, rows=4):
            with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the plain call raises)
                self.family.call(module, inputs | {key: inputs[key][:, :2]})
            made = self.family.call(module, inputs)
        assert_exact(made, self.family.reference(inputs))

    def test_default_height_and_listener(self) -> None:
        events: list[object] = []
        inputs = self.inputs()
        made = streamed(self.family, inputs, listener=events.append)
        assert events
        assert_exact(made, self.family.reference(inputs))


class TimedContract(LongContract):
    """What components keep to that are given a time."""

    @pytest.mark.parametrize(
        "time",
        [801, 801.5, torch.tensor(801), torch.tensor([801, 801]), torch.tensor([801, 3])],
        ids=["int", "float", "scalar", "vector", "differing"],
    )
    def test_times(self, time: object) -> None:
        vector = isinstance(time, Tensor) and time.ndim == 1
        inputs = self.inputs(batch=2 if vector else 1) | {"timestep": time}
        assert_exact(streamed(self.family, inputs, rows=4), self.family.reference(inputs))


class TestStableDiffusion15(TimedContract):
    family = models.SD15


class TestStableDiffusion21(StreamContract):
    family = models.SD21


class TestStableDiffusionXL(TimedContract):
    family = models.SDXL


class TestControlNet(TimedContract):
    family = models.CONTROLNET


class TestControlNetResiduals(StreamContract):
    family = models.RESIDUALS


class TestLinFusion(LongContract):
    family = models.LINFUSION


class TestIPAdapter(StreamContract):
    family = models.IP_ADAPTER


class TestIPAdapterMasks(StreamContract):
    family = models.IP_ADAPTER_MASKS


class TestLora(StreamContract):
    family = models.LORA


class TestFlux(LongContract):
    family = models.FLUX


class TestFluxControlled(StreamContract):
    family = models.FLUX_CONTROLLED


class TestFluxPrompted(StreamContract):
    family = models.FLUX_PROMPTED


class TestClear(LongContract):
    family = models.CLEAR


class TestClearPooled(StreamContract):
    family = models.CLEAR_POOLED


class TestClearStableDiffusion35(StreamContract):
    family = models.CLEAR_SD35


class TestStableDiffusion3(StreamContract):
    family = models.SD3


class TestStableDiffusion35(LongContract):
    family = models.SD35


class TestKLEncode(LongContract):
    family = models.KL_ENCODE


class TestKLDecode(LongContract):
    family = models.KL_DECODE


class TestFluxEncode(StreamContract):
    family = models.FLUX_ENCODE


class TestFluxDecode(StreamContract):
    family = models.FLUX_DECODE


class TestTinyEncode(StreamContract):
    family = models.TINY_ENCODE


class TestTinyDecode(LongContract):
    family = models.TINY_DECODE


@pytest.mark.slow
class TestBuiltinUNet(LongContract):
    family = models.BUILTIN_UNET


@pytest.mark.slow
class TestBuiltinEncode(StreamContract):
    family = models.BUILTIN_ENCODE


@pytest.mark.slow
class TestBuiltinDecode(StreamContract):
    family = models.BUILTIN_DECODE
