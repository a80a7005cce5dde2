"""What a file is, by its content: the suffix may be anything."""

from __future__ import annotations

import codecs
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from robustbench_ln.errors import InputError

FileKind = Literal["zip", "legacy", "safetensors", "tar", "index", "torchscript", "exported", "onnx"]

# A pickled number that torch.save wrote first of all before it wrote zip archives (PyTorch 1.5 and earlier).
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_SAVEAGAIN = "save the state dict: torch.save(network.state_dict(), 'model.pt')"
_UNPACK = "unpack it first"
AGAIN = "download or copy it again"

# First bytes (of text: lower case, without leading blanks), what they mean, what to do.
_REFUSED = (
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not fetched", "git lfs pull"),
    (b"<!doctype html", "an HTML page: the download failed", AGAIN),
    (b"<html", "an HTML page: the download failed", AGAIN),
    (b"<?xml", "an XML page: the download failed", AGAIN),
    (b"\x89hdf", "an HDF5 file, as Keras writes", "a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip archive", "gunzip or tar xzf it first"),
    (b"bzh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zxz", "an xz archive", _UNPACK),
    (b"(\xb5/\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7-zip archive", _UNPACK),
    (b"rar!", "a RAR archive", _UNPACK),
    (b"\x93numpy", "a NumPy array", "a PyTorch checkpoint; for images: --data npz:FILE"),
    (b"gguf", "a GGUF file of a language model", "a PyTorch checkpoint of an image classifier"),
    (b"\x80", "a Python pickle that torch.save did not write", _SAVEAGAIN),
)


def file_kind(path: Path) -> FileKind:
    """How a model file was written.

    Returns: ``zip`` (torch.save), ``legacy`` (torch.save before 1.6), ``safetensors``, ``tar``, ``index`` (the table of
        a sharded checkpoint), or a program: ``torchscript``, ``exported`` (torch.export) or ``onnx``.

    Raises:
        InputError: the file is something else; the likely cause is named.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise refused(path, "an empty file", AGAIN)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head.startswith(_LEGACY):
        return "legacy"
    if _is_safetensors(head):
        return "safetensors"
    if _is_tar(head):
        return "tar"
    start = head.lstrip().lower()
    for magic, what, hint in _REFUSED:
        if start.startswith(magic):
            raise refused(path, what, hint)
    # A protobuf message: field 1 (ir_version) is a small number, and the producer is named near the start.
    if head[0] == 0x08 and (path.suffix == ".onnx" or b"pytorch" in head[:64] or b"onnx" in head[:64]):
        return "onnx"
    if _is_text(head):
        json = start.startswith((b"{", b"["))
        if json and (path.name.endswith(".index.json") or b'"weight_map"' in head):
            return "index"
        raise refused(path, "JSON text, not weights" if json else "a text file, not weights", AGAIN)
    raise refused(path, "no format of checkpoints that lnbench knows", _SAVEAGAIN)


def refused(path: Path, found: str, hint: str) -> InputError:
    """The error for a file that holds no checkpoint that can be read."""
    return InputError(f"{path.name} is not a checkpoint that can be read", found=found, hint=hint)


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            # Everything lies in one folder, which is named after the file it was first saved to; torch.export had none.
            names = {part for name in archive.namelist() for part in (name, name.partition("/")[2])}
            damaged = archive.testzip()  # torch.load does not look at the checksums
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise refused(path, "a zip archive that is cut short or damaged", AGAIN) from None
    if damaged:
        raise refused(path, f"a damaged zip archive: the checksum of {damaged} is wrong", AGAIN)
    if "constants.pkl" in names:
        return "torchscript"
    if any(name.startswith("data/aotinductor/") for name in names):
        hint = "the network as torch.export.save or torch.onnx.export writes it"
        raise refused(path, "compiled code of AOTInductor, made for one machine", hint)
    if names & {"archive_format", "models/model.json", "serialized_exported_program.json"}:
        return "exported"
    if "data.pkl" not in names:
        raise refused(path, "a zip archive that torch.save did not write", "unpack it, or save the state dict")
    return "zip"


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of header length, then the header, which is JSON.
    return head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 100_000_000


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")  # its checksum is looked at
    except tarfile.HeaderError:
        return False
    return True


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, for the last character may be cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
