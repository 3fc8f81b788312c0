"""The search for a law's least loss over a region of (mu, sigma): grids, finer and finer; and what it found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..landscape.landscape import PerplexityLandscape
from ..landscape.maxent import leaning
from .forms import LAW_FORMS, Law
from .trust import SearchRegion

Kind = Literal["interior", "boundary", "saddle"]
FreeSigma = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ForgettingBound:
    """A landscape is allowed if `law`, of the general loss, predicts at most `max_loss` after `num_tokens` tokens."""

    law: Law
    max_loss: float
    num_tokens: float

    def excess(self, mu: Any, sigma: Any) -> Any:
        """Predicted general loss above the bound, nats per token: at most 0 where allowed."""
        return self.law.predict(mu, sigma, self.num_tokens) - self.max_loss


def free_sigma_of(law: Law, landscape: PerplexityLandscape, num_tokens: float) -> FreeSigma | None:
    """For a law without sigma: the sigma to be near to, at each mean; None for other laws.

    It is the spread of the plainest subset with that mean, one that only leans to lower or to higher scores, of
    the chunks without outliers; but no more than the corpus's bulk has, judged by its quartiles.
    """
    if any(term.needs_sigma for term in LAW_FORMS[law.form].terms(law.space)):
        return None
    quartiles = landscape.quantile([0.25, 0.75])
    first, third = np.log(quartiles) if law.space == "log" else quartiles
    bulk = float(third - first) / (2 * 0.674490)
    core = landscape.cells(law.space, outliers=False)
    plain = leaning(core, min(num_tokens, core.tokens.sum()))
    return lambda mu: np.minimum(bulk, np.interp(mu, *plain))


def search(
    law: Law, region: SearchRegion, free_sigma: FreeSigma | None = None, bound: ForgettingBound | None = None
) -> tuple[float, float, Kind]:
    """(mu, sigma, kind) of the least loss: a grid of mu and of shares t of each slice of sigma, then smaller grids.

    Args:
        law: whose loss.
        region: where.
        free_sigma: for a law without sigma, the sigma to be as near to as can be at each mean.
        bound: on the general loss.

    Raises:
        ValueError: nothing in the region keeps the bound; the message says what the least general loss there is.
    """

    def height(mu, sigma):
        """ln(L - E) at one token: ordered like the loss at any number of tokens."""
        return law.design_matrix(mu, sigma, 1.0) @ law.theta

    first, last = region.mu_range
    mu = np.linspace(first, last, 513) if first < last else np.array([first])
    low, high = region.sigma_bounds(mu)
    tallest = np.nanmax(high - low)
    t = np.linspace(0, 1, 33)
    width = (last - first) / 512, 1 / 32
    for _ in range(14):
        sigma = low[:, None] + (high - low)[:, None] * t
        if free_sigma is not None:
            wanted = free_sigma(mu)
            sigma = np.concatenate([np.clip(wanted, low, high)[:, None], sigma], axis=1)
        empty = np.isnan(sigma)
        inside = np.where(empty, 1.0, sigma)
        value = np.where(empty, np.inf, height(mu[:, None], inside))
        if bound is not None:
            excess = bound.excess(mu[:, None], inside)
            if np.any(~empty & (excess <= 0)):
                value = np.where(excess <= 0, value, np.inf)
            else:  # towards where there is some hope
                value = np.where(empty, np.inf, excess)
        if free_sigma is None:
            i, j = np.unravel_index(value.argmin(), value.shape)
        else:
            i = int(value.min(1).argmin())
            j = int(np.where(np.isinf(value[i]), np.inf, np.abs(sigma[i] - wanted[i])).argmin())
        best = float(mu[i]), float(sigma[i, j])
        thickness = high[i] - low[i]
        t_best = (best[1] - low[i]) / thickness if thickness > 0 else 0.0
        # Three old steps to each side, so that the next grids can follow a slanting ridge.
        reach_mu, reach_t = 3 * width[0], 3 * width[1]
        mu = np.linspace(max(best[0] - reach_mu, first), min(best[0] + reach_mu, last), 25)
        t = np.linspace(max(t_best - reach_t, 0), min(t_best + reach_t, 1), 25)
        width = width[0] / 4, width[1] / 4
        low, high = region.sigma_bounds(mu)

    at_bound = False
    if bound is not None:
        excess = float(bound.excess(*best))
        if excess > 1e-9:
            raise ValueError(
                f"no landscape that is attainable and that the probes cover keeps the general loss at "
                f"{bound.max_loss:.4f} nats per token or less after {bound.num_tokens:,.0f} tokens: the least that is "
                f"predicted is {bound.max_loss + excess:.4f}, at mu {best[0]:.4g}, sigma {best[1]:.4g} ({law.space} "
                "space). Allow that much, or train on fewer tokens."
            )
        at_bound = excess > -1e-6
    edge = 1e-4  # nearer to the edge than this share of the region is on it
    interior = min(best[0] - first, last - best[0]) > edge * (last - first) and thickness > edge * tallest
    if free_sigma is None:
        interior = interior and edge < t_best < 1 - edge
    if interior and not at_bound:
        return *best, "interior"
    return *best, "saddle" if free_sigma is None and _has_saddle(height, region) else "boundary"


def _has_saddle(height: Callable[[Any, Any], np.ndarray], region: SearchRegion) -> bool:
    """Whether the law has a saddle point inside: a square of a grid where both slopes change sign and the curvatures
    are of a saddle. The grid is in ln(sigma), and in linear space ln(mu): kinds do not depend on coordinates.
    """
    mu, sigma = region.grid(401, 2)
    mean = np.exp if region.attainable.space == "linear" else np.asarray
    x, y = (np.linspace(v.min(), v.max(), 401) for v in (np.log(mu) if mean is np.exp else mu, np.log(sigma)))
    if x[0] == x[-1] or y[0] == y[-1]:
        return False
    f = height(mean(x)[:, None], np.exp(y))
    slopes = np.gradient(f, x, y)
    (xx, xy), (_, yy) = (np.gradient(slope, x, y) for slope in slopes)
    corners = np.stack([[g[:-1, :-1], g[1:, :-1], g[:-1, 1:], g[1:, 1:]] for g in slopes])
    turns = np.all((corners.min(1) <= 0) & (corners.max(1) >= 0), axis=0)
    i, j = np.nonzero(turns & ((xx * yy - xy**2) < 0)[:-1, :-1])
    low, high = region.sigma_bounds(mean(x[i]))
    return bool(np.any((low <= np.exp(y[j])) & (np.exp(y[j]) <= high)))
