"""Reading pickles without running anything in them: what is not a tensor or a plain container becomes an empty shell.

Training scripts keep their arguments, callbacks and schedulers beside the weights, as objects of classes that may not
even be installed. PyTorch's reader with weights only refuses the whole file for one of them. Here an object of a class
that is not in the table below is replaced by an `Unbuilt`, which remembers the name of the class and swallows
everything that the pickle does with it. Nothing is imported, and no function outside the table is called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

import torch


class Unbuilt:
    """Stands for an object that was not built; each class of the file has a subclass of this one."""

    kind = ""  # `module.name` of the class or function that the pickle asked for
    dump_patches = False  # as of nn.Module: torch.load asks for it where a file of old form has a module's source

    def __new__(cls, *_: Any, **__: Any) -> Unbuilt:
        """Take what its own constructor would have been called with."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Unbuilt:
        """A function that another function of the pickle would have made (dill's types): nothing is called."""
        return self

    def _swallow(self, *_: Any) -> None:
        """Whatever a pickle adds to an object it is building."""

    __setstate__ = __setitem__ = append = extend = add = update = _swallow


class _Known:
    """A harmless function that a pickle may call; its own attributes cannot be set by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _dictionary(*_: Any) -> dict[Any, Any]:
    """An empty dictionary, where the pickle has one that calls a function for missing keys."""
    return {}


# What builds tensors and plain containers. None of these runs code of the file or touches anything outside of it.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _dictionary,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as Python 2 called it, and protocol 2 still does
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}


class Reader(ModuleType):
    """In the place of the module `pickle`: builds tensors and plain containers, and `Unbuilt` for everything else.

    Attributes:
        kinds: names of the classes and functions that were asked for and not built, in the order they were met.
        Unpickler: the class that reads one pickle.
    """

    def __init__(self) -> None:
        super().__init__("reader")
        self.kinds: dict[str, type[Unbuilt]] = {}
        kinds = self.kinds

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) in _KNOWN:
                    return _Known(_KNOWN[module, name])
                if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
                    return dtype
                kind = f"{module}.{name}"
                return kinds.setdefault(kind, type("Unbuilt", (Unbuilt,), {"kind": kind}))

        self.Unpickler = Unpickler

    def load(self, file: IO[bytes], **options: Any) -> Any:
        """One pickle."""
        return self.Unpickler(file, **options).load()
