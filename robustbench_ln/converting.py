"""Turning a BatchNorm network into one of another normalisation, as a file that needs no flag when it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.models import load_model, model_bytes, parse_normalize, recorded_name, wrap_module
from robustbench_ln.models.architectures import shapes_of
from robustbench_ln.models.programs import Program
from robustbench_ln.norms import NORMS, NetworkNorms, convert_norms, norm_layers
from robustbench_ln.planning import check_numbers
from robustbench_ln.results import write_bytes


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted, and what the file says of it.

    Attributes:
        source: what was named.
        source_sha256: digest of its content.
        out: the file that was written.
        arch: architecture by which the file is known; None where none is.
        num_classes: number of logits.
        norm: what the network has now, a name of :data:`~robustbench_ln.norms.NORMS`.
        norm_layers: how many layers were replaced.
        n_groups: K of LocalNorm, else None.
        group_size: images a group, of LocalNorm, else None.
        norm_groups: groups of channels of GroupNorm, else None.
        mean: per-channel mean of its preprocessing; None where nothing says it.
        std: standard deviation; as `mean`.
        preprocessing: where the two come from.
        warnings: what the user should know.
    """

    source: str
    source_sha256: str
    out: Path
    arch: str | None
    num_classes: int
    norm: str
    norm_layers: int
    n_groups: int | None
    group_size: int | None
    norm_groups: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preprocessing: str
    warnings: tuple[str, ...]


def convert(
    model: str | nn.Module,
    *,
    out: str | Path,
    to: str = "ln",
    groups: int | None = None,
    group_size: int | None = None,
    arch: str | None = None,
    normalize: str = "auto",
    trust: bool = False,
    ema: bool | None = None,
) -> Conversion:
    """Write a copy of a BatchNorm network in which every norm layer is one of another normalisation.

    Gamma and beta are kept (LocalNorm: by each of the K groups), keys stay those of the source, running statistics
    are left out where the normalisation has none. What the file needs to be evaluated is written beside the weights.

    Args:
        model: what ``--model`` takes, or a module.
        out: safetensors file to write.
        to: a name of :data:`~robustbench_ln.norms.NORMS`.
        groups: K of LocalNorm (8 when left out), or groups of channels of GroupNorm (32).
        group_size: images a LocalNorm group will have, in training and in evaluation; when left out, a batch of 128
            shared out: 128 / K.
        arch: architecture of a checkpoint, where it is not to be recognised.
        normalize: preprocessing to record; ``auto`` for the model's own.
        trust: allow files that can run code when read.
        ema: of files with two copies of the weights take the averaged one, or (False) the plain one.

    Raises:
        UsageError: an unknown name, a number that does not fit, or a file of other content under `out`.
        InputError: a model that cannot be used or has no BatchNorm layers.
        ResourceError: the file cannot be written.
    """
    check_numbers(groups=groups, group_size=group_size)
    if group_size is not None and to != "ln":
        raise UsageError(f"{to} has no groups of images", found=f"a group size of {group_size}", hint="--to ln")
    fixed = parse_normalize(normalize)
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UsageError(
            "a converted model is a safetensors file", found=str(out), hint=f"--out {out.stem}.safetensors"
        )
    loaded = load_model(model, arch=arch, trust=trust, ema=ema) if isinstance(model, str) else wrap_module(model)
    if isinstance(loaded.network, Program):
        raise InputError(
            f"{loaded.source} is a program, whose norm layers cannot be replaced",
            found=loaded.form,
            hint="the checkpoint that it was exported from",
        )
    network = convert_norms(loaded.network, to, groups=groups)
    mean, std = (loaded.mean, loaded.std) if fixed is None else fixed
    shapes = shapes_of(network.state_dict())
    known, code = recorded_name(loaded.arch, shapes), loaded.arch if ":" in loaded.arch else None
    warnings = list(loaded.warnings)
    if mean is None:
        warnings.append("nothing says the preprocessing, so eval will find it by trial; --normalize records one")
    if known is None:
        what = f"--arch {code}" if code else "--arch, with what builds the network"
        warnings.append(f"{loaded.arch} is no architecture that lnbench knows: {out.name} will need {what}")
    norms = NetworkNorms.of(network, group_size)
    conversion = Conversion(
        source=loaded.source,
        source_sha256=loaded.sha256,
        out=out,
        arch=known or code,
        num_classes=loaded.num_classes,
        norm=to,
        norm_layers=len(norm_layers(loaded.network)),
        n_groups=norms.n_groups if to == "ln" else None,
        group_size=norms.default_images if to == "ln" else None,
        norm_groups=(groups or NORMS[to].groups) if to == "groupnorm" else None,
        mean=mean,
        std=std,
        preprocessing=loaded.preprocessing if fixed is None else normalize,
        warnings=tuple(warnings),
    )
    kept = ("arch", "num_classes", "norm", "n_groups", "group_size", "norm_groups", "mean", "std", "source_sha256")
    geometry = asdict(loaded.geometry) if loaded.geometry else None
    said = {key: getattr(conversion, key) for key in kept}
    _write(out, model_bytes(network, {**said, "geometry": geometry, "preprocessing": conversion.preprocessing or None}))
    return conversion


def _write(out: Path, content: bytes) -> None:
    """Write a file, but not in the place of another."""
    if out.exists() and (not out.is_file() or out.read_bytes() != content):
        found = "a file of other content" if out.is_file() else "no file, but a folder or device"
        raise UsageError(f"{out} exists", found=found, hint="another --out")
    write_bytes(out, content)
