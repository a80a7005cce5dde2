"""From a path to what the file holds: one file, an archive of one, or a folder of shards."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import safetensors
import torch
from torch import Tensor, nn
from torch.serialization import SourceChangeWarning

from robustbench_ln.errors import InputError, LnbenchError, ResourceError
from robustbench_ln.models.checkpoint import Checkpoint, file_sha256
from robustbench_ln.models.dialects import copies, is_optimizer, oddity, undress
from robustbench_ln.models.imports import importable_from_here, one_line
from robustbench_ln.models.metadata import read_metadata
from robustbench_ln.models.programs import Program, ProgramKind, onnx_content
from robustbench_ln.models.sniffing import AGAIN, FileKind, file_kind, refused
from robustbench_ln.models.unpickling import Reader

_SAVE = "torch.save(network.state_dict(), ...)"


def read_checkpoint(path: Path, *, trust: bool = False, ema: bool | None = None) -> Checkpoint:
    """Read a model of any form and take everything off its state dict.

    Args:
        path: a file of any suffix; the index of a sharded checkpoint; or a folder with one of these.
        trust: read files that can run code when read.
        ema: take the averaged copy of the weights, or the plain one, where the file has both.

    Raises:
        InputError: no such file, or not a checkpoint; the likely cause is named.
        ResourceError: the file may not be read, or needs a package that is not installed.
    """
    stored = replace(read_stored(path, trust=trust), ema=ema)
    checkpoint = undress(stored)
    if checkpoint.network is None:
        _check(path, stored, checkpoint.tensors)
    return checkpoint


def read_stored(path: Path, *, trust: bool = False) -> Checkpoint:
    """What a file holds, as it is; arguments and errors as `read_checkpoint`."""
    try:
        if path.is_dir():
            return _read_folder(path, trust)
        return _READERS[file_kind(path)](path, trust)
    except FileNotFoundError as error:
        raise _absent(path) from error
    except OSError as error:
        raise ResourceError("the model file cannot be read", found=str(error), hint="check its permissions") from error


def _absent(path: Path) -> InputError:
    """The error for a path that leads nowhere."""
    folder = path.parent
    near, found = list[str](), f"no folder {folder}"
    if folder.is_dir():
        names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
        near = [str(folder / name) for name in difflib.get_close_matches(path.name, names, n=3)]
        found = f"{len(names)} other files and folders in {folder.resolve()}"
    from torchvision.models import list_models  # slow to import

    if str(path) in list_models():
        near.insert(0, f"torchvision:{path}")
    hint = "a file that exists, or a name such as demo:bn, torchvision:NAME, timm:NAME or python:package.module:factory"
    return InputError(f"no such model file: {path}", found=found, hint=" or ".join(near) or hint)


# Files of torch.save


def _read_torch(path: Path, trust: bool) -> Checkpoint:
    form, sha256 = "torch.save", file_sha256(path)
    try:
        # An open file, for from a path torch.load would conclude that it is safetensors, whatever is in it.
        with path.open("rb") as file:
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return _read_trusted(path, form) if trust else _read_unbuilt(path, form, sha256)
    except LnbenchError:
        raise
    except Exception as error:  # torch.load lets through whatever a damaged file leads to
        raise _damaged(path, error) from None
    return _holding(path, contents, Checkpoint({}, sha256, form))


def _read_unbuilt(path: Path, form: str, sha256: str) -> Checkpoint:
    """Read the weights out of a file with other objects in it, without building those."""
    reader = Reader()
    try:
        with warnings.catch_warnings():
            # Files of old form hold the source of modules, and none of those is built.
            warnings.simplefilter("ignore", SourceChangeWarning)
            contents = torch.load(
                # Not the open file: given one, torch.load would also try to unpack it as a tar archive of old.
                io.BytesIO(path.read_bytes()),
                map_location="cpu",
                pickle_module=reader,
                weights_only=False,  # `reader` builds tensors and plain containers only
            )
    except Exception as error:
        raise _damaged(path, error) from None
    unbuilt = tuple(reader.kinds)
    if shared := next((kind for kind in unbuilt if kind.endswith((".DTensor", ".ShardedTensor"))), None):
        hint = "the full state dict: torch.distributed.checkpoint.state_dict, StateDictOptions(full_state_dict=True)"
        raise refused(path, f"the part of one process of a distributed network ({shared})", hint)
    if unbuilt and not copies(contents):
        raise needs_trust(path, "a pickled Python object such as a whole module", f"it needs {unbuilt[0]}")
    return _holding(path, contents, Checkpoint({}, sha256, form, unbuilt=unbuilt))


def needs_trust(path: Path, what: str, found: str) -> InputError:
    """The error for a file that can run code when read."""
    return InputError(
        f"{path.name} holds {what}, which can run code when read",
        found=found,
        hint="--trust if you know where the file comes from; safer: save network.state_dict()",
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return refused(path, f"a file of torch.save that is cut short or damaged ({one_line(error)})", AGAIN)


def _read_trusted(path: Path, form: str) -> Checkpoint:
    # One reading for both, so that the digest is of the very bytes that are trusted.
    content = path.read_bytes()
    try:
        with importable_from_here():
            contents = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:  # the file's own code ran
        raise InputError(
            f"{path.name} is trusted, but its pickled objects cannot be built",
            found=one_line(error),
            hint="run where the modules it was saved with can be imported",
        ) from error
    return _holding(path, contents, _trusted(path, content, form))


def _trusted(path: Path, content: bytes, form: str) -> Checkpoint:
    sha256 = hashlib.sha256(content).hexdigest()
    return Checkpoint({}, sha256, form, warnings=(f"trusted to run code when read: {path.name}, SHA-256 {sha256}",))


def _holding(path: Path, contents: Any, checkpoint: Checkpoint) -> Checkpoint:
    if isinstance(contents, nn.Module):
        return replace(checkpoint, network=contents)
    if not isinstance(contents, Mapping):
        raise refused(path, f"a {type(contents).__name__}, not a state dict", _SAVE)
    return replace(checkpoint, tensors=contents)


# Safetensors


def _read_safetensors(path: Path, trust: bool) -> Checkpoint:  # noqa: ARG001 (never runs code)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata, warnings = read_metadata(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise refused(path, f"a safetensors file that is cut short or damaged ({error})", AGAIN) from None
    return Checkpoint(tensors, file_sha256(path), "safetensors", metadata=metadata, warnings=warnings)


# Programs: TorchScript, torch.export, ONNX


def _read_program(path: Path, trust: bool, *, kind: ProgramKind, form: str) -> Checkpoint:
    if not trust:
        raise needs_trust(path, f"a program of {form}", f"SHA-256 {file_sha256(path)}")
    content = path.read_bytes()
    return replace(_trusted(path, content, form), network=Program(kind, content, path.name))


def _read_onnx(path: Path, trust: bool) -> Checkpoint:  # noqa: ARG001 (never runs code)
    content, files = onnx_content(path)
    return Checkpoint({}, file_sha256(*files), "ONNX", Program("onnx", content, path.name))


# Archives and folders


def _read_tar(path: Path, trust: bool) -> Checkpoint:
    """A tar archive that holds one checkpoint, which is unpacked into a temporary folder under a name of ours."""
    try:
        with tarfile.open(path, "r:") as archive:
            member = _only_member(path, archive)
            content = archive.extractfile(member)
            assert content is not None, "a regular file"
            with tempfile.TemporaryDirectory() as folder:
                unpacked = Path(folder) / re.sub(r"[^\w.-]", "-", PurePosixPath(member.name).name)
                _unpack(path, content, member.size, unpacked)
                if (kind := file_kind(unpacked)) in ("tar", "index"):
                    raise refused(path, f"a tar archive with {member.name}, which is no checkpoint", "unpack it first")
                checkpoint = _READERS[kind](unpacked, trust)
    except tarfile.TarError as error:
        raise refused(path, f"a tar archive that is cut short or damaged ({error})", AGAIN) from None
    return replace(
        checkpoint,
        sha256=file_sha256(path),
        form=f"{checkpoint.form} in a tar archive",
    )


_NO_WEIGHTS = {".json", ".txt", ".md", ".yaml", ".yml", ".py", ".log", ".csv", ".png", ".cfg", ".toml"}


def _only_member(path: Path, archive: tarfile.TarFile) -> tarfile.TarInfo:
    files = []
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()) or member.issparse():
            hint = "an archive of plain files; unpack only what you know"
            raise refused(path, f"a tar archive with a link, a device or a path that leaves it: {member.name}", hint)
        if member.isfile() and not name.name.startswith(".") and name.suffix.lower() not in _NO_WEIGHTS:
            files.append(member)
    names = [member.name for member in files]
    if {"storages", "tensors", "pickle"} <= set(names):
        raise refused(path, "a file of PyTorch 0.1, from 2017 or before", f"read it there and save it again: {_SAVE}")
    if len(files) != 1:
        found = f"a tar archive with {len(files)} files that may be checkpoints: {', '.join(names[:5]) or 'none'}"
        raise refused(path, found, "unpack it, and name the one to evaluate")
    return files[0]


def _unpack(path: Path, content: IO[bytes], size: int, target: Path) -> None:
    # No member of a plain archive is larger than the archive, whatever its header says.
    if size > path.stat().st_size:
        raise refused(path, "a tar archive that is cut short or damaged", AGAIN)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


_INDEX_LIMIT = 64 * 2**20  # bytes of an index; that of a network with 100,000 tensors has 8 MB


def _read_index(path: Path, trust: bool) -> Checkpoint:
    """``{"weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}``: the table of a sharded checkpoint."""
    if path.stat().st_size > _INDEX_LIMIT:
        raise refused(path, "an index that is larger than any", AGAIN)
    try:
        where = json.loads(path.read_bytes())["weight_map"]
        names = sorted({*where.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise refused(path, "JSON text, but not the index of a sharded checkpoint", AGAIN) from None
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name or ":" in name:
            hint = "an index whose shards lie beside it"
            raise refused(path, f"an index that names a file outside of its folder: {str(name)[:80]!r}", hint)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        found = f"{len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}"
        raise refused(path, found if names else "an index of no shards", "download or copy all shards")
    tensors: dict[str, Any] = {}
    shards = [(name, read_stored(path.parent / name, trust=trust)) for name in names]
    for name, shard in shards:
        absent = [key for key, file in where.items() if file == name and key not in shard.tensors]
        if absent:
            raise refused(path, f"shard {name} lacks {absent[0]}, which the index says it has", AGAIN)
        tensors |= shard.tensors
    return Checkpoint(
        tensors,
        file_sha256(path, *(path.parent / name for name in names)),
        f"{shards[0][1].form} in {len(shards)} shards",
        metadata=shards[0][1].metadata,
        unbuilt=tuple(dict.fromkeys(kind for _, shard in shards for kind in shard.unbuilt)),
        warnings=tuple(dict.fromkeys(warning for _, shard in shards for warning in shard.warnings)),
    )


# In a folder, the first of these that there is, if it is the only one: as Hugging Face's libraries look for them.
_IN_A_FOLDER = (
    *("*.safetensors.index.json", "*.bin.index.json", "*.index.json", "*.safetensors"),
    *("*.bin", "*.pt", "*.pth", "*.th", "*.ckpt", "*.tar", "*.pt2", "*.onnx"),
)


def _read_folder(path: Path, trust: bool) -> Checkpoint:
    if (path / ".metadata").is_file():
        raise InputError(
            f"{path.name} is a distributed checkpoint, the parts of which only their own network can put together",
            found=f"{len(list(path.glob('*.distcp')))} files *.distcp",
            hint=f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt",
        )
    for pattern in _IN_A_FOLDER:
        files = sorted(file for file in path.glob(pattern) if file.is_file() and not file.name.startswith("."))
        if len(files) == 1:
            return read_stored(files[0], trust=trust)
        if files:
            names = ", ".join(file.name for file in files[:5])
            raise InputError(
                "the model is a folder with several checkpoints in it",
                found=f"{len(files)} files, {names}",
                hint=f"one of them, such as {files[0]}",
            )
    raise InputError(
        "the model is a folder, and holds no checkpoint", found=str(path), hint="a checkpoint file, or a folder of one"
    )


_READERS: dict[FileKind, Callable[[Path, bool], Checkpoint]] = {
    "zip": _read_torch,
    "legacy": _read_torch,
    "safetensors": _read_safetensors,
    "torchscript": partial(_read_program, kind="torchscript", form="TorchScript"),
    "exported": partial(_read_program, kind="exported", form="torch.export"),
    "onnx": _read_onnx,
    "tar": _read_tar,
    "index": _read_index,
}


# What is no whole model


def _check(path: Path, stored: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is not a whole state dict of ordinary tensors."""
    contents = stored.tensors
    if not tensors:
        if any(is_optimizer(value) for value in (contents, *contents.values())):
            raise refused(
                path, "optimizer state only, no weights", "the checkpoint that was saved with the model's weights"
            )
        several = [copy.name for copy in copies(contents)]
        if len(several) > 1:
            found = f"several state dicts, none under a usual name: {', '.join(several[:5])}"
            raise refused(path, found, "save the one to evaluate by itself")
        keys = ", ".join(map(str, list(contents)[:5])) or "nothing"
        raise refused(path, f"no weights in it; it holds {keys}", _SAVE)
    adapter = next((key for key in tensors if "lora_" in key.lower()), None)
    if adapter:
        raise refused(
            path, f"a LoRA adapter, which is a part of a network ({adapter})", "merge it into its network first"
        )
    for key, value in tensors.items():
        if found := oddity(value):
            raise refused(path, f"{key} {found}", "save the network with ordinary float tensors")
