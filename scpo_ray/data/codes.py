"""Which of the codes from 0 stand in an array, without sorting them. Pure."""

import numpy as np
from numpy.typing import NDArray


def present(*several: NDArray[np.integer], size: int | None = None) -> NDArray[np.bool_]:
    """(size,) bool, whether each code stands in one of the arrays.

    Args:
        several: codes, 0 or more.
        size: above every code; None: just above the highest.
    """
    if size is None:
        size = 1 + max((int(codes.max(initial=-1)) for codes in several), default=-1)
    marks = np.zeros(size, dtype=np.bool_)
    for codes in several:
        marks[codes] = True
    return marks
