"""The `lnbench` command: its subcommands, its errors, its exit codes. torch is imported by commands, not here."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from robustbench_ln.cli.bench import bench_app
from robustbench_ln.cli.commands import Command, Commands
from robustbench_ln.cli.compare import compare_command
from robustbench_ln.cli.convert import convert_command
from robustbench_ln.cli.corrupt import corrupt_command
from robustbench_ln.cli.eval import eval_command
from robustbench_ln.cli.gate import gate_command
from robustbench_ln.cli.inspect import inspect_command
from robustbench_ln.cli.list import list_command
from robustbench_ln.cli.options import DebugOpt
from robustbench_ln.cli.preview import preview_command
from robustbench_ln.cli.process import Interrupted, command_line, help_line, interrupt
from robustbench_ln.cli.report import report_command
from robustbench_ln.cli.train import train_command
from robustbench_ln.errors import LnbenchError

app = typer.Typer(
    name="lnbench",
    cls=Commands,
    help="Measure how robust image classifiers are: noise, corruptions, normalisation modes, accuracy curves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("eval", cls=Command)(eval_command)
app.command("report", cls=Command)(report_command)
app.command("compare", cls=Command)(compare_command)
app.command("gate", cls=Command)(gate_command)
app.command("convert", cls=Command)(convert_command)
app.command("train", cls=Command)(train_command)
app.command("corrupt", cls=Command)(corrupt_command)
app.command("preview", cls=Command)(preview_command)
app.command("inspect", cls=Command)(inspect_command)
app.command("list", cls=Command)(list_command)
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
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the versions of lnbench and torch, and the device.", callback=_show_version
        ),
    ] = False,
    debug: DebugOpt = False,
) -> None:
    pass


# typer carries its own copy of click in newer versions; its public exceptions lead to the right base class in all.
_ClickException: type[BaseException] = typer.BadParameter.__mro__[2]


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def main() -> NoReturn:
    """Run the command line and leave with the exit code of SPEC: 0, 1 to 6, 130, 143."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    logging.getLogger("robustbench_ln").handlers = [handler]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    # Read when torch is loaded: waiting OpenMP threads sleep instead of spinning. On a machine that is busy with other
    # things, spinning made the demo run several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run())


def _run() -> int | str | None:
    try:
        result = app(standalone_mode=False)
        sys.stdout.flush()  # that the reader has gone is found out here, and not while Python shuts down
    except LnbenchError as error:
        return _report(error, error.exit_code, error.what, error.found, error.hint)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error))
            return 0
        return _report(error, 2, *_plain_words(error))
    except Interrupted as error:
        print(f"interrupted: {error.kept}\ngo on with: {command_line()}", file=sys.stderr)
        return error.code
    except SystemExit as leaving:
        # typer and rich leave so, with code 1, when the reader of stdout has gone.
        return _without_reader() if isinstance(leaving.__context__, BrokenPipeError) else leaving.code
    except BrokenPipeError:
        return _without_reader()
    except OSError as error:
        return _report(error, 5, "the machine stands in the way", f"{error}", "free space, memory or permissions")
    except MemoryError as error:
        return _report(error, 5, "out of memory", str(error), "a smaller --batch-size")
    return result if isinstance(result, int) else 0


def _without_reader() -> int:
    """The reader of stdout has gone (`lnbench eval … | head`); that is its right."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _plain_words(error: BaseException) -> tuple[str, str, str]:
    """What typer found wrong with the command line, in our three lines."""
    if hasattr(error, "possibilities"):
        name, near = getattr(error, "option_name", ""), " or ".join(error.possibilities or [])
        return f"no such option {name}", name, near
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return message.rstrip("."), "", ""


def _report(error: BaseException, code: int, what: str, found: str, hint: str) -> int:
    if os.environ.get("LNBENCH_DEBUG"):
        traceback.print_exception(error)
    # Where an error has no more to say, what was found is what was typed.
    for label, text in (("error", what), ("found", found or command_line()), ("try", hint or help_line())):
        # One line each, and inert: names in them may come from files.
        print(f"{label}: {''.join(c if c.isprintable() else ' ' for c in text)}", file=sys.stderr)
    return code
