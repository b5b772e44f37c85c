"""The engine: banded inputs in, graphs of what is wanted scheduled and run."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hirescli.bands.execute import Execution, Sink
from hirescli.bands.graph import Graph
from hirescli.bands.heap import HEAP_BYTES
from hirescli.bands.snapshot import Journal, Record, Resumable
from hirescli.bands.stores import Kept, Ledger, new_value
from hirescli.bands.tensor import BandedTensor, Grid, Node
from hirescli.errors import NotFiniteError
from hirescli.events import Event, Listener
from hirescli.planning.passes import Schedule, Store
from hirescli.planning.schedule import make_schedule


def banded(
    shape: Sequence[int],
    source: Callable[[int, int], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    level: Fraction | int = 1,
) -> BandedTensor:
    """An image (1, C, H, W) that stands outside the engine.

    Args:
        shape: Of the whole.
        source: Gives rows lo to hi, (1, C, hi - lo, W), any number of times.
        dtype: Of its numbers.
        device: Where they are computed with.
        level: Its rows for each row of the component's input.
    """
    grid = Grid(shape[2], shape[3], Fraction(level), 2)
    return banded_input(shape, source, dtype=dtype, device=torch.device(device), grid=grid)


def banded_input(
    shape: Sequence[int],
    source: Callable[[int, int], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    grid: Grid,
) -> BandedTensor:
    """One sample of any shape that stands outside the engine.

    Args:
        shape: Of the whole.
        source: Gives rows lo to hi, any number of times.
        dtype: Of its numbers.
        device: Where they are computed with.
        grid: Where its rows are.
    """
    node = Node(
        kind="input", name="input", parents=(), shape=torch.Size(shape), dtype=dtype,
        device=device, grid=grid, source=source, module="input",
    )  # fmt: skip
    return BandedTensor.of([node])


def banded_tensor(
    whole: Tensor, *, device: torch.device | None = None, level: Fraction | int = 1
) -> BandedTensor:
    """A whole tensor (B, C, H, W) as a banded one: a node for each sample."""
    device = device or whole.device

    def source_of(sample: Tensor) -> Callable[[int, int], Tensor]:
        return lambda lo, hi: sample[:, :, lo:hi].to(device)

    samples = [
        banded(
            (1, *whole.shape[1:]), source_of(whole[b : b + 1]),
            dtype=whole.dtype, device=device, level=level,
        )
        for b in range(whole.shape[0])
    ]  # fmt: skip
    return BandedTensor.of([sample.nodes[0] for sample in samples])


@dataclass
class Report:
    """What the engine has done.

    Attributes:
        peak_device_bytes, peak_host_bytes, peak_disk_bytes: Largest use by one call, bands and
            stores together, as scheduled. On a CPU bands and stores are on the host, with what
            the heap keeps.
        passes: Of all calls.
        rows: Band height of the last call, in rows of the component's input.
        flops: Of all calls.
        plain_flops: What the same calls compute without bands.
    """

    peak_device_bytes: int = 0
    peak_host_bytes: int = 0
    peak_disk_bytes: int = 0
    passes: int = 0
    rows: int = 0
    flops: float = 0.0
    plain_flops: float = 0.0

    def add(self, schedule: Schedule) -> None:
        """Count one call."""
        peaks = schedule.peak_bytes
        if "device" not in peaks:  # bands are on the host, and so is what its heap keeps
            peaks["host"] += HEAP_BYTES
        self.peak_device_bytes = max(self.peak_device_bytes, peaks.get("device", 0))
        self.peak_host_bytes = max(self.peak_host_bytes, peaks.get("host", 0))
        self.peak_disk_bytes = max(self.peak_disk_bytes, peaks.get("disk", 0))
        self.passes += len(schedule.passes)
        self.rows = schedule.rows
        self.flops += schedule.flops
        self.plain_flops += schedule.plain_flops


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for cycles of garbage.

    Recording makes thousands of objects, none in a cycle, and the search would go through all
    modules again and again: a fifth of the time of a small call.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _silent(_: Event) -> None:
    pass


@dataclass
class Engine:
    """Computes banded tensors under budgets.

    Attributes:
        stores: Where values may rest; bands are computed in the first.
        rows: Band height in rows of a component's input; None: as the budget asks.
        keep_in: Keep every value in this store; None: as the budgets ask.
        spill: Folder of the disk store; None: the system's folder for temporary files.
        listener: Is told of passes.
        call: Name of the component that is called now, for events.
        loads_weights: Whether weights rest on the host and are loaded for each pass.
        flops_per_second: Of the machine, to weigh arithmetic against moves.
        names: Of weights, by the id of the parameter.
        most_work_bytes: What a band may take where the engine chooses its height.
        journal: Remembers what calls gave; None: nothing does.
    """

    stores: Sequence[Store]
    rows: int | None = None
    keep_in: int | None = None
    spill: Path | None = None
    listener: Listener = _silent
    call: str = ""
    loads_weights: bool = False
    flops_per_second: float = 1e11
    names: dict[int, str] = field(default_factory=dict)
    most_work_bytes: int | None = None
    journal: Journal | None = None
    report: Report = field(default_factory=Report)
    ledger: Ledger = field(default_factory=Ledger)
    _schedules: dict[Any, Schedule] = field(default_factory=dict)

    def compute(
        self, outputs: Sequence[Node], sinks: Sequence[Sink], resumable: Resumable | None = None
    ) -> None:
        """Compute outputs and give their rows to the sinks, from top to bottom.

        Args:
            outputs: What is wanted.
            sinks: For each output, what takes its bands.
            resumable: Where the call is remembered while it is under way.

        Raises:
            BudgetError: If the budget cannot hold one band.
            RunError: As `Execution.run`.
        """
        graph = Graph.of(outputs, self.names)
        schedule = self.schedule(graph)
        self.report.add(schedule)
        spill = self.spill or Path(tempfile.gettempdir())
        Execution(
            graph, schedule, sinks, spill, self.ledger, self.listener, self.call, resumable
        ).run()

    def schedule(self, graph: Graph) -> Schedule:
        """The schedule of a graph; of the same graph the same one."""
        key = (graph.trace.ops, graph.outputs, graph.rows, graph.width, tuple(self.stores))
        if key not in self._schedules:
            self._schedules[key] = make_schedule(
                graph.trace, graph.rows, graph.width,
                stores=self.stores, rows=self.rows, keep_in=self.keep_in,
                loads_weights=self.loads_weights,
                most_work_bytes=self.most_work_bytes, flops_per_second=self.flops_per_second,
            )  # fmt: skip
        return self._schedules[key]

    def whole(self, tensors: Sequence[BandedTensor]) -> list[Tensor]:
        """Banded tensors as whole ones; all are computed together."""
        made, nodes, sinks = [], [], []
        for tensor in tensors:
            result = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            made.append(result)
            for b, node in enumerate(tensor.nodes):
                nodes.append(node)
                sinks.append(_into(result[b : b + 1], node))
        self.compute(nodes, sinks)
        return made

    def keep(
        self, tensors: Sequence[BandedTensor], store: str, *, record: str | None = None
    ) -> list[BandedTensor]:
        """Banded tensors computed together and kept in a store until they are garbage.

        Args:
            tensors: What is wanted; results of earlier calls among their operands.
            store: "device", "host" or "disk".
            record: Name under which the journal, if there is one, remembers them, and answers
                the same call in a later process; None: they are computed every time.

        Raises:
            RunError: As `compute`, or if the disk has no room.
        """
        remembered = None
        if self.journal is not None and record is not None:
            remembered = self.journal.call(record)
        nodes = [node for tensor in tensors for node in tensor.nodes]
        kept: list[Kept] = []
        try:
            for node in nodes:
                kept.append(self._place(node, store, remembered, len(kept)))
            self._fill(nodes, kept, remembered)
        except BaseException as error:
            for value in kept:
                value.close(leave=not isinstance(error, NotFiniteError))
            raise
        made = iter(_kept_input(n, k) for n, k in zip(nodes, kept, strict=True))
        return [BandedTensor.of([next(made) for _ in tensor.nodes]) for tensor in tensors]

    def recall(
        self, shape: Sequence[int], store: str, *, record: str, device: torch.device
    ) -> BandedTensor | None:
        """An image (1, C, H, W), float32, that an earlier process kept and recorded.

        Args:
            shape: Of it.
            store: Where it is kept now.
            record: The name it was recorded under.
            device: Where its rows are computed with.

        Returns:
            As `keep`; None if there is no such record, or it is damaged.
        """
        if self.journal is None:
            return None
        remembered = self.journal.call(record)
        if (found := remembered.recall()) is None:
            return None
        node = banded(shape, _unread, dtype=torch.float32, device=device).nodes[0]
        kept = self._place(node, store, None, 0)
        kept.replay(found[0])
        return BandedTensor.of([_kept_input(node, kept)])

    def _place(self, node: Node, store: str, record: Record | None, number: int) -> Kept:
        spill = self.spill or Path(tempfile.gettempdir())
        name = None if record is None else f"{record.prefix}result-{number}.value"
        return new_value(node, store, spill, self.ledger, name=name)

    def _fill(self, nodes: Sequence[Node], kept: Sequence[Kept], record: Record | None) -> None:
        """Compute the values, or take them from their record."""
        sinks = [value.put for value in kept]
        if record is None:
            self.compute(nodes, sinks)
        elif (found := record.recall()) is not None:
            for value, tree in zip(kept, found, strict=True):
                value.replay(tree)
        else:
            self.compute(nodes, sinks, Resumable(record, kept))
            record.finish([value.record() for value in kept])


def _kept_input(node: Node, kept: Kept) -> Node:
    """The node of a kept value, an input of level 1: what made it can go."""
    assert node.grid is not None
    made = Node(
        kind="input", name="input", parents=(), shape=node.shape, dtype=node.dtype,
        device=node.device, grid=replace(node.grid, level=Fraction(1)), source=kept.rows,
        module="input",
    )  # fmt: skip
    weakref.finalize(made, kept.close)
    return made


def _unread(lo: int, hi: int) -> Tensor:
    raise AssertionError("only the shape is wanted")


def _into(target: Tensor, node: Node) -> Sink:
    """A sink that writes rows into a whole sample."""
    assert node.grid is not None
    dim, per_row = node.grid.dim, node.per_row

    def write(lo: int, hi: int, band: Tensor) -> None:
        target.narrow(dim, lo * per_row, (hi - lo) * per_row).copy_(band)

    return write
