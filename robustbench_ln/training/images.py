"""Training images: kept decoded in memory, shuffled anew each epoch, cropped and mirrored at random.

All chance is keyed by (seed, epoch, image), so a step can be computed again without what came before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robustbench_ln.corruptions import ImageRng, to_float
from robustbench_ln.data import Dataset
from robustbench_ln.types import Images

_KEPT_BYTES = 2**31  # more decoded images than this are read from their files in every epoch
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a data set.

    Attributes:
        dataset: where they are.
        indices: ``(n,)`` int64, which.
    """

    dataset: Dataset
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Tensor:
        """``(n,)`` int64."""
        return torch.from_numpy(self.dataset.labels[self.indices])


class Pixels:
    """The 8-bit images of a part, by position in it; decoded once where they fit into memory.

    Args:
        part: whose images.
        room: bytes that decoded images may take.
        pinned: whether what is read lies where a GPU can fetch it by itself.
    """

    def __init__(self, part: Part, room: int = _KEPT_BYTES, *, pinned: bool = False) -> None:
        self._part, self._pinned = part, pinned
        height, width = part.dataset.image_size
        self._kept: Tensor | None = None
        if len(part) * 3 * height * width <= room:
            kept = torch.empty((len(part), 3, height, width), dtype=torch.uint8)
            for start in range(0, len(part), _CHUNK):
                kept[start : start + _CHUNK] = part.dataset.read(part.indices[start : start + _CHUNK])
            self._kept = kept

    def read(self, positions: Tensor) -> Tensor:
        """``(b, 3, H, W)`` uint8."""
        if self._kept is not None:
            levels = self._kept[positions]
        else:
            levels = self._part.dataset.read(self._part.indices[positions.numpy()])
        return levels.pin_memory() if self._pinned else levels


def epoch_order(seed: int, epoch: int, indices: NDArray[np.int64]) -> Tensor:
    """``(n,)`` int64: the order in which an epoch visits the positions of a part."""
    words = ImageRng(seed, "train/order", torch.from_numpy(indices), repeat=epoch).words(2).to(torch.int64)
    return ((words[:, 0] << 32) | (words[:, 1] & 0xFFFFFFFF)).argsort(stable=True)


def ahead(work: Callable[[Tensor], Tensor], items: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
    """What `work` makes of each item, in order; `workers` threads do it before it is asked for, 0 do it then."""
    if not workers:
        yield from map(work, items)
        return
    waiting: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def augmented(levels: Tensor, rng: ImageRng, *, crop: int, flip: bool) -> Images:
    """Images in [0, 1], mirrored with probability 1/2 and cropped at random out of their zero-padded selves.

    Args:
        levels: ``(B, 3, H, W)`` uint8, on any device.
        rng: one stream an image.
        crop: pixels of padding on each side; 0 for none.
        flip: whether to mirror.

    Returns: ``(B, 3, H, W)`` float32 on the same device.
    """
    device = levels.device
    if flip:
        levels = torch.where((rng.uniform(1, 1, 1) < 0.5).to(device), levels.flip(-1), levels)
    if crop:
        h, w = levels.shape[2:]
        padded = F.pad(levels, [crop] * 4).permute(0, 2, 3, 1)
        top, left = rng.integers(2 * crop + 1, 2).to(device).unbind(1)
        rows, columns = (start[:, None] + torch.arange(n, device=device) for start, n in ((top, h), (left, w)))
        batch = torch.arange(len(levels), device=device)[:, None, None]
        levels = padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return to_float(levels)
