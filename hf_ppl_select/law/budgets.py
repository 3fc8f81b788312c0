"""What more tokens buy, and when a corpus has no better landscape left to give.

The gain over random falls with the budget for two reasons: every loss comes nearer to E, and the larger a subset is,
the less it can differ from the corpus. At the whole corpus there is nothing left to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..landscape.landscape import PerplexityLandscape
from .forms import Law
from .optimum import Optimum, find_optimum


def default_budgets(law: Law, landscape: PerplexityLandscape, num: int = 8) -> np.ndarray:
    """`(num,)` budgets, from the probes' smallest D (a tenth of the corpus, if that is less) to the whole corpus."""
    first = max(min(law.num_tokens_range[0], 0.1 * landscape.num_tokens), landscape.tokens_per_chunk)
    return np.geomspace(first, landscape.num_tokens, num).clip(first, landscape.num_tokens)


def gain_by_budget(
    law: Law, landscape: PerplexityLandscape, budgets: Sequence[float] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """The optimum and what it gains over random, budget by budget.

    Args:
        law: a fitted law.
        landscape: of the corpus to select from.
        budgets: tokens; 8 from the probes' smallest D to the whole corpus if not given.
        options: of [`find_optimum`].

    Returns:
        One dict per budget: `num_tokens`, `share` (of the corpus), `mu`, `sigma`, `loss`, `random_loss`, `gain`,
        `gain_low`, `gain_high`, `gain_probability`, `random_tokens` (None: never), `random_trusted`, and `problem`:
        None, or why there is no optimum at that budget, all numbers after `share` then None.
    """
    names = ("mu", "sigma", "loss", "random_loss", "gain", "gain_probability", "random_tokens", "random_trusted")
    rows = []
    for budget in default_budgets(law, landscape) if budgets is None else budgets:
        row = {"num_tokens": float(budget), "share": float(budget / landscape.num_tokens)}
        row |= dict.fromkeys((*names[:5], "gain_low", "gain_high", *names[5:], "problem"))
        try:
            optimum = find_optimum(law, landscape, float(budget), **options)
        except ValueError as error:
            rows.append(row | {"problem": str(error)})
            continue
        row |= {name: getattr(optimum, name) for name in names}
        rows.append(row | dict(zip(("gain_low", "gain_high"), optimum.gain_interval or (None, None))))
    return rows


@dataclass(frozen=True)
class Exhaustion:
    """The budget beyond which a corpus has no gain over random left that counts.

    Attributes:
        num_tokens: that budget; 0 if the gain never counts, at no budget of one chunk or more.
        share: of the corpus.
        threshold: the gain that counts, nats per token.
        known: False if the gain still counts at `num_tokens`, and beyond it subsets are so like the corpus that no
            probe covers them, so the law cannot tell.
    """

    num_tokens: float
    share: float
    threshold: float
    known: bool

    def __str__(self) -> str:
        what = f"a predicted gain over random of {self.threshold:.4f} nats per token"
        if not self.known:
            return (
                f"{what} is there up to {self.num_tokens:,.0f} tokens ({self.share:.0%} of the corpus); beyond, "
                "subsets resemble the whole corpus, which no probe covers"
            )
        if self.num_tokens == 0:
            return f"{what} is not there at any budget"
        return f"{what} ends at {self.num_tokens:,.0f} tokens ({self.share:.0%} of the corpus)"


def exhausted_at(
    law: Law, landscape: PerplexityLandscape, threshold: float | None = None, **options: Any
) -> Exhaustion:
    """The budget at which the predicted gain over random falls below a threshold, found by bisection to 1 %.

    The gain falls as the budget grows, wherever the law's loss does (aD > 0).

    Args:
        law: a fitted law.
        landscape: of the corpus to select from.
        threshold: the least gain that counts, nats per token; the standard deviation of the law's residuals if not
            given: what single runs differ by anyway.
        options: of [`find_optimum`].

    Raises:
        ValueError: a negative threshold, or no budget has an optimum.
    """
    threshold = law.residual_std if threshold is None else float(threshold)
    if not (np.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"the threshold must be a gain of 0 or more, in nats per token, got {threshold:g}.")
    whole = float(landscape.num_tokens)

    def optimum_at(budget: float) -> Optimum | None:
        try:
            return find_optimum(law, landscape, min(budget, whole), intervals=False, **options)
        except ValueError as error:
            problems.append(error)
            return None

    problems: list[ValueError] = []
    budgets = np.geomspace(landscape.tokens_per_chunk, whole, 12).clip(landscape.tokens_per_chunk, whole)
    optima = [optimum_at(budget) for budget in budgets]
    if all(optimum is None for optimum in optima):
        raise problems[0]
    pays = [optimum is not None and optimum.gain >= threshold for optimum in optima]
    if not any(pays):
        return Exhaustion(0.0, 0.0, threshold, known=True)
    last = max(i for i, yes in enumerate(pays) if yes)
    if last == len(budgets) - 1:
        return Exhaustion(whole, 1.0, threshold, known=True)
    low, high, known = budgets[last], budgets[last + 1], optima[last + 1] is not None
    while high > 1.01 * low:
        middle = float(np.sqrt(low * high))
        optimum = optimum_at(middle)
        if optimum is not None and optimum.gain >= threshold:
            low = middle
        else:
            high, known = middle, optimum is not None
    return Exhaustion(float(low), float(low / whole), threshold, known)
