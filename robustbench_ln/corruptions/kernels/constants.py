"""What constants a kernel can have: annotations of its signature, which suites are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

LARGEST = 1e4  # a radius of a million pixels would fill the memory
_SMALLEST = 1e-4  # of what must be above 0


@dataclass(frozen=True, slots=True)
class Between:
    """The values of a constant that make sense, both ends included."""

    low: float
    high: float = LARGEST


AtLeast0: TypeAlias = Annotated[float, Between(0)]
AtLeast1: TypeAlias = Annotated[float, Between(1)]
Above0: TypeAlias = Annotated[float, Between(_SMALLEST)]
Share: TypeAlias = Annotated[float, Between(0, 1)]
Shrinking: TypeAlias = Annotated[float, Between(_SMALLEST, 1)]
Count: TypeAlias = Annotated[int, Between(1)]
Quality: TypeAlias = Annotated[int, Between(1, 95)]
