"""Sphinx configuration. The command line reference is written from the commands themselves at every build."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx
from typer.main import get_command

from robustbench_ln import __version__
from robustbench_ln.cli.app import app as commands

project = "lnbench"
author = "The lnbench authors"
copyright = "The lnbench authors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lnbench {version}"
html_static_path = ["_static"]
html_css_files = ["lnbench.css"]
html_copy_source = False
html_show_sphinx = False
highlight_language = "text"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Docstrings use plain backticks for code, Markdown's way.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command line

Every command also answers to `--help`, and `lnbench` is the same as `python -m robustbench_ln`.
Results go to stdout; progress and warnings go to stderr.
[Exit codes](../errors.md) are the same for all commands.
"""


def write_cli_reference(_: Sphinx) -> None:
    """Write one section a command: what it does, examples, arguments and options by panel."""
    root: Any = get_command(commands)
    parts = [HEAD, "## lnbench\n", f"{root.help}\n", *option_tables(root, commands.registered_callback.callback)]
    for name, command, function in walk("lnbench", commands, root):
        parts += [f"## {name}\n", *described(command), usage(name, command)]
        parts += option_tables(command, function)
    text = "\n".join(parts)
    # Only when it changed, so that an incremental build stays incremental.
    if not REFERENCE.exists() or REFERENCE.read_text(encoding="utf-8") != text:
        REFERENCE.write_text(text, encoding="utf-8")


def walk(name: str, app: Any, group: Any) -> Iterator[tuple[str, Any, Any]]:
    """Full name, command and function of every command, groups first and then what is in them."""
    for info in app.registered_commands:
        yield f"{name} {info.name}", group.commands[info.name], info.callback
    for info in app.registered_groups:
        yield from walk(f"{name} {info.name}", info.typer_instance, group.commands[info.name])


def described(command: Any) -> list[str]:
    """The docstring, its list of examples as one block that can be copied."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("Examples:")
    lines = re.findall(r"^- `(.+)`$", examples, flags=re.MULTILINE)
    return [f"{text.strip()}\n", "```bash", *lines, "```\n"] if lines else [f"{text.strip()}\n"]


def is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def usage(name: str, command: Any) -> str:
    arguments = [
        name_of(parameter) if parameter.required else f"[{name_of(parameter)}]"
        for parameter in command.params
        if is_argument(parameter)
    ]
    return f"Usage: `{' '.join([name, '[OPTIONS]', *arguments])}`\n"


def name_of(parameter: Any) -> str:
    if is_argument(parameter):
        return parameter.metavar or parameter.name.upper()
    return ", ".join(f"`{name}`" for name in parameter.opts)


def option_tables(command: Any, function: Any) -> list[str]:
    """A table for each panel of the help page, in its order."""
    panels: dict[str, list[str]] = {}
    hints = get_type_hints(function)
    for parameter in command.params:
        panel = "Arguments" if is_argument(parameter) else getattr(parameter, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append(row(parameter, hints.get(parameter.name, bool)))
    tables = []
    for panel, rows in panels.items():
        tables += [
            f"**{panel}**\n",
            f"| {panel.lower() if panel == 'Arguments' else 'option'} | value | what it does |",
        ]
        tables += ["|---|---|---|", *rows, ""]
    return tables


VALUES = {int: "integer", str: "text", Path: "path", bool: ""}


def row(parameter: Any, hint: Any) -> str:
    """One line of a table. The value's kind is read off the annotation: typer's own objects differ between versions."""
    many = "list" in str(hint)
    kind = next(words for python, words in VALUES.items() if python is hint or python.__name__ in str(hint))
    # Left alone: code, and what is escaped already.
    words = re.sub(r"(`[^`]*`)|(?<!\\)([<>*])", lambda m: m[1] or f"\\{m[2]}", parameter.help or "").replace("|", r"\|")
    default = parameter.default
    if parameter.required:
        words += " Required."
    elif kind and isinstance(default, str | int) and default != "" and "[default:" not in words:
        words += f" [default: {default}]"
    return f"| {name_of(parameter)} | {kind}{', may be repeated' if many else ''} | {words} |"


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_cli_reference)
