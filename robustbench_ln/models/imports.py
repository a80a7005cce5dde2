"""Code from elsewhere: factories that a user names as `package.module:factory`, and packages of the extras."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_ln.errors import InputError, ResourceError, UsageError


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Let imports find modules in the current folder, as they do for a script that lies in it.

    What the code prints meanwhile goes to stderr: stdout is for results.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        # The code that ran may have changed the path itself.
        if here in sys.path:
            sys.path.remove(here)


def from_extra(extra: str, module: str, why: str) -> Any:
    """Import a module of a package that only an extra installs.

    Args:
        extra: its name in the project file.
        module: full name.
        why: what needs it, for the error ("for timm:resnet18").

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"the extra {extra!r} is not installed, which is needed {why}",
            found=str(error),
            hint=f"pip install 'robustbench-ln[{extra}]'",
        ) from error


def find_factory(name: str) -> Callable[..., Any]:
    """Import ``package.module:factory``, from the current folder too.

    Raises:
        UsageError: `name` has another form.
        InputError: the module cannot be imported, or has no such factory.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError("a factory is named package.module:factory", found=repr(name), hint="python:mynets.vgg:make")
    try:
        with importable_from_here():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code ran
        raise _failed(
            f"module {module_name} cannot be imported", error, "the folder it lies in, or install it"
        ) from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"module {module_name} has no factory {attribute!r}",
            found=", ".join(public[:8]) or "nothing that can be called",
            hint=f"python:{module_name}:{public[0] if public else 'factory'}",
        )
    return factory


def build_with(name: str, factory: Callable[..., Any], num_classes: int | None) -> nn.Module:
    """Call a factory, with ``num_classes=`` where that is asked for and the factory can take it.

    Raises:
        InputError: it fails, or returns no module.
    """
    arguments = {"num_classes": num_classes} if num_classes is not None and _takes_num_classes(factory) else {}
    try:
        with importable_from_here():
            network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's code ran
        raise _failed(f"factory {name} failed", error, "a factory that needs no other argument") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"factory {name} returned no torch.nn.Module",
            found=type(network).__name__,
            hint="return the network itself",
        )
    return network


def _takes_num_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return True  # written in C: only the call itself can tell
    return any(each.name == "num_classes" or each.kind is each.VAR_KEYWORD for each in parameters)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error, for the `found` of another."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _failed(what: str, error: BaseException, hint: str) -> InputError:
    return InputError(what, found=one_line(error), hint=hint)
