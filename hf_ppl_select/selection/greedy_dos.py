"""The paper's greedy distance-to-optimum selection, exact, in O(log n) per chunk (Liu et al., ACL 2026)."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np


def choose_greedy_dos(
    values: np.ndarray,
    num_tokens: np.ndarray,
    budget: float,
    mu: float,
    sigma: float,
    *,
    mu_weight: float = 1.0,
    sigma_weight: float = 1.0,
) -> np.ndarray:
    """The paper's greedy distance-to-optimum selection, exact, O(log n) per chunk (Liu et al., ACL 2026).

    It adds, again and again, the chunk that makes `J(S) = w_mu (mu(S) - mu)^2 + w_sigma (sigma^2(S) - sigma^2)^2`
    lowest. `w_mu = mu_weight / sigma^2` and `w_sigma = sigma_weight / sigma^4`, so J has no unit and the weights mean
    the same for every corpus and space. With one chunk sigma(S) is 0, so the first one is the chunk nearest to mu.

    With n chunks of mean m and variance V (in units where the target is 0 and 1), adding one at distance d from m
    gives

        J(d) = w_mu (m + d / (n+1))^2 + w_sigma (n d^2 / (n+1)^2 + n V / (n+1) - 1)^2,

    whose derivative is a cubic without a square term. Between its roots J only rises or only falls, so the best chunk
    is a free neighbour of a root that is a minimum. Equal J: the lower value; equal values: their original order.

    Returns:
        Positions in the order in which they were picked.
    """
    order = np.argsort(values, kind="stable")
    y = memoryview((np.asarray(values, dtype=np.float64)[order] - mu) / sigma)  # Python objects only of rows looked at
    tokens = memoryview(np.asarray(num_tokens, dtype=np.float64)[order])
    # union-find: above[i] leads to the first free chunk >= i, below[i] to 1 + the last one < i
    above: dict[int, int] = {}
    below: dict[int, int] = {}

    def find(links: dict[int, int], i: int) -> int:
        path = []
        while (up := links.get(i)) is not None:
            path.append(i)
            i = up
        for passed in path:
            links[passed] = i
        return i

    picked, room = [], budget
    n, mean, squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean
    while len(picked) < len(y):
        best, lowest = -1, math.inf
        for root in _minima(n, mean, squares / n if n else 0.0, mu_weight, sigma_weight):
            i = bisect_left(y, mean + root)
            for k in (find(below, i) - 1, find(above, i)):
                if not 0 <= k < len(y):
                    continue
                d = y[k] - mean
                spread = n * d * d / (n + 1) ** 2 + squares / (n + 1) - 1.0
                j = mu_weight * (mean + d / (n + 1)) ** 2 + sigma_weight * spread * spread
                if j < lowest or (j == lowest and k < best):
                    best, lowest = k, j
        best = find(above, bisect_left(y, y[best]))  # of equal values the first that is free
        if tokens[best] > room:
            break
        room -= tokens[best]
        picked.append(best)
        above[best], below[best + 1] = best + 1, best
        n += 1
        d = y[best] - mean
        mean += d / n
        squares += d * (y[best] - mean)
    return order[picked]


def _minima(n: int, mean: float, variance: float, mu_weight: float, sigma_weight: float) -> tuple[float, ...]:
    """The one or two distances d from the mean at which J(d) has a minimum: roots of d^3 + p d + q."""
    if n == 0 or sigma_weight == 0.0:
        return (-mean * (n + 1),)
    ratio = mu_weight / sigma_weight
    p = ratio * (n + 1) ** 2 / (2.0 * n * n) + (n * variance / (n + 1) - 1.0) * (n + 1) ** 2 / n
    q = ratio * mean * (n + 1) ** 3 / (2.0 * n * n)
    if p == 0.0:
        return (-math.copysign(abs(q) ** (1 / 3), q),)
    size = 2.0 * math.sqrt(abs(p) / 3.0)
    turn = 3.0 * q / (p * size)
    if p > 0:
        return (-size * math.sinh(math.asinh(turn) / 3.0),)
    if abs(turn) > 1.0:
        return (-math.copysign(size * math.cosh(math.acosh(abs(turn)) / 3.0), q),)
    angle = math.acos(turn) / 3.0
    return size * math.cos(angle), size * math.cos(angle - 4.0 * math.pi / 3.0)
