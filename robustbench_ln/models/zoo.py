"""Networks that other libraries know by name, with the weights and the preprocessing that belong to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustbench_ln.errors import InputError, LnbenchError, UsageError, unknown_name
from robustbench_ln.models.architectures.timm_zoo import unknown_timm
from robustbench_ln.models.checkpoint import Checkpoint, file_sha256
from robustbench_ln.models.downloads import fetch_from_hub, fetch_from_url
from robustbench_ln.models.imports import from_extra, one_line
from robustbench_ln.models.loaded import Geometry, LoadedModel, ready
from robustbench_ln.models.reading import read_stored
from robustbench_ln.models.sniffing import refused


def load_torchvision(spec: str, name: str) -> LoadedModel:
    """The torchvision network of that name with its default weights."""
    import torchvision  # slow to import

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, known, listing="lnbench list architectures")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = fetch_from_url(weights.url, f"the weights of {spec}")
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.hub finds the file in its cache.
            network = torchvision.models.get_model(name, weights=weights, progress=False)
    except Exception as error:
        found = f"weights in torch's cache that are damaged ({one_line(error)})"
        raise refused(file, found, f"delete {file}") from error
    transforms = weights.transforms()
    classes = len(weights.meta["categories"])
    model = ready(network, spec, spec, file_sha256(file), arch=name, recognised="zoo", num_classes=classes)
    return replace(
        model,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        preprocessing="zoo",
        geometry=Geometry(transforms.resize_size[0], transforms.crop_size[0], transforms.interpolation.value),
    )


def load_timm(spec: str, name: str) -> LoadedModel:
    """The timm network of that name with its pretrained weights."""
    timm = from_extra("timm", "timm", f"for {spec}")
    if name.partition(":")[0] in ("hf-hub", "hf_hub"):
        return load_hf_hub(spec, name.partition(":")[2])
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise unknown_timm(name, timm.list_models())
    if tag and not timm.is_model_pretrained(name):
        raise unknown_timm(name, timm.list_pretrained(f"{base}.*"))
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        near = ", ".join(timm.list_models(f"{base[:6]}*", pretrained=True)[:3])
        raise InputError(
            f"timm has no pretrained weights of {name}", found="none", hint=near or "timm.list_pretrained()"
        )
    what = f"the weights of {spec}"
    if settings.hf_hub_id:
        file = fetch_from_hub(settings.hf_hub_id, *_weight_names(settings.hf_hub_filename), what=what)
    else:
        file = fetch_from_url(settings.url, what)
    return _build_timm(spec, name, file, name)


def load_hf_hub(spec: str, repository: str) -> LoadedModel:
    """A timm network that somebody has put on the Hugging Face Hub, as ``owner/name`` or ``owner/name@revision``."""
    from_extra("timm", "timm", f"for {spec}")  # before anything is downloaded
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UsageError(
            "a model on the Hugging Face Hub is named OWNER/NAME", found=spec, hint="hf-hub:timm/resnet18.a1_in1k"
        )
    config = fetch_from_hub(repository, "config.json", what=spec)
    file = fetch_from_hub(repository, *_weight_names(None), what=f"the weights of {spec}")
    return _build_timm(spec, f"local-dir:{config.parent}", file, repository.partition("@")[0].partition("/")[2])


def _weight_names(said: str | None) -> list[str]:
    """Names that the file of weights may have: safetensors before what may hold objects."""
    name = said or "pytorch_model.bin"
    safe = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
    return list(dict.fromkeys([safe.get(name, str(Path(name).with_suffix(".safetensors"))), name]))


def _build_timm(spec: str, timm_name: str, file: Path, arch: str) -> LoadedModel:
    """Let timm build the network and fit the weights to it, and take its preprocessing."""
    timm = from_extra("timm", "timm", f"for {spec}")
    # Read here, for here no file runs code; timm renames old keys and fits the first layer and the last.
    stored: Checkpoint = read_stored(file)
    if stored.network is not None:
        raise refused(file, f"{stored.form}, not weights", "a repository of a timm model")
    overlay: dict[str, Any] = {"state_dict": dict(stored.tensors), "source": ""}
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(timm_name, pretrained=True, pretrained_cfg_overlay=overlay)
    except LnbenchError:
        raise
    except Exception as error:  # an unknown architecture in config.json, weights that do not fit
        raise InputError(
            f"timm cannot build {spec}", found=one_line(error), hint="a network made for timm, or a newer timm"
        ) from error
    settings: Mapping[str, Any] = timm.data.resolve_model_data_config(network)
    network.pretrained_cfg.pop("state_dict", None)  # or the weights would be held, and sent to workers, twice
    channels, height, width = settings["input_size"]
    if channels != 3 or not network.num_classes:
        found = f"{channels} channels, {network.num_classes} classes"
        raise InputError(f"{spec} is no classifier of RGB images", found=found, hint="another name")
    model = ready(network, spec, spec, file_sha256(file), arch=arch, recognised="zoo", num_classes=network.num_classes)
    warnings = []
    if height != width:
        warnings.append(f"{spec} was made for {height} x {width} pixels; its images are cut to squares of {height}")
    if settings["crop_mode"] != "center":
        warnings.append(f"timm's crop mode {settings['crop_mode']!r} of {spec} is not followed: the centre is cut out")
    return replace(
        model,
        form=stored.form,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        preprocessing="zoo",
        geometry=Geometry(math.floor(height / settings["crop_pct"]), height, settings["interpolation"]),
    ).warned(*warnings)
