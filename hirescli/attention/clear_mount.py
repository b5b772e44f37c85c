"""CLEAR on a FLUX or SD3 transformer of diffusers, and off again.

A call's rows and columns travel with it, among `joint_attention_kwargs`: a hook on the
transformer reads them where they still are to be seen, from `img_ids` (FLUX) or the latent's
shape (SD3), and no state of one call is left for another.

FLUX's pipelines give `img_ids` in the dtype of the model. In bfloat16 whole numbers are exact up
to 256, so that above 4096 px neighbours would have one position. The hook puts the exact
positions in their place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
    FluxTransformer2DModel,
)
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from hirescli.attention.clear_geometry import check_settings
from hirescli.attention.clear_processor import (
    GRID,
    ClearProcessor,
    Settings,
    TokenGrid,
    geometry_of,
)
from hirescli.errors import RequestError

_MOUNTED = "_hires_clear"
_PLAIN = (FluxAttnProcessor, FluxIPAdapterAttnProcessor, JointAttnProcessor2_0)
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class ClearAdapter:
    """CLEAR as it sits on a transformer; `hirescli.unlinearize` takes it off.

    Attributes:
        transformer: What it sits on.
        settings: Shared by all attention modules; `proportional` may be set at any time.
    """

    def __init__(self, transformer: nn.Module, settings: Settings) -> None:
        self.transformer: Any = transformer
        self.settings = settings
        self._theta: float | None = getattr(transformer.pos_embed, "theta", None)
        self._processors = {name: attn.processor for name, attn in attentions(transformer)}
        self._weights: dict[str, Tensor] = {}
        for _, attn in attentions(transformer):
            attn.set_processor(_processor(attn, settings))
        self._hook = transformer.register_forward_pre_hook(
            _FluxGrid(settings) if _is_flux(transformer) else _SD3Grid(settings), with_kwargs=True
        )
        setattr(transformer, _MOUNTED, self)

    @property
    def ntk_factor(self) -> float:
        """What the base of FLUX's rotary embeddings is multiplied by; published: 10 above the
        trained size. SD3 has none: there it is 1.
        """
        theta: float = getattr(self.transformer.pos_embed, "theta", 1.0)
        return theta / (self._theta or 1.0)

    @ntk_factor.setter
    def ntk_factor(self, factor: float) -> None:
        if not factor > 0:
            raise RequestError(f"the NTK factor is {factor}; it is above 0, and 1 changes nothing")
        if self._theta is not None:
            # The very number where nothing changes: diffusers' is an integer.
            theta: Any = self._theta if factor == 1 else self._theta * factor
            self.transformer.pos_embed.theta = theta
        elif factor != 1:
            raise RequestError(
                f"the NTK factor is {factor}, and {type(self.transformer).__name__} has no rotary "
                "embeddings; leave it at 1"
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What distillation trains, under the published names: the projections of queries, keys,
        values and outputs, and the weights of pooling.
        """
        return dict(_parameters(self.transformer))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put weights in place of the transformer's own, until it is unmounted.

        On another device than the CPU the transformer's own wait in the host's memory.

        Args:
            tensors: One for each of `parameters`, of the same shapes; they take dtype and device
                of what they stand in for.
        """
        assert tensors.keys() == self.parameters().keys()
        for name, parameter in self.parameters().items():
            if name not in self._weights and not name.endswith("spatial_weight"):
                self._weights[name] = _on_host(parameter.data)
            parameter.data = tensors[name].to(parameter.device, parameter.dtype)

    def unmount(self) -> None:
        """Put back processors, weights and rotary embeddings.

        Raises:
            RequestError: If a LoRA has been fused meanwhile; then all is as it was.
        """
        for name, attn in attentions(self.transformer):
            check_unfused(name, attn)
        for name, parameter in self.parameters().items():
            if name in self._weights:
                parameter.data = self._weights[name].to(parameter.device, parameter.dtype)
        for name, attn in attentions(self.transformer):
            attn.set_processor(self._processors[name])
        self.ntk_factor = 1.0
        self._hook.remove()
        delattr(self.transformer, _MOUNTED)


def mounted(transformer: nn.Module) -> ClearAdapter | None:
    """CLEAR on this transformer, if it is there."""
    return getattr(transformer, _MOUNTED, None)


def mount(transformer: nn.Module, *, window: int, down_factor: int = 1) -> ClearAdapter:
    """Put CLEAR in place of all attentions of a transformer, with the transformer's own weights.

    Args:
        transformer: A `FluxTransformer2DModel` or `SD3Transformer2DModel`.
        window: In tokens, at least 1.
        down_factor: Side of pooled squares; 1: nothing is pooled.

    Raises:
        RequestError: If it is another model, or its attentions are not as it came, or a number
            is out of its range; then nothing has been changed.
    """
    check_settings(window, down_factor)
    check_mountable(transformer)
    settings = Settings(window, down_factor, text_first=_is_flux(transformer))
    return ClearAdapter(transformer, settings)


def check_mountable(transformer: nn.Module) -> None:
    """Check that CLEAR can take the place of all attentions of a model.

    Raises:
        RequestError: If it is another model, or its attentions are not as it came.
    """
    if not isinstance(transformer, (FluxTransformer2DModel, SD3Transformer2DModel)):
        raise RequestError(
            f"{type(transformer).__name__} has no attention that CLEAR replaces; it is made for "
            "FluxTransformer2DModel and SD3Transformer2DModel"
        )
    if mounted(transformer) is not None:
        raise RequestError(
            f"{type(transformer).__name__} has CLEAR's attention already; call "
            "hirescli.unlinearize first"
        )
    for name, attn in attentions(transformer):
        _check_plain(name, attn)


def attentions(transformer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attention modules with their names, in the model's order."""
    for name, module in transformer.named_modules():
        if name.rpartition(".")[2] in ("attn", "attn2") and hasattr(module, "set_processor"):
            yield name, module


def projections_of(attn: Any) -> list[str]:
    """The projections of an attention that distillation trains; FLUX's single blocks have no
    output's.
    """
    return [path for path in _PROJECTIONS if path != "to_out.0" or not attn.pre_only]


def check_unfused(name: str, attn: Any) -> None:
    """Refuse LoRAs that are merged into weights: they would go, or stay, with them.

    Raises:
        RequestError: If there is one.
    """
    for path, part in attn.named_modules():
        if getattr(part, "merged", False):
            raise RequestError(
                f"{name}.{path} has a LoRA fused into it; call pipe.unfuse_lora() first, and "
                "fuse it again afterwards"
            )


# What is replaced


def _is_flux(transformer: nn.Module) -> bool:
    return isinstance(transformer, FluxTransformer2DModel)


def _processor(attn: Any, settings: Settings) -> ClearProcessor:
    before, weight = attn.processor, _base(attn.to_q).weight
    prompts = before if isinstance(before, nn.Module) else None
    made = ClearProcessor(settings, prompts, device=weight.device, dtype=weight.dtype)
    if made.spatial_weight is not None:
        made.spatial_weight.requires_grad_(weight.requires_grad)
    return made.train(attn.training)


def _check_plain(name: str, attn: Any) -> None:
    """Refuse attentions whose processors or weights are not those that models come with."""
    if type(attn.processor) not in _PLAIN:
        raise RequestError(
            f"{name} has another attention, {type(attn.processor).__name__}; call "
            "set_default_attn_processor() first"
        )
    if getattr(attn, "fused_projections", False):
        raise RequestError(f"{name} has fused projections; call unfuse_qkv_projections() first")
    check_unfused(name, attn)
    for path, part in attn.named_modules():
        if hasattr(part, "_hf_hook"):
            raise RequestError(
                f"{name}.{path} has a weights-offload hook of accelerate; linearise the model "
                "before it is offloaded"
            )


def _parameters(transformer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, attn in attentions(transformer):
        for path in projections_of(attn):
            for kind, parameter in _base(attn.get_submodule(path)).named_parameters():
                yield f"{name}.{path}.{kind}", parameter
        weight = getattr(attn.processor, "spatial_weight", None)
        if weight is not None:
            yield f"{name}.processor.spatial_weight", weight


def _on_host(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type in ("cpu", "meta") else tensor.cpu()


def _base(layer: Any) -> Any:
    """The layer itself, below LoRAs."""
    return getattr(layer, "base_layer", layer)


# The grid of a call


class _FluxGrid:
    """Reads rows and columns from `img_ids`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = _arguments(module, args, kwargs)
        ids = given["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        grid, exact = grid_of_ids(ids)
        given["img_ids"] = exact
        return _with_grid(given, grid, self.settings)


class _SD3Grid:
    """Reads rows and columns from the latent's shape."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, module: Any, args: Any, kwargs: Any) -> Any:
        given = _arguments(module, args, kwargs)
        height, width = given["hidden_states"].shape[-2:]
        patch = module.config.patch_size
        return _with_grid(given, TokenGrid(height // patch, width // patch), self.settings)


def grid_of_ids(ids: Tensor) -> tuple[TokenGrid, Tensor]:
    """Rows and columns of FLUX's image positions, and the positions without rounding.

    Args:
        ids: (N, 3): nothing, row, column of each token, row by row.

    Returns:
        The grid, and (N, 3) in float32.

    Raises:
        RequestError: If they are not those of one image.
    """
    tokens = len(ids)
    if ids.device.type == "meta":
        raise RequestError("img_ids hold no positions on the meta device; make them on the CPU")
    columns = int((ids[:, 1] == 0).sum())
    rows = tokens // columns if columns else 0
    exact = torch.zeros(rows, columns, 3, device=ids.device)
    exact[..., 1] = torch.arange(rows, device=ids.device)[:, None]
    exact[..., 2] = torch.arange(columns, device=ids.device)
    exact = exact.flatten(0, 1)
    if not torch.equal(exact.to(ids.dtype), ids):
        raise RequestError(
            f"img_ids are {tokens} positions that are not the rows and columns of one image; "
            "CLEAR takes text and one image, without further images beside it"
        )
    return TokenGrid(rows, columns), exact


def _arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """All arguments of a call by their names."""
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    given = dict(bound.arguments)
    given.pop("self")
    return given


def _with_grid(given: dict[str, Any], grid: TokenGrid, settings: Settings) -> Any:
    geometry_of(grid, settings, 0)  # refused here, before anything is computed
    others = given.get("joint_attention_kwargs") or {}
    return (), {**given, "joint_attention_kwargs": {**others, GRID: grid}}
