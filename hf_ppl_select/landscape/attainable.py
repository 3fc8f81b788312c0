"""Which (mu, sigma) the subsets of a corpus can reach at a budget, in closed form from prefix sums.

At a given mean the least spread is that of consecutive perplexities, the most that of a low tail plus a high tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class AttainableRegion:
    """The (mu, sigma) that subsets of a given size can have. Between grid points, mu² + sigma² is linear in mu.

    Attributes:
        mu: `(n,)` rising grid of attainable means; one point when the budget is the whole corpus.
        sigma_min, sigma_max: `(n,)` smallest and largest standard deviation at each mean.
        space: `"linear"` (perplexity) or `"log"` (nll, nats).
        budget: K, the size of the subsets in chunks (or tokens, for a landscape weighted by tokens).
    """

    mu: np.ndarray
    sigma_min: np.ndarray
    sigma_max: np.ndarray
    space: Literal["linear", "log"]
    budget: float

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

    def grid(self, num_mu: int = 64, num_sigma: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Flat arrays `(mu, sigma)` of points that fill the region and its boundary, denser at small values."""
        if len(self.mu) == 1:
            return self.mu.copy(), self.sigma_min.copy()
        spacing = np.geomspace if self.space == "linear" else np.linspace
        mu = np.clip(spacing(self.mu[0], self.mu[-1], num_mu), self.mu[0], self.mu[-1])
        low, high = self.sigma_bounds(mu)
        sigma = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, num_sigma) ** 2
        return np.repeat(mu, num_sigma), sigma.ravel()

    def clip(self, mu: float, sigma: float) -> tuple[float, float]:
        """The nearest attainable point; the point itself if it is inside."""
        low, high = self.sigma_bounds(mu)
        if low <= sigma <= high:
            return float(mu), float(sigma)
        # The nearest point on the boundary: sample it by mu, zoom in three times.
        lo, hi = self.mu[0], self.mu[-1]
        for _ in range(4):
            grid = np.linspace(lo, hi, 2001) if hi > lo else self.mu[:1]
            grid = np.clip(grid, self.mu[0], self.mu[-1])
            low, high = self.sigma_bounds(grid)
            nearest = np.clip(sigma, low, high)
            best = int(np.argmin(np.hypot(grid - mu, nearest - sigma)))
            lo, hi = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        return float(grid[best]), float(nearest[best])


def attainable_region(
    values: Any, budget: float, counts: Any = None, space: Literal["linear", "log"] = "linear"
) -> AttainableRegion:
    """The (mu, sigma) that subsets of `budget` of the values can have, in closed form.

    Sort the values. Among subsets of K with a given mean the smallest spread belongs to K neighbours, and the largest
    to a low tail plus a high tail (the best inclusion weights in [0, 1] for a mean and a second moment are 1 on one
    side of a parabola). Both families slide along one parameter, so prefix sums of x and x² give both curves. The
    chunks at the ends may count in part: the region is what inclusion weights reach, and contains every whole subset.

    Args:
        values: `(n,)` perplexities (`space="linear"`) or nll per token (`space="log"`): the values whose moments are
            meant.
        budget: K, how many values a subset has, in units of `counts`.
        counts: `(n,)` how often each value occurs; once if not given.

    Raises:
        ValueError: values or counts that are not finite, or a budget outside (0, Σ counts].
    """
    values = np.asarray(values, dtype=float).reshape(-1)
    counts = np.ones(len(values)) if counts is None else np.asarray(counts, dtype=float).reshape(-1)
    if len(counts) != len(values) or not len(values) or not np.isfinite(values).all() or not (counts >= 0).all():
        raise ValueError("values must be finite, at least one, with one count of 0 or more each.")
    if not 0 < budget <= counts.sum() * (1 + 1e-12):
        raise ValueError(
            f"budget must be positive and at most {counts.sum():g}, the size of the corpus; got {budget:g}."
        )
    if np.ptp(counts):
        order = np.argsort(values)
        return region_of_groups(values[order], 0.0, counts[order], budget, space)
    return region_of_groups(np.sort(values), 0.0, counts, budget, space)  # several times faster


def region_of_groups(
    values: np.ndarray, stds: Any, counts: np.ndarray, budget: float, space: str, max_points: int = 4096
) -> AttainableRegion:
    """The region of sorted groups of chunks, each with its mean, standard deviation and size."""
    if space not in ("linear", "log"):
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")
    ends = np.concatenate([[0.0], np.cumsum(counts)])
    total = ends[-1]
    budget = min(float(budget), total)
    shift = values[np.searchsorted(ends[1:], total / 2)]  # sums of squares about the median keep their digits
    scale = max(abs(values[0] - shift), abs(values[-1] - shift)) or 1.0
    d = (values - shift) / scale
    first = np.concatenate([[0.0], np.cumsum(counts * d)])
    second = np.concatenate([[0.0], np.cumsum(counts * (d**2 + (stds / scale) ** 2))])

    def window(start, length):
        """Sums of d and d² over the chunks ranked start .. start + length, in part at both ends."""
        return [np.interp(start + length, ends, s) - np.interp(start, ends, s) for s in (first, second)]

    def starts(room, length):
        """Where a window's start or end crosses from one chunk to the next; between these all is linear."""
        if 2 * len(ends) <= max_points:
            knots = np.concatenate([ends, ends - length, [0.0, room]])
            return np.unique(knots[(knots >= 0) & (knots <= room)])
        # Half even in rank, half even in value. Chords lie inside the region: a coarse grid errs on the safe side.
        at_value = np.interp(np.linspace(d[0], d[-1], max_points // 2), d, ends[1:])
        return np.unique(np.concatenate([np.linspace(0, room, max_points // 2), np.clip(at_value, 0, room)]))

    room = total - budget
    start = starts(room, budget)
    low_1, low_2 = window(start, budget)  # K neighbours
    start = starts(budget, room)[::-1]
    out_1, out_2 = window(start, room)
    high_1, high_2 = first[-1] - out_1, second[-1] - out_2  # all but N-K neighbours

    # One grid of means for both curves; each second moment is linear in the mean between its knots.
    low_1, high_1, low_2, high_2 = (s / budget for s in (low_1, high_1, low_2, high_2))
    low_1, high_1 = np.maximum.accumulate(low_1), np.maximum.accumulate(high_1)
    mean = np.unique(np.concatenate([low_1, high_1]) if room > 1e-12 * total else low_1[:1])
    mean = mean[np.diff(mean * scale + shift, prepend=-np.inf) > 0]
    sigma_min = np.sqrt(np.maximum(np.interp(mean, low_1, low_2) - mean**2, 0.0))
    sigma_max = np.sqrt(np.maximum(np.interp(mean, high_1, high_2) - mean**2, sigma_min**2))
    return AttainableRegion(mean * scale + shift, sigma_min * scale, sigma_max * scale, space, budget)


def largest_whole_sigma(values: Any, number: int, mu: Any) -> Any:
    """The largest standard deviation that `number` whole chunks with mean `mu` can have; NaN where mu is out of reach.

    The region lets the chunks at the ends count in part. In a far tail that promises too much: a tenth of a chunk with
    a perplexity of 100,000 cannot be taken. Among whole subsets the most spread has the lowest chunks, the highest j
    chunks, and one between them that fills the sum: its values majorize those of any other subset with that mean.
    (The bound treats that one chunk as free to have any value; with fewer than about a hundred chunks it is loose.)

    Args:
        values: `(n,)` values whose moments are meant.
        number: K, whole chunks in the subset.
        mu: mean or array of means.

    Raises:
        ValueError: `number` is not between 1 and n.
    """
    x = np.sort(np.asarray(values, dtype=float).reshape(-1))
    if not 1 <= number <= len(x):
        raise ValueError(f"number must be between 1 and {len(x)}, the size of the corpus; got {number}.")
    mu = np.asarray(mu, dtype=float)
    low, high = x[:number] - x[0], x[::-1][:number] - x[0]
    low_1, high_1, low_2, high_2 = (np.concatenate([[0.0], np.cumsum(s)]) for s in (low, high, low**2, high**2))
    tails = low_1[::-1] + high_1  # sums of the j highest and number - j lowest, rising in j
    wanted = number * (mu - x[0])
    j = np.clip(np.searchsorted(tails, wanted, side="right") - 1, 0, number - 1)
    free = wanted - low_1[number - 1 - j] - high_1[j]
    variance = (low_2[number - 1 - j] + high_2[j] + free**2) / number - (mu - x[0]) ** 2
    slack = 1e-9 * max(abs(tails[-1]), number * abs(x[0]))
    reached = (wanted >= tails[0] - slack) & (wanted <= tails[-1] + slack)
    sigma = np.where(reached, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    return float(sigma) if sigma.ndim == 0 else sigma
