"""Which chunks to take other than by maximum entropy: functions of arrays.

All share one budget rule: the chunks chosen hold at most `budget` tokens and miss it by less than one chunk. No chunk
is taken twice. The same input and seed give the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..landscape.drawing import until_full
from .greedy_dos import choose_greedy_dos

__all__ = ["choose_greedy_dos", "choose_ranked", "choose_regime"]


def choose_ranked(strategy: str, values: np.ndarray, num_tokens: np.ndarray, budget: float, seed: int) -> np.ndarray:
    """Positions of chunks in the order of a strategy, until the next one does not fit.

    Args:
        strategy: "random" (an order drawn from `seed`), "low" (the lowest values first; equal ones in their original
            order), "high", or "middle": the nearest to the median in rank, as many below it as above. By rank and not
            by distance, so that perplexity and its logarithm give the same chunks.
        values: x of each chunk `[n]`.
        num_tokens: of each chunk `[n]`, none above the budget.
        budget: tokens to keep.
        seed: of "random".
    """
    if strategy == "random":
        late = np.random.default_rng(seed).permutation(len(values))
    elif strategy == "middle":
        above = np.argsort(np.argsort(values, kind="stable"), kind="stable") - len(values) // 2
        late = np.where(above < 0, -2 * above - 1, 2 * above)  # the middle one, the one below, the one above, ...
    else:
        late = values if strategy == "low" else -values
    return until_full(late, num_tokens, budget)


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
