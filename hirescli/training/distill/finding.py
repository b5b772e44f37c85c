"""Finding the model that is distilled, its configs read; what a method is not for is refused."""

from __future__ import annotations

from pathlib import Path

from hirescli.errors import RequestError
from hirescli.models import registry
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.families import read_json
from hirescli.models.load import WEIGHTS
from hirescli.models.sources import ModelSource
from hirescli.training.distill.targets import Found

_BUILTIN_PARTS = ("unet", "vae", "scheduler")
_UNETS, _TRANSFORMERS = ("builtin", "sd", "sdxl"), ("flux", "sd3")


def find_unet(name: str, revision: str | None = None) -> Found:
    """Find a model with a UNet, for LinFusion.

    Args:
        name: As in `hires generate`, or a folder with the built-in model's parts as `hires train
            export` writes it.
        revision: On the hub.

    Raises:
        RequestError: If it is not there, damaged, or of a family without a UNet.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _refuse_transformers(path)
        if _is_export(path):
            return _found_builtin(name, path)
    source = _source(name, revision, _UNETS)
    if source.card.family == "builtin":
        return _found_builtin(name, WEIGHTS)
    if source.card.family not in _UNETS:
        raise RequestError(_no_unet(name, source.card.family))
    return Found(name, source.card.family, source.card.native_px, source.card.vae_factor, source)


def find_transformer(name: str, revision: str | None = None) -> Found:
    """Find a model with a transformer, for CLEAR.

    Args:
        name: As in `hires generate`.
        revision: On the hub.

    Raises:
        RequestError: If it is not there, damaged, or of a family without a transformer.
    """
    path = Path(name).expanduser()
    if path.is_dir() and _is_export(path):
        raise RequestError(_no_transformer(name, "builtin"))
    source = _source(name, revision, _TRANSFORMERS)
    card = source.card
    if card.family not in _TRANSFORMERS:
        raise RequestError(_no_transformer(name, card.family))
    return Found(name, card.family, card.native_px, card.multiple_px, source)


def _source(name: str, revision: str | None, families: tuple[str, ...]) -> ModelSource:
    """A model, looked for on the hub only if its card is of these families."""
    card = next((card for card in registry.cards() if card.name == name), None)
    other = card is not None and card.family not in families
    return registry.find(name, revision, weights=not other)


def _is_export(folder: Path) -> bool:
    return not (folder / "model_index.json").exists() and (folder / "unet").is_dir()


def _found_builtin(name: str, folder: Path) -> Found:
    """The built-in model's parts; an adapter that may lie beside them is not looked at."""
    missing = [part for part in _BUILTIN_PARTS if not (folder / part).is_dir()]
    kind = None if missing else read_json(folder / "vae" / "config.json").get("_class_name")
    if kind != ThinAutoencoder.__name__:
        what = f"{', '.join(missing)} missing" if missing else f"its autoencoder is {kind}"
        raise RequestError(
            f"{folder} has no model_index.json, and is no export of the built-in model ({what}); "
            "name a folder in diffusers' layout, or one that `hires train export` wrote"
        )
    card = registry.find_card("builtin")
    side = read_json(folder / "unet" / "config.json").get("sample_size", 0)
    return Found(name, "builtin", side * card.vae_factor, card.vae_factor, folder=folder)


def _refuse_transformers(folder: Path) -> None:
    """Refuse FLUX, SD3 and their like in words that say what to do."""
    if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
        index = folder / "model_index.json"
        kind = read_json(index).get("_class_name", "unknown") if index.exists() else "unknown"
        raise RequestError(_no_unet(str(folder), str(kind)))


def _no_unet(name: str, family: str) -> str:
    return (
        f"{name} is of {family}, whose denoiser is a transformer: LinFusion's operator is for "
        "UNets (Stable Diffusion 1.5, 2.1, XL and the built-in model); transformers take CLEAR's "
        "local attention, `hires distill clear`"
    )


def _no_transformer(name: str, family: str) -> str:
    return (
        f"{name} is of {family}, whose denoiser is a UNet: CLEAR's local attention is for "
        "transformers (FLUX.1 and Stable Diffusion 3.5); UNets take LinFusion's linear attention, "
        "`hires distill linfusion`"
    )
