"""Where an optimum is sought: what subsets of the corpus can reach, intersected with what the probes vouch for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from ..landscape.reach import AttainableRegion
from ..landscape.scores import names_of
from .forms import Law
from .points import Space

TRUSTED_MARGIN = 0.03  # how far beyond each probe's mu and sigma the law is trusted, as a share of them


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

    def contains(self, mu: Any, sigma: Any, tolerance: float = 1e-6) -> Any:
        """Whether inside, within `tolerance` as a share of mu and sigma."""
        mu, sigma = np.asarray(mu, dtype=float), np.asarray(sigma, dtype=float)
        first, last = self.vertices[:, 0].min(), self.vertices[:, 0].max()
        clipped, size = np.clip(mu, first, last), np.maximum(np.abs(mu), sigma)  # a mean of logarithms may be 0
        near = np.where(np.abs(clipped - mu) <= tolerance * size, clipped, mu)
        low, high = self.sigma_bounds(near)
        inside = (sigma >= low - tolerance * sigma) & (sigma <= high + tolerance * sigma)
        return bool(inside) if np.ndim(inside) == 0 else inside

    def slack(self, mu: Any, sigma: Any) -> np.ndarray:
        """How far inside of each edge `(..., n)`, as a share of sigma; below 0 outside."""
        mu, sigma = (np.asarray(v, dtype=float)[..., None] for v in (mu, sigma))
        a, b, c = self.half_planes.T
        return -(a * mu + b * sigma + c) / sigma


@dataclass(frozen=True, eq=False)
class JointlyTrusted:
    """Where a law of two columns interpolates its probes: in each column's hull, and with them taken together.

    Together the leverage of (mu, sigma), x (X'X)^-1 x' for the law's features x of the landscape and X of its points,
    is at most the largest of the points' own (Cook's hull). Moments are `(..., 2)`.
    """

    law: Law
    hulls: tuple[TrustedRegion, ...]

    def leverage(self, mu: Any, sigma: Any) -> np.ndarray:
        """`(...)`, as a share of the largest of the law's points."""

        def features(mu: Any, sigma: Any) -> np.ndarray:
            return np.delete(self.law.design_matrix(mu, sigma, 1.0), 1, axis=-1)

        X = features(*self.law.points.moments(self.law.space, self.law.column))
        Q, R = np.linalg.qr(X)
        x = features(mu, sigma)
        own = np.linalg.solve(R.T, x.reshape(-1, x.shape[-1]).T)
        return (own**2).sum(0).reshape(x.shape[:-1]) / (Q**2).sum(1).max()

    def slack(self, mu: Any, sigma: Any) -> np.ndarray:
        """How far inside of each edge `(..., n)`: of the hulls as a share of sigma, of 1 the root of the leverage."""
        mu, sigma = np.asarray(mu, dtype=float), np.asarray(sigma, dtype=float)
        inside = [hull.slack(mu[..., c], sigma[..., c]) for c, hull in enumerate(self.hulls)]
        return np.concatenate([*inside, 1 - np.sqrt(self.leverage(mu, sigma))[..., None]], axis=-1)

    def contains(self, mu: Any, sigma: Any, tolerance: float = 1e-6) -> Any:
        """Whether inside `(...)`, within `tolerance` of [`slack`]."""
        inside = self.slack(mu, sigma).min(-1) >= -tolerance
        return bool(inside) if np.ndim(inside) == 0 else inside


def trusted_region(law: Law) -> TrustedRegion | JointlyTrusted:
    """Where `law` interpolates its probes rather than extrapolates them."""
    hulls = [hull_of_probes(*law.points.moments(law.space, name), law.space) for name in names_of(law.column)]
    return hulls[0] if isinstance(law.column, str) else JointlyTrusted(law, tuple(hulls))


def hull_of_probes(mu: np.ndarray, sigma: np.ndarray, space: Space) -> TrustedRegion:
    """What probes with these moments, each `(n,)`, vouch for."""
    size = np.maximum(np.abs(mu), sigma) if space == "log" else mu  # a mean of logarithms may be 0
    # A box around each probe rather than the bare point: probes in a row still span an area.
    reach_mu, reach_sigma = TRUSTED_MARGIN * size, TRUSTED_MARGIN * np.maximum(sigma, 1e-3 * size)
    corners = [np.stack([mu + i * reach_mu, sigma + j * reach_sigma], 1) for i in (-1, 1) for j in (-1, 1)]
    hull = ConvexHull(np.concatenate(corners))
    return TrustedRegion(hull.points[hull.vertices], hull.equations)


@dataclass(frozen=True, eq=False)
class SearchRegion:
    """The attainable and trusted (mu, sigma), as an interval of sigma for each mu."""

    attainable: AttainableRegion
    trusted: tuple[TrustedRegion, ...]

    @classmethod
    def of(cls, attainable: AttainableRegion, *trusted: TrustedRegion) -> SearchRegion:
        """What is attainable and trusted by all.

        Raises:
            ValueError: that is nothing; the message says what subsets reach and what the probes cover.
        """
        region = cls(attainable, trusted)
        first, last = region.mu_range
        if first > last or np.isnan(region.sigma_bounds(_rising(first, last, 513))[0]).all():
            a, vertices = attainable, [each.vertices for each in trusted]
            low, high = np.max([v.min(0) for v in vertices], axis=0), np.min([v.max(0) for v in vertices], axis=0)
            raise ValueError(
                f"subsets of this size have no moments that the probes cover ({a.space} space): subsets reach "
                f"mu {a.mu[0]:.4g} to {a.mu[-1]:.4g} and sigma {a.sigma_min.min():.4g} to {a.sigma_max.max():.4g}, "
                f"the probes mu {low[0]:.4g} to {high[0]:.4g} and sigma {low[1]:.4g} to {high[1]:.4g}. "
                "Measure probes on this corpus, or change num_tokens."
            )
        return region

    @property
    def mu_range(self) -> tuple[float, float]:
        """The least and the largest mean; the first is the larger one where nothing is in common."""
        first = max(self.attainable.mu[0], *(trusted.vertices[:, 0].min() for trusted in self.trusted))
        last = min(self.attainable.mu[-1], *(trusted.vertices[:, 0].max() for trusted in self.trusted))
        return float(first), float(last)

    def sigma_bounds(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(smallest, largest)` sigma at each mean; NaN where there is none."""
        low, high = self.attainable.sigma_bounds(mu)
        for trusted in self.trusted:
            low_t, high_t = trusted.sigma_bounds(mu)
            low, high = np.maximum(low, low_t), np.minimum(high, high_t)
        low = np.where(low > 0, low, np.minimum(1e-9, high))  # laws take logarithms
        empty = ~(low <= high)
        return np.where(empty, np.nan, low), np.where(empty, np.nan, high)

    def grid(
        self, num_mu: int, num_sigma: int, sigma: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flat arrays `(mu, sigma)` of points that fill the region and its edges; or those nearest to `sigma(mu)`."""
        mu = _rising(*self.mu_range, num_mu)
        low, high = self.sigma_bounds(mu)
        mu, low, high = (v[~np.isnan(low)] for v in (mu, low, high))
        if sigma is not None:
            return mu, np.clip(sigma(mu), low, high)
        shares = np.linspace(0, 1, num_sigma)
        return np.repeat(mu, num_sigma), (low[:, None] + (high - low)[:, None] * shares).ravel()


def _rising(first: float, last: float, num: int) -> np.ndarray:
    return np.linspace(first, last, num) if first < last else np.array([first])
