"""`hirescli.stream`: unmodified diffusers components, computed in bands while a context lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine, Report
from hirescli.bands.graph import parameter_names
from hirescli.bands.heap import HEAP_BYTES
from hirescli.errors import RequestError
from hirescli.events import Event, Listener
from hirescli.planning.machine import (
    BUS_BYTES_PER_SECOND,
    DISK_BYTES_PER_SECOND,
    Machine,
    default_budget,
)
from hirescli.planning.passes import Store
from hirescli.units import parse_bytes

_UNBOUNDED = 1 << 62
# What a band may take on a CPU: an SD-sized decoder took 1.38 times the plain call's time with
# bands of 1 latent row at 512 px, 1.12 with 4, 1.05 with 16, 0.99 with 64 (`hires bench bands`).
_CPU_WORK_BYTES = 384 * 10**6
_SLICED = ("Sliced", "XFormers")
_STREAMED = ("unet", "transformer", "controlnet", "vae")  # names in a pipeline


@contextmanager
def stream(
    component: Any,
    *,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    disk: str | int | None = None,
    rows: int | None = None,
    store: str | None = None,
    spill: str | Path | None = None,
    vae_attention: str = "pooled",
    listener: Listener | None = None,
) -> Iterator[Report]:
    """Compute a component in bands of rows while the context lasts.

    Inside, the component takes and gives what it does outside, up to floating-point rounding,
    in bounded memory and without gradients; after it, the component is as before. In a
    pipeline, what a ControlNet gives to the denoiser is never built as a whole.

    Args:
        component: A `UNet2DConditionModel`, `FluxTransformer2DModel`, `SD3Transformer2DModel`,
            `ControlNetModel`, `AutoencoderKL`, `AutoencoderTiny`, or a diffusers pipeline that
            has them.
        memory: Budget of the device, in bytes or such as "8GB"; on a CPU, of the whole process.
            None: three quarters of what is installed.
        host_memory: Budget of values that rest on the host, beside a GPU.
        disk: Budget of values that rest on disk; None: what the file system holds.
        rows: Band height in rows of the component's input, latent or pixel; None: as the budget
            asks.
        store: Keep every value on "device", "host" or "disk"; None: as the budgets ask.
        spill: Folder for values on disk; None: the system's folder for temporary files.
        vae_attention: Of an autoencoder's middle block above 512x512 latents: "pooled" lets
            queries attend to averages of keys, "exact" to all of them, in quadratic time.
        listener: Called with events: a pass is done, bands were halved.

    Yields:
        A report that grows with every call.

    Raises:
        RequestError: If the component or an option does not work with bands; inside, if a call
            meets an operation that cannot be computed in bands, or a budget that cannot hold
            one.
    """
    modules = _streamed_modules(component)
    for name, module in modules.items():
        _refuse(name, module)
    engine = Engine(
        stores=(),
        rows=_checked_rows(rows),
        spill=None if spill is None else Path(spill),
        listener=listener or _silent,
        names=parameter_names(*modules.values()),
    )
    budgets = _Budgets(memory, host_memory, disk, store, modules)
    if vae_attention not in ("pooled", "exact"):
        raise RequestError(f'vae_attention "{vae_attention}" is neither "pooled" nor "exact"')
    with ExitStack() as contexts:
        for name, module in modules.items():
            lazy = _is_controlnet(module) and module is not component
            call = StreamedCall(
                name, module, engine,
                give=list if lazy else engine.whole,
                enter=budgets.enter,
                pools=vae_attention == "pooled" and name.endswith(("encoder", "decoder")),
            )  # fmt: skip
            contexts.enter_context(replaced_forward(module, call))
        yield engine.report


def _silent(_: Event) -> None:
    pass


def _checked_rows(rows: int | None) -> int | None:
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise RequestError(f"rows={rows!r} is no band height; use a whole number from 1 on")
    return rows


# What is streamed


def _streamed_modules(component: Any) -> dict[str, nn.Module]:
    """The modules whose calls run in bands, by their path in the component."""
    if isinstance(component, nn.Module):
        return _parts("", component)
    found: dict[str, nn.Module] = {}
    for name, part in (getattr(component, "components", None) or {}).items():
        if isinstance(part, nn.Module) and name in _STREAMED:
            found |= _parts(name, part)
    if not found:
        raise RequestError(
            f"{type(component).__name__} has no component that runs in bands; give a UNet, "
            "transformer, ControlNet or autoencoder of diffusers, or a pipeline with one"
        )
    return found


def _parts(name: str, module: nn.Module) -> dict[str, nn.Module]:
    nets = getattr(module, "nets", None)
    if nets is not None:  # several ControlNets
        return {_joined(name, f"nets.{i}"): net for i, net in enumerate(nets)}
    encoder, decoder = getattr(module, "encoder", None), getattr(module, "decoder", None)
    if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module):
        return {_joined(name, "encoder"): encoder, _joined(name, "decoder"): decoder}
    return {name: module}


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _is_controlnet(module: nn.Module) -> bool:
    return "ControlNet" in type(module).__name__


def _refuse(name: str, module: nn.Module) -> None:
    """Refuse what would change weights or attention behind the engine's back."""
    if isinstance(getattr(module, "forward", None), StreamedCall):
        raise RequestError(
            f"{name or type(module).__name__} is streamed already; leave that context first"
        )
    for path, part in module.named_modules():
        where = _joined(name, path) or type(module).__name__
        if getattr(part, "_compiled_call_impl", None) or hasattr(part, "_orig_mod"):
            raise RequestError(f"{where} is compiled; stream the module without torch.compile")
        if hasattr(part, "_hf_hook"):
            raise RequestError(
                f"{where} has a weights-offload hook of accelerate, which would swap weights "
                "while bands read them; call pipe.remove_all_hooks() first"
            )
        if getattr(part, "_diffusers_hook", None) is not None and part._diffusers_hook.hooks:
            raise RequestError(
                f"{where} has a hook of diffusers (group offloading or a cache), which would "
                "swap weights while bands read them; load the pipeline without it"
            )
        if all(getattr(part, key, None) is not None for key in ("s1", "s2", "b1", "b2")):
            raise RequestError(
                f"{where} has FreeU enabled, whose Fourier transform needs the whole picture; "
                "call pipe.disable_freeu() first"
            )
        processor = type(getattr(part, "processor", None)).__name__
        if processor.startswith(_SLICED):
            raise RequestError(
                f"{where} has the attention processor {processor}; the engine slices attention "
                "itself: call pipe.unet.set_default_attn_processor() or "
                "pipe.disable_attention_slicing() first"
            )


# Budgets


@dataclass
class _Budgets:
    """Budgets as they were given, and the stores they make for a device."""

    memory: str | int | None
    host_memory: str | int | None
    disk: str | int | None
    store: str | None
    modules: dict[str, nn.Module]

    def __post_init__(self) -> None:
        if self.store not in (None, "device", "host", "disk"):
            raise RequestError(f'store "{self.store}" is none of "device", "host", "disk"')
        self._memory = None if self.memory is None else parse_bytes(self.memory)
        self._host = None if self.host_memory is None else parse_bytes(self.host_memory)
        self._disk = _UNBOUNDED if self.disk is None else parse_bytes(self.disk)
        # On a CPU the budget is that of the process, and this is what stands there already.
        self._standing = psutil.Process().memory_info().rss

    def enter(self, engine: Engine, device: torch.device) -> None:
        """Give the engine the stores for bands on `device`."""
        disk = Store("disk", self._disk, DISK_BYTES_PER_SECOND)
        installed = default_budget(Machine.detect())
        if device.type == "cpu":
            standing = self._standing + HEAP_BYTES
            free = (self._memory or installed) - standing
            stores: tuple[Store, ...] = (
                Store("host", free, standing_bytes=standing),
                disk,
            )
            names = {"device": 0, "host": 0, "disk": 1}
            engine.most_work_bytes = _CPU_WORK_BYTES
        else:
            total = torch.cuda.get_device_properties(device).total_memory
            standing = self._resident_bytes(device)
            engine.loads_weights = standing < self._weights_bytes()
            free = (self._memory or total * 3 // 4) - standing
            host = Store("host", self._host or installed, BUS_BYTES_PER_SECOND)
            stores = (Store("device", free, standing_bytes=standing), host, disk)
            names = {"device": 0, "host": 1, "disk": 2}
        engine.stores = stores
        engine.keep_in = None if self.store is None else names[self.store]

    def _weights_bytes(self) -> int:
        return sum(
            p.numel() * p.element_size()
            for module in self.modules.values()
            for p in module.parameters()
        )

    def _resident_bytes(self, device: torch.device) -> int:
        return sum(
            p.numel() * p.element_size()
            for module in self.modules.values()
            for p in module.parameters()
            if p.device == device
        )
