"""What a stage costs: schedules of its components, time, memory and disk. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hirescli.planning.card import Card
from hirescli.planning.cascade import Stage
from hirescli.planning.compose import controlled, dilated, unpooled
from hirescli.planning.machine import BUS_BYTES_PER_SECOND, DISK_BYTES_PER_SECOND
from hirescli.planning.output_cost import written_bytes
from hirescli.planning.passes import Schedule, Store
from hirescli.planning.schedule import CPU_WORK_BYTES, BudgetError, make_schedule
from hirescli.planning.tiling import Tiling, tiled_schedule
from hirescli.planning.trace import Trace
from hirescli.plugins import Control
from hirescli.recipe import Recipe

_DILATED = "dilated denoiser"  # the second prediction of the method `skip`
_DENOISERS = ("denoiser", _DILATED)
# Written for each second that a call takes: a quick disk for the share of time that snapshots get.
_SNAPSHOT_BYTES_PER_SECOND = 3e7
_TILED = "tiled decoder"  # diffusers' own, in place of bands
_CHANNELS = 3  # red, green, blue
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_FLOAT_BYTES = 4
# Latents of a stage at their most. In float32 stand the encoded picture and noise, and of the
# stage before what is left, a quarter of their size at most;
_FLOAT_COPIES = 2.25
# in the denoiser's dtype the sample, what the denoiser gave for both guidance halves, and the
# same of the step before: the pipelines let go of it when the new ones stand.
_OWN_COPIES = 6
_SKIP_COPIES = 4  # the second prediction, likewise
# What schedulers keep from step to step, old and new, while it is computed.
_HISTORY_COPIES = {"dpm++": 3, "unipc": 6}
_LATENTS_FRACTION = 1 / 8  # of the work memory that latents may take; above they go to disk
# Rows of each component's input that belong to one latent row of the recipe's band height: a
# decoder's row becomes many, so it takes fewer.
_DECODER_ROWS = 4  # latent rows of other components for one of a decoder
# Bytes for each pixel of a band outside the engine: float rows, their copies and levels.
_EDGE_BYTES = 48
# What CUDA and its libraries take on a device beside what is allocated.
_CUDA_BYTES = 600 * 10**6
# Of a GPU in bfloat16: an order of magnitude, since none has been measured.
_GPU_FLOPS_PER_SECOND = 5e13
_BFLOAT16_GAIN = 1.8  # of a CPU that multiplies it itself, against float32
# Of a LoRA while it is added to the weights: its file twice, as layers and as what they are
# compared with; of the largest layer that it may change the change in float32, and in the dtype
# of the weights the change, the weights, their sum, and one on its way.
_LORA_FILES = 2
_LORA_COPIES = 4
_LARGEST_LAYER = {"flux": 18432 * 3072, "sd3": 14592 * 2432}  # numbers; of UNets:
_LARGEST_UNET_LAYER = 1280 * 1280 * 9
_SPOOL_BYTES = 2  # per channel between stages; the last spool has the bits of the output


@dataclass(frozen=True)
class Budgets:
    """Bytes that a run may use.

    Attributes:
        memory_bytes: Where bands are computed: of the whole process on a CPU, else of the GPU.
        disk_bytes: For values that rest on disk while a component runs.
        host_bytes: On the host beside a GPU, for values that find no room on it; None: bands
            are computed on the CPU.
        loads_weights: Whether weights rest on the host and each pass loads those it reads.
    """

    memory_bytes: int
    disk_bytes: int
    host_bytes: int | None = None
    loads_weights: bool = False

    @property
    def place(self) -> str:
        """The store that bands are computed in."""
        return "host" if self.host_bytes is None else "device"


@dataclass(frozen=True)
class ComponentCost:
    """One component of a stage.

    Attributes:
        name: "encoder", "denoiser", with the ControlNets in it, "dilated denoiser", "decoder" or
            "tiled decoder".
        calls: How often it runs.
        schedule: Of each call.
        edge_bytes: Of pixel rows outside the engine.
    """

    name: str
    calls: int
    schedule: Schedule
    edge_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Peak of bands and stores in memory, and of rows on their way from or to a spool."""
        return self.schedule.peak_bytes[self.schedule.stores[0].name] + self.edge_bytes

    @property
    def resting_bytes(self) -> int:
        """Peak of what rests on the host beside a GPU."""
        peaks = self.schedule.peak_bytes
        return peaks["host"] if "device" in peaks else 0

    @property
    def disk_bytes(self) -> int:
        """Peak of what rests on disk."""
        return self.schedule.peak_bytes.get("disk", 0)

    @property
    def flops(self) -> float:
        """Floating-point operations of all calls."""
        return self.calls * self.schedule.flops

    @property
    def seconds(self) -> float:
        """Estimate for all calls."""
        return self.calls * self.schedule.seconds


@dataclass(frozen=True)
class StageMemory:
    """Peak memory of one stage as a sum: the process, latents, and the largest component."""

    base_bytes: int
    latents_bytes: int
    work_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Components run one after the other, so the largest one counts."""
        return self.base_bytes + self.latents_bytes + self.work_bytes


@dataclass(frozen=True)
class StageCost:
    """One stage with what it takes.

    Attributes:
        stage: The stage.
        components: In the order they first run.
        memory: Peak where bands are computed.
        resting_bytes: Peak of values that rest on the host beside a GPU.
        latents_store: "device", "host" or "disk".
        spill_bytes: Peak of latents and kept values on disk.
    """

    stage: Stage
    components: tuple[ComponentCost, ...]
    memory: StageMemory
    resting_bytes: int
    latents_store: str
    spill_bytes: int

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return sum(each.flops for each in self.components)

    @property
    def seconds(self) -> float:
        """Estimate."""
        return sum(each.seconds for each in self.components)


def stage_cost(
    stage: Stage, *, card: Card, recipe: Recipe, rows: int | None, budgets: Budgets
) -> StageCost:
    """The cost of one stage in bands of `rows` latent rows (None: as the budget asks).

    Raises:
        BudgetError: If the budget cannot hold one band.
    """
    latents_bytes = _latents_bytes(stage, card, recipe)
    in_memory = _latents_in_memory(latents_bytes, card, recipe, budgets)
    noise_bytes = _host_noise_bytes(stage, card, recipe, budgets)
    components = _components(stage, card=card, recipe=recipe, rows=rows, budgets=budgets)
    return StageCost(
        stage=stage,
        components=components,
        memory=StageMemory(
            base_bytes=_base_bytes(card, recipe, budgets),
            latents_bytes=latents_bytes - noise_bytes if in_memory else 0,
            work_bytes=max(each.memory_bytes for each in components),
        ),
        resting_bytes=max(each.resting_bytes for each in components) + noise_bytes,
        latents_store=budgets.place if in_memory else "disk",
        spill_bytes=max(each.disk_bytes for each in components)
        + (0 if in_memory else latents_bytes),
    )


def stores_of(
    component: str, stage: Stage, *, card: Card, recipe: Recipe, rows: int | None, budgets: Budgets
) -> tuple[Store, ...]:
    """Where a component may keep values, with what process, latents and rows of pixels leave.

    Args:
        component: As of `ComponentCost`.
        stage: That it works for.
        card: Of the model.
        recipe: Resolved.
        rows: Band height in latent rows; None: the least.
        budgets: Of the run.
    """
    standing_bytes = _base_bytes(card, recipe, budgets)
    standing_bytes += _edge_bytes(component, stage, card, rows or 1)
    latents_bytes = _latents_bytes(stage, card, recipe)
    noise_bytes = _host_noise_bytes(stage, card, recipe, budgets)
    if _latents_in_memory(latents_bytes, card, recipe, budgets):
        standing_bytes += latents_bytes - noise_bytes
    free_bytes = budgets.memory_bytes - standing_bytes
    disk = Store("disk", budgets.disk_bytes, DISK_BYTES_PER_SECOND)
    first = Store(budgets.place, free_bytes, standing_bytes=standing_bytes)
    if budgets.host_bytes is None:
        return first, disk
    host_bytes = max(0, budgets.host_bytes - noise_bytes)
    return first, Store("host", host_bytes, BUS_BYTES_PER_SECOND), disk


def process_bytes(card: Card, recipe: Recipe, *, guided: bool = True) -> int:
    """The process with all that it loads, before any picture.

    Prompts are encoded first. Their encoders are let go before that of image prompts is loaded,
    so that the larger ones count.

    Args:
        card: Of the model.
        recipe: Resolved.
        guided: Whether ControlNets and IP-Adapters come to the same memory.
    """
    process = card.process_bytes(recipe.dtype, recipe.vae_dtype) + _lora_bytes(card, recipe)
    if not guided:
        return process
    extra_bytes = max(0, _image_encoder_bytes(card, recipe) - card.text_bytes(recipe.dtype))
    return process + extra_bytes + _guides_bytes(card, recipe)


def _lora_bytes(card: Card, recipe: Recipe) -> int:
    """Peak while LoRAs are added to the weights, one by one; afterwards nothing is left of it."""
    if not recipe.loras:
        return 0
    file_bytes = max(lora.size_bytes or 0 for lora in recipe.loras)
    layer = _LARGEST_LAYER.get(card.family, _LARGEST_UNET_LAYER)
    each_bytes = _FLOAT_BYTES + _LORA_COPIES * dtype_bytes(recipe)
    return _LORA_FILES * file_bytes + each_bytes * layer


def host_process_bytes(card: Card, recipe: Recipe, *, loads_weights: bool) -> int:
    """The same beside a GPU, with what rests on the host; else guides go to the GPU at once."""
    return process_bytes(card, recipe, guided=loads_weights)


def preparation_bytes(card: Card, recipe: Recipe, budgets: Budgets) -> int:
    """Peak of a GPU before the first stage: image prompts are encoded where the denoiser lies."""
    base_bytes = _base_bytes(card, recipe, budgets)
    if budgets.host_bytes is None or budgets.loads_weights:
        return base_bytes
    return base_bytes + _image_encoder_bytes(card, recipe)


def _base_bytes(card: Card, recipe: Recipe, budgets: Budgets) -> int:
    """What stands where bands are computed before the first: the process, or weights on a GPU."""
    if budgets.host_bytes is None:
        return process_bytes(card, recipe)
    if budgets.loads_weights:
        return _CUDA_BYTES
    weights_bytes = card.resident_bytes(recipe.dtype, recipe.vae_dtype)
    return _CUDA_BYTES + weights_bytes + _guides_bytes(card, recipe)


def _guides_bytes(card: Card, recipe: Recipe) -> int:
    """Weights beside the denoiser for the whole run; of an IP-Adapter once for each picture."""
    pictures = len(recipe.image_prompts)
    adapter_bytes = card.image_bytes("image_adapter", _dtype("denoiser", recipe))
    return _controlnets_bytes(card, recipe) + pictures * adapter_bytes


def _image_encoder_bytes(card: Card, recipe: Recipe) -> int:
    if not recipe.image_prompts:
        return 0
    return card.image_bytes("image_encoder", _dtype("denoiser", recipe))


def _controlnets_bytes(card: Card, recipe: Recipe) -> int:
    if not recipe.controls:
        return 0
    traces = _controlnet_traces(card, recipe)
    return sum(sum(trace.parameter_bytes.values()) for trace in traces)


def _controlnet_traces(card: Card, recipe: Recipe) -> list[Trace]:
    dtype = _dtype("denoiser", recipe)
    return [card.trace(_of_layout("controlnet", each), dtype) for each in recipe.controls]


def _of_layout(component: str, control: Control) -> str:
    """A component's name among a card's traces."""
    return component if control.layout is None else f"{component}-{control.layout}"


def _encoded_controls(recipe: Recipe) -> int:
    """Control images that are read as latents: those of FLUX."""
    return sum(control.layout is not None for control in recipe.controls)


def _latents_bytes(stage: Stage, card: Card, recipe: Recipe) -> int:
    skips = recipe.method == "skip" and stage.kind == "upscale"
    assert recipe.scheduler is not None, "the recipe is not resolved"
    copies = _OWN_COPIES + (_SKIP_COPIES if skips else 0)
    copies += _HISTORY_COPIES.get(recipe.scheduler, 0)
    each_bytes = _FLOAT_COPIES * _FLOAT_BYTES + copies * dtype_bytes(recipe)
    if encoded := _encoded_controls(recipe):  # one in float32 while its tokens are made
        each_bytes += encoded * dtype_bytes(recipe) + _FLOAT_BYTES
    return int(_latent_numbers(stage, card) * each_bytes)


def _latent_numbers(stage: Stage, card: Card) -> int:
    return stage.latent_width * stage.latent_height * card.latent_channels


def _host_noise_bytes(stage: Stage, card: Card, recipe: Recipe, budgets: Budgets) -> int:
    """Noise of latents in a GPU's memory: it is drawn, and rests, on the host beside it."""
    if budgets.host_bytes is None:
        return 0
    latents_bytes = _latents_bytes(stage, card, recipe)
    in_memory = _latents_in_memory(latents_bytes, card, recipe, budgets)
    return _latent_numbers(stage, card) * _FLOAT_BYTES if in_memory else 0


def _latents_in_memory(latents_bytes: int, card: Card, recipe: Recipe, budgets: Budgets) -> bool:
    free_bytes = budgets.memory_bytes - _base_bytes(card, recipe, budgets)
    return latents_bytes <= free_bytes * _LATENTS_FRACTION


def with_latents_bytes(least_bytes: int, *, card: Card, recipe: Recipe, budgets: Budgets) -> int:
    """A budget that leaves `least_bytes` even where, under it, latents come to memory."""
    free_bytes = max(0, least_bytes - _base_bytes(card, recipe, budgets))
    return least_bytes + int(free_bytes * _LATENTS_FRACTION / (1 - _LATENTS_FRACTION)) + 1


def _edge_bytes(component: str, stage: Stage, card: Card, rows: int) -> int:
    """Bytes of pixel rows outside the engine, in bands of `rows` latent rows."""
    own_rows = component_rows(component, rows, card)
    px_rows = {"encoder": own_rows, "decoder": own_rows * card.vae_factor}
    return min(px_rows.get(component, 0), stage.height_px) * stage.width_px * _EDGE_BYTES


def _calls(stage: Stage, recipe: Recipe) -> Sequence[tuple[str, int]]:
    """The components of a stage and how often each runs."""
    calls = stage.steps * stage.calls_per_step
    encoded = _encoded_controls(recipe) + (stage.strength is not None)
    made = [("encoder", encoded)] if encoded else []
    made.append(("denoiser", calls))
    if recipe.method == "skip" and stage.kind == "upscale" and stage.ratio > 1:
        made.append((_DILATED, calls))
    return [*made, (_TILED if recipe.vae_mode == "tiled" else "decoder", 1)]


def _trace(name: str, stage: Stage, card: Card, recipe: Recipe) -> Trace:
    """What one call of a component does."""
    dtype = _dtype(name, recipe)
    if name == _TILED:  # a tile's keys are few
        return unpooled(card.trace("decoder", dtype))
    if name in ("encoder", "decoder"):
        trace = card.trace(name, dtype)
        return unpooled(trace) if recipe.vae_attention == "exact" else trace
    # Several are of one layout: `hirescli.planning.choices`.
    read = _of_layout("controlled", recipe.controls[0]) if recipe.controls else "denoiser"
    if card.family == "flux" and recipe.image_prompts:  # a UNet's are not worth counting
        read += f"-ip{len(recipe.image_prompts)}"
    denoiser = card.trace(read, dtype, stage.attention)
    if name == _DILATED:
        denoiser = dilated(denoiser, stage.ratio)
    if not recipe.controls:
        return denoiser
    return controlled(denoiser, _controlnet_traces(card, recipe))


def _components(
    stage: Stage, *, card: Card, recipe: Recipe, rows: int | None, budgets: Budgets
) -> tuple[ComponentCost, ...]:
    """All components of a stage in the order they first run.

    Raises:
        BudgetError: Of the first that finds no room; a tiled decoder, which is quickly known
            and mostly needs the most, is tried before the others.
    """
    made = [
        _component(name, calls, stage, card=card, recipe=recipe, rows=rows, budgets=budgets)
        for name, calls in sorted(_calls(stage, recipe), key=lambda call: call[0] != _TILED)
    ]
    return tuple(sorted(made, key=lambda each: each.name == _TILED))


def _component(
    name: str, calls: int, stage: Stage, *, card: Card, recipe: Recipe, rows: int | None,
    budgets: Budgets,
) -> ComponentCost:  # fmt: skip
    if name == _TILED:
        return _tiled_decoder(stage, card=card, recipe=recipe, budgets=budgets)
    factor = card.vae_factor if name == "encoder" else 1
    own_rows = None if rows is None else component_rows(name, rows, card)
    packs = card.packs if name in _DENOISERS else 1
    schedule = make_schedule(
        _trace(name, stage, card, recipe),
        stage.latent_height * factor // packs,
        stage.latent_width * factor // packs,
        stores=stores_of(name, stage, card=card, recipe=recipe, rows=rows, budgets=budgets),
        rows=own_rows,
        most_work_bytes=CPU_WORK_BYTES if budgets.host_bytes is None else None,
        loads_weights=budgets.loads_weights,
        flops_per_second=flops_per_second(name, card=card, recipe=recipe, budgets=budgets),
    )
    return ComponentCost(name, calls, schedule, _edge_bytes(name, stage, card, rows or 1))


def _tiled_decoder(stage: Stage, *, card: Card, recipe: Recipe, budgets: Budgets) -> ComponentCost:
    """The decoder by diffusers' tiling; a tile is as large as the model's own pictures.

    Raises:
        BudgetError: If the budget cannot hold the whole picture.
    """
    stores = stores_of(_TILED, stage, card=card, recipe=recipe, rows=1, budgets=budgets)
    tiling = Tiling(
        rows=stage.latent_height,
        width=stage.latent_width,
        tile=card.native_px // card.vae_factor,
        factor=card.vae_factor,
        latent_channels=card.latent_channels,
        itemsize=_DTYPE_BYTES[_dtype(_TILED, recipe)],
    )
    schedule = tiled_schedule(
        _trace(_TILED, stage, card, recipe), tiling, stores=stores,
        flops_per_second=flops_per_second(_TILED, card=card, recipe=recipe, budgets=budgets),
    )  # fmt: skip
    needed_bytes = schedule.peak_bytes[stores[0].name]
    if needed_bytes > stores[0].budget_bytes:
        raise BudgetError(
            "tiled decoding holds the whole picture", needed_bytes + stores[0].standing_bytes
        )
    return ComponentCost(_TILED, 1, schedule, 0)


def flops_per_second(component: str, *, card: Card, recipe: Recipe, budgets: Budgets) -> float:
    """An estimate for the machine, in the dtype that the component is computed in."""
    assert recipe.threads is not None, "the recipe is not resolved"
    if budgets.host_bytes is not None:
        return _GPU_FLOPS_PER_SECOND
    gain = _BFLOAT16_GAIN if _dtype(component, recipe) == "bfloat16" else 1.0
    return card.flops_per_second_per_core * gain * recipe.threads


def _dtype(component: str, recipe: Recipe) -> str:
    autoencoder = component in ("encoder", "decoder", _TILED)
    dtype = recipe.vae_dtype if autoencoder else recipe.dtype
    assert dtype is not None, "the recipe is not resolved"
    return dtype


def component_rows(name: str, rows: int, card: Card) -> int:
    """Rows of a component's input in a band, where the recipe's bands have `rows` latent rows."""
    if name == "encoder":
        return rows * card.vae_factor
    if name in _DENOISERS:
        return max(1, rows // card.packs)
    return max(1, rows // _DECODER_ROWS) if name == "decoder" else rows


def band_rows(all_stages: Sequence[Stage], *, card: Card, recipe: Recipe, budgets: Budgets) -> int:
    """The band height of all stages in latent rows: the lowest that a component asks for."""
    *_, largest = all_stages
    cost = stage_cost(largest, card=card, recipe=recipe, rows=None, budgets=budgets)
    asked = {each.name: each.schedule.rows for each in cost.components if each.name != _TILED}
    if "decoder" in asked:
        asked["decoder"] *= _DECODER_ROWS
    for name in asked.keys() & set(_DENOISERS):
        asked[name] *= card.packs
    if "encoder" in asked:
        asked["encoder"] = max(1, asked["encoder"] // card.vae_factor)
    return min(asked.values())


def disk_bytes(
    costs: Sequence[StageCost], card: Card, recipe: Recipe, also: Sequence[Recipe] = ()
) -> int:
    """Largest use of disk by the run directory and the output; spilled values come on top.

    The last spool is allocated before the first stage and stays until the output stands.
    Beside it live a stage's records and snapshots and the spools of it and of the stage before,
    or, after these, the output and all further files (`also`: their recipes).
    """
    *before, last = (cost.stage.width_px * cost.stage.height_px * _CHANNELS for cost in costs)
    last_spool = last * recipe.bits // 8
    spools = [px * _SPOOL_BYTES for px in before]
    pairs = [a + b for a, b in zip([0, *spools], [*spools, 0], strict=True)]
    working = [
        pair + journal_bytes(cost, card, recipe) for pair, cost in zip(pairs, costs, strict=True)
    ]
    written = sum(map(written_bytes, (recipe, *also)))
    return last_spool + _given_bytes(recipe) + max(*working, written)


def journal_bytes(cost: StageCost, card: Card, recipe: Recipe) -> int:
    """What the journal of a stage grows to: a record of every call, and two snapshots.

    A snapshot is written only where that is a small part of the time since the last; a stage
    that is quick has none.
    """
    stage = cost.stage
    latents = stage.latent_width * stage.latent_height * card.latent_channels
    calls = sum(each.calls for each in cost.components if each.name in _DENOISERS)
    kept = 2 + _encoded_controls(recipe)
    records = latents * (calls * dtype_bytes(recipe) + kept * _FLOAT_BYTES)
    snapshots = max(
        min(each.memory_bytes, each.schedule.seconds * _SNAPSHOT_BYTES_PER_SECOND)
        for each in cost.components
    )
    return records + 2 * int(snapshots)


def _given_bytes(recipe: Recipe) -> int:
    """Spools of the pictures that a recipe names, each beside a smaller one."""
    pictures = [*recipe.controls, recipe.init_image, recipe.source]
    sizes_px = ((p.width_px or 0) * (p.height_px or 0) for p in pictures if p is not None)
    return sum(2 * px * _CHANNELS * _SPOOL_BYTES for px in sizes_px)


def dtype_bytes(recipe: Recipe) -> int:
    """Bytes of one number in the denoiser."""
    assert recipe.dtype is not None, "the recipe is not resolved"
    return _DTYPE_BYTES[recipe.dtype]
