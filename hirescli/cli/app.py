"""The command `hires`: its commands, and how errors and signals become exit codes.

Exit codes: 0 done, 2 the request is wrong, 1 it failed, 3 some jobs of a batch failed, 130 and 143
interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from hirescli.cli import (
    batch,
    bench,
    distill,
    doctor,
    evaluate,
    export,
    generate,
    info,
    inspect,
    models,
    plan,
    presets,
    runs,
    sheet,
    train,
    upscale,
    view,
)
from hirescli.cli.interrupt import Interrupted, interruptible
from hirescli.cli.options.option import paragraphs
from hirescli.cli.streams import lost_output, prepare_streams, silence, visible
from hirescli.errors import HiresError

app = typer.Typer(
    name="hires",
    help="Make ultra-high-resolution images from a prompt, on one machine.",
    epilog="Exit codes: 0 done, 2 the request is wrong, 1 it failed, 3 some jobs of a batch "
    "failed, 130 or 143 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in (
    ("generate", generate.generate),
    ("upscale", upscale.upscale),
    ("batch", batch.batch),
    ("plan", plan.plan),
    ("view", view.view),
    ("sheet", sheet.sheet),
    ("export", export.export),
    ("info", info.info),
    ("inspect", inspect.inspect),
    ("doctor", doctor.doctor),
    ("bench", bench.bench),
):
    app.command(name, help=paragraphs(command.__doc__))(command)
app.add_typer(models.app, name="models")
app.add_typer(presets.app, name="presets")
app.add_typer(runs.app, name="runs")
app.add_typer(evaluate.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(distill.app, name="distill")

# Commands that lose nothing
_GOING_ON = ("generate", "upscale", "batch", "train", "distill", "eval")
_BEGINNING_ANEW = ("--restart", "--no-skip-done")


def main() -> None:
    """Entry point of the command `hires` and of `python -m hirescli`."""
    # Bands come and go in blocks of megabytes, and their pages took a quarter of the time of a
    # step; huge pages take half of that. Torch reads this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line.

    Args:
        args: The words after `hires`.

    Returns:
        The exit code.
    """
    prepare_streams()
    try:
        with interruptible():
            code = _invoke(args)
            sys.stdout.flush()
        return _unless_lost(code)
    except Interrupted as interrupted:
        say(f"interrupted by {interrupted}; {_what_next(args)}", kind="note")
        return interrupted.exit_code
    except BrokenPipeError:
        silence(sys.stdout)  # whoever read our output has seen enough
        return 1
    except OSError as error:
        silence(sys.stdout)
        say(_reason(error))
        return 1


def _what_next(args: Sequence[str]) -> str:
    if args and args[0] in _GOING_ON:
        again = shlex.join(arg for arg in args if arg not in _BEGINNING_ANEW)
        given = ", given the same input," if "-" in args else ""
        return f"this{given} goes on: hires {again}"
    if args and args[0] == "view":
        return "the viewer has ended"
    return "the same command starts again"


def _unless_lost(code: int) -> int:
    """The code, or 1 if all went well but the paths could not be printed."""
    lost = lost_output()
    if lost is None or code:
        return code
    say(_reason(lost))
    return 1


def _reason(error: OSError) -> str:
    where = error.filename if error.filename is not None else "the output of this command"
    return f"{where}: {error.strerror or error}"


def _invoke(args: Sequence[str]) -> int:
    try:
        code = get_command(app).main(list(args), prog_name="hires", standalone_mode=False)
    except HiresError as error:
        say(str(error))
        return error.exit_code
    except typer.TyperException as error:  # the words themselves are wrong: no such option, ...
        if error.format_message():  # empty after the help that bare `hires` shows
            say(_with_help_hint(error))
        return error.exit_code
    except typer.Abort:
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return code if isinstance(code, int) else 0


def say(message: str, *, kind: str = "error") -> None:
    """Write one message to stderr, with control characters made visible."""
    shown = "\n".join(map(visible, message.split("\n")))
    try:
        print(f"{kind}: {shown}", file=sys.stderr, flush=True)
    except OSError:  # nobody listens; the exit code still speaks
        silence(sys.stderr)


def _with_help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    hint = f"\nSee: {context.command_path} --help" if context is not None else ""
    return f"{error.format_message()}{hint}"


def _print_version(asked: bool) -> None:
    if asked:
        from hirescli.cli.doctor import installed

        print(f"hires {installed('hirescli') or 'from a folder, not installed'}")
        raise typer.Exit


@app.callback()
def _hires(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
