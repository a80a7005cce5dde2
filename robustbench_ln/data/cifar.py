"""`cifar10[:DIR]` and `cifar100[:DIR]`: the official files, through torchvision."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock

from robustbench_ln.data.base import ArrayDataset, Dataset, Request, existing_path
from robustbench_ln.data.geometry import resized
from robustbench_ln.errors import InputError, ResourceError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

_SILENCE = 60.0  # seconds without a byte after which a download has failed; torchvision would wait for ever


def open_cifar10(request: Request) -> Dataset:
    """CIFAR-10 as torchvision reads it; without a folder it is downloaded once into the user's cache."""
    from torchvision.datasets import CIFAR10

    return _open("cifar10", CIFAR10, request)


def open_cifar100(request: Request) -> Dataset:
    """CIFAR-100 with its 100 fine labels; otherwise as cifar10."""
    from torchvision.datasets import CIFAR100

    return _open("cifar100", CIFAR100, request)


def _open(name: str, kind: type[CIFAR10], request: Request) -> Dataset:
    train = request.split == "train"
    if request.argument:
        stored = _load(kind, _root(kind, request.argument), train=train)
    else:
        stored = _load_or_download(name, kind, train=train)
    dataset = ArrayDataset(
        stored.data,
        stored.targets,
        stored.classes,
        id=f"{name}-train" if train else name,
        source=request.source,
    )
    dataset.has_splits = True
    return resized(dataset, request.geometry)


def _root(kind: type[CIFAR10], argument: str) -> Path:
    """The folder that holds `cifar-10-batches-py`, when the user names either of the two."""
    folder = existing_path(argument)
    return folder.parent if folder.name == kind.base_folder else folder


def _load(kind: type[CIFAR10], root: Path, *, train: bool) -> CIFAR10:
    """What lies in the folder. torchvision compares every file's MD5 before it unpickles one.

    Raises:
        InputError: files are missing or are not the official ones.
    """
    try:
        return kind(root, train=train)
    except PermissionError as error:
        raise ResourceError("no permission to read the data", found=repr(error.filename)) from error
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"not the official files of {kind.__name__}",
            found=f"{_wrong_files(kind, root)} in {str(root / kind.base_folder)!r}",
            hint=f"the folder that holds {kind.base_folder}, unpacked from {kind.filename}",
        ) from error


def _wrong_files(kind: type[CIFAR10], root: Path) -> str:
    from torchvision.datasets.utils import check_integrity

    official = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    folder = root / kind.base_folder
    missing = [name for name, _ in official if not (folder / name).is_file()]
    altered = [name for name, md5 in official if name not in missing and not check_integrity(folder / name, md5)]
    named = ((missing, "missing"), (altered, "altered"))
    return ", ".join(f"{' '.join(names)} {what}" for names, what in named if names) or "unreadable files"


def _load_or_download(name: str, kind: type[CIFAR10], *, train: bool) -> CIFAR10:
    root = platformdirs.user_cache_path("lnbench") / "data"
    with contextlib.suppress(InputError):
        return _load(kind, root, train=train)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):  # several runs may start at once on a fresh machine
            with contextlib.suppress(InputError):  # another one was first
                return _load(kind, root, train=train)
            _download(name, kind, root)
            return _load(kind, root, train=train)
    except OSError as error:
        raise ResourceError("the cache folder cannot be used", found=repr(str(error))) from error


def _download(name: str, kind: type[CIFAR10], root: Path) -> None:
    hint = f"--data {name}:DIR, where DIR holds {kind.base_folder}"
    if os.environ.get("LNBENCH_OFFLINE", "0") not in ("", "0"):
        raise ResourceError(f"{name} is not on this machine", found="LNBENCH_OFFLINE forbids the download", hint=hint)
    # torchvision takes complete batches for a complete set, and would never fetch a lost batches.meta again.
    shutil.rmtree(root / kind.base_folder, ignore_errors=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            kind(root, download=True)
    except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError, EOFError) as error:
        raise ResourceError(f"{name} cannot be downloaded", found=f"{kind.url}: {error}", hint=hint) from error
    finally:
        socket.setdefaulttimeout(before)
    (root / kind.filename).unlink(missing_ok=True)
