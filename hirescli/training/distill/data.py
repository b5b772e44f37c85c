"""What a distillation learns from: looked at before a model is loaded, made into samples after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hirescli.errors import RequestError
from hirescli.training.dataset import shard_paths
from hirescli.training.distill import captions, making
from hirescli.training.distill.batches import Samples
from hirescli.training.distill.cache import Cache, CachedSamples
from hirescli.training.distill.course import Log, Processes
from hirescli.training.distill.place import Place
from hirescli.training.distill.rendered import RenderedSamples, views_of
from hirescli.training.distill.request import Request
from hirescli.training.distill.targets import Target


@dataclass(frozen=True)
class Data:
    """What was found before the model is loaded.

    Attributes:
        digest: Tells it from others.
        pictures, prompts: One of them, or neither where there are shards.
        shards: Whether it is rendered shards.
    """

    digest: str = ""
    pictures: tuple[captions.Captioned, ...] = ()
    prompts: tuple[str, ...] = ()
    shards: bool = False

    @property
    def count(self) -> int:
        """Of samples; 0 of shards."""
        return len(self.pictures) or len(self.prompts)


def look(request: Request, log: Log) -> Data:
    """Read what of the data can be read without the model.

    Raises:
        RequestError: If there is none, or some of it cannot be used.
    """
    if request.prompts is not None:
        prompts = tuple(captions.read_prompts(request.prompts))
        digest = captions.digest_of([*prompts, f"in {request.sampling_steps} steps"])
        return Data(digest, prompts=prompts)
    assert request.data is not None
    if shard_paths(request.data):
        if request.found.family != "builtin":
            raise RequestError(
                f"{request.data} holds rendered shards, which are for the built-in model; "
                f"{request.found.name} learns from pictures with captions or from --prompts"
            )
        views_of(request.run.resolution_px, 1)
        names = [f"{path.name} {path.stat().st_size}" for path in shard_paths(request.data)]
        return Data(captions.digest_of(names), shards=True)
    listed = captions.list_pictures(
        request.data, least_px=request.run.resolution_px, skip_broken=request.skip_broken
    )
    _say_left_out(listed.left_out, log)
    return Data(listed.digest(request.data), pictures=listed.pictures)


def samples_of(
    request: Request, target: Target, data: Data, timesteps: int, processes: Processes, log: Log
) -> Samples:
    """Where batches are from: what can be made beforehand is made, or found in the cache.

    Raises:
        RequestError: If pictures turn out to be damaged.
    """
    run = request.run
    if data.shards:
        assert request.data is not None
        return RenderedSamples(request.data, target, run, timesteps=timesteps)
    cache = _filled(request, target, data, processes, log)
    target.free_encoders()
    return CachedSamples(
        cache, cache.made(data.count), run.caption_dropout, timesteps, run.seed,
        run.batch,
    )  # fmt: skip


def _filled(request: Request, target: Target, data: Data, processes: Processes, log: Log) -> Cache:
    """The cache with all samples in it; each process makes its share."""
    cache = Cache(Place(request.output.path).cache)
    if processes.is_first:
        _prepare(cache, request, target, data)
    processes.wait()
    if processes.is_first and not cache.has_none:
        text, pooled = target.no_states()
        cache.write_none(text[0], None if pooled is None else pooled[0])
    # By number: another process may have written some while this one looks.
    missing = [n for n in cache.missing(data.count) if n % processes.count == processes.rank]

    def told(done: int) -> None:
        if processes.is_first and (done == len(missing) or done % 100 < making.TOGETHER):
            log({"samples": done, "of": len(missing)})

    side_px = request.run.resolution_px
    if data.prompts:
        making.draw_samples(
            target, data.prompts, missing, cache, side_px=side_px, seed=request.run.seed,
            steps=request.sampling_steps, told=told,
        )  # fmt: skip
    else:
        making.encode_pictures(target, data.pictures, missing, cache, side_px=side_px, told=told)
    processes.wait()
    _check_faults(cache.faults(data.count), request, data, log)
    return cache


def _prepare(cache: Cache, request: Request, target: Target, data: Data) -> None:
    """An empty cache, or one that was made from the same."""
    run = request.run
    made_from = {"samples": data.digest, "revision": target.revision, "px": run.resolution_px}
    if data.prompts:
        made_from["seed"] = run.seed
    Place(request.output.path).prepare_cache(made_from)
    cache.try_again(data.count)


def _check_faults(faults: Sequence[str], request: Request, data: Data, log: Log) -> None:
    if not faults:
        return
    all_of_them = len(faults) == data.count
    if not request.skip_broken or all_of_them:
        assert request.data is not None
        raise captions.broken(request.data, faults, of=data.count, all_of_them=all_of_them)
    _say_left_out(faults, log)


def _say_left_out(faults: Sequence[str], log: Log) -> None:
    for fault in faults:
        log({"note": f"left out: {fault}"})
