"""`hires bench findings`: linear attention with parts of operator and loss left out."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured, command, ran_here
from hirescli.cli.options.machine import set_threads
from hirescli.errors import RequestError
from hirescli.evaluation.page import section


def findings(asked: dict[str, Any]) -> Measured:
    """Distil every variant that is not finished yet, and compare them all."""
    for name in ("data", "held-out", "work"):
        if name not in asked:
            raise RequestError(
                f"--{name} is missing; `hires bench findings --help` says what it is"
            )
    from hirescli.evaluation.findings.experiment import Experiment, Settings
    from hirescli.evaluation.findings.report import findings_chart, findings_table

    settings = Settings(**{key: asked[key] for key in ("steps", "pictures") if key in asked})
    set_threads(asked.get("threads"))
    work, model = asked["work"], str(asked.get("model", "builtin"))
    experiment = Experiment(model, asked["data"], asked["held-out"], work, settings, _say)
    results = experiment.run()
    text = section(
        "Findings",
        command=command("findings", asked),
        paragraphs=[ran_here(), *findings_table(results)],
    )
    return Measured(text, results, partial(findings_chart, results=results, work=work))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
