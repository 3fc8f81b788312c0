"""The laws and the noise that law points leave plausible: draws from a posterior, by a grid and closed forms.

The model, with x = ln D less its mean over the run:

    ln(loss) = ln(E + exp(X @ theta)) + the run's shift (variance g*s²) + the run's drift * x (h*s²) + noise (s²)

Points of one run share chunks, order and held-out text, so what is left over of them both shifts and drifts together.
Given E, g and h the model is as good as linear in theta, so all else has a closed form:

    theta | E, g, h, s²  is normal around the generalised least-squares fit
    s² | E, g, h         is RSS(E, g, h) / chi²(n - p)
    E, g, h              have the restricted likelihood of Harville (Biometrika 61, 1974): three numbers, so a grid

Priors: theta and E flat in what they do to ln(loss) (Jeffreys), E within [0, min loss); s², and what runs'
shifts and drifts vary in all, flat in their logarithms, independently, as in Box & Tiao (Bayesian Inference in
Statistical Analysis, 1973): were the law linear and the design balanced, intervals would be those of a split-plot
analysis, Student's t with the runs to spare as degrees of freedom. Runs do not vary ten times more than all points do.

The law is not quite linear, so the closed forms only propose. Every fit counts with the residuals that it really has,
and a candidate is kept with the chance that its own residuals and prior give it, over what the proposal took for them
(sampling-importance-resampling, Rubin 1988; weights truncated as in Ionides, J. Comp. Graph. Stat. 17, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .floor_fits import FloorFits
from .run_noise import RunCoordinates

_COARSE, _FINE = (13, 11, 11), (41, 15, 15)  # grid points for E, g and h
_LOG_VARIANCES = (-8.0, 30.0)  # of runs' means and slopes, relative to independent noise
_ROUNDING = 1e-7  # of ln(loss), as float32 keeps it: points are never taken to be more exact
_CANDIDATES = 2  # for each draw
_MOST_NOISE = 10.0  # standard deviation between runs, in units of that of all ln(loss)
_LARGEST_SHARE = 0.1  # of the posterior in one E
_MATTERS = 15.0  # how far below its maximum the log posterior still counts


@dataclass(frozen=True, eq=False)
class Noise:
    """Standard deviations of the noise of ln(loss) between and within runs, each `(B,)`."""

    between: np.ndarray
    within: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Of one point of a new run: `(B,)`."""
        return np.hypot(self.between, self.within)


@dataclass(frozen=True, eq=False)
class ParameterDraws:
    """B plausible laws of one form: `E` `(B,)`, coefficients `theta` `(B, p)` of the design matrix, and the noise."""

    E: np.ndarray
    theta: np.ndarray
    noise: Noise

    def __len__(self) -> int:
        return len(self.E)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Loss `(B, ...)` at the rows of `law.design_matrix(...)`, `(..., p)`."""
        log_excess = np.moveaxis(X @ self.theta.T, -1, 0)
        return self.E.reshape(-1, *[1] * (log_excess.ndim - 1)) + np.exp(log_excess)


def draw_posterior(
    X: np.ndarray, loss: np.ndarray, run_of: np.ndarray, num_draws: int, rng: np.random.Generator
) -> ParameterDraws:
    """Draw laws from the posterior.

    Args:
        X: `(n, p)` design matrix of full rank, its second column -ln D; n > p.
        loss: `(n,)`, nats per token.
        run_of: `(n,)` integers, each point's run, 0 to G - 1.
        num_draws: B.
        rng: where randomness comes from.
    """
    order = np.argsort(run_of, kind="stable")
    X, loss, runs = X[order], loss[order], RunCoordinates(-X[order, 1], run_of[order])
    box = [(0.0, loss.min() * (1 - 1e-6)), _LOG_VARIANCES, _LOG_VARIANCES]
    # Where no coordinates tell two variances apart, one is taken for both.
    if not runs.num_remaining or not runs.num_slopes:
        box[2] = (0.0, 0.0)
    if not runs.num_remaining and not runs.num_slopes:
        box[1] = (0.0, 0.0)
    limits = list(box)
    for axes in (0,), (1, 2), (0, 1, 2):  # E first: at a wrong floor the noise looks like another
        for _ in range(40):  # zoom in until the grid resolves what matters, and out again if that cut some off
            grid = _Grid(X, loss, runs, *map(_axis, box, _COARSE))
            found = {axis: grid.range_that_matters(axis, limits[axis]) for axis in axes}
            resolved = [0.5 <= _ratio(found[axis], box[axis]) <= 1 for axis in axes]
            box = [found.get(axis, ends) for axis, ends in enumerate(box)]
            if all(resolved):
                break
    E, *noise = map(_axis, box, _FINE)
    for _ in range(10):  # a floor may be likely in a narrow range, and possible in a wide one
        grid = _Grid(X, loss, runs, E, *map(_axis, box[1:], _COARSE[1:]))
        if grid.share_of_floors().max() < _LARGEST_SHARE:
            break
        E = grid.refined_floors()
    return _Grid(X, loss, runs, E, *noise).draw(num_draws, rng)


def _axis(ends: tuple[float, float], num: int) -> np.ndarray:
    return np.linspace(*ends, num if np.ptp(ends) else 1)


def _ratio(ends: tuple[float, float], before: tuple[float, float]) -> float:
    return np.ptp(ends) / np.ptp(before) if np.ptp(before) else 1.0


class _Grid:
    """The fits and the log posterior at each E, and each logarithm of a shift's and a drift's relative variance.

    Those are 1 + m*g and 1 + w*h, with m the points of a run and w the sum of x² in it: how much more a run's mean and
    slope vary than independent noise would make them. Less than 1 is allowed.
    """

    def __init__(self, X: np.ndarray, loss: np.ndarray, runs: RunCoordinates, E, log_shift, log_drift) -> None:
        self.axes, self.runs, (n, p) = (E, log_shift, log_drift), runs, X.shape
        variances = runs.variances(log_shift, log_drift)
        centre = [v[0] for v in runs.variances(np.array([log_shift.mean()]), np.array([log_drift.mean()]))]
        self.fits = FloorFits(X, loss, E, runs, *centre)
        self.weights = a, b = [middle / each for middle, each in zip(centre, variances)]  # (A, G), (B, G)
        log_det = np.log(variances[0]).sum(1)[:, None] + np.log(variances[1])[:, runs.has_slope].sum(1)
        # Coordinates are rounded, so no weight makes residuals smaller than that.
        rounding = (1 / variances[0]).sum(1)[:, None] + (1 / variances[1])[:, runs.has_slope].sum(1)
        self.rounding = _ROUNDING**2 * (rounding + runs.num_remaining)
        shape = len(E), len(log_shift), len(log_drift)
        self.gram, self.step = np.empty((*shape, p, p)), np.empty((*shape, p))
        self.rss, self.log_posterior = np.empty(shape), np.empty(shape)
        self.degrees_of_freedom, self.loss_spread = n - p, np.log(loss).std()
        for j in range(len(E)):
            self.gram[j], self.step[j], rss = self.fits.refit(j, a, b)
            self.rss[j] = rss + self.rounding
            self.log_posterior[j] = self.fits.log_prior[j] - 0.5 * np.linalg.slogdet(self.gram[j])[1]
        self.log_posterior -= 0.5 * log_det + 0.5 * self.degrees_of_freedom * np.log(self.rss)
        self.width = np.gradient(E)  # floors need not be equally far apart

    def range_that_matters(self, axis: int, limits: tuple[float, float]) -> tuple[float, float]:
        """The ends of an axis, less what is too unlikely; further out, within limits, where the ends are not."""
        others = tuple(i for i in range(3) if i != axis)
        likely = np.flatnonzero(self.log_posterior.max(others) > self.log_posterior.max() - _MATTERS)
        values, (first, last) = self.axes[axis], likely[[0, -1]]
        low = values[first - 1] if first else values[0] - np.ptp(values)
        high = values[last + 1] if last + 1 < len(values) else values[-1] + np.ptp(values)
        return float(max(low, limits[0])), float(min(high, limits[1]))

    def share_of_floors(self) -> np.ndarray:
        """The posterior's share in each E, `(J,)`."""
        share = np.exp(self.log_posterior - self.log_posterior.max()).sum((1, 2)) * self.width
        return share / share.sum()

    def refined_floors(self) -> np.ndarray:
        """As many E, most of them where the posterior is, the others evenly spaced."""
        E = self.axes[0]
        density = np.sqrt(self.share_of_floors() / self.width)  # tails are to be resolved too
        below = np.append(0.0, np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(E)))
        below = 0.8 * below / below[-1] + 0.2 * (E - E[0]) / np.ptp(E)
        return np.interp(np.linspace(0.0, 1.0, len(E)), below, E)

    def draw(self, num_draws: int, rng: np.random.Generator) -> ParameterDraws:
        probability = np.exp(self.log_posterior - self.log_posterior.max()) * self.width[:, None, None]
        cell = _systematic(probability.ravel(), _CANDIDATES * num_draws, rng)
        j, a, b = np.unravel_index(cell, self.log_posterior.shape)
        variance = self.rss[j, a, b] / rng.chisquare(self.degrees_of_freedom, len(cell))
        # gram = C C', so C'^-1 u has the variance gram^-1 of the generalised least-squares fit, in units of s².
        lower = np.linalg.cholesky(self.gram[j, a, b])
        normal = rng.standard_normal((len(cell), lower.shape[1], 1))
        spread = np.linalg.solve(np.swapaxes(lower, 1, 2), normal)[..., 0]
        step = self.step[j, a, b] + np.sqrt(variance)[:, None] * spread
        theta, rss, log_prior = self.fits.follow(j, step, self.weights[0][a], self.weights[1][b], self.gram[j, a, b])
        # So far as if the law were linear in theta. Candidates are kept as often as the law itself says.
        expected = self.rss[j, a, b] - self.rounding[a, b] + variance * (normal**2).sum((1, 2))
        log_weight = np.maximum(log_prior - 0.5 * (rss - expected) / variance, -2e3)
        most = self.runs.size.max() * (_MOST_NOISE * self.loss_spread) ** 2
        log_weight[variance * np.exp(self.axes[1][a]) > most] -= 1e3
        weight = np.exp(log_weight - log_weight.max())
        weight = np.minimum(weight, weight.mean() * np.sqrt(len(cell)))  # no single one may rule
        kept = rng.permutation(_systematic(weight, num_draws, rng))
        ratios = self.runs.ratios(*self.axes[1:])
        j, a, b, variance = j[kept], a[kept], b[kept], variance[kept]
        between = variance * ratios[0][a]  # negative where runs' means vary less than points do
        within = variance * (1 + ratios[1][b]) + np.minimum(between, 0)
        noise = Noise(np.sqrt(np.maximum(between, 0)), np.sqrt(np.maximum(within, 0)))
        return ParameterDraws(self.axes[0][j], theta[kept], noise)


def _systematic(weight: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` indices, each in proportion to its weight as nearly as whole numbers allow, ascending."""
    below = np.cumsum(weight)
    found = np.searchsorted(below, below[-1] * (np.arange(num) + rng.random()) / num, side="right")
    return np.minimum(found, len(weight) - 1)
