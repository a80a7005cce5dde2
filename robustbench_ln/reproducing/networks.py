"""Coming by the networks of a setting: given ones are taken, missing ones trained, each in a folder that resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robustbench_ln.errors import UsageError
from robustbench_ln.models import load_model
from robustbench_ln.norms import NetworkNorms
from robustbench_ln.reproducing.recipes import Scale, Setting, load_scale
from robustbench_ln.training import Epoch, train

ONE_SPLIT = ("imagefolder", "imagenet", "npz")  # kinds of data that do not know their training images


@dataclass(frozen=True, slots=True)
class Network:
    """A network, ready to be evaluated.

    Attributes:
        name: what figures and tables call it.
        norm: ``bn`` or ``ln``.
        group_size: images a group in training; None for BatchNorm.
        arch: its architecture.
        model: what ``--model`` takes.
        folder: of its training, with its log; None where that is not known.
        origin: how it was come by, for a reader.
    """

    name: str
    norm: str
    group_size: int | None
    arch: str
    model: str
    folder: Path | None
    origin: str


def read_given(models: Sequence[str], *, trust: bool = False) -> tuple[Network, ...]:
    """What the networks that a user names are. The folder of a training stands for its last epoch: the best one
    may have been picked by the very images that are evaluated.

    Raises:
        UsageError: a network that is neither a BatchNorm nor a LocalNorm network, or two of the same content.
        InputError: a file that cannot be read.
    """
    found: dict[str, Network] = {}
    for given in models:
        folder = Path(given) if (Path(given) / "train.json").is_file() else None
        model = str(folder / "last.safetensors") if folder else given
        loaded = load_model(model, trust=trust)
        norms = NetworkNorms.of(loaded.network, loaded.group_size)
        if norms.kind not in ("bn", "ln"):
            raise UsageError(
                f"{given} is no network of the paper", found=f"norm layers of kind {norms.kind!r}",
                hint="a BatchNorm or a LocalNorm network",
            )  # fmt: skip
        if loaded.sha256 in found:
            raise UsageError(
                "two of the networks are the same", found=f"{found[loaded.sha256].origin}, {given}", hint="each once"
            )
        size = norms.default_images if norms.kind == "ln" else None
        name = loaded.arch + (f" LocalNorm {norms.n_groups} x {size}" if size else " BatchNorm")
        found[loaded.sha256] = Network(name, norms.kind, size, loaded.arch, model, folder, given)
    return tuple(found.values())


def with_data(
    scale: Scale, data: Sequence[str], train_data: Sequence[str], given: Sequence[Network] = ()
) -> tuple[list[Setting], list[str]]:
    """The settings of a scale that there are images for, and what is left out for want of them.

    Args:
        scale: whose settings.
        data: images to evaluate, ``DATA`` for the first setting (and those on the same data) or ``SETTING=DATA``.
        train_data: images to train on, likewise.
        given: networks; where there are any, only settings of their architectures are kept, else the first.

    Raises:
        UsageError: an unknown setting, or no setting is left.
    """
    settings = list(scale.settings)
    if given:
        archs = {network.arch for network in given}
        fit = [one for one in settings if archs & {how.get("arch") for how in one.training.values()}]
        settings = fit or [_standing_for(settings[0], archs)]
    for option, texts, key in (("--data", data, "data"), ("--train-data", train_data, "train_data")):
        for text in texts:
            name, equals, value = text.partition("=")
            if equals and ":" not in name and name.isidentifier() | ("-" in name):
                chosen = [one for one in settings if one.name == name]
                if not chosen:
                    names = ", ".join(one.name for one in settings)
                    raise UsageError(f"{option} names no setting of this scale", found=name, hint=f"one of {names}")
            else:
                value, chosen = text, [one for one in settings if one.data == settings[0].data]
            settings = [_changed(one, key, value) if one in chosen else one for one in settings]
    missing = [f"{one.name} is left out: it needs {one.needs}" for one in settings if not one.data]
    settings = [one for one in settings if one.data]
    if not settings:
        raise UsageError("there are no images for any setting", found="; ".join(missing), hint="--data")
    return settings, missing


def _standing_for(setting: Setting, archs: set[str]) -> Setting:
    """The setting as it is with given networks of other architectures: beside the paper's own, where they are those."""
    for one in load_scale("paper").settings:
        if archs & {how.get("arch") for how in one.training.values()}:
            return replace(setting, paper=one.paper, network=one.network)
    return replace(setting, network=f"{', '.join(sorted(archs))}, as given")


def _changed(setting: Setting, key: str, value: str) -> Setting:
    return replace(setting, data=value) if key == "data" else replace(setting, train_data=value)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Comes by the networks of one setting.

    Attributes:
        setting: which.
        out: where trainings are kept.
        given: networks that the user named.
        options: of every training: seed, device, threads.
        say: told of each training that is begun.
        made: networks that were come by already, by the name of their folder.
    """

    setting: Setting
    out: Path
    given: tuple[Network, ...]
    options: dict[str, Any]
    say: Callable[[str], None]
    made: dict[str, Network] = field(default_factory=dict)

    def networks(self, role: str) -> list[Network]:
        """The networks of a role: one, or one a group size.

        Raises: as of :func:`robustbench_ln.train`.
        """
        if role == "bn":
            return [self._given("bn") or self._batchnorm()]
        if role == "ln":
            return [self._given("ln") or self._localnorm("ln")]
        given = [one for one in self.given if one.norm == "ln"]
        if len({one.group_size for one in given}) > 1:
            return sorted(given, key=lambda one: one.group_size or 0)
        return [self._localnorm("groups", size) for size in self.setting.sizes]

    def _given(self, norm: str) -> Network | None:
        return next((one for one in self.given if one.norm == norm), None)

    def _batchnorm(self) -> Network:
        how = dict(self.setting.training["bn"])
        if "take" in how:
            loaded = load_model(how["take"])
            return Network(f"{loaded.arch} BatchNorm", "bn", None, loaded.arch, how["take"], None, how["take"])
        return self._trained("bn", None, how)

    def _localnorm(self, role: str, size: int | None = None) -> Network:
        how = dict(self.setting.training[role])
        if "arch" not in how:
            how["model"] = self.networks("bn")[0].model
        if size is not None:
            how["groups"] = how["batch_size"] // size
        return self._trained("ln", size or how["batch_size"] // how["groups"], how, by_size=size is not None)

    def _told(self, event: Any) -> None:
        if isinstance(event, Epoch):
            held_out = "" if event.eval_accuracy is None else f", {100 * event.eval_accuracy:.2f} % on held-out images"
            self.say(f"epoch {event.epoch}: loss {event.loss:.4f}{held_out}, {event.seconds:.0f} s")

    def _trained(self, norm: str, size: int | None, how: dict[str, Any], *, by_size: bool = False) -> Network:
        setting = self.setting
        if not setting.train_data and setting.data.partition(":")[0] in ONE_SPLIT:
            raise UsageError(
                f"a network has to be trained for {setting.name}, and its training images are not named",
                found=f"--data {setting.data}",
                hint=f"--train-data {setting.data.partition(':')[0]}:DIR, or --model with a trained network",
            )
        name = f"{setting.name}-{norm}" + (f"-{size}" if by_size else "")
        if name in self.made:
            return self.made[name]
        words = f"{norm}, groups of {size} images" if size else norm
        folder = self.out / "networks" / name
        self.say(f"{folder}: {setting.network}, {words}, {how['epochs']} epochs")
        run = train(
            data=setting.train_data or setting.data, out=folder, norm=norm, on_event=self._told, **how, **self.options
        )
        model = str(run.last)
        loaded = load_model(model)
        start = f"from {Path(how['model']).parent.name or how['model']}" if "model" in how else "from scratch"
        shown = loaded.arch + (f" LocalNorm {how['groups']} x {size}" if size else " BatchNorm")
        origin = f"trained {start}, {how['epochs']} epochs"
        self.made[name] = Network(shown, norm, size, loaded.arch, model, folder, origin)
        return self.made[name]
