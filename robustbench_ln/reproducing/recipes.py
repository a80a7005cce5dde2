"""What each target of ``lnbench reproduce`` is, and what each scale runs it on: YAML beside this file, read strictly.

A recipe is a table or figure of the paper: what is trained, measured and drawn, the numbers that the paper prints, the
claims that it makes, and what cannot be matched. A scale says which networks and images stand for the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_ln.corruptions import NOISES, list_presets, load_preset
from robustbench_ln.errors import UsageError, unknown_name
from robustbench_ln.norms import EVAL_MODES, NORMS
from robustbench_ln.yaml_files import Where, YamlFile, read_yaml

_HERE = Path(__file__).parent
ROLES = ("bn", "ln", "groups")  # networks that a recipe can ask for
NOISE_FORMS = ("released", "text")
PAPER_SETTINGS = {
    "cifar10-vgg": "VGG19, CIFAR-10",
    "cifar10-resnet": "ResNet32, CIFAR-10",
    "cars": "ResNet152, Stanford Cars",
    "imagenet": "VGG16-BN, ImageNet",
}
TRAINING: dict[str, type] = {
    "arch": str, "model": str, "take": str, "groups": int, "epochs": int, "batch_size": int, "learning_rate": float,
    "weight_decay": float, "warmup": float, "schedule": str, "optimizer": str, "crop": int,
}  # fmt: skip
"""What may be said of a training: arguments of :func:`robustbench_ln.train`, and `take` for a network as it is."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What an accuracy is of.

    Attributes:
        name: ``clean``, a noise's first letters (``agn``), ``corruptions``, or ``mce``, which is an error.
        level: of the noise; None for the area under its curve.
    """

    name: str = "clean"
    level: float | None = None

    def __str__(self) -> str:
        if self.name in ("clean", "mce"):
            return self.name
        if self.name == "corruptions":
            return "mean over corruptions"
        return f"area under {self.name}" if self.level is None else f"{self.name}, sigma {self.level:g}"


@dataclass(frozen=True, slots=True)
class Claim:
    """An order of two modes that the paper reports: `left` is above `right`, or (``>=``) not a point below it."""

    left: str
    relation: str
    right: str
    measure: Measure

    def __str__(self) -> str:
        return f"{self.left} {self.relation} {self.right} ({self.measure})"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One target.

    Attributes:
        name: of the target (``fig6``).
        title: of its page.
        about: what it shows.
        drawing: a name of :data:`~robustbench_ln.reproducing.drawings.DRAWINGS`.
        settings: the paper's settings that it has numbers or panels of.
        beyond: settings that the paper does not show here.
        networks: of `ROLES`.
        modes: evaluation modes.
        noises: a preset; empty for none.
        corruption: ``all``, ``common`` or empty.
        pictures: whether degraded pictures stand above the curves.
        paper: setting, measure and mode to the number that the paper prints, a fraction.
        claims: orders of modes that the paper reports.
        best: images a group that performed best, from and to; None where that is not the question.
        slower: training time over BatchNorm's, from and to.
        unmatched: what cannot be matched, and why.
    """

    name: str
    title: str
    about: str
    drawing: str
    settings: tuple[str, ...]
    beyond: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    noises: str = ""
    corruption: str = ""
    pictures: bool = False
    paper: Mapping[str, Mapping[Measure, Mapping[str, float]]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    best: tuple[float, float] | None = None
    slower: tuple[float, float] | None = None
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What stands for one of the paper's settings.

    Attributes:
        name: of the setting.
        paper: which of the paper's it stands for.
        network: what it is, in words.
        data: images that are evaluated, as of ``--data``; empty where only the user can say.
        needs: what the user has to bring.
        train_data: images that networks are trained on; empty for the training split of `data`.
        training: role to how its network is come by, arguments of ``train``.
        sizes: images a group to be compared.
    """

    name: str
    paper: str
    network: str
    data: str
    needs: str
    train_data: str
    training: Mapping[str, Mapping[str, Any]]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run.

    Attributes:
        name: ``smoke``, ``small`` or ``paper``.
        about: what that is.
        settings: what stands for the paper's settings.
        limit: images scored; None for all.
        levels: levels of each noise at most, evenly picked out of its grid; None for all.
        severity: of corruptions.
        cost: networks, normalisations and repeats of the speed benchmark, arguments of ``bench_norms``.
    """

    name: str
    about: str
    settings: tuple[Setting, ...]
    limit: int | None
    levels: int | None
    severity: str
    cost: Mapping[str, Any]


def list_targets() -> list[str]:
    """Names of the recipes, in the paper's order: the table, the figures by number, then what its text says."""
    names = [path.stem for path in (_HERE / "recipes").glob("*.yaml")]
    return sorted(names, key=lambda name: (not name.startswith("table"), not name.startswith("fig"), name))


def list_scales() -> list[str]:
    """Names of the scales."""
    return sorted(path.stem for path in (_HERE / "scales").glob("*.yaml"))


def load_recipe(name: str, folder: Path = _HERE / "recipes") -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: no such target.
        InputError: the file is not a recipe; the error names the line.
    """
    if not (folder / f"{name}.yaml").exists():
        raise unknown_name("target", name, [*list_targets(), "all"])
    reader = _Reader(read_yaml(folder / f"{name}.yaml"))
    top = reader.mapping(())
    reader.only((), {*Recipe.__dataclass_fields__} - {"name"})
    noises = reader.text(("noises",), "", one_of=list_presets())
    recipe = Recipe(
        name=name,
        title=reader.text(("title",)),
        about=reader.text(("about",)),
        drawing=reader.text(("drawing",)),
        settings=reader.texts(("settings",), one_of=PAPER_SETTINGS),
        beyond=reader.texts(("beyond",), (), one_of=PAPER_SETTINGS),
        networks=reader.texts(("networks",), one_of=ROLES),
        modes=reader.texts(("modes",), one_of=EVAL_MODES),
        noises=noises,
        corruption=reader.text(("corruption",), "", one_of=("all", "common")),
        pictures=reader.of_type(("pictures",), bool, False),
        paper=_paper(reader) if "paper" in top else {},
        claims=_claims(reader),
        best=reader.interval(("best",)),
        slower=reader.interval(("slower",)),
        unmatched=reader.texts(("unmatched",), ()),
    )
    for mode in recipe.modes:
        needed = EVAL_MODES[mode].norm
        if needed != "any" and not ({needed, "groups" if needed == "ln" else needed} & set(recipe.networks)):
            reader.fail(("modes", recipe.modes.index(mode)), f"no network can run {mode}", found=str(recipe.networks))
    return recipe


def _paper(reader: _Reader) -> dict[str, dict[Measure, dict[str, float]]]:
    found: dict[str, dict[Measure, dict[str, float]]] = {}
    for setting, measures in reader.mapping(("paper",)).items():
        where: Where = ("paper", setting)
        if setting not in PAPER_SETTINGS:
            reader.fail(where, "no setting of the paper", found=setting, hint=", ".join(PAPER_SETTINGS))
        for words in reader.mapping(where) if measures else ():
            values = {
                mode: round(reader.number((*where, words, mode), least=0, most=100) / 100, 6)
                for mode in reader.mapping((*where, words))
            }
            for mode in values:
                if mode not in EVAL_MODES:
                    reader.fail((*where, words, mode), "no evaluation mode", found=mode, hint="lnbench list modes")
            found.setdefault(setting, {})[_measure(reader, (*where, words), words)] = values
    return found


_CLAIM = re.compile(r"(?P<left>\S+) (?P<relation>>=|>) (?P<right>\S+)(?: under (?P<what>.+))?")


def _claims(reader: _Reader) -> tuple[Claim, ...]:
    claims = []
    modes = reader.texts(("modes",))
    for at, text in enumerate(reader.texts(("claims",), ())):
        where: Where = ("claims", at)
        match = _CLAIM.fullmatch(text)
        if match is None:
            reader.fail(where, "not a claim", found=text, hint="ln-voting >= ln-batch under agn 1")
        for mode in (match["left"], match["right"]):
            if mode not in modes:
                reader.fail(where, "a claim about a mode that is not measured", found=mode, hint=", ".join(modes))
        measure = _measure(reader, where, match["what"] or "clean")
        claims.append(Claim(match["left"], match["relation"], match["right"], measure))
    return tuple(claims)


def _measure(reader: _Reader, where: Where, text: str) -> Measure:
    name, _, level = text.partition(" ")
    known = name in ("clean", "corruptions", "mce") or any(noise.startswith(name) for noise in NOISES)
    if not known or (level and not re.fullmatch(r"\d+(\.\d+)?", level)):
        reader.fail(where, f"{text!r} is none of clean, corruptions, mce, a noise, or a noise and its level")
    return Measure(name, float(level) if level else None)


def load_scale(name: str) -> Scale:
    """Read a scale.

    Raises:
        UsageError: no such scale.
        InputError: the file is not a scale; the error names the line.
    """
    if name not in list_scales():
        raise unknown_name("scale", name, list_scales())
    reader = _Reader(read_yaml(_HERE / "scales" / f"{name}.yaml"))
    reader.only((), {"about", "limit", "levels", "severity", "cost", "settings"})
    reader.only(("cost",), {"network", "norm", "repeats"})
    return Scale(
        name=name,
        about=reader.text(("about",)),
        settings=tuple(_setting(reader, setting) for setting in reader.mapping(("settings",))),
        limit=reader.of_type(("limit",), int, None),
        levels=reader.of_type(("levels",), int, None),
        severity=reader.text(("severity",), "1:5"),
        cost={
            "network": reader.texts(("cost", "network")),
            "norm": reader.texts(("cost", "norm"), one_of=NORMS),
            "repeats": reader.of_type(("cost", "repeats"), int),
        },
    )


def _setting(reader: _Reader, name: str) -> Setting:
    where: Where = ("settings", name)
    reader.only(where, {"paper", "data", "needs", "network", "bn", "ln", "group_sizes"})
    training: dict[str, dict[str, Any]] = {}
    sizes: tuple[int, ...] = ()
    for role, key in (("bn", "bn"), ("ln", "ln"), ("groups", "group_sizes")):
        given = dict(reader.mapping((*where, key), {}))
        if key == "group_sizes":
            sizes = tuple(given.pop("sizes", ()))
        for option in given:
            kind = TRAINING.get(option)
            if kind is None:
                reader.fail((*where, key, option), "no setting of a training", found=option, hint=", ".join(TRAINING))
            reader.of_type((*where, key, option), kind)
        training[role] = given
    return Setting(
        name=name,
        paper=reader.text((*where, "paper"), one_of=PAPER_SETTINGS),
        network=reader.text((*where, "network")),
        data=reader.text((*where, "data"), ""),
        needs=reader.text((*where, "needs"), ""),
        train_data="",
        training=training,
        sizes=sizes,
    )


_MISSING = object()


class _Reader:
    """Values of a YAML file, each checked where it is taken."""

    def __init__(self, file: YamlFile) -> None:
        self._file, self.fail = file, file.fail

    def _at(self, where: Where) -> Any:
        value = self._file.content
        for key in where:
            if isinstance(value, list) and isinstance(key, int):
                value = value[key]
            elif isinstance(value, dict):
                value = value.get(str(key), _MISSING)
            else:
                return _MISSING
        return value

    def mapping(self, where: Where, default: Any = _MISSING) -> dict[str, Any]:
        value = self._at(where)
        if value is _MISSING and default is not _MISSING:
            return dict(default)
        if not isinstance(value, dict):
            self.fail(where, "expected keys and values", found="nothing" if value is _MISSING else str(value))
        return value

    def only(self, where: Where, known: set[str]) -> None:
        for key in self.mapping(where):
            if key not in known:
                error = unknown_name("key", key, sorted(known))
                self.fail((*where, key), "unknown key", found=key, hint=error.hint)

    def of_type(self, where: Where, kind: type, default: Any = _MISSING) -> Any:
        value = self._at(where)
        if value is _MISSING and default is not _MISSING:
            return default
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or value is not True)
        if not fits:
            self.fail(where, f"expected {kind.__name__}", found="nothing" if value is _MISSING else repr(value))
        return value

    def text(self, where: Where, default: Any = _MISSING, *, one_of: Any = None) -> str:
        value = str(self.of_type(where, str, default)).strip()
        if one_of is not None and value not in one_of and value != default:
            self.fail(where, "unknown name", found=value, hint=unknown_name("name", value, one_of).hint)
        return value

    def texts(self, where: Where, default: Any = _MISSING, *, one_of: Any = None) -> tuple[str, ...]:
        values = self.of_type(where, list, list(default) if default is not _MISSING else _MISSING)
        return tuple(self.text((*where, at), one_of=one_of) for at in range(len(values)))

    def number(self, where: Where, *, least: float, most: float) -> float:
        value = float(self.of_type(where, float))
        if not least <= value <= most:
            self.fail(where, f"expected a number from {least:g} to {most:g}", found=f"{value:g}")
        return value

    def interval(self, where: Where) -> tuple[float, float] | None:
        values = self.of_type(where, list, None)
        if values is None:
            return None
        if len(values) != 2:
            self.fail(where, "expected two numbers, from and to", found=str(values))
        low, high = (self.number((*where, at), least=0, most=1e6) for at in range(2))
        return low, high


def preset_of(recipe: Recipe, form: str) -> str:
    """The preset of a recipe's noises, as released or as in the text.

    Raises:
        UsageError: no such form.
    """
    if form not in NOISE_FORMS:
        raise unknown_name("form of the noises", form, NOISE_FORMS)
    return f"{recipe.noises}-text" if recipe.noises and form == "text" else recipe.noises


def grids_of(preset: str, levels: int | None) -> tuple[dict[str, tuple[float, ...]], str]:
    """Noise to its levels, and the range policy, of a preset, with at most so many levels a noise."""
    if not preset:
        return {}, "clip"
    loaded = load_preset(preset)
    return {one.name: _picked(one.sigmas, levels) for one in loaded.requests}, loaded.range_policy


def _picked(sigmas: tuple[float, ...], levels: int | None) -> tuple[float, ...]:
    """At most so many levels: both ends, 1 where it is there (the paper's text speaks of it), the others evenly."""
    if levels is None or len(sigmas) <= levels:
        return sigmas
    if levels < 2:
        raise UsageError("a curve needs at least two levels", found=str(levels), hint="--levels 3")
    steps = [round(i * (len(sigmas) - 1) / (levels - 1)) for i in range(levels)]
    if 1.0 in sigmas and sigmas.index(1.0) not in steps and levels > 2:
        nearest = min(steps[1:-1], key=lambda step: abs(step - sigmas.index(1.0)))
        steps[steps.index(nearest)] = sigmas.index(1.0)
    return tuple(sigmas[step] for step in steps)
