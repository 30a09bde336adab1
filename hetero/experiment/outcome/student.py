"""Student's t, for whole degrees of freedom: what few repetitions need instead of 1.96.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
"""

import math
from functools import cache

NORMAL_95 = 1.959963984540054  # of the normal distribution: as much, either way, holds 95%


@cache
def student_95(degrees: int) -> float:
    """The t that 95% of a Student's distribution lie within, either way. degrees: 1 or more."""
    low, high = NORMAL_95, 13.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _within(middle, degrees) < 0.95:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, degrees: int) -> float:
    """The probability of -t to t."""
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    # Terms with even powers of the cosine for even degrees, with odd ones for odd.
    for power in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
