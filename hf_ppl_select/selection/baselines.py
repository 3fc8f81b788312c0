"""Which chunks to take: every strategy is a function of arrays that returns positions.

All share one budget rule. `num_tokens` holds each chunk's tokens, none above the budget; the chunks chosen hold at
most `budget` tokens and miss it by less than one chunk. No chunk is taken twice. The same input and seed give the
same chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..landscape.maxent_subset import choose_maxent
from .greedy_dos import choose_greedy_dos

__all__ = [
    "choose_greedy_dos",
    "choose_high",
    "choose_low",
    "choose_maxent",
    "choose_middle",
    "choose_random",
    "choose_regime",
]


def choose_random(num_tokens: np.ndarray, budget: float, seed: int) -> np.ndarray:
    """Chunks in an order drawn from `seed`, until the next one does not fit."""
    return _until_full(np.random.default_rng(seed).permutation(len(num_tokens)), num_tokens, budget)


def choose_low(values: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    """The lowest values; equal ones in their original order."""
    return _until_full(np.argsort(values, kind="stable"), num_tokens, budget)


def choose_high(values: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    """The highest values; equal ones in their original order."""
    return _until_full(np.argsort(-values, kind="stable"), num_tokens, budget)


def choose_middle(values: np.ndarray, num_tokens: np.ndarray, budget: float) -> np.ndarray:
    """The chunks nearest the median in rank, from the middle outwards: as many below it as above.

    By rank and not by distance, so perplexity and its logarithm give the same chunks.
    """
    order = np.argsort(values, kind="stable")
    n = len(order)
    outwards = np.empty(n, dtype=np.int64)  # ranks: the middle one, the one below, the one above, ...
    outwards[0::2] = np.arange(n // 2, n)[: (n + 1) // 2]
    outwards[1::2] = np.arange(n // 2 - 1, -1, -1)
    return _until_full(order[outwards], num_tokens, budget)


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
