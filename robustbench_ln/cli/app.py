"""The `lnbench` command: its subcommands, its errors, its exit codes. torch is imported by commands, not here."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from robustbench_ln.cli.bench import bench_app
from robustbench_ln.cli.corrupt import corrupt_command
from robustbench_ln.cli.eval import eval_command
from robustbench_ln.cli.inspect import inspect_command
from robustbench_ln.cli.list import list_command
from robustbench_ln.cli.preview import preview_command
from robustbench_ln.cli.report import report_command
from robustbench_ln.errors import LnbenchError

app = typer.Typer(
    name="lnbench",
    help="Measure how robust image classifiers are: noise, corruptions, normalisation modes, accuracy curves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("eval")(eval_command)
app.command("report")(report_command)
app.command("corrupt")(corrupt_command)
app.command("preview")(preview_command)
app.command("inspect")(inspect_command)
app.command("list")(list_command)
app.add_typer(bench_app, name="bench")


def _show_version(value: bool) -> None:
    if value:
        import torch

        from robustbench_ln._version import __version__

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        typer.echo(f"lnbench {__version__}, torch {torch.__version__}, {device}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001 - the callback acts on it
        bool,
        typer.Option(
            "--version", help="Show the versions of lnbench and torch, and the device.", callback=_show_version
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["LNBENCH_DEBUG"] = "1"


# typer carries its own copy of click in newer versions; its public exceptions lead to the right base class in all.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]


_signals: list[int] = []  # received so far; typer turns the exception below into its own, which has no number


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    """Let SIGTERM take the same way out as Ctrl-C, through every clean-up."""
    _signals.append(number)
    raise KeyboardInterrupt


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def main() -> NoReturn:
    """Run the command line and leave with the exit code of SPEC: 0, 1 to 6, 130, 143."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    logging.getLogger("robustbench_ln").addHandler(handler)
    signal.signal(signal.SIGTERM, _terminate)
    # Read when torch is loaded: waiting OpenMP threads sleep instead of spinning. On a machine that is busy with other
    # things, spinning made the demo run several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code: int | str | None
    try:
        code = _run()
    except SystemExit as leaving:  # typer's own way out of an interrupt, in newer versions
        code = leaving.code
    sys.exit(128 + _signals[0] if _signals else code)


def _run() -> int:
    try:
        result = app(standalone_mode=False)
    except LnbenchError as error:
        return _report(error, error.exit_code, error.what, error.found, error.hint)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error))
            return 0
        context = getattr(error, "ctx", None)
        return _report(error, 2, *_plain_words(error), f"{context.command_path if context else 'lnbench'} --help")
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone (`lnbench eval … | head`); that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _report(error, 5, "the machine stands in the way", f"{error}", "free space, memory or permissions")
    except MemoryError as error:
        return _report(error, 5, "out of memory", str(error), "a smaller --batch-size")
    return result if isinstance(result, int) else 0


def _plain_words(error: BaseException) -> tuple[str, str]:
    """What typer found wrong with the command line, in our two lines."""
    if hasattr(error, "possibilities"):
        near = ", ".join(error.possibilities or [])
        return f"no such option {getattr(error, 'option_name', '')}", f"near matches: {near}" if near else ""
    message = error.format_message().rstrip(".") if hasattr(error, "format_message") else str(error)
    what, _, found = message.partition(": ")
    return what, found


def _report(error: BaseException, code: int, what: str, found: str, hint: str) -> int:
    if os.environ.get("LNBENCH_DEBUG"):
        traceback.print_exception(error)
    for label, text in (("error", what), ("found", found), ("try", hint)):
        # One line each, and inert: names in them may come from files.
        inert = "".join(c if c.isprintable() else " " for c in text)
        print(f"{label}: {inert or '-'}", file=sys.stderr)
    return code
