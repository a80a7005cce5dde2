"""The folder of a training: what it is, where it stands, what it gave.

OUT/train.json             the settings; another command must have the same
OUT/state.pt               where the training stands, to go on from bit for bit: weights, optimiser, position, log
OUT/last.safetensors       the weights after the newest epoch
OUT/best.safetensors       those after the epoch that was most accurate on the held-out images
OUT/log.jsonl              a line an epoch
OUT/curves.png …           the same as pictures
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robustbench_ln._version import __version__
from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.files import leftovers, locked, write_bytes
from robustbench_ln.training.processes import Processes
from robustbench_ln.training.settings import Settings

_VERSION = 1
_NAMES = ("train.json", "state.pt", "last.safetensors", "best.safetensors", "log.jsonl", "*.png")


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """Names of the files in a folder, and how they are read and written; see the module's head."""

    path: Path

    @property
    def last(self) -> Path:
        """The weights after the newest epoch."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights after the best epoch."""
        return self.path / "best.safetensors"

    @property
    def log(self) -> Path:
        """A line of JSON an epoch."""
        return self.path / "log.jsonl"

    @property
    def _state(self) -> Path:
        return self.path / "state.pt"

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Keep where the training stands; what was kept before stays until all is written."""
        buffer = io.BytesIO()
        torch.save({"version": _VERSION, **state}, buffer)
        write_bytes(self._state, buffer.getvalue())

    def read_state(self) -> dict[str, Any] | None:
        """Where the training stands; None where it has not begun.

        Raises:
            InputError: the file is damaged, or of a newer version.
        """
        if not self._state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
            version = state["version"]
        except Exception as error:  # torch.load raises almost anything at a damaged file
            raise InputError(
                f"{self._state} cannot be read",
                found=str(error).partition("\n")[0][:200],
                hint="delete it to begin anew; the weights in last.safetensors and best.safetensors are whole",
            ) from None
        if version != _VERSION:
            raise InputError(
                f"{self._state} was written by another version of lnbench",
                found=f"version {version}, this one reads {_VERSION}",
                hint="the lnbench that wrote it, or another --out",
            )
        return state

    def write_log(self, records: list[dict[str, Any]]) -> None:
        """Write the log anew: it is a view of the state, and never ahead of it."""
        write_bytes(self.log, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode())


@contextmanager
def open_training(folder: Path, settings: Settings, command: str, among: Processes) -> Iterator[TrainingFolder]:
    """The folder of a training, to these processes alone while it is open.

    Raises:
        UsageError: `folder` is a file, holds something else, or a training of other settings.
        InputError: its ``train.json`` cannot be read.
        ResourceError: it cannot be written, or another process trains into it.
    """
    with ExitStack() as stack:
        if among.first:
            among.together(lambda: stack.enter_context(_taken(folder, settings, command)))
        else:
            among.together(lambda: None)
        yield TrainingFolder(folder)


@contextmanager
def _taken(folder: Path, settings: Settings, command: str) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise UsageError("--out must be a folder", found=f"a file at {folder}", hint="another --out")
    with locked(folder, folder / ".lock", wait=False):
        for name in _NAMES:
            for stale in leftovers(folder, name):
                stale.unlink(missing_ok=True)
        path = folder / "train.json"
        if path.exists():
            _check_same(path, settings)
        elif any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UsageError(
                "--out is a folder with other things in it",
                found=f"{folder} without train.json",
                hint="an empty or new folder",
            )
        else:
            about = {
                "schema_version": 1,
                "lnbench_version": __version__,
                "torch": torch.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": command,
                "settings": settings.to_dict(),
            }
            write_bytes(path, json.dumps(about, indent=1, allow_nan=False).encode() + b"\n")
        yield


def _check_same(path: Path, settings: Settings) -> None:
    try:
        # What an older version did not have, it did not do: None.
        here = dict.fromkeys(settings.identity()) | json.loads(path.read_bytes())["settings"]
        differing = [name for name, asked in settings.identity().items() if here[name] != asked]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the record of a training", found=repr(error)[:200], hint="another --out"
        ) from None
    if differing:
        asked = settings.identity()
        names = [name.removesuffix("_sha256") for name in differing]
        raise UsageError(
            f"the folder holds a training with other settings: {', '.join(names)}",
            found="; ".join(
                f"{name} {_short(here[key])} in {path.parent}, {_short(asked[key])} asked for"
                for name, key in zip(names, differing, strict=True)
            ),
            hint="another --out, or the folder's own settings",
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:12]}…"
