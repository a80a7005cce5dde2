"""Networks that are stored as programs, not as weights: TorchScript, torch.export and ONNX. They run as they are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustbench_ln.errors import InputError
from robustbench_ln.models.imports import from_extra, one_line

ProgramKind = Literal["torchscript", "exported", "onnx"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A program ready to run.

    Attributes:
        run: images to whatever the program returns; a module of PyTorch moves between devices.
        shape: of the images, (B, C, H, W), None where any length goes; None where the program does not say.
        dtype: of the images.
    """

    run: Callable[[Tensor], Any]
    shape: tuple[int | None, ...] | None = None
    dtype: torch.dtype = torch.float32


class Program(nn.Module):
    """A network that can do one thing only: turn images into logits, as its own eval() did.

    Its norm layers cannot be reached. Pickled and copied, it is the bytes of its file.

    Args:
        kind: how the program was written.
        content: the bytes of the file.
        name: of the file, for errors.
        batch: as the attribute, where it is known.

    Attributes:
        batch: images in one run, where the program was exported for a fixed number; more are run in pieces. May be
            set, for a TorchScript program does not say it.
        image_size: height and width, where they are fixed.

    Raises:
        InputError: the program cannot be read, or takes something else than one batch of images.
        ResourceError: the package that runs it is not installed.
    """

    def __init__(self, kind: ProgramKind, content: bytes, name: str, batch: int | None = None) -> None:
        super().__init__()
        self.kind, self.content, self.name = kind, content, name
        try:
            opened = _OPENERS[kind](content, name)
        except (RuntimeError, ValueError, OSError, KeyError, AssertionError) as error:
            raise InputError(f"{name} cannot be opened", found=one_line(error), hint="export it again") from error
        self._run = opened.run
        self._dtype = opened.dtype
        length, channels, *size = opened.shape or (None,) * 4
        if len(size) != 2 or channels not in (3, None):
            raise _takes(name, str(opened.shape), "images of shape (B, 3, H, W)")
        self.batch = batch or length
        self.image_size = (size[0], size[1]) if size[0] and size[1] else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.kind, self.content, self.name, self.batch)

    def train(self, mode: bool = True) -> Program:  # noqa: ARG002
        """Nothing: a program is in eval() for good."""
        return self

    def float(self) -> Program:
        """Nothing: a program computes in the precision it was exported in."""
        return self

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """The weights of the program under its own names; none of an ONNX network's can be seen."""
        return self._run.state_dict(*arguments, **options) if isinstance(self._run, nn.Module) else {}

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to logits ``(B, classes)``, float32.

        Raises:
            InputError: the program was exported for another image size, or returns something else.
        """
        if self.image_size and self.image_size != images.shape[2:]:
            raise InputError(
                f"{self.name} takes images of {_size(self.image_size)} only",
                found=_size(images.shape[2:]),
                hint=f"--resize and --crop {self.image_size[1]} for a folder of images, or export it with dynamic axes",
            )
        pieces = torch.split(images.to(self._dtype), self.batch or max(len(images), 1))
        logits = torch.cat([self._logits(piece) for piece in pieces])
        return logits.to(images.device, torch.float32)

    def _logits(self, images: Tensor) -> Tensor:
        missing = (self.batch or 0) - len(images)
        if missing > 0:  # the last piece of several is short
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        try:
            logits = self._run(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the program does
            raise InputError(
                f"{self.name} fails on {len(images)} images of {_size(images.shape[2:])}",
                found=one_line(error),
                hint="images of the size it was exported for",
            ) from error
        if isinstance(logits, tuple | list) and len(logits) == 1:
            (logits,) = logits
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            found = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))} for {len(images)} images"
            raise InputError(f"{self.name} does not return logits (B, classes)", found=found, hint="export logits only")
        return logits[: len(logits) - max(missing, 0)]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _takes(name: str, found: str, wanted: str) -> InputError:
    return InputError(f"{name} does not take {wanted}", found=found, hint=f"export a network that takes {wanted}")


def _open_torchscript(content: bytes, name: str) -> _Opened:  # noqa: ARG001
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    floating = [value.dtype for value in module.state_dict().values() if value.is_floating_point()]
    return _Opened(module, None, floating[0] if floating else torch.float32)


def _open_exported(content: bytes, name: str) -> _Opened:
    program = torch.export.load(io.BytesIO(content))
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise _takes(name, f"{len(inputs)} inputs", "one batch of images")
    shape = tuple(length if isinstance(length, int) else None for length in inputs[0].shape)
    module = program.module()
    return _Opened(module, shape, inputs[0].dtype)


_ONNX_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


def _open_onnx(content: bytes, name: str) -> _Opened:
    onnxruntime = from_extra("onnx", "onnxruntime", f"to run {name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise InputError(f"{name} cannot be opened", found=one_line(error), hint="export it again") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type not in _ONNX_TYPES:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise _takes(name, found, "one batch of images (B, 3, H, W) as floating-point numbers")
    if len(outputs) != 1:
        found = ", ".join(f"{one.name} {one.shape}" for one in outputs)
        raise InputError(f"{name} returns more than logits", found=found, hint="export a network that returns logits")
    shape = tuple(length if isinstance(length, int) and length > 0 else None for length in inputs[0].shape)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {inputs[0].name: images.cpu().numpy()})[0])

    return _Opened(run, shape, _ONNX_TYPES[inputs[0].type])


_OPENERS: dict[ProgramKind, Callable[[bytes, str], _Opened]] = {
    "torchscript": _open_torchscript,
    "exported": _open_exported,
    "onnx": _open_onnx,
}


def onnx_content(path: Path) -> tuple[bytes, list[Path]]:
    """An ONNX network in one piece, and the files that it came from: weights may lie in files beside it.

    Raises:
        InputError: it is damaged, or its weights are missing or outside of its folder.
        ResourceError: the extra `onnx` is not installed.
    """
    onnx = from_extra("onnx", "onnx", f"to read {path.name}")
    helper = from_extra("onnx", "onnx.external_data_helper", f"to read {path.name}")
    try:
        network = onnx.load(path, load_external_data=False)
        external = [tensor for tensor in network.graph.initializer if helper.uses_external_data(tensor)]
        names = sorted({helper.ExternalDataInfo(tensor).location for tensor in external})
        if not external:
            return path.read_bytes(), [path]
        # It checks that no location leads out of the folder.
        onnx.load_external_data_for_model(network, str(path.parent))
        return network.SerializeToString(), [path, *(path.parent / name for name in names)]
    except Exception as error:  # of protobuf, of onnx, of the disk
        raise InputError(
            f"{path.name} is not an ONNX network that can be read",
            found=one_line(error),
            hint="the whole file, and the file of weights beside it where there is one",
        ) from error
