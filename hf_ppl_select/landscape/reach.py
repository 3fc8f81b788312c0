"""Which (mu, sigma) the subsets of a corpus can have at a budget, in closed form; and what an error says otherwise.

At a given mean the least spread is that of neighbours in sorted order, the most that of a low tail plus a high tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

Space = Literal["linear", "log"]
FAR_OFF = 0.01  # a relative error of the moments that is worth an error or a warning


@dataclass(frozen=True, eq=False)
class AttainableRegion:
    """The (mu, sigma) that subsets of a given size can have. Between grid points, mu² + sigma² is linear in mu.

    Attributes:
        mu: `(n,)` rising grid of attainable means; one point when the budget is the whole corpus.
        sigma_min, sigma_max: `(n,)` smallest and largest standard deviation at each mean.
        space: `"linear"` (of the score) or `"log"` (of its logarithm, nats).
        budget: the size of the subsets in tokens.
        column: the score.
    """

    mu: np.ndarray
    sigma_min: np.ndarray
    sigma_max: np.ndarray
    space: Space
    budget: float
    column: str = "perplexity"

    def sigma_bounds(self, mu: Any) -> tuple[Any, Any]:
        """`(smallest, largest)` sigma at each mean; NaN where the mean is out of reach."""
        mu = np.asarray(mu, dtype=float)
        if len(self.mu) == 1:
            out = np.where(mu == self.mu[0], 0.0, np.nan)
            return self.sigma_min[0] + out, self.sigma_max[0] + out
        i = np.clip(np.searchsorted(self.mu, mu, side="right") - 1, 0, len(self.mu) - 2)
        width = self.mu[i + 1] - self.mu[i]
        f = np.where((mu < self.mu[0]) | (mu > self.mu[-1]), np.nan, (mu - self.mu[i]) / width)
        scale = self._extent  # squares of heavy-tailed moments overflow

        def between(sigma):
            # The second moment is linear in mu, hence the variance is linear plus f(1-f)·width².
            left, right, gap = sigma[i] / scale, sigma[i + 1] / scale, width / scale
            return scale * np.sqrt((1 - f) * left**2 + f * right**2 + f * (1 - f) * gap**2)

        return between(self.sigma_min), between(self.sigma_max)

    @property
    def _extent(self) -> float:
        return max(self.mu[-1] - self.mu[0], self.sigma_max.max())

    def contains(self, mu: Any, sigma: Any, tolerance: float = 1e-6) -> Any:
        """Whether a subset can have these moments; `tolerance` is a share of the region's extent. Broadcasts."""
        mu, sigma = np.broadcast_arrays(np.asarray(mu, dtype=float), np.asarray(sigma, dtype=float))
        slack = tolerance * self._extent + 1e-9 * np.abs(self.mu).max()
        low, high = self.sigma_bounds(np.clip(mu, self.mu[0], self.mu[-1]))
        near = (mu >= self.mu[0] - slack) & (mu <= self.mu[-1] + slack)
        inside = near & (sigma >= low - slack) & (sigma <= high + slack)
        return bool(inside) if inside.ndim == 0 else inside


def attainable_region(
    values: Any,
    budget: float,
    tokens: Any = 1.0,
    votes: Any = 1.0,
    stds: Any = 0.0,
    space: Space = "linear",
    column: str = "perplexity",
) -> AttainableRegion:
    """The (mu, sigma) of what is taken of a corpus by value alone, `budget` tokens of it.

    Sort the values. With a given mean the smallest spread belongs to neighbours, and the largest to a low tail plus a
    high tail (the best inclusion weights in [0, 1] for a mean and a second moment are 1 on one side of a parabola).
    Both families slide along one parameter, so prefix sums of x and x² give both curves; between the values along
    which they slide, the second moment is linear in the mean. Chunks at the ends may count in part.

    Args:
        values: `(n,)` scores (`space="linear"`) or their logarithms (`space="log"`), or means of like chunks.
        budget: tokens of a subset; at most all.
        tokens: `(n,)` or one number for all: tokens of each value.
        votes: `(n,)` or one number: how much each value counts in the moments.
        stds: `(n,)` or one number: standard deviation among the chunks that a value stands for.
        space, column: what the values are.
    """
    check_space(space)
    values = np.asarray(values, dtype=float).reshape(-1)
    tokens, votes, stds = (np.broadcast_to(np.asarray(a, dtype=float), values.shape) for a in (tokens, votes, stds))
    order = np.argsort(values, kind="stable")
    values, tokens, votes, stds = values[order], tokens[order], votes[order], stds[order]
    ends = np.concatenate([[0.0], np.cumsum(tokens)])
    total = ends[-1]
    check_budget(budget * (1 - 1e-12), total)
    budget = min(float(budget), total)
    shift = values[np.searchsorted(ends[1:], total / 2)]  # sums of squares about the median keep their digits
    scale = max(abs(values[0] - shift), abs(values[-1] - shift)) or 1.0
    d = (values - shift) / scale
    sums = [np.concatenate([[0.0], np.cumsum(votes * f)]) for f in (np.ones_like(d), d, d**2 + (stds / scale) ** 2)]

    def windows(length: float) -> list[np.ndarray]:
        """Votes and sums of d and d² over `length` tokens, wherever a window's start or end meets a value."""
        knots = np.unique(np.concatenate([ends, ends - length, [0.0, total - length]]))
        start = knots[(knots >= 0) & (knots <= total - length)]
        return [np.interp(start + length, ends, s) - np.interp(start, ends, s) for s in sums]

    low_0, low_1, low_2 = windows(budget)  # neighbours
    high_0, high_1, high_2 = (s[-1] - w[::-1] for s, w in zip(sums, windows(total - budget)))  # all but neighbours
    # One grid of means for both curves; each second moment is linear in the mean between its knots.
    low_1, low_2, high_1, high_2 = low_1 / low_0, low_2 / low_0, high_1 / high_0, high_2 / high_0
    low_1, high_1 = np.maximum.accumulate(low_1), np.maximum.accumulate(high_1)
    mean = np.unique(np.concatenate([low_1, high_1]) if total - budget > 1e-12 * total else low_1[:1])
    mean = mean[np.diff(mean * scale + shift, prepend=-np.inf) > 0]
    sigma_min = np.sqrt(np.maximum(np.interp(mean, low_1, low_2) - mean**2, 0.0))
    sigma_max = np.sqrt(np.maximum(np.interp(mean, high_1, high_2) - mean**2, sigma_min**2))
    return AttainableRegion(mean * scale + shift, sigma_min * scale, sigma_max * scale, space, budget, column)


def log_name(column: str) -> str:
    """What a score's logarithm is called; it is in nats."""
    return "nll" if column == "perplexity" else f"ln({column})"


def check_space(space: str) -> None:
    if space not in ("linear", "log"):
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")


def check_budget(num_tokens: Any, available: float, note: str = "") -> None:
    if not isinstance(num_tokens, Real) or isinstance(num_tokens, bool):
        raise TypeError(f"num_tokens={num_tokens!r} must be a number, not {type(num_tokens).__name__}.")
    if not (np.isfinite(num_tokens) and num_tokens > 0):
        raise ValueError(f"num_tokens={num_tokens} is not a budget; it must be a number above 0.")
    if num_tokens > available:
        raise ValueError(
            f"num_tokens={num_tokens:,} is more than the {available:,} tokens there are to choose from{note}; "
            "lower num_tokens, or bring more data."
        )


def out_of_reach(region: AttainableRegion, mu: float, sigma: float) -> str:
    """The error about a target that no subset has: what subsets reach."""
    what = region.column if region.space == "linear" else log_name(region.column)
    means = f"mu reaches from {region.mu[0]:.4g} to {region.mu[-1]:.4g}"
    low, high = region.sigma_bounds(mu)
    at_mu = f"sigma from {low:.4g} to {high:.4g} at mu {mu:.4g}" if np.isfinite(low) else "so that mu is out of reach"
    return (
        f"No subset of {region.budget:,.0f} tokens has a {what} of mean mu {mu:.4g} and standard deviation sigma "
        f"{sigma:.4g} (space {region.space!r}): {means}, {at_mu}. Choose a target inside; fewer tokens reach further."
    )
