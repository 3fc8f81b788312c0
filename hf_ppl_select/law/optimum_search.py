"""The search for a law's least loss, and what it found there.

Of one column it is over a region of (mu, sigma), on grids, finer and finer. Of two it is over tilts: from the best of
a cloud of them downhill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize

from ..landscape.cells import Cells
from ..landscape.landscape import PerplexityLandscape
from ..landscape.maxent import leaning, tilted
from ..landscape.scores import digits, in_words
from .forms import Law
from .trust import JointlyTrusted, SearchRegion, TrustedRegion

Kind = Literal["interior", "boundary", "saddle"]
FreeSigma = Callable[[np.ndarray], np.ndarray]
Slack = Callable[[np.ndarray, np.ndarray], np.ndarray]

_CLOUD, _STARTS = 1000, 6  # tilts of a cloud; good ones far from each other, from which the search goes on
_STEEPEST = 30.0  # of lambda: w falls from 1 to 0 over some hundredths of sigma
_EQUAL = 1e-6  # nats: of losses that differ by less the least tilt is taken
_STEP = 1e-4  # of lambda, for slopes


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
    if any(term.needs_sigma for term in law.terms):
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
    width, hopeless = ((last - first) / 512, 1 / 32), False
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
            hopeless = not np.any(~empty & (excess <= 0))
            # Towards where there is some hope
            value = np.where(empty, np.inf, excess) if hopeless else np.where(excess <= 0, value, np.inf)
        if free_sigma is None or hopeless:
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


class _Tilts:
    """What tilts of a corpus keep, the losses a law predicts for it, and how far inside of all limits it is."""

    def __init__(self, law: Law, cells: Cells, num_tokens: float, limits: Sequence[Slack]) -> None:
        self.law, self.cells, self.num_tokens, self.limits = law, cells, num_tokens, limits
        self.num_lambdas = 2 * cells.mean.shape[1]
        self._near = lru_cache(maxsize=1)(self._slopes)

    def moments(self, lambdas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mu, sigma) as the law takes them, of `[n, k]`."""
        mu, sigma = tilted(self.cells, lambdas, self.num_tokens)
        sigma = np.maximum(sigma, 1e-9)  # laws take logarithms
        return (mu[:, 0], sigma[:, 0]) if isinstance(self.law.column, str) else (mu, sigma)

    def look(self, lambdas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses `[n]`, and slack to each limit `[n, limits]`, 0 or more inside."""
        mu, sigma = self.moments(lambdas)
        with np.errstate(over="ignore"):  # far outside
            loss = np.minimum(self.law.predict(mu, sigma, self.num_tokens), 1e6)
            return loss, np.concatenate([limit(mu, sigma) for limit in self.limits], axis=1)

    def _slopes(self, point: bytes) -> tuple[np.ndarray, ...]:
        """Of one tilt: loss, slack, and their slopes in lambda."""
        lambdas, steps = np.frombuffer(point), _STEP * np.eye(self.num_lambdas)
        loss, slack = self.look(np.concatenate([lambdas[None], lambdas + steps, lambdas - steps]))
        up, down = slice(1, 1 + len(steps)), slice(1 + len(steps), None)
        return loss[0], slack[0], *(((v[up] - v[down]) / (2 * _STEP)).T for v in (loss, slack))

    def descend(self, start: np.ndarray, most: float | None = None) -> np.ndarray:
        """Lambda of the least loss that a path from `start` leads to; or the least lambda of loss up to `most`."""

        def near(x: np.ndarray) -> tuple[np.ndarray, ...]:
            return self._near(x.tobytes())

        edges = [{"type": "ineq", "fun": lambda x: near(x)[1], "jac": lambda x: near(x)[3]}]
        if most is not None:
            fun = {"fun": lambda x: 1e3 * (most - near(x)[0]), "jac": lambda x: -1e3 * near(x)[2]}
            edges.append({"type": "ineq", **fun})
        return minimize(
            (lambda x: (100 * near(x)[0], 100 * near(x)[2])) if most is None else (lambda x: (x @ x, 2 * x)),
            start,
            jac=True,
            bounds=[(-_STEEPEST, _STEEPEST)] * self.num_lambdas,
            constraints=edges,
            method="SLSQP",
            options={"maxiter": 100, "ftol": 1e-8},
        ).x


def _why_nothing_is_allowed(
    law: Law, moments: tuple[np.ndarray, np.ndarray], slack: np.ndarray, bound: ForgettingBound | None
) -> str:
    """`moments` and `slack` `[n, limits]`, the bound's last, are of all that was tried."""

    def at(i: int) -> str:
        return f"mu {digits(moments[0][i])}, sigma {digits(moments[1][i])} ({law.space} space)"

    trusted = (slack if bound is None else slack[:, :-1]).min(1)
    if bound is not None and (trusted >= 0).any():
        best = np.where(trusted >= 0, slack[:, -1], -np.inf).argmax()
        return (
            f"no landscape that is attainable and that the probes cover keeps the general loss at "
            f"{bound.max_loss:.4f} nats per token or less after {bound.num_tokens:,.0f} tokens: the least that was "
            f"found is {bound.max_loss - slack[best, -1]:.4f}, at {at(best)}. Allow that much, or train on fewer "
            "tokens."
        )
    return (
        f"subsets of this size have no moments of {in_words(law.column)} that the probes cover; the nearest to them "
        f"that was found has {at(trusted.argmax())}. Measure probes on this corpus, or change num_tokens."
    )


def search_tilts(
    law: Law,
    cells: Cells,
    num_tokens: float,
    trusted: Sequence[TrustedRegion | JointlyTrusted],
    bound: ForgettingBound | None = None,
    seed: int = 0,
) -> tuple[Any, Any, Kind, tuple[np.ndarray, np.ndarray]]:
    """The (mu, sigma) of least loss that tilts of a corpus keep, for one column or two.

    Good ones of a cloud of tilts, apart from each other, are where sequential quadratic programming over lambda
    starts. Of losses equal to 1e-6 nats the least |lambda| is taken: what a law leaves free stays as the corpus has
    it.

    Args:
        law: whose loss.
        cells: of the corpus without outliers, some hundreds to thousands.
        num_tokens: the budget, less than they have.
        trusted: regions in which to stay.
        bound: on the general loss.
        seed: of the cloud.

    Returns:
        mu, sigma (floats, or `(2,)`), interior or boundary, and `(mu, sigma)` `[n, ...]` of tilts around that are
        allowed.

    Raises:
        ValueError: no tilt is trusted, or none that is keeps the bound.
    """
    limits = [region.slack for region in trusted]
    if bound is not None:
        limits.append(lambda mu, sigma: -bound.excess(mu, sigma)[:, None])
    tilts, rng = _Tilts(law, cells, num_tokens, limits), np.random.default_rng([seed, 3])
    cloud = rng.standard_normal((_CLOUD, tilts.num_lambdas))
    cloud *= np.sinh(np.arcsinh(_STEEPEST) * rng.random((_CLOUD, 1))) / np.linalg.norm(cloud, axis=1, keepdims=True)
    cloud[0] = 0.0
    loss, slack = tilts.look(cloud)
    rank = np.where(slack.min(1) >= 0, loss, 1e9 - slack.min(1))
    place = np.column_stack(tilts.moments(cloud))
    place /= place[np.argsort(rank)[: max((rank < 1e9).sum(), _CLOUD // 10)]].std(0)
    starts = []
    for _ in range(_STARTS):
        starts.append(cloud[rank.argmin()])
        rank[np.linalg.norm(place - place[rank.argmin()], axis=1) < 1] = np.inf
    ends = np.array(starts + [tilts.descend(start) for start in starts])
    loss, slack = tilts.look(ends)
    allowed = slack.min(1) >= -_EQUAL
    if not allowed.any():
        tried = np.concatenate([cloud, ends])
        raise ValueError(_why_nothing_is_allowed(law, tilts.moments(tried), tilts.look(tried)[1], bound))
    best = np.where(allowed, loss, np.inf).argmin()
    least, found = loss[best], ends[best]

    mu, sigma = tilts.moments(found[None])
    steps = 1e-3 * sigma * np.concatenate([np.eye(mu[0].size), -np.eye(mu[0].size)]).reshape(-1, *mu.shape[1:])
    beside = np.concatenate([law.predict(mu + steps, sigma, num_tokens), law.predict(mu, sigma + steps, num_tokens)])
    kind = "boundary" if beside.min() < least - _EQUAL else "interior"

    flatter = tilts.descend(found, least + _EQUAL)
    (loss,), (slack,) = tilts.look(flatter[None])
    if slack.min() >= -_EQUAL and loss <= least + 2 * _EQUAL and flatter @ flatter < found @ found:
        found = flatter
    near = np.concatenate([cloud, found + cloud / 10])
    allowed = tilts.look(near)[1].min(1) >= 0
    mu, sigma = tilts.moments(np.concatenate([found[None], near[allowed]]))
    return mu[0], sigma[0], kind, (mu, sigma)
