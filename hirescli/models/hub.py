"""Repositories of the hub: one commit for all files, safetensors only, the cache offline.

No torch. Nothing of an answer of the hub but names, hashes and files is used, and no message
repeats what was sent to it, since a token may be in that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError, RunError
from hirescli.models.sums import sha256

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile("[0-9a-f]{40}")
_BLOB_HASH = re.compile("[0-9a-f]{64}")  # the name of a cached blob that is a large file
_ALLOWED = (".safetensors", ".json", ".txt")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository.

    Attributes:
        hub_id: "owner/name".
        commit: 40 hexadecimal digits.
        files: Names of all its files, or, offline, of those in the cache.
        folder: Where the cache keeps them.
        revision: Branch or tag that the commit was found by; None: the commit itself.
    """

    hub_id: str
    commit: str
    files: tuple[str, ...]
    folder: Path
    revision: str | None = None


def resolve(
    hub_id: str, revision: str | None, *, what: str = "model", needs: str = "model_index.json"
) -> Snapshot:
    """Resolve a repository's branch, tag or commit to one commit.

    Offline, and where the hub cannot be reached, the cache says it.

    Args:
        hub_id: "owner/name".
        revision: None: "main".
        what: It is, for messages.
        needs: The file that is read first: what an empty cache lacks.

    Raises:
        RequestError: If there is no such repository or revision, it asks for a login, or
            nothing of it is in the cache and the hub is not asked.
    """
    wanted = revision or "main"

    def from_cache(why: str, cause: Exception | None = None) -> Snapshot:
        found = cached(hub_id, wanted)
        if found is None:
            raise RequestError(
                f'{what} "{hub_id}" (revision "{wanted}") is not in the cache '
                f"{cache_folder()}: {needs} is missing, and {why}"
            ) from cause
        return found

    if offline():
        return from_cache("HF_HUB_OFFLINE is set; unset it, or run this once online")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(hub_id, revision=wanted)
    except GatedRepoError as error:
        raise RequestError(
            f"{hub_id} asks for a login: accept its terms on its page, then set HF_TOKEN"
        ) from _quiet(error)
    except RepositoryNotFoundError as error:
        raise RequestError(
            f'there is no {what} "{hub_id}" on the hub, or it is private; check the name, or set '
            "HF_TOKEN"
        ) from _quiet(error)
    except RevisionNotFoundError as error:
        raise RequestError(
            f'{hub_id} has no revision "{wanted}"; leave --revision out for "main"'
        ) from _quiet(error)
    except HfHubHTTPError as error:
        return from_cache("the hub gave an error; try again later", _quiet(error))
    except Exception as error:  # of the network: its classes are those of another library
        return from_cache("the hub cannot be reached", _quiet(error))
    assert info.sha, "the hub names a commit"
    names = tuple(sorted(each.rfilename for each in info.siblings or ()))
    folder = _repository(hub_id) / "snapshots" / info.sha
    return Snapshot(hub_id, info.sha, names, folder, None if wanted == info.sha else wanted)


def _quiet(error: Exception) -> Exception:
    """Only the class of an error: its text may repeat a request, and with it a token."""
    return RunError(type(error).__name__)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, now or when the library was imported."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return said or bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where the hub's library keeps repositories."""
    from huggingface_hub import constants

    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _repository(hub_id: str) -> Path:
    return cache_folder() / f"models--{hub_id.replace('/', '--')}"


def cached(hub_id: str, revision: str | None = None) -> Snapshot | None:
    """What the cache has of a repository, without asking the hub."""
    repository, wanted = _repository(hub_id), revision or "main"
    commit = wanted
    if not _COMMIT.fullmatch(wanted):
        reference = repository / "refs" / wanted
        if ".." in wanted or not reference.is_file():
            return None
        commit = reference.read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / commit
    if not folder.is_dir():
        return None
    # A link without its blob is a file that was never fetched whole.
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return Snapshot(hub_id, commit, names, folder)


def choose_weights(files: Collection[str], folder: str, base: str, where: str) -> tuple[str, ...]:
    """The weights of one component: whole ones in full precision, else in half.

    Args:
        files: Names of all files.
        folder: Of the component, "" for the root.
        base: "diffusion_pytorch_model" or "model".
        where: Of the files, for the message.

    Raises:
        RequestError: If there are none; pickles are named.
    """
    prefix = f"{folder}/" if folder else ""
    pattern = re.compile(re.escape(prefix + base) + r"-\d{5}-of-(\d{5})\.safetensors")
    for variant in ("", ".fp16"):
        if f"{prefix}{base}{variant}.safetensors" in files:
            return (f"{prefix}{base}{variant}.safetensors",)
        parts = sorted(name for name in files if not variant and pattern.fullmatch(name))
        if parts and f"{prefix}{base}.safetensors.index.json" in files:
            _check_parts(parts, pattern, where)
            return tuple(parts)
    pickles = [n for n in files if n.startswith(prefix) and n.endswith(_PICKLES)]
    if pickles:
        raise RequestError(
            f"{where} has {pickles[0]} but no {prefix}{base}.safetensors: a pickle could run "
            "code; convert it to safetensors, or use another repository"
        )
    raise RequestError(f"{where}: {prefix}{base}.safetensors is missing")


def _check_parts(parts: list[str], pattern: re.Pattern[str], where: str) -> None:
    match = pattern.fullmatch(parts[0])
    assert match is not None
    if len(parts) != int(match[1]):
        raise RequestError(f"{where}: {len(parts)} of {match[1]} parts of {parts[0]} are there")


def fetch(snapshot: Snapshot, names: Iterable[str], *, tqdm_class: Any = None) -> Path:
    """Make files of one commit be in the cache, downloading what is missing.

    Returns:
        The folder that has them.

    Raises:
        RequestError: If a file is no safetensors, JSON or text, or is missing offline.
        RunError: If the download fails.
    """
    wanted = sorted(set(names))
    for name in wanted:
        if not name.endswith(_ALLOWED):
            raise RequestError(f"{name} of {snapshot.hub_id} is not fetched: only safetensors")
    missing = [name for name in wanted if not (snapshot.folder / name).is_file()]
    if not missing:
        return snapshot.folder
    if offline():
        raise RequestError(
            f"{missing[0]} of {snapshot.hub_id} is not in the cache {cache_folder()}, and "
            "HF_HUB_OFFLINE is set; unset it, or run this once online"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            snapshot.hub_id,
            revision=snapshot.commit,
            allow_patterns=wanted,
            cache_dir=cache_folder(),
            **({} if tqdm_class is None else {"tqdm_class": tqdm_class}),
        )
    except Exception as error:  # of the network and the disk, and the library's own
        raise RunError(
            f"{missing[0]} of {snapshot.hub_id} could not be downloaded "
            f"({type(error).__name__}); the same command goes on with it"
        ) from _quiet(error)
    return Path(folder)


def remember(snapshot: Snapshot) -> None:
    """Let the cache know which commit a branch or tag is, once all that is read of it is there.

    Files are fetched by their commit, and the hub's library then notes no branch.
    """
    if snapshot.revision is None or ".." in snapshot.revision:
        return
    reference = _repository(snapshot.hub_id) / "refs" / snapshot.revision
    partial = reference.with_name(f"{reference.name}.{os.getpid()}.partial")
    try:
        reference.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(snapshot.commit, encoding="utf-8")
        partial.replace(reference)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{reference} cannot be written: {reason}") from error


def verify(paths: Iterable[Path]) -> None:
    """Check cached weights against the SHA-256 that the cache names them by.

    Raises:
        RequestError: If a file differs, naming it.
    """
    blobs = [(path, path.resolve()) for path in paths]
    hashed = [(path, blob) for path, blob in blobs if _BLOB_HASH.fullmatch(blob.name)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        sums = list(pool.map(lambda pair: sha256(pair[1]), hashed))
    for (path, blob), found in zip(hashed, sums, strict=True):
        if found != blob.name:
            raise RequestError(
                f"{path} is damaged: its SHA-256 is not the one the hub gives; delete {blob} and "
                "run this again online"
            )
