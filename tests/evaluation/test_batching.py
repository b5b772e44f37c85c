"""Batches timed by their events."""

from __future__ import annotations

import pytest

from hirescli.errors import RunError
from hirescli.evaluation.batching import BatchRun, batch_run
from hirescli.evaluation.tables import batch_table


def test_the_share_outside_of_stages_and_writing() -> None:
    run = BatchRun(20, 128, 64, 10.0, 0.5, stages_seconds=8.0, writing_seconds=1.5)
    assert run.outside_share == pytest.approx(0.05)
    assert "| 128x64 | 20 | 10.0 s | 0.5 s | 8.0 s | 1.5 s | 5.0% |" in batch_table([run])[0]


@pytest.mark.slow
def test_a_real_batch() -> None:
    run = batch_run(64, 64, jobs=2)
    assert 0 < run.start_seconds < run.seconds
    assert run.stages_seconds > 0
    assert run.writing_seconds > 0
    spent = run.start_seconds + run.stages_seconds + run.writing_seconds
    assert spent < run.seconds


def test_a_batch_that_fails_is_told() -> None:
    with pytest.raises(RunError, match="ended with 2"):
        batch_run(7, 7, jobs=1)
