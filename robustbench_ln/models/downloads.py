"""Files that a name asks for: into the libraries' own caches, whole and checked or not at all.

Hugging Face's library resumes, checks and places files by itself. torch.hub checks and places them, but begins anew
after an interruption; so weights at a plain address are brought into its cache here, and read from there by it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from filelock import FileLock

from robustbench_ln.errors import InputError, ResourceError
from robustbench_ln.models.checkpoint import file_sha256
from robustbench_ln.models.imports import from_extra, one_line

_CHUNK = 2**20
_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")  # in the name of a file, as torch.hub reads it


def offline() -> bool:
    """Whether `LNBENCH_OFFLINE` forbids the network."""
    return os.environ.get("LNBENCH_OFFLINE", "0") not in ("", "0")


def _forbidden(what: str, found: str, hint: str) -> ResourceError:
    return ResourceError(
        f"{what} would have to be downloaded, which LNBENCH_OFFLINE forbids",
        found=found,
        hint=f"unset LNBENCH_OFFLINE, or {hint}",
    )


def fetch_from_url(url: str, what: str) -> Path:
    """A file of torch.hub's cache, downloaded into it where it is not there yet.

    Args:
        url: its last part is the name of the file; a digest in the name (``resnet18-f37072fd.pth``) is checked.
        what: what it is for, for errors.

    Raises:
        ResourceError: the network is forbidden, or the download fails.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if file.exists():
        return file
    if offline():
        raise _forbidden(what, f"no file {file}", f"put {url} there")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        with FileLock(f"{partial}.lock"):
            if not file.exists():  # another process may have been quicker
                _download(url, partial)
                _check_digest(partial)
                partial.replace(file)
    except (OSError, ValueError) as error:  # urllib, ssl, sockets, the disk, the digest
        raise ResourceError(
            f"{what} cannot be downloaded", found=one_line(error), hint=f"put {url} at {file}"
        ) from error
    return file


def _download(url: str, partial: Path) -> None:
    """Download to `partial`, from where an earlier attempt stopped (if a digest will tell whether the two fit)."""
    start = partial.stat().st_size if partial.exists() and _DIGEST.search(partial.name) else 0
    headers = {"User-Agent": "lnbench", "Accept-Encoding": "identity"}
    request = Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        with urlopen(request) as response:
            resumed = response.status == 206
            expected = (start if resumed else 0) + int(response.headers.get("Content-Length") or 0)
            with partial.open("ab" if resumed else "wb") as target:
                while chunk := response.read(_CHUNK):
                    target.write(chunk)
    except HTTPError as error:
        if error.code != 416:  # nothing beyond what is there: it was complete
            raise
        return
    if partial.stat().st_size < expected:
        raise OSError(f"the connection broke after {partial.stat().st_size} of {expected} bytes; run it again to go on")


def _check_digest(partial: Path) -> None:
    """Compare with the first digits of the digest in the file's name, as torch.hub does; a file that fails goes."""
    promised = _DIGEST.search(partial.name)
    if promised and not (digest := file_sha256(partial)).startswith(promised[1]):
        partial.unlink()
        raise ValueError(f"its SHA-256 begins {digest[:8]} and not {promised[1]}")


def fetch_from_hub(repository: str, *names: str, what: str) -> Path:
    """The first file of a repository on the Hugging Face Hub that exists there, in that library's own cache.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        names: of files, the preferred one first.
        what: what it is for, for errors.

    Raises:
        InputError: there is no such repository, or no such file in it.
        ResourceError: the network is forbidden, or the download fails; or the extra `timm` is not installed.
    """
    hub = from_extra("timm", "huggingface_hub", f"for {what}")
    errors = from_extra("timm", "huggingface_hub.errors", f"for {what}")
    repo_id, _, revision = repository.partition("@")
    for name in names:
        try:
            return Path(hub.hf_hub_download(repo_id, name, revision=revision or None, local_files_only=offline()))
        except errors.LocalEntryNotFoundError as error:
            if offline():
                continue
            raise _not_downloaded(what, error) from error
        except errors.EntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise InputError(
                f"there is no {repository} on the Hugging Face Hub that can be read",
                found=one_line(error),
                hint="hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION; HF_TOKEN for one that is private",
            ) from error
        except Exception as error:  # its HTTP library's, sockets, the disk
            raise _not_downloaded(what, error) from error
    if offline():
        raise _forbidden(what, f"no {names[0]} of {repository} in the cache", f"fetch it first: hf download {repo_id}")
    raise InputError(
        f"{repository} on the Hugging Face Hub holds no weights", found=f"no {' or '.join(names)}", hint="another name"
    )


def _not_downloaded(what: str, error: Exception) -> ResourceError:
    return ResourceError(f"{what} cannot be downloaded", found=one_line(error), hint="run it again, or look at HF_HOME")
