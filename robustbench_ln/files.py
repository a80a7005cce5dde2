"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from robustbench_ln.errors import ResourceError

log = logging.getLogger("robustbench_ln")


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path`, complete and on disk, when the block ends without an error.

    Where `path` is a symbolic link it stays one, and what it leads to is written.

    Raises:
        ResourceError: no space, no permission, or another failure of the file system; a directory, a device or a pipe.
    """
    temporary = None
    try:
        target = Path(os.path.realpath(path))
        if kind := _special(target):
            raise ResourceError(
                f"cannot write {path}", found=f"{kind}, which no file may replace", hint="another path, of a file"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes private files
        Path(temporary).replace(target)
        temporary = None
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}",
            found=error.strerror or str(error),
            hint="free space, check permissions, or choose another --out",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


_SPECIAL = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link that leads to itself"),
)


def _special(target: Path) -> str:
    """What stands there, in words, if that is no regular file; links are followed already."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return ""
    return "" if stat.S_ISREG(mode) else next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), "a device")


def leftovers(folder: Path, name: str) -> Iterator[Path]:
    """What a killed :func:`writing` of files called `name`, a glob pattern, left in `folder`."""
    return folder.glob(f".{name}.*.tmp")


@contextmanager
def locked(output: Path, lock_file: Path, *, wait: bool = True) -> Iterator[None]:
    """Have `output` to oneself while the block runs; a second command, which names the same lock file, waits.

    Raises:
        ResourceError: the lock file cannot be made; or, where one is not to wait, another has it.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise ResourceError(
                    f"another lnbench is writing to {output}",
                    found=f"{lock_file} is taken",
                    hint="let it end, or another --out",
                ) from None
            log.warning("waiting for another lnbench that is writing to %s", output)
            lock.acquire()
    except OSError as error:
        raise ResourceError(
            f"cannot write to {output}", found=error.strerror or str(error), hint="another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file at once; see :func:`writing`."""
    with writing(path) as file:
        file.write(content)


def as_utf8(text: str) -> str:
    """`text` without the stand-ins for bytes that are no UTF-8, which paths may hold and files of text must not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
