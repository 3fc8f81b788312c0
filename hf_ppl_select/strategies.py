"""Which chunks to take: every strategy is a function of arrays that returns positions.

All share one budget rule. `num_tokens` holds each chunk's tokens, none above the budget; the chunks chosen hold at
most `budget` tokens and miss it by less than one chunk. No chunk is taken twice. The same input and seed give the
same chunks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from scipy.special import expit

from .maxent import MaxentSolution, solve_maxent

_CLOSE_ENOUGH = 1e-5  # of sigma: the swaps stop when mean and standard deviation are this close to the target
_MOST_SWAPS = 300
_MOST_FAILURES = 8  # pools in a row without a better swap
_POOL = 192  # chunks in and chunks out that one swap chooses from


def choose_random(num_tokens: np.ndarray, budget: float, seed: int) -> np.ndarray:
    """Chunks in an order drawn from `seed`, until the next one does not fit."""
    return _until_full(np.random.default_rng(seed).permutation(len(num_tokens)), num_tokens, budget)


def choose_low(values: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    """The lowest values; equal ones in their original order."""
    return _until_full(np.argsort(values, kind="stable"), num_tokens, budget)


def choose_high(values: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    """The highest values; equal ones in their original order."""
    return _until_full(np.argsort(-values, kind="stable"), num_tokens, budget)


def _until_full(order: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    return order[: int(np.searchsorted(np.cumsum(num_tokens[order]), budget, side="right"))]


def choose_regime(
    values: np.ndarray,
    num_tokens: np.ndarray,
    budget: float,
    cost: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The interval of neighbours in sorted order that fills the budget at the lowest cost.

    Args:
        values: x of each chunk `[n]`.
        num_tokens: tokens of each chunk `[n]`.
        budget: tokens to keep.
        cost: arrays `(mu, sigma)` of all intervals -> array of costs, e.g. predicted loss; the first lowest wins, NaN
        never.

    Raises:
        ValueError: no interval has a cost.
    """
    order = np.argsort(values, kind="stable")
    x = values[order]
    ends = np.concatenate([[0.0], np.cumsum(num_tokens[order])])
    last = int(np.searchsorted(ends, ends[-1] - budget))  # the interval that ends with the highest value starts here
    start = np.arange(last + 1)
    stop = np.searchsorted(ends, ends[start] + budget, side="right") - 1
    shift = x[len(x) // 2]  # sums of squares about the median keep their digits
    first = np.concatenate([[0.0], np.cumsum(x - shift)])
    second = np.concatenate([[0.0], np.cumsum((x - shift) ** 2)])
    mean = (first[stop] - first[start]) / (stop - start)
    variance = (second[stop] - second[start]) / (stop - start) - mean**2
    costs = np.asarray(cost(mean + shift, np.sqrt(np.maximum(variance, 0.0))), dtype=np.float64)
    if np.isnan(costs).all():
        raise ValueError("No interval of this size has a predicted loss; lower the budget or use another strategy.")
    best = int(np.nanargmin(costs))
    return order[start[best] : stop[best]]


def choose_maxent(
    values: np.ndarray, num_tokens: np.ndarray, budget: float, mu: float, sigma: float, seed: int
) -> tuple[np.ndarray, MaxentSolution]:
    """The maximum-entropy subset with mean `mu` and standard deviation `sigma`: systematic sampling, then swaps.

    Inclusion probabilities come from [`~hf_ppl_select.maxent.solve_maxent`]. Walking along the sorted values and
    taking a chunk whenever their running sum (from a start drawn from `seed`) passes a whole number keeps every
    stretch of the values at its expected share, so the moments are already close; swaps then settle tokens and
    moments.

    Returns:
        Positions of the chunks (rising), and the solution behind them.

    Raises:
        ValueError: sigma is not positive; see also `solve_maxent`.
    """
    rng = np.random.default_rng(seed)
    solution = solve_maxent(values, mu, sigma, budget, num_tokens=num_tokens)
    order = np.argsort(values, kind="stable")
    z = (values[order] - mu) / sigma
    logit = solution.lambdas[0] + z * (solution.lambdas[1] + z * solution.lambdas[2])
    inside = _systematic(solution.inclusion_probability(values[order]), rng)
    relative = min(max(1.0, sigma / max(abs(mu), 1e-300)), 100.0)  # of mu where sigma is larger
    _settle(inside, z, num_tokens[order], budget, logit, relative, rng)
    return np.sort(order[inside]), solution


def _systematic(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bool mask `[n]`: entry i with probability `probabilities[i]`, and in any stretch the expected number +- 1."""
    passed = np.floor(np.cumsum(probabilities) + rng.random())
    return np.diff(passed, prepend=0.0) > 0


def _settle(
    inside: np.ndarray,
    z: np.ndarray,
    tokens: np.ndarray,
    budget: float,
    logit: np.ndarray,
    mean_weight: float,
    rng: np.random.Generator,
) -> None:
    """Change `inside` in place until its tokens fill the budget and z has mean 0 and standard deviation 1 in it.

    Many missing or surplus chunks come and go by systematic sampling, which keeps the moments. Then the best of some
    36,000 swaps (one in, one out; or only one of the two) is made again and again. Chunks whose inclusion was
    undecided move first.
    """
    chunk = float(tokens.mean())
    w = expit(logit)
    undecided = w * (1.0 - w) + 1e-6 / (1.0 + np.abs(logit)) ** 4

    def some(mask: np.ndarray, number: int) -> np.ndarray:
        positions = np.flatnonzero(mask)
        if len(positions) <= number:
            return positions
        share = undecided[positions]
        return positions[_systematic(np.minimum(share * (number / share.sum()), 1.0), rng)]

    def pool(mask: np.ndarray) -> np.ndarray:
        """Mostly undecided chunks, and a ladder over the values: one far chunk can outweigh many near ones."""
        positions = np.flatnonzero(mask)
        if len(positions) <= _POOL:
            return positions
        low, high = np.arcsinh(z[positions[[0, -1]]])
        rungs = low + (high - low) * (np.arange(_POOL // 2) + rng.random()) / (_POOL // 2)
        ladder = np.searchsorted(z[positions], np.sinh(rungs))
        return np.union1d(some(mask, _POOL // 2), positions[np.minimum(ladder, len(positions) - 1)])

    for _ in range(20):
        missing = round((budget - float(tokens[inside].sum())) / chunk - 0.5)
        if abs(missing) < 8:
            break
        moved = some(~inside if missing > 0 else inside, abs(missing))
        inside[moved] = missing > 0

    def cost(number, first, second, gap):
        number = np.maximum(number, 1e-9)
        mean = first / number
        spread = np.sqrt(np.maximum(second / number - mean**2, 0.0))
        off = np.where((gap < 0) | (gap >= chunk), 1.0 + np.abs(gap / chunk - 0.5), 0.0)
        return (mean_weight * mean) ** 2 + (spread - 1.0) ** 2 + np.where(number < 1, np.inf, 100.0 * off)

    failures = 0
    for _ in range(_MOST_SWAPS):
        number, first, second = float(inside.sum()), float(z[inside].sum()), float(z[inside] @ z[inside])
        gap = budget - float(tokens[inside].sum())
        now = float(cost(number, first, second, gap))
        if now <= _CLOSE_ENOUGH**2 or failures == _MOST_FAILURES:
            break
        out, into = pool(inside), pool(~inside)
        # a last row and column of zeros stand for "nothing leaves" and "nothing enters"
        leaves = np.stack([np.append(a[out], 0.0) for a in (np.ones_like(z), z, z * z, tokens)])[:, :, None]
        enters = np.stack([np.append(a[into], 0.0) for a in (np.ones_like(z), z, z * z, tokens)])[:, None, :]
        change = enters - leaves
        costs = cost(number + change[0], first + change[1], second + change[2], gap - change[3])
        i, j = np.unravel_index(int(np.argmin(costs)), costs.shape)
        if costs[i, j] >= now * (1 - 1e-6):
            failures += 1
            continue
        inside[out[i : i + 1]] = False
        inside[into[j : j + 1]] = True
        failures = 0
    _fit_budget(inside, tokens, budget, np.abs(z))


def _fit_budget(inside: np.ndarray, tokens: np.ndarray, budget: float, far: np.ndarray) -> None:
    """The budget rule holds whatever happened before: chunks nearest to the target leave, or enter, until it does."""
    gap = budget - float(tokens[inside].sum())
    longest = float(tokens.max())
    if 0 <= gap < longest:
        return
    candidates = np.flatnonzero(inside if gap < 0 else ~inside)
    for position in candidates[np.argsort(far[candidates], kind="stable")]:
        if 0 <= gap < longest:
            return
        gap += float(tokens[position]) * (1 if inside[position] else -1)
        inside[position] = not inside[position]


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
    distinct, starts = np.unique(values[order], return_index=True)
    y = ((distinct - mu) / sigma).tolist()
    taken = starts.tolist()  # next free chunk of each distinct value
    stops = [*taken[1:], len(order)]
    # union-find: above[i] leads to the first distinct value >= i with a free chunk, below[i] to 1 + the last one < i
    above, below = list(range(len(y) + 1)), list(range(len(y) + 1))

    def find(links: list[int], i: int) -> int:
        while links[i] != i:
            links[i] = i = links[links[i]]
        return i

    picked, room = [], budget
    tokens = num_tokens[order].tolist()
    n, mean, squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean
    while len(picked) < len(order):
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
        chunk = taken[best]
        if tokens[chunk] > room:
            break
        room -= tokens[chunk]
        picked.append(chunk)
        taken[best] += 1
        if taken[best] == stops[best]:
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
