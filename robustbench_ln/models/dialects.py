"""From what a file holds to a flat state dict of float32 tensors, whatever wrapped it.

A *dialect* is one habit of those who save checkpoints: a container, a prefix, a wrapper. Each is a small function that
takes one layer of it off. They are tried in order, again and again, until none has anything left to do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_ln.models.checkpoint import Checkpoint
from robustbench_ln.models.metadata import read_metadata
from robustbench_ln.models.preprocessing import is_mean_std

Dialect = Callable[[Checkpoint], Checkpoint]
"""Takes one layer off, or returns the very same object where it has nothing to do."""

# In order of preference: the plain copy of the weights before averaged ones, unless those are asked for.
_PLAIN = (
    *("state_dict", "model", "model_state", "model_state_dict", "net", "current_model_state", "network", "module"),
    *("params", "weights", "last", "best", "student", "teacher"),
)
_AVERAGED = (
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "params_ema"),
    *("swa", "swa_model", "swa_state_dict", "averaged_model", "shadow"),
)
_KNOWN = _PLAIN + _AVERAGED

_PREFIXES = (
    *("module.", "model.", "net.", "_orig_mod.", "backbone.", "encoder.", "0.", "1."),
    *("network.", "student.", "_fsdp_wrapped_module.", "_forward_module."),
)
# Wrappers that may also sit around layers inside of a network. None is a name that a network gives to a layer.
_INNER = re.compile(r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Modules that wrap a network in its normalisation, and what they call their buffers.
_WRAPPERS = (
    *("", "normalize.", "normalizer.", "normalization.", "normalise.", "norm.", "norm_layer.", "normalize_layer."),
    *("preprocess.", "preprocessing.", "preprocessor.", "transform.", "input_norm.", "0."),
)
_MEAN_STD = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"), ("pixel_mean", "pixel_std"))


def read_own_metadata(checkpoint: Checkpoint) -> Checkpoint:
    """``{"lnbench": {...}, ...}``: what `save_model` puts into safetensors' metadata, in a file of torch.save."""
    raw = checkpoint.tensors.get("lnbench")
    if not isinstance(raw, Mapping):
        return checkpoint
    metadata, warnings = read_metadata(raw)
    rest = {key: value for key, value in checkpoint.tensors.items() if key != "lnbench"}
    return replace(checkpoint, tensors=rest, metadata=metadata, warnings=checkpoint.warnings + warnings)


def join_statistics(checkpoint: Checkpoint) -> Checkpoint:
    """``{"params": {...}, "stats": {...}}``: running statistics kept apart from the weights, as szagoruyko did."""
    weights, statistics = checkpoint.tensors.get("params"), checkpoint.tensors.get("stats")
    if not isinstance(weights, Mapping) or not isinstance(statistics, Mapping) or weights.keys() & statistics.keys():
        return checkpoint
    rest = {key: value for key, value in checkpoint.tensors.items() if key != "stats"}
    return replace(checkpoint, tensors={**rest, "params": {**weights, **statistics}})


@dataclass(frozen=True, slots=True)
class Copy:
    """A state dict, or a whole module, somewhere in a file; where it was found, and whether its name says `average`."""

    path: tuple[str, ...]
    content: Any
    averaged: bool

    @property
    def name(self) -> str:
        """Its path, for a reader."""
        return ".".join(self.path)

    @property
    def usual(self) -> bool:
        """Whether all containers around it have names that are in the tables."""
        return all(name in _KNOWN for name in self.path)

    def preference(self, ema: bool | None) -> tuple[Any, ...]:
        """Sorts the copy to take to the front."""
        beside = not self.path and not _has_matrix(self.content)  # a counter or a mean beside the state dict
        return self.averaged != bool(ema), beside, not self.usual, not self.path, [*map(_order, self.path)]


def _order(name: str) -> int:
    return _KNOWN.index(name) if name in _KNOWN else len(_KNOWN)


def _has_matrix(content: Any) -> bool:
    return isinstance(content, nn.Module) or any(isinstance(v, Tensor) and v.dim() > 1 for v in content.values())


def copies(content: Any) -> list[Copy]:
    """Every copy of a network in a file. A dictionary of an unusual name is one if it holds a matrix of weights."""
    found: list[Copy] = []
    seen: set[int] = set()  # a file may hold a dictionary that contains itself
    left = [Copy((), content, averaged=False)]
    while left:
        here = left.pop(0)
        if id(here.content) in seen or is_optimizer(here.content):
            continue
        seen.add(id(here.content))
        if isinstance(here.content, nn.Module):
            found.append(here)
        elif isinstance(here.content, Mapping):
            if any(isinstance(v, Tensor) for v in here.content.values()) and (here.usual or _has_matrix(here.content)):
                found.append(here)
            # Lightning's WeightAveraging saves the average under the usual name.
            swapped = "averaging_state" in here.content
            left += [
                Copy((*here.path, name), value, here.averaged or name in _AVERAGED or (swapped and name == _PLAIN[0]))
                for name, value in here.content.items()
                if isinstance(name, str)
            ]
    return found


def is_optimizer(value: Any) -> bool:
    """Whether this is the state of an optimizer."""
    return isinstance(value, Mapping) and "param_groups" in value


def open_container(checkpoint: Checkpoint) -> Checkpoint:
    """``{"state_dict": {...}, "epoch": 90}``: the state dict beside other things a training script keeps."""
    if checkpoint.container:
        return checkpoint
    found = sorted(copies(checkpoint.tensors), key=lambda copy: copy.preference(checkpoint.ema))
    if not found or not found[0].path:
        return checkpoint
    taken = found[0]
    others = [copy for copy in found[1:] if copy.usual and copy.path]
    if not taken.usual and len(found) > 1:
        return checkpoint  # refused later, with their names
    warnings = checkpoint.warnings
    if taken.averaged and not others:
        warnings += (f"the weights are an averaged copy ({taken.name!r}), the only one in the file",)
    if others:
        plain, averaged = ([copy.name for copy in others if copy.averaged is kind] for kind in (False, True))
        rest = [f"plain ones in {', '.join(plain)}"] * bool(plain)
        rest += [f"averaged ones in {', '.join(averaged)}"] * bool(averaged)
        option = "--no-ema" if taken.averaged else "--ema"
        choose = f" ({option} takes those)" if (plain if taken.averaged else averaged) else ""
        kind = "averaged ones" if taken.averaged else "plain ones" if averaged else "ones"
        warnings += (f"the weights are the {kind} of {taken.name!r}; the file also holds {' and '.join(rest)}{choose}",)
    module = isinstance(taken.content, nn.Module)
    return replace(
        checkpoint,
        tensors={} if module else taken.content,
        network=taken.content if module else None,
        container=taken.path,
        averaged=taken.averaged,
        copy=taken.name if others else "",
        warnings=warnings,
    )


_COUNTERS = re.compile(r"(?:.*\.)?total_(?:ops|params)")


def drop_counters(checkpoint: Checkpoint) -> Checkpoint:
    """``layer1.0.conv1.total_ops``: what thop.profile registers in layers to count in, and may leave there.

    Source: https://github.com/Lyken17/pytorch-OpCounter, thop/profile.py.
    """
    counters = [
        key
        for key, value in checkpoint.tensors.items()
        if isinstance(key, str) and isinstance(value, Tensor) and value.numel() == 1 and _COUNTERS.fullmatch(key)
    ]
    if not counters:
        return checkpoint
    rest = {key: value for key, value in checkpoint.tensors.items() if key not in set(counters)}
    warning = f"left out are {len(counters)} counters of thop (total_ops, total_params)"
    return replace(checkpoint, tensors=rest, warnings=(*checkpoint.warnings, warning))


def keep_float32_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """Step counters, class names and ``None`` go; half, bfloat16 and double precision become float32."""
    tensors = {
        key: value.detach().float() if value.is_floating_point() and not oddity(value) else value.detach()
        for key, value in checkpoint.tensors.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    stored = [checkpoint.tensors[key].dtype for key in tensors]
    if len(tensors) == len(checkpoint.tensors) and stored == [value.dtype for value in tensors.values()]:
        return checkpoint
    kinds = sorted({str(dtype).removeprefix("torch.") for dtype in stored if dtype.is_floating_point})
    return replace(checkpoint, tensors=tensors, precision=() if kinds == ["float32"] else tuple(kinds))


def oddity(value: Tensor) -> str:
    """What keeps a tensor from being used as a weight; empty for ordinary ones."""
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"is a {type(value).__name__}, a part of a tensor that several processes share"
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided:
        return "is sparse"
    if value.is_meta:
        return "has a shape but no values (meta device)"
    # A view that repeats one number can claim any size in a small file, and would fill the memory when copied.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes() + 2**20:
        return "claims more numbers than the file holds"
    return ""


def read_average(checkpoint: Checkpoint) -> Checkpoint:
    """``n_averaged`` beside ``module.conv1.weight``: an average of torch.optim.swa_utils."""
    tensors = dict(checkpoint.tensors)
    if not isinstance(count := tensors.pop("n_averaged", None), Tensor) or count.numel() != 1:
        return checkpoint
    warning = (
        f"the weights are an average of {int(count)} states of training (n_averaged); BatchNorm statistics are right "
        "only if torch.optim.swa_utils.update_bn was called"
    )
    return replace(checkpoint, tensors=tensors, averaged=True, warnings=(*checkpoint.warnings, warning))


def take_wrapper(checkpoint: Checkpoint) -> Checkpoint:
    """``mu`` and ``sigma`` beside ``model.conv1.weight``: a module that normalises its input and then calls another."""
    found = find_wrapper(checkpoint.tensors)
    if found is None:
        return checkpoint
    keys, mean, std = found
    return replace(
        checkpoint,
        tensors={key: value for key, value in checkpoint.tensors.items() if key not in keys},
        wrapper={**checkpoint.wrapper, **{key: checkpoint.tensors[key] for key in keys}},
        mean=mean,
        std=std,
    )


def find_wrapper(state: Mapping[str, Tensor]) -> tuple[list[str], tuple[float, ...], tuple[float, ...]] | None:
    """The keys of a normalisation in front of a network, its mean and its deviation for images in [0, 1]."""
    for module in _WRAPPERS:
        for names in _MEAN_STD:
            keys = [module + name for name in names]
            if not all(key in state and _is_per_channel(state[key]) for key in keys):
                continue
            # Some are written for images in 0 to 255.
            scale = 255 if state[keys[0]].max() > 1 else 1
            mean, std = (tuple(round(float(value) / scale, 7) for value in state[key].flatten()) for key in keys)
            if is_mean_std(mean, std):
                return keys, mean, std
    return None


def _is_per_channel(value: Tensor) -> bool:
    return value.numel() in (1, 3) and value.is_floating_point() and value.numel() == max((1, *value.shape))


def strip_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """``module.conv1.weight`` of DataParallel, ``_orig_mod.`` of torch.compile: a prefix that every key carries."""
    tensors = checkpoint.tensors
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
            return replace(checkpoint, tensors=stripped, prefixes=(*checkpoint.prefixes, prefix))
    return checkpoint


def strip_inner_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """``features.module.0.weight``: parts of a network that were made parallel, compiled or checkpointed."""
    renamed = {_INNER.sub("", key): value for key, value in checkpoint.tensors.items()}
    if renamed.keys() == checkpoint.tensors.keys() or len(renamed) < len(checkpoint.tensors):
        return checkpoint
    met = dict.fromkeys(f"*.{name}." for key in checkpoint.tensors for name in _INNER.findall(key))
    return replace(checkpoint, tensors=renamed, prefixes=(*checkpoint.prefixes, *met))


# torchvision's own weight files keep the key names of earlier versions.
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def rename_old_keys(checkpoint: Checkpoint) -> Checkpoint:
    """``denselayer1.norm.1.weight``: keys of DenseNet and VisionTransformer in torchvision's own files."""
    renamed = {_new_name(key): value for key, value in checkpoint.tensors.items()}
    return checkpoint if renamed.keys() == checkpoint.tensors.keys() else replace(checkpoint, tensors=renamed)


def _new_name(key: str) -> str:
    for old, new in _OLD_NAMES:
        key = old.sub(new, key)
    return key


_FUNCTIONAL = re.compile(r"(?:group\d\.block\d+\.)?conv(?:\d|dim)")


def name_functional_weights(checkpoint: Checkpoint) -> Checkpoint:
    """``group0.block0.conv0``: a convolution that is no module, of szagoruyko's Wide ResNets."""
    renamed = {f"{key}.weight" if _FUNCTIONAL.fullmatch(key) else key: v for key, v in checkpoint.tensors.items()}
    return checkpoint if renamed.keys() == checkpoint.tensors.keys() else replace(checkpoint, tensors=renamed)


DIALECTS: tuple[Dialect, ...] = (
    read_own_metadata,
    join_statistics,
    open_container,
    drop_counters,
    keep_float32_tensors,
    read_average,
    take_wrapper,
    strip_prefix,
    strip_inner_wrappers,
    rename_old_keys,
    name_functional_weights,
)


def undress(checkpoint: Checkpoint) -> Checkpoint:
    """Take off all that the dialects know; each step is kept in `outer` of the next."""
    while checkpoint.network is None:
        changed = next((new for dialect in DIALECTS if (new := dialect(checkpoint)) is not checkpoint), None)
        if changed is None:
            break
        checkpoint = replace(changed, outer=checkpoint)
    return checkpoint


def candidates(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """What may be the network in an undressed checkpoint, the likeliest first. Which one is, its architecture tells.

    First everything, with all taken off; then with less and less taken off, for a network of the user's may itself be
    the wrapped one; then the parts of it, for the state dict of a training module has losses and teachers in it too.
    """
    yield checkpoint
    outer = checkpoint.outer
    while outer is not None and all(isinstance(value, Tensor) for value in outer.tensors.values()):
        yield replace(outer, averaged=checkpoint.averaged)
        outer = outer.outer
    yield from _parts(checkpoint, depth=3)


def _parts(checkpoint: Checkpoint, depth: int) -> Iterator[Checkpoint]:
    """The parts of a state dict by the first word of their keys, each undressed, and their parts in turn."""
    sizes = Counter(key.partition(".")[0] for key in checkpoint.tensors if "." in key)
    usual = [prefix.removesuffix(".") for prefix in _PREFIXES]
    for name in sorted(sizes, key=lambda name: (name in _AVERAGED, name not in usual)):
        prefix = f"{name}."
        left_out = {other: size for other, size in sizes.items() if other != name}
        warnings = checkpoint.warnings
        if left_out:
            listed = [f"{size} keys under {other}." for other, size in left_out.items()]
            shown = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
            warnings += (f"the network is {prefix} in the file; left out are {shown}",)
        part = undress(
            replace(
                checkpoint,
                tensors={k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)},
                prefixes=(*checkpoint.prefixes, prefix),
                averaged=checkpoint.averaged or name in _AVERAGED,
                copy=prefix if left_out else checkpoint.copy,
                warnings=warnings,
                outer=None,
            )
        )
        yield part
        if depth:
            yield from _parts(part, depth - 1)
