"""Export: from training states and an adapter to the folder the built-in model is loaded from."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hirescli.attention.linfusion import LinFusionAdapter, check_fit
from hirescli.attention.loading import load_adapter
from hirescli.errors import RequestError, RunError
from hirescli.models.quiet import quiet_libraries
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.sources import local_revision
from hirescli.models.sums import SUMS, write_sums
from hirescli.training.autoencoder import export as export_autoencoder
from hirescli.training.autoencoder import load as load_autoencoder
from hirescli.training.denoiser import export as export_denoiser
from hirescli.training.denoiser import load as load_denoiser
from hirescli.training.distill.linfusion import MID_DIM_SCALES
from hirescli.training.distill.outputs import AdapterFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def export(
    *, autoencoder: Path, denoiser: Path, folder: Path, adapter: Path | None = None
) -> None:
    """Write the averaged weights in diffusers layout: vae, unet, linfusion, scheduler; and
    the checksums of all files.

    Args:
        autoencoder: The file of its training, or its folder in another export.
        denoiser: The same of the teacher.
        folder: Where they go; an older export's parts are replaced once all are written.
        adapter: Distilled from this teacher; None: an untrained one, to begin a distillation.

    Raises:
        RequestError: If a file is no state of its model, the adapter does not fit or was
            distilled from another teacher, or something else stands in the folder; nothing is
            written then.
        RunError: If the folder cannot be written.
    """
    _check_place(folder)
    unet, vae = load_denoiser(denoiser), load_autoencoder(autoencoder)  # before any write
    linear = _adapter(unet, adapter)
    try:
        with _filled(folder) as partial:
            export_denoiser(unet, partial)
            if adapter is not None:
                _check_teacher(adapter, partial / "unet")
            export_autoencoder(vae, partial / "vae")
            with quiet_libraries():
                linear.half().save_pretrained(partial / "linfusion", safe_serialization=True)
            write_sums(partial)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error


def _check_place(folder: Path) -> None:
    """Refuse a folder of which an export would replace what is not an export's."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SUMS).exists():
        raise RequestError(f"{folder} holds something that is no export; name another folder")


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """A folder beside, to fill; its parts go to their place once the context has ended."""
    folder = folder.absolute()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        folder.mkdir(exist_ok=True)
        for part in sorted(partial.iterdir(), key=lambda path: path.name == SUMS):
            if part.is_dir():  # a folder cannot be put in place of another
                shutil.rmtree(folder / part.name, ignore_errors=True)
            os.replace(part, folder / part.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_teacher(adapter: Path, unet: Path) -> None:
    """Refuse an adapter that says it was distilled from another teacher."""
    said = AdapterFolder(adapter).about() or {}
    files = [read_tensors(path) for path in sorted(unet.glob("*.safetensors"))]
    now = local_revision((), files)
    if said.get("revision", now) != now:
        raise RequestError(
            f"adapter {adapter} was distilled from {said['revision']}, and this denoiser is "
            f"{now}: it has been trained since, or is another; export the teacher again, without "
            "--adapter, and distil from that"
        )


def _adapter(teacher: UNet2DConditionModel, folder: Path | None) -> Any:
    if folder is None:
        return LinFusionAdapter.for_unet(teacher, mid_dim_scale=MID_DIM_SCALES["builtin"])
    adapter = load_adapter(folder)
    check_fit(teacher, adapter)
    return adapter
