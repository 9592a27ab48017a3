"""Means over seeds with their 95% intervals."""

import math
import statistics
from collections.abc import Sequence

# The 97.5% points of Student's t with 1 .. 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t. With one value the width is infinite.

    Above 31 values the last point of the table is taken, which is a little wide. NaN when a value is.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    freedom = len(values) - 1
    return mean, _T[min(freedom, len(_T)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
