"""The kinds of command that all of ours are: typer's, with our errors, a help page that fits, and `--debug`."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from robustbench_ln.cli.options import DebugOpt
from robustbench_ln.errors import UsageError, unknown_name


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, as parsed and as shown."""
        return _completed(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the command line, in which an option is no other option's value."""
        options = {
            name: one
            for one in self.get_params(ctx)
            for name in (*one.opts, *one.secondary_opts)
            if name.startswith("-")  # an argument's name may also be its value
        }
        for name, value in pairwise(args):
            if name == "--":
                break
            option = options.get(name)
            if option is not None and not option.is_flag and value.partition("=")[0] in options:
                hint = f"{name} {option.metavar or 'VALUE'} {value}"
                raise UsageError(f"{name} has no value", found=f"{value} behind it", hint=hint)
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """A command of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, as parsed and as shown."""
        return _completed(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first of `args` names."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise unknown_name("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _completed(parameters: list[Any]) -> list[Any]:
    """With `--debug`; without the `<bool>` that newer versions of typer show behind a flag, as if it took a value."""
    parameters = [*parameters, _debug()]
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


@cache
def _debug() -> Any:
    """The option, made by typer from a signature as all others are."""

    def signature(debug: DebugOpt = False) -> None:
        pass

    app = typer.Typer(add_completion=False)
    app.command()(signature)
    (option,) = typer.main.get_command(app).params
    return option
