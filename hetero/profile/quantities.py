"""What a number of a profile may be. NaN and infinity are nowhere allowed: comparisons with them
are silent, so one that is read would be planned with."""

import sys
from typing import Annotated

import msgspec

_LARGEST = sys.float_info.max

Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=_LARGEST)]

Count = Annotated[int, msgspec.Meta(ge=0)]
OneOrMore = Annotated[int, msgspec.Meta(ge=1)]
