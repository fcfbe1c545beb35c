"""Where names stand beside their marks in a picture, so that none lies on another."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression


def apart(boxes: Sequence[tuple[float, float, float]], height: float) -> list[float]:
    """The middles of labels, each as near its own as the others let it be.

    Labels that share no column of the picture leave each other alone; those that do lie `height`
    apart at least, with the least sum of squared moves.

    Args:
        boxes: a label's left and right edge, and where its middle should be; one unit for all of
            the across, one for all of the up.
    """
    middles = [middle for _, _, middle in boxes]
    for column in _columns(boxes):
        order = sorted(column, key=lambda i: boxes[i][2])
        steps = height * np.arange(len(order))
        wanted = np.array([boxes[i][2] for i in order]) - steps
        for i, middle in zip(order, isotonic_regression(wanted).x + steps, strict=True):
            middles[i] = float(middle)
    return middles


def _columns(boxes: Sequence[tuple[float, float, float]]) -> list[list[int]]:
    """The labels in groups that overlap from left to right, one with the next."""
    columns: list[list[int]] = []
    reach = -np.inf
    for i in sorted(range(len(boxes)), key=lambda i: boxes[i][0]):
        left, right, _ = boxes[i]
        if left >= reach:
            columns.append([])
        columns[-1].append(i)
        reach = max(reach, right)
    return columns
