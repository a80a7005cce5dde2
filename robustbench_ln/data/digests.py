"""What was found in files, remembered while their sizes and times stay the same: large data are hashed once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs

_SETTLED = 2.0  # seconds; a younger file may change again and keep its time
_DIGEST = 32


def remembered(files: Sequence[Path], part: str, find: Callable[[], bytes]) -> bytes:
    """What `find` returns, or returned before for the same files in the same state.

    The state is every file's size and times of change (of content, and of anything), as with Git's index. It is kept in
    the user's cache folder; where that cannot be written, `find` is asked each time.

    Args:
        files: what `find` reads.
        part: what it finds, where there are several things to find in the same files.
        find: reads the files.

    Raises:
        OSError: a file is not there.
    """
    names = "\n".join([f"lnbench digests 1 {part}", *(str(file) for file in files)])
    place = platformdirs.user_cache_path("lnbench") / "digests" / hashlib.sha256(os.fsencode(names)).hexdigest()[:40]
    state, youngest = _state(files)
    with suppress(OSError):
        kept = place.read_bytes()
        content = kept[2 * _DIGEST :]
        if kept[: 2 * _DIGEST] == state + hashlib.sha256(content).digest():
            return content
    settled = time.time() - youngest > _SETTLED
    content = find()
    if settled and _state(files)[0] == state:
        with suppress(OSError):
            _write(place, state + hashlib.sha256(content).digest() + content)
    return content


def _state(files: Sequence[Path]) -> tuple[bytes, float]:
    """A digest of the files' sizes and times, and the latest of the times."""
    digest, youngest = hashlib.sha256(), 0.0
    for file in files:
        found = file.stat()
        digest.update(b"%d %d %d\n" % (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        youngest = max(youngest, found.st_mtime, found.st_ctime)
    return digest.digest(), youngest


def _write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(place)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
