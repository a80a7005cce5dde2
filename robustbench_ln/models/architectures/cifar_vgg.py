"""VGG for 32x32 images: Simonyan & Zisserman's convolutions, with and without BatchNorm.

The keys are `features.N` everywhere. The classifier is one linear layer (kuangliu's pytorch-cifar, bearpaw's
pytorch-classification) or three of them (weiaicunzai's pytorch-cifar100, huyvnphan's PyTorch_CIFAR10, chenyaofo's
pytorch-cifar-models, chengyangfu's pytorch-vgg-cifar10).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.blocks import Modules, named

# Convolutions in each of the five stages, table 1 of the VGG paper (configurations A, B, D, E).
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


def _vgg(
    num_classes: int, *, depth: int, norm: bool, hidden: int = 0, names: tuple[str, str, str] = ("0", "3", "6")
) -> nn.Module:
    """VGG of 11, 13, 16 or 19 layers.

    Args:
        num_classes: number of logits.
        depth: 11, 13, 16 or 19.
        norm: whether BatchNorm follows every convolution.
        hidden: width of the two linear layers before the output layer; 0 for none.
        names: of the three linear layers.
    """
    layers: list[nn.Module] = []
    before = 3
    for channels, convolutions in zip(_CHANNELS, _STAGES[depth], strict=True):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(before, channels, 3, padding=1))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    classifier: nn.Module = nn.Linear(before, num_classes)
    if hidden:
        first, second, last = names
        parts: Modules = {first: nn.Linear(before, hidden), "relu0": nn.ReLU(), "drop0": nn.Dropout()}
        parts |= {second: nn.Linear(hidden, hidden), "relu1": nn.ReLU(), "drop1": nn.Dropout()}
        classifier = named(parts | {last: nn.Linear(hidden, num_classes)})
    return named({"features": nn.Sequential(*layers), "flatten": nn.Flatten(), "classifier": classifier})


# Suffix: width and names of the linear layers, and whose keys they are.
_CLASSIFIERS = {
    "": (0, ("0", "3", "6"), "kuangliu/pytorch-cifar"),
    "-chenyaofo": (512, ("0", "3", "6"), "chenyaofo/pytorch-cifar-models"),
    "-chengyangfu": (512, ("1", "4", "6"), "chengyangfu/pytorch-vgg-cifar10"),
    "-weiaicunzai": (4096, ("0", "3", "6"), "weiaicunzai/pytorch-cifar100"),
}

ARCHITECTURES = tuple(
    Architecture(
        f"cifar_vgg{depth}{'_bn' if norm else ''}{suffix}",
        f"VGG-{depth} {'with' if norm else 'without'} BatchNorm for 32x32 images, keys of {keys}",
        partial(_vgg, depth=depth, norm=norm, hidden=hidden, names=names),
        head=f"classifier.{names[-1]}" if hidden else "classifier",
        telltale="features.0.weight",
    )
    for suffix, (hidden, names, keys) in _CLASSIFIERS.items()
    for norm in (True, False)
    for depth in _STAGES
)
