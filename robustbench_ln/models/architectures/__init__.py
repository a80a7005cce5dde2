"""The architectures that are known by name and recognised from a state dict's keys and shapes.

To add one: a module with a network and a tuple `ARCHITECTURES` of rows, and its name below.
"""

from robustbench_ln.models.architectures import cifar_resnet, cifar_vgg, demo_net, torchvision_zoo
from robustbench_ln.models.architectures.architecture import Architecture, Match, Shapes, shapes_of

# From simple to complex: where two fit, the first is taken.
_MODULES = (demo_net, cifar_resnet, cifar_vgg, torchvision_zoo)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for module in _MODULES for row in module.ARCHITECTURES}

__all__ = ["ARCHITECTURES", "Architecture", "Match", "Shapes", "shapes_of"]
