"""The kinds of command that all of ours are: typer's, with our error for unknown names and a help page that fits."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from robustbench_ln.errors import unknown_name


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, as parsed and as shown."""
        return _with_bare_flags(super().get_params(ctx))


class Commands(TyperGroup):
    """A command of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, as parsed and as shown."""
        return _with_bare_flags(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first of `args` names."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise unknown_name("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _with_bare_flags(parameters: list[Any]) -> list[Any]:
    """Without the `<bool>` that newer versions of typer show behind a flag, as if it took a value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
