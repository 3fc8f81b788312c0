"""Where a scaling law's loss is least, among the landscapes that a corpus can give and the probes vouch for.

Laws often have no minimum of their own: for the paper's form in linear space, with mu, sigma > 1, one needs a1 < 0, b1
< 0 and ln(mu)*ln(sigma) > 4 where the gradient vanishes (necessary, and sufficient when a1*sigma = b1*mu); otherwise
that point is a saddle and the loss falls towards an edge. So the search is always inside the attainable region (what
subsets of this corpus of this size can reach) intersected with the trusted region (the hull of the probes), and says
what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial import ConvexHull

from .attainable import AttainableRegion
from .fitting import bootstrap_law
from .landscape import PerplexityLandscape
from .scaling_law import LAW_FORMS, ScalingLaw

TRUSTED_MARGIN = 0.03  # how far beyond each probe's mu and sigma the law is trusted, as a share of them


@dataclass(frozen=True)
class Optimum:
    """The best landscape for a corpus and a budget, by a law.

    Attributes:
        mu, sigma: its moments, in `space`.
        space: `"linear"` (perplexity) or `"log"` (nll, nats).
        num_tokens: the budget D.
        loss: predicted held-out loss, nats per token.
        kind: `"interior"`: a minimum of the law itself; `"boundary"`: on the edge of what is attainable and trusted,
            the law falls further beyond it; `"saddle"`: on the edge too, and the law's stationary point inside is a
            saddle.
        random_mu, random_sigma, random_loss: the same for a random subset, which has the corpus's moments.
        gain: `random_loss - loss`, nats per token.
        gain_interval: `(low, high)`, 95 % by cluster bootstrap over runs; too narrow with about ten runs or fewer.
        within_noise: the gain is not established: the interval holds 0, or the gain is below the law's residuals.
        extrapolation: `num_tokens` over the largest D among the law's points.
    """

    mu: float
    sigma: float
    space: Literal["linear", "log"]
    num_tokens: float
    loss: float
    kind: Literal["interior", "boundary", "saddle"]
    random_mu: float
    random_sigma: float
    random_loss: float
    gain: float
    gain_interval: tuple[float, float]
    within_noise: bool
    extrapolation: float

    def __str__(self) -> str:
        names = ("mu", "sigma") if self.space == "linear" else ("m", "s")
        low, high = self.gain_interval
        verdict = "within the noise" if self.within_noise else "beyond the noise"
        text = (
            f"best landscape ({self.kind}): {names[0]} {self.mu:.4g}, {names[1]} {self.sigma:.4g} "
            f"(a random subset: {self.random_mu:.4g}, {self.random_sigma:.4g})\n"
            f"predicted loss at {self.num_tokens:,.0f} tokens: {self.loss:.4f}, random {self.random_loss:.4f}: "
            f"gain {self.gain:.4f} nats per token (95 % interval {low:.4f} to {high:.4f}), {verdict}"
        )
        if self.extrapolation > 4:
            text += f"\nthat is {self.extrapolation:,.0f} times the tokens of the longest probe: an extrapolation"
        return text


@dataclass(frozen=True, eq=False)
class TrustedRegion:
    """The convex hull of the probes' (mu, sigma), a little inflated. `vertices` is `(n, 2)`, counter-clockwise."""

    vertices: np.ndarray
    half_planes: np.ndarray  # (n, 3): a*mu + b*sigma + c <= 0 inside

    def sigma_bounds(self, mu: Any) -> tuple[np.ndarray, np.ndarray]:
        """`(smallest, largest)` trusted sigma at each mean; NaN outside the hull."""
        mu = np.asarray(mu, dtype=float)
        a, b, c = self.half_planes.T
        steep = np.abs(b) > 1e-12
        at = -(c[steep] + a[steep] * mu[..., None]) / b[steep]
        low = np.where(b[steep] < 0, at, -np.inf).max(-1)
        high = np.where(b[steep] > 0, at, np.inf).min(-1)
        outside = (mu < self.vertices[:, 0].min()) | (mu > self.vertices[:, 0].max())
        return np.where(outside, np.nan, low), np.where(outside, np.nan, high)

    def contains(self, mu: Any, sigma: Any) -> Any:
        low, high = self.sigma_bounds(mu)
        inside = (sigma >= low) & (sigma <= high)
        return bool(inside) if np.ndim(inside) == 0 else inside


def trusted_region(law: ScalingLaw) -> TrustedRegion:
    """Where `law` interpolates its probes rather than extrapolates them."""
    mu, sigma = law.points.moments(law.space)
    # A box around each probe rather than the bare point: probes in a row still span an area.
    reach_mu, reach_sigma = TRUSTED_MARGIN * mu, TRUSTED_MARGIN * np.maximum(sigma, 1e-3 * mu)
    corners = [np.stack([mu + i * reach_mu, sigma + j * reach_sigma], 1) for i in (-1, 1) for j in (-1, 1)]
    hull = ConvexHull(np.concatenate(corners))
    return TrustedRegion(hull.points[hull.vertices], hull.equations)


def find_optimum(
    law: ScalingLaw,
    landscape: PerplexityLandscape,
    num_tokens: float,
    *,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> Optimum:
    """The attainable and trusted (mu, sigma) with the least predicted loss.

    A law without sigma (log_parabola in log space) leaves it free. It is then as near as can be to the spread of the
    corpus's bulk: the corpus's own where nll is normal, and where it is not, one that leaves out junk in the tails.
    A law without features (data_only) has nothing to choose: its optimum is a random subset.

    Args:
        law: a fitted law.
        landscape: of the corpus to select from.
        num_tokens: the budget.
        num_bootstrap, seed: of the gain's interval: how far refits to resampled runs spread the gain at this optimum.

    Raises:
        ValueError: the landscape is of another model, the corpus is smaller than the budget, or the probes cover
            nothing that subsets of this size can reach.
    """
    if law.model and landscape.model and law.model != landscape.model:
        raise ValueError(
            f"the law was fitted to perplexities of {law.model}, the landscape is of {landscape.model}; they do not "
            "compare. Score the corpus with the law's model, or fit a law to probes of this one."
        )
    region = landscape.attainable_region(num_tokens, law.space)
    random_mu, random_sigma = landscape.moments(law.space)
    terms = LAW_FORMS[law.form].terms(law.space)
    if not terms:
        mu, sigma, kind = random_mu, random_sigma, "interior"
    else:
        free_sigma = None if any(term.needs_sigma for term in terms) else _bulk_sigma(landscape, law.space)
        mu, sigma, kind = _search(law, _Slices(region, trusted_region(law)), free_sigma)

    X = law.design_matrix([mu, random_mu], [sigma, random_sigma], num_tokens)
    loss, random_loss = law.params["E"] + np.exp(X @ law.theta)
    gain = float(random_loss - loss)
    refits = bootstrap_law(law, num_bootstrap, seed).predict(X)
    low, high = np.quantile(refits[:, 1] - refits[:, 0], [0.025, 0.975])
    return Optimum(
        mu=float(mu),
        sigma=float(sigma),
        space=law.space,
        num_tokens=num_tokens,
        loss=float(loss),
        kind=kind,
        random_mu=random_mu,
        random_sigma=random_sigma,
        random_loss=float(random_loss),
        gain=gain,
        gain_interval=(float(low), float(high)),
        within_noise=bool(low <= 0 or gain < law.residual_std),
        extrapolation=float(num_tokens / law.num_tokens_range[1]),
    )


def _bulk_sigma(landscape: PerplexityLandscape, space: str) -> float:
    """The standard deviation of the normal distribution that has the corpus's quartiles."""
    quartiles = landscape.quantile([0.25, 0.75])
    first, third = np.log(quartiles) if space == "log" else quartiles
    return float(third - first) / (2 * 0.674490)


@dataclass(frozen=True, eq=False)
class _Slices:
    """The attainable and trusted (mu, sigma), as an interval of sigma for each mu."""

    attainable: AttainableRegion
    trusted: TrustedRegion

    @property
    def mu_range(self) -> tuple[float, float]:
        trusted_mu = self.trusted.vertices[:, 0]
        return max(self.attainable.mu[0], trusted_mu.min()), min(self.attainable.mu[-1], trusted_mu.max())

    def sigma_bounds(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """NaN where the slice is empty."""
        (low_a, high_a), (low_t, high_t) = self.attainable.sigma_bounds(mu), self.trusted.sigma_bounds(mu)
        low, high = np.maximum(low_a, low_t), np.minimum(high_a, high_t)
        empty = ~(low <= high)
        return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def _search(law: ScalingLaw, slices: _Slices, free_sigma: float | None) -> tuple[float, float, str]:
    """(mu, sigma, kind) of the least loss: a grid of mu and of shares t of each slice, then smaller grids."""

    def height(mu, sigma):
        """ln(L - E) at one token: ordered like the loss at any number of tokens."""
        return law.design_matrix(mu, sigma, 1.0) @ law.theta

    first, last = slices.mu_range
    mu = np.linspace(first, last, 513) if first < last else np.array([first])
    low, high = slices.sigma_bounds(mu)
    if first > last or np.isnan(low).all():
        a, trusted = slices.attainable, slices.trusted.vertices
        low, high = trusted.min(0), trusted.max(0)
        raise ValueError(
            f"subsets of this size have no moments that the probes cover ({law.space} space): subsets reach "
            f"mu {a.mu[0]:.4g} to {a.mu[-1]:.4g} and sigma {a.sigma_min.min():.4g} to {a.sigma_max.max():.4g}, "
            f"the probes mu {low[0]:.4g} to {high[0]:.4g} and sigma {low[1]:.4g} to {high[1]:.4g}. "
            "Measure probes on this corpus, or change num_tokens."
        )
    tallest = np.nanmax(high - low)
    t = np.linspace(0, 1, 33)
    width = (last - first) / 512, 1 / 32
    for _ in range(14):
        if free_sigma is None:
            sigma = low[:, None] + (high - low)[:, None] * t
        else:
            sigma = np.clip(free_sigma, low, high)[:, None]
        empty = np.isnan(sigma)
        value = np.where(empty, np.inf, height(mu[:, None], np.where(empty, 1.0, sigma)))
        i, j = np.unravel_index(value.argmin(), value.shape)
        best = float(mu[i]), float(sigma[i, j])
        t_best, thickness = t[j], high[i] - low[i]
        # Three old steps to each side, so that the next grids can follow a slanting ridge.
        mu = np.linspace(max(best[0] - 3 * width[0], first), min(best[0] + 3 * width[0], last), 25)
        t = np.linspace(max(t_best - 3 * width[1], 0), min(t_best + 3 * width[1], 1), 25)
        width = width[0] / 4, width[1] / 4
        low, high = slices.sigma_bounds(mu)

    edge = 1e-4  # nearer to the edge than this share of the region is on it
    interior = min(best[0] - first, last - best[0]) > edge * (last - first) and thickness > edge * tallest
    if free_sigma is None:
        interior = interior and edge < t_best < 1 - edge
    if interior:
        return *best, "interior"
    return *best, "saddle" if free_sigma is None and _has_saddle(height, slices) else "boundary"


def _has_saddle(height: Callable[[Any, Any], np.ndarray], slices: _Slices) -> bool:
    """Whether the law has a saddle point inside: Newton's method from many starts, by central differences.

    In ln(mu), ln(sigma), where the forms are smooth on one scale; what kind of stationary point one is does not depend
    on coordinates.
    """
    mu = np.linspace(*slices.mu_range, 13)[1:-1]
    low, high = slices.sigma_bounds(mu)
    mu, low, high = (v[low < high] for v in (mu, low, high))
    if not len(mu):
        return False
    sigma = low[:, None] + (high - low)[:, None] * np.linspace(0.05, 0.95, 10) ** 2
    x = np.log(np.stack([np.repeat(mu, 10), sigma.ravel()]))
    floor, ceiling = x.min(1, keepdims=True) - 0.5, x.max(1, keepdims=True) + 0.5
    h = 1e-4
    shifts = h * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])

    def derivatives(x):
        f, right, left, up, down, ru, rd, lu, ld = (height(*np.exp(x + shift[:, None])) for shift in shifts)
        gradient = np.stack([right - left, up - down]) / (2 * h)
        return gradient, (right - 2 * f + left) / h**2, (up - 2 * f + down) / h**2, (ru - rd - lu + ld) / (4 * h**2)

    for _ in range(40):
        (g1, g2), xx, yy, xy = derivatives(x)
        det = xx * yy - xy**2
        det = np.where(np.abs(det) < 1e-12, 1e-12, det)
        x = np.clip(x - np.clip(np.stack([yy * g1 - xy * g2, xx * g2 - xy * g1]) / det, -0.3, 0.3), floor, ceiling)
    gradient, xx, yy, xy = derivatives(x)
    mu, sigma = np.exp(x)
    low, high = slices.sigma_bounds(mu)
    stationary = np.abs(gradient).max(0) <= 1e-6 * (np.abs(xx) + np.abs(yy) + np.abs(xy))
    return bool(np.any(stationary & (low <= sigma) & (sigma <= high) & (xx * yy < xy**2)))
