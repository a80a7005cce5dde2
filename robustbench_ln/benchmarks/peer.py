"""The peer that corruptions are compared with: imagecorruptions from PyPI, in an environment of its own.

It needs older libraries than lnbench, so it runs in another process with another interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from robustbench_ln.errors import ResourceError

NAME = "imagecorruptions 1.1.2"
# The last versions it runs with: later ones removed what it calls.
_PACKAGES = (
    "imagecorruptions==1.1.2",
    "numpy<2",
    "scikit-image<0.21",
    "scipy<1.14",
    "opencv-python-headless<4.11",
    "setuptools<81",
)

# Answers each line {"name", "severity", "file", "seconds"} with the images a second of a measurement that long; with 0
# where it fails: with the libraries that Python 3.11 still has, two of its corruptions call what is no longer there.
_SCRIPT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import cv2, numpy
from imagecorruptions import corrupt
cv2.setNumThreads(1)
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    images = numpy.load(job["file"])
    try:
        corrupt(images[0], corruption_name=job["name"], severity=job["severity"])
    except Exception:
        print(0, flush=True)
        continue
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < job["seconds"]:
        corrupt(images[done % len(images)], corruption_name=job["name"], severity=job["severity"])
        done += 1
    print(done / (time.perf_counter() - start), flush=True)
"""


class Peer:
    """A running peer; made by :func:`find_peer`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def per_second(self, images: Path, name: str, severity: int, *, seconds: float = 0.1) -> float | None:
        """Images a second of one measurement; None where the peer cannot make this corruption.

        Args:
            images: ``.npy`` file of ``(N, H, W, 3)`` uint8.
            name: of the corruption.
            severity: 1 to 5.
            seconds: how long it measures, at least one image.

        Raises:
            ResourceError: the peer has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"name": name, "severity": severity, "file": str(images), "seconds": seconds}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline()) or None
        except (OSError, ValueError):
            raise ResourceError(f"{NAME} has ended", found=f"at {name}", hint="--peer none") from None


@contextmanager
def find_peer(where: str) -> Iterator[Peer | None]:
    """Start the peer.

    Args:
        where: ``none``; ``install``, which makes an environment in the user's cache with pip; or the Python of an
            environment that has it.

    Raises:
        ResourceError: it cannot be installed, or not be started.
    """
    if where == "none":
        yield None
        return
    python = _installed() if where == "install" else Path(where)
    try:
        process = subprocess.Popen(
            [python, "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise ResourceError(f"{NAME} cannot be started", found=str(error), hint="--peer install") from None
    with process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                assert process.stderr is not None
                last = process.stderr.read().strip().splitlines()[-1:]
                raise ResourceError(f"{NAME} cannot be used from {python}", found="".join(last), hint="--peer install")
            yield Peer(process)
        finally:
            process.kill()


def _installed() -> Path:
    folder = platformdirs.user_cache_path("lnbench") / "peer-imagecorruptions-1.1.2"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ready = folder / "ready"
    if ready.exists():
        return python
    try:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *_PACKAGES], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise ResourceError(
            f"{NAME} cannot be installed",
            found="".join(said),
            hint="--peer none, or the Python of an environment with it",
        ) from None
    ready.touch()
    return python
