"""Least squares by Levenberg and Marquardt: a dozen unknowns, a few hundred residuals, no library."""

from collections.abc import Callable, Sequence

Residuals = Callable[[Sequence[float]], list[float]]

_STEP = 1e-5
_LONGEST_STEP = 0.5
_ENOUGH = 1e-9
_STIFFEST = 1e8


def least_squares(residuals: Residuals, start: Sequence[float], *, rounds: int = 200) -> list[float]:
    """The unknowns near `start` with the least sum of squared residuals; derivatives by differences.

    Unknowns should be of the order of one (logarithms of what is sought). No step is longer than 0.5.
    """
    at, here = list(start), residuals(start)
    cost, damping = _squares(here), 1e-2
    for _ in range(rounds):
        normal, gradient = _normal_equations(residuals, at, here)
        for row, column in enumerate(normal):
            column[row] *= 1 + damping
            column[row] += 1e-12
        step = [max(-_LONGEST_STEP, min(_LONGEST_STEP, -x)) for x in solve(normal, gradient)]
        there = [x + dx for x, dx in zip(at, step, strict=True)]
        tried = residuals(there)
        if _squares(tried) < cost:
            gained, at, here, damping = cost - _squares(tried), there, tried, damping / 3
            cost -= gained
            if gained <= _ENOUGH * cost:
                break
        else:
            damping *= 4
            if damping > _STIFFEST:
                break
    return at


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x with matrix x = right, by elimination with the largest pivot.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in rows[column + 1 :]:
            factor = below[column] / rows[column][column]
            for index in range(column, size + 1):
                below[index] -= factor * rows[column][index]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][index] * found[index] for index in range(row + 1, size))
        found[row] = (rows[row][size] - known) / rows[row][row]
    return found


def _normal_equations(
    residuals: Residuals, at: Sequence[float], here: Sequence[float]
) -> tuple[list[list[float]], list[float]]:
    slopes = []
    for index in range(len(at)):
        moved = [x + (_STEP if index == other else 0.0) for other, x in enumerate(at)]
        slopes.append([(there - value) / _STEP for there, value in zip(residuals(moved), here, strict=True)])
    normal = [[_dot(first, second) for second in slopes] for first in slopes]
    return normal, [_dot(slope, here) for slope in slopes]


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(first, second, strict=True))


def _squares(values: Sequence[float]) -> float:
    return _dot(values, values)
