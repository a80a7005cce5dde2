"""The architectures that are known by name and recognised from a state dict's keys and shapes.

To add one: a module with a network and a tuple `ARCHITECTURES` of rows, and its name below. Key layouts are facts of
public implementations, which each module names; networks that share all keys and shapes stand side by side.
"""

from robustbench_ln.errors import unknown_name
from robustbench_ln.models.architectures import (
    allconv,
    cifar_densenet,
    cifar_mobilenet,
    cifar_preact,
    cifar_resnet,
    cifar_resnext,
    cifar_vgg,
    deepmind,
    demo_net,
    timm_zoo,
    torchvision_zoo,
    wide_resnet,
)
from robustbench_ln.models.architectures.architecture import Architecture, Match, shapes_of
from robustbench_ln.models.architectures.norm_forms import NormForm, Shapes, as_batchnorm, norm_form

# From simple to complex: where two fit, the first is taken.
_MODULES = (
    demo_net,
    cifar_resnet,
    cifar_preact,
    cifar_vgg,
    wide_resnet,
    deepmind,
    cifar_resnext,
    cifar_densenet,
    cifar_mobilenet,
    allconv,
    torchvision_zoo,
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for module in _MODULES for row in module.ARCHITECTURES}
"""By name, sizes in braces; timm's are not among them, for timm is imported only where it is needed."""


def find_architecture(name: str) -> Architecture:
    """The architecture that `name` names.

    Args:
        name: in `ARCHITECTURES`, with numbers for what stands in braces there (``wrn-28-10``); or ``timm:NAME``.

    Raises:
        UsageError: an unknown name.
        ResourceError: one of timm's, which is not installed.
    """
    if name.startswith(timm_zoo.PREFIX):
        return timm_zoo.architecture(name)
    row = ARCHITECTURES.get(name) or next((one for row in ARCHITECTURES.values() if (one := row.sized(name))), None)
    if row is None:
        known = [*ARCHITECTURES, "timm:NAME", "package.module:factory"]
        raise unknown_name("architecture", name, known, listing="lnbench list architectures")
    return row


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Match",
    "NormForm",
    "Shapes",
    "as_batchnorm",
    "find_architecture",
    "norm_form",
    "shapes_of",
]
