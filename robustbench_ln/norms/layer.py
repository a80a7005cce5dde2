"""LocalNorm layers, and the one function that normalises for every method and evaluation mode.

All methods of Yin et al. (2021), section 3, differ in three things only: which images share statistics, where the
statistics come from, and which affine row an image gets. :class:`Layout` says those three; BatchNorm is K = 1 with
running statistics, Dynamic BatchNorm K = 1 with live ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_ln.errors import InputError, UsageError


@dataclass(frozen=True, slots=True)
class Layout:
    """How the images of one forward pass are normalised.

    Attributes:
        set_size: every `set_size` consecutive images share statistics; None for the frozen running statistics.
        rows: affine row (LocalNorm group) of each set; None for row 0 everywhere.
        source_weight: N of ``bn-adapt``: how many images' weight the running statistics keep beside the live ones.
        images: how many images the forward pass has. A network may flatten them into more rows, ``(B, T, C)`` tokens
            into ``(B T, C)``, and sets are counted in images. None where rows are images.
    """

    set_size: int | None
    rows: tuple[int, ...] | None = None
    source_weight: int = 0
    images: int | None = None

    def rows_per_image(self, rows: int) -> int:
        """How many of a layer's `rows` an image has; 1 where rows are images.

        Raises:
            InputError: the rows are not equally many an image.
        """
        if self.images is None:
            return 1
        if rows % self.images:
            raise InputError(
                "a norm layer of the network mixes images, so that no mode but native can be applied",
                found=f"{rows} rows for {self.images} images",
                hint="--modes native",
            )
        return rows // self.images


# Values in a set up to which copying sets side by side costs less than a kernel call for each; measured on a CPU core.
_SMALL_SET = 8192


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    layout: Layout,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``gamma * (x - mu) / sqrt(var + eps) + beta`` per channel, with biased variance.

    Args:
        x: ``(B, C)`` or ``(B, C, *spatial)``; B is a multiple of the layout's set size, once or several times over.
        weight: gamma, ``(C,)`` or ``(K, C)``; None for 1.
        bias: beta, of the same shape; None for 0.
        eps: added to the variance, inside the square root.
        layout: which images share statistics, and their affine rows.
        running: running mean and variance, ``(C,)`` each; needed without a set size or with a source weight.

    Returns: as `x`.

    Raises:
        InputError: a layout that counts images, and rows that are not equally many an image.
    """
    # Statistics have the type of gamma and beta: those of 16-bit images need 32 bits.
    kind = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_ones(x.shape[1], dtype=kind) if weight is None else weight.to(kind)
    bias = x.new_zeros(x.shape[1], dtype=kind) if bias is None else bias.to(kind)
    if layout.set_size is None:
        return _batch_norm(x, _row(weight, 0), _row(bias, 0), eps, *running)
    size = layout.set_size * layout.rows_per_image(len(x))
    n = len(x) // size
    rows = layout.rows or (0,) * n
    if layout.source_weight:
        done = []
        for part, row in zip(torch.split(x, size), rows, strict=True):
            mean, var = _mixed(part, running, layout.source_weight, layout.set_size)
            done.append(_batch_norm(part, _row(weight, row), _row(bias, row), eps, mean, var))
        return torch.cat(done)
    if n == 1:
        return _batch_norm(x, _row(weight, rows[0]), _row(bias, rows[0]), eps)
    gamma, beta = _rows(weight, rows), _rows(bias, rows)
    if size == 1 or size * x[0].numel() <= _SMALL_SET:
        # Small sets: the channels of all sets side by side, so that one kernel call serves all.
        folded = x.reshape(n, size, x.shape[1], -1).transpose(0, 1).reshape(size, n * x.shape[1], -1)
        folded = _batch_norm(folded, gamma.flatten(), beta.flatten(), eps)
        unfolded = folded.reshape(size, n, x.shape[1], -1).transpose(0, 1).reshape(x.shape)
        return unfolded if x.is_contiguous() else torch.empty_like(x).copy_(unfolded)  # channels_last stays
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        parts = zip(torch.split(x, size), gamma, beta, strict=True)
        return torch.cat([_batch_norm(*part, eps) for part in parts])
    # The kernel that writes into a given tensor is wrong for other strides (PyTorch 2.14).
    usual = any(x.is_contiguous(memory_format=one) for one in _FORMATS)
    out: Tensor = _Sets.apply(x if usual else x.contiguous(), gamma, beta, eps)[0]
    return out


_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


class _Sets(torch.autograd.Function):
    """Batch normalisation of each of S equal sets of consecutive images, with its own row of gamma and beta.

    The same as torch.split, torch.batch_norm on each part and torch.cat, but every part is written where it belongs:
    what the copies of the last step cost, forward and backward, is most of what LocalNorm costs more than BatchNorm.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        sets = len(weight)
        out, mean, invstd = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        parts = zip(x.chunk(sets), out.chunk(sets), weight, bias, mean, invstd, strict=True)
        for part, made, gamma, beta, mu, scale in parts:
            _norm.out(part, gamma, beta, None, None, True, 0.0, eps, out=made, save_mean=mu, save_invstd=scale)
        return out, mean, invstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, invstd = output
        ctx.mark_non_differentiable(mean, invstd)
        ctx.save_for_backward(x, weight, mean, invstd)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, invstd = ctx.saved_tensors
        sets = len(weight)
        parts = zip(grad.chunk(sets), x.chunk(sets), weight, mean, invstd, strict=True)
        fixed = (True, ctx.eps, [True, True, True])
        calls = [(dy, part, gamma, None, None, mu, scale, *fixed) for dy, part, gamma, mu, scale in parts]
        if torch.is_grad_enabled():  # for second derivatives, which what writes in place does not have
            of_x, of_weight, of_bias = zip(*(_norm_backward(*call) for call in calls), strict=True)
            return torch.cat(of_x), torch.stack(of_weight), torch.stack(of_bias), None
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        for call, *made in zip(calls, dx.chunk(sets), dweight, dbias, strict=True):
            _norm_backward.out(*call, out0=made[0], out1=made[1], out2=made[2])
        return dx, dweight, dbias, None


_norm = torch.ops.aten.native_batch_norm
_norm_backward = torch.ops.aten.native_batch_norm_backward


def _row(parameter: Tensor, row: int) -> Tensor:
    return parameter if parameter.dim() == 1 else parameter[row]


def _rows(parameter: Tensor, rows: tuple[int, ...]) -> Tensor:
    """``(S, C)``: the row of each set."""
    if parameter.dim() == 1:
        return parameter.expand(len(rows), -1)
    return parameter if rows == tuple(range(len(parameter))) else parameter[list(rows)]


def _mixed(
    part: Tensor, running: tuple[Tensor | None, Tensor | None], source: int, images: int
) -> tuple[Tensor, Tensor]:
    """(N source + M test) / (N + M), for mean and variance (Schneider et al., NeurIPS 2020, equation 2)."""
    mean, var = running
    assert mean is not None
    assert var is not None
    axes = [axis for axis in range(part.dim()) if axis != 1]
    live_var, live_mean = torch.var_mean(part.float(), dim=axes, correction=0)
    total = source + images
    return (source * mean + images * live_mean) / total, (source * var + images * live_var) / total


def _batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    # torch.batch_norm, not nn.functional's: that one refuses one value a channel (a single image, 1x1 feature map),
    # which is a defined case here: zero variance, so the result is beta.
    return torch.batch_norm(x, weight, bias, mean, var, mean is None, 0.0, eps, torch.backends.cudnn.enabled)


class LocalNorm(nn.Module):
    """LocalNorm over any number of spatial dimensions (Yin et al. 2021, section 3).

    A batch is cut into K contiguous groups, each with its own statistics and its own gamma and beta. There are no
    running statistics: statistics always come from the images passed.

    Args:
        num_features: C.
        n_groups: K.
        eps: added to the variance, inside the square root.
        affine: whether gamma and beta, of shape ``(K, C)``, are learned.

    In ``train()`` a batch that K does not divide raises :class:`UsageError`. In ``eval()`` groups are cut as
    ``torch.tensor_split`` does, so a batch of B < K images uses groups 0 to B - 1.

    Attributes:
        layout: set by an evaluation mode (`robustbench_ln.norms.using`) to cut the batch another way; None otherwise.
    """

    layout: Layout | None = None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, n_groups: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        if num_features < 1 or n_groups < 1:
            raise UsageError(
                "LocalNorm needs at least one feature and one group",
                found=f"num_features {num_features}, n_groups {n_groups}",
                hint="LocalNorm2d(num_features=64, n_groups=8)",
            )
        self.num_features, self.n_groups, self.eps, self.affine = num_features, n_groups, eps, affine
        shape = (n_groups, num_features)
        self.register_parameter("weight", nn.Parameter(torch.ones(shape)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``; returns the same shape."""
        self._check(x)
        if self.layout is not None:
            return normalise(x, self.weight, self.bias, self.eps, self.layout)
        if self.training and len(x) % self.n_groups:
            raise UsageError(
                "a training batch must be a multiple of LocalNorm's number of groups",
                found=f"{len(x)} images for K = {self.n_groups}",
                hint="a batch size that K divides, and drop_last=True in the data loader",
            )
        size, longer = len(x) // self.n_groups, len(x) % self.n_groups
        if not longer:
            return self._grouped(x, size, 0)
        # As tensor_split does: the first groups have an image more.
        first, rest = x[: longer * (size + 1)], x[longer * (size + 1) :]
        done = self._grouped(first, size + 1, 0)
        return torch.cat([done, self._grouped(rest, size, longer)]) if size else done

    def _grouped(self, x: Tensor, size: int, first: int) -> Tensor:
        """Groups of `size` images, the first of them with the affine row `first`."""
        layout = Layout(size, tuple(range(first, first + len(x) // size)))
        return normalise(x, self.weight, self.bias, self.eps, layout)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features or len(x) == 0:
            raise ValueError(f"expected (B, {self.num_features}, ...) with B > 0, found {tuple(x.shape)}")

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return f"{self.num_features}, n_groups={self.n_groups}, eps={self.eps}, affine={self.affine}"


class LocalNorm1d(LocalNorm):
    """LocalNorm for ``(B, C)`` or ``(B, C, L)``."""


class LocalNorm2d(LocalNorm):
    """LocalNorm for ``(B, C, H, W)``."""


class LocalNorm3d(LocalNorm):
    """LocalNorm for ``(B, C, D, H, W)``."""
