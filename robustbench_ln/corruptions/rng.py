"""Keyed random numbers: one stream per (seed, purpose, repeat, image index), drawn for a whole batch at once.

Each 32-bit word is a pure function of the stream's key and the word's position (a counter-based generator), so a draw
does not depend on batch mates, visiting order, workers or threads. The mixing function is pcg4d (Jarzynski & Olano,
"Hash Functions for GPU Rendering", JCGT 9(3), 2020): integer multiply-adds on 32-bit lanes, about ten times faster in
plain tensor operations than Philox or Threefry.

Floating-point results use only operations that IEEE 754 rounds correctly (+, -, *, /, sqrt), each in a kernel of its
own. That is why ``normal`` carries its own logarithm, sine and cosine: a library's differ in the last bit between
machines and between the middle and the tail of a vector, and then "same seed, same pixels, byte for byte" is lost.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_BLOCK_WORDS = 1 << 17  # words computed at a time: 512 kB a buffer stays in the cache and hides the cost of a call


def _int32(value: int) -> int:
    """The signed 32-bit integer with the same bits as the unsigned `value`."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


_MULTIPLIER, _INCREMENT = 1664525, 1013904223


def _mix(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> None:
    """One round of multiply-adds in place; multiplication and addition wrap modulo 2**32."""
    x.addcmul_(y, w)
    y.addcmul_(z, x)
    z.addcmul_(x, y)
    w.addcmul_(y, z)


def _fold(lane: Tensor) -> None:
    """Exclusive-or the upper half of each word into the lower, in place."""
    # Tensors shift arithmetically; the mask makes it the logical shift the hash asks for.
    lane.bitwise_xor_((lane >> 16).bitwise_and_(0xFFFF))


def _pcg4d(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> None:
    """Mix four int32 lanes in place."""
    lanes = (x, y, z, w)
    for lane in lanes:
        lane.mul_(_MULTIPLIER).add_(_INCREMENT)
    _mix(*lanes)
    for lane in lanes:
        _fold(lane)
    _mix(*lanes)


@lru_cache(maxsize=32)
def _counters(n: int, device: torch.device) -> Tensor:
    """The first step of `_pcg4d` of 0 to n - 1; ``(n,)`` int32."""
    return torch.arange(n, dtype=torch.int32, device=device).mul_(_MULTIPLIER).add_(_INCREMENT)


class ImageRng:
    """Draws of shape ``(B, *shape)``, one independent stream per image.

    Args:
        seed: the run's seed, any integer.
        purpose: what the draws are for, usually the name of a noise or corruption. The level is left out on purpose:
            levels of one corruption share their random numbers where the distribution allows it.
        indices: ``(B,)`` int64, the images' positions in the data set.
        repeat: which redraw, from 0.
        device: where the draws are computed and returned; the values are the same everywhere.
    """

    def __init__(
        self, seed: int, purpose: str, indices: Tensor, *, repeat: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        digest = hashlib.sha256(f"lnbench-rng-1\0{seed}\0{purpose}\0{repeat}".encode()).digest()
        first, second = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
        index = indices.to(device=device, dtype=torch.int64)
        low, high = index.to(torch.int32), (index >> 32).to(torch.int32)
        lanes = (low.clone(), high.clone(), torch.full_like(low, _int32(first)), torch.full_like(low, _int32(second)))
        _pcg4d(*lanes)
        # The two lanes that all four inputs have reached twice; every draw puts them through pcg4d's first step again.
        self._keys = lanes[2].mul_(_MULTIPLIER).add_(_INCREMENT), lanes[3].mul_(_MULTIPLIER).add_(_INCREMENT)
        self._draws = 0

    def __len__(self) -> int:
        return len(self._keys[0])

    def __getitem__(self, images: slice) -> ImageRng:
        """The streams of some of the images, at the place where they are now; what is drawn there is not drawn here."""
        part = copy.copy(self)
        part._keys = self._keys[0][images], self._keys[1][images]
        return part

    def _lanes(self, n_counters: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `transform` to blocks ``(b, 4, n_counters)`` of random words and join what it returns along b."""
        self._draws += 1
        key_a, key_b = self._keys
        # `_pcg4d` of (counter, draw, key a, key b), with what is constant along a row or a column computed only once.
        counter = _counters(n_counters, key_a.device)
        draw = _int32(self._draws * _MULTIPLIER + _INCREMENT)
        per_block = max(1, _BLOCK_WORDS // (4 * n_counters))
        done = []
        for start in range(0, max(1, len(self)), per_block):
            a, b = (key[start : start + per_block, None] for key in (key_a, key_b))
            words = torch.empty((len(a), 4, n_counters), dtype=torch.int32, device=key_a.device)
            x, y, z, w = words.unbind(1)
            torch.add(counter, b * draw, out=x)
            torch.mul(x, a, out=y).add_(draw)
            torch.addcmul(a, x, y, out=z)
            torch.addcmul(b, y, z, out=w)
            _fold(words)
            _mix(x, y, z, w)
            done.append(transform(words))
        return done[0] if len(done) == 1 else torch.cat(done)

    def _shaped(self, shape: tuple[int, ...], transform: Callable[[Tensor], Tensor]) -> Tensor:
        size = math.prod(shape)
        flat = self._lanes(-(-size // 4), lambda words: transform(words).flatten(1))
        return flat[:, :size].reshape(len(self), *shape)

    def words(self, *shape: int) -> Tensor:
        """``(B, *shape)`` int32 of 32 random bits each."""
        return self._shaped(shape, lambda words: words)

    def halfwords(self, *shape: int, bits: int = 16) -> Tensor:
        """``(B, *shape)`` int32, uniform on 0 to ``2**bits - 1``: two from each word, for half the price."""
        size = math.prod(shape)
        flat = self._lanes(-(-size // 8), lambda words: _halves(words, bits))
        return flat[:, :size].reshape(len(self), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """``(B, *shape)`` float32, uniform on the 2**24 multiples of 2**-24 in [0, 1)."""
        return self._shaped(shape, _unit)

    def normal(self, *shape: int) -> Tensor:
        """``(B, *shape)`` float32, standard normal by the Box-Muller transform; at most 5.77 in absolute value."""
        return self._shaped(shape, _box_muller)

    def integers(self, high: int, *shape: int) -> Tensor:
        """``(B, *shape)`` int64, uniform on 0 to high - 1; the bias is below ``high * 2**-24``."""
        return (self.uniform(*shape) * high).to(torch.int64).clamp_(max=high - 1)

    def poisson(self, rate: float, *shape: int) -> Tensor:
        """``(B, *shape)`` float32, Poisson with mean `rate`, by inversion: a larger rate never draws a smaller count.

        Probabilities below 2**-24 are out of reach. Cost grows with the logarithm of the rate.
        """
        thresholds = torch.tensor(poisson_cdf(rate), dtype=torch.float32, device=self._keys[0].device)
        return torch.bucketize(self.uniform(*shape), thresholds, right=True).to(torch.float32)


def poisson_cdf(rate: float) -> list[float]:
    """P(X <= k) for k = 0, 1, … of a Poisson variable, up to where float32 can no longer tell it from 1.

    Args:
        rate: mean, at least 0.
    """
    cdf: list[float] = []
    total = 0.0
    k = 0
    while total < 1.0 - 2.0**-25:
        # In logarithms, since exp(-rate) underflows for large rates.
        step = math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) if rate > 0 else 1.0
        if k > rate and step < 2.0**-40:
            break
        total += step
        cdf.append(total)
        k += 1
    return cdf


def _halves(words: Tensor, bits: int) -> Tensor:
    """``(b, 4, n)`` words to ``(b, 8 n)`` numbers: the last `bits` of all lower halves, then of all upper ones."""
    mask = (1 << bits) - 1
    b, lanes, n = words.shape
    halves = torch.empty((b, 2, lanes, n), dtype=torch.int32, device=words.device)
    torch.bitwise_and(words, mask, out=halves[:, 0])
    torch.bitwise_right_shift(words, 16, out=halves[:, 1]).bitwise_and_(mask)
    return halves.flatten(1)


def _unit(words: Tensor) -> Tensor:
    """float32 in [0, 1) from the upper 24 bits of each word."""
    return (words >> 8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def _box_muller(words: Tensor) -> Tensor:
    """``(b, 4, n)`` words to ``(b, 4, n)`` normals: lanes 0 and 1 give the radii, 2 and 3 the angles."""
    radius = _minus_two_log(_unit(words[:, :2]).add_(2.0**-24)).sqrt_()  # the shift moves [0, 1) to (0, 1]
    sine, cosine = _sine_cosine(_unit(words[:, 2:]))
    return torch.cat((cosine.mul_(radius), sine.mul_(radius)), dim=1)


def _minus_two_log(u: Tensor) -> Tensor:
    """-2 ln u for float32 u in (0, 1], relative error below 1e-6."""
    bits = u.view(torch.int32)
    # Split u = 2**e * m with m in [sqrt(1/2), sqrt(2)); 0x3F3504F3 are the bits of sqrt(1/2).
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(torch.float32)
    s = (m - 1.0).div_(m + 1.0)  # ln m = 2 atanh(s) = 2 s (1 + s²/3 + s⁴/5 + …), |s| < 0.172
    square = s * s
    series = (square * (1 / 9)).add_(1 / 7).mul_(square).add_(1 / 5).mul_(square).add_(1 / 3).mul_(square).add_(1.0)
    return s.mul_(series).mul_(-4.0).add_(exponent.to(torch.float32).mul_(-2 * math.log(2)))


def _sine_cosine(u: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of 2 pi u for u in [0, 1), absolute error below 1e-6."""
    quarter = (u - 0.5).mul_(math.pi / 2)  # a quarter of an angle in [-pi, pi): the angle is uniform on the circle
    square = quarter * quarter
    sine = (square * (1 / 362880)).add_(-1 / 5040).mul_(square).add_(1 / 120).mul_(square).add_(-1 / 6)
    sine = sine.mul_(square).add_(1.0).mul_(quarter)
    cosine = (square * (1 / 40320)).add_(-1 / 720).mul_(square).add_(1 / 24).mul_(square).add_(-0.5)
    cosine = cosine.mul_(square).add_(1.0)
    for _ in range(2):  # double the angle twice: sin 2a = 2 sin a cos a, cos 2a = 1 - 2 sin² a
        sine, cosine = (sine * cosine).mul_(2.0), (sine * sine).mul_(-2.0).add_(1.0)
    return sine, cosine
