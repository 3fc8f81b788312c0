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
analysis, Student's t with the runs to spare as degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_COARSE, _FINE = (13, 11, 11), (41, 21, 21)  # grid points for E, g and h
_LARGEST = 16.0  # ln of how much more than independent noise runs may vary: beyond, rounding decides
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
    box = [(0.0, loss.min() * (1 - 1e-6)), (-8.0, _LARGEST), (-8.0, _LARGEST)]
    for axes in (0,), (1, 2), (0,):  # E first: at a wrong floor the noise looks like another
        for _ in range(40):  # zoom in until the grid resolves what matters
            grid = _Grid(X, loss, run_of, *(np.linspace(*ends, num) for ends, num in zip(box, _COARSE)))
            smaller = {axis: grid.range_that_matters(axis) for axis in axes}
            resolved = [np.ptp(ends) > 0.5 * np.ptp(box[axis]) for axis, ends in smaller.items()]
            box = [smaller.get(axis, ends) for axis, ends in enumerate(box)]
            if all(resolved):
                break
    grid = _Grid(X, loss, run_of, *(np.linspace(*ends, num) for ends, num in zip(box, _FINE)))
    return grid.draw(num_draws, rng)


class _Grid:
    """The fits and the log posterior at each E, and each logarithm of a shift's and a drift's relative variance.

    Those are 1 + m*g and 1 + w*h, with m the points of a run and w the sum of x² in it: how much more a run's mean and
    slope vary than independent noise would make them. Less than 1 is allowed.
    """

    def __init__(self, X, loss, run_of, E, log_shift, log_drift):
        self.axes, (n, p) = (E, log_shift, log_drift), X.shape
        self.theta, residual, share = _fit_at_floors(X, loss, E)
        member = (run_of[:, None] == np.arange(run_of.max() + 1)).astype(float)  # (n, G)
        size = member.sum(0)

        def run_average(values: np.ndarray) -> np.ndarray:
            return member @ ((member / size).T @ values)

        # The landscape hardly differs within a run. What does differ there, by the excess's share in the loss, would
        # tell features apart without comparing runs at all, if only the noise were exactly as assumed: not relied on.
        jacobian = share[:, :, None] * X  # of ln(loss) in theta, (J, n, p)
        features = share[:, :, None] * (X[:, 2:] - X[:, 2:].mean(0))
        jacobian[:, :, 2:] += run_average(features) - features
        Q, self.R = np.linalg.qr(jacobian)
        x = (X[:, 1] - run_average(X[:, 1]))[:, None] * member  # (n, G)
        spread = (x**2).sum(0)
        self.g, self.h = np.expm1(log_shift) / size.max(), np.expm1(log_drift) / max(spread.max(), 1e-12)
        self.mean_spread = (spread / size).mean()
        # V = I + g ZZ' + h xx' has the inverse I - Z diag(..) Z' - x diag(..) x', as x has no mean within a run.
        gram, cross = np.eye(p), np.einsum("jnp,jn->jp", Q, residual)[:, None, None, :]
        rss, log_det = (residual**2).sum(1)[:, None, None], 0.0
        for ratio, scale, direction, where in ((self.g, size, member, 1), (self.h, spread, x, 0)):
            shrink = ratio[:, None] / (1 + ratio[:, None] * scale)  # (A, G)
            Q_sums, r_sums = np.einsum("ng,jnp->jgp", direction, Q), residual @ direction
            pairs = (Q_sums[:, :, :, None] * Q_sums[:, :, None, :]).reshape(len(E), -1, p * p)
            gram = gram - np.expand_dims((shrink @ pairs).reshape(len(E), -1, p, p), 1 + where)
            cross = cross - np.expand_dims(shrink @ (Q_sums * r_sums[:, :, None]), 1 + where)
            rss = rss - np.expand_dims(r_sums**2 @ shrink.T, 1 + where)
            log_det = log_det + np.expand_dims(np.log1p(ratio[:, None] * scale).sum(1), where)
        self.gram = gram  # (J, A, B, p, p)
        self.correction = np.linalg.solve(gram, cross[..., None])[..., 0]  # from least squares to generalised
        self.rss = np.maximum(rss - (cross * self.correction).sum(-1), 1e-28)  # noiseless points leave none
        self.degrees_of_freedom = n - p
        slope = np.exp(residual) / loss  # of ln(fitted loss) in E
        seen = slope - np.einsum("jnp,jp->jn", Q, np.einsum("jnp,jn->jp", Q, slope))
        self.log_posterior = 0.5 * np.log((seen**2).sum(1))[:, None, None] - 0.5 * log_det
        self.log_posterior = self.log_posterior - 0.5 * np.linalg.slogdet(gram)[1]
        self.log_posterior -= 0.5 * self.degrees_of_freedom * np.log(self.rss)

    def range_that_matters(self, axis: int) -> tuple[float, float]:
        """The ends of an axis, less what is too unlikely."""
        others = tuple(i for i in range(3) if i != axis)
        likely = np.flatnonzero(self.log_posterior.max(others) > self.log_posterior.max() - _MATTERS)
        values = self.axes[axis]
        return float(values[max(likely[0] - 1, 0)]), float(values[min(likely[-1] + 1, len(values) - 1)])

    def draw(self, num_draws: int, rng: np.random.Generator) -> ParameterDraws:
        probability = np.exp(self.log_posterior - self.log_posterior.max()).ravel()
        cell = rng.choice(probability.size, num_draws, p=probability / probability.sum())
        j, a, b = np.unravel_index(cell, self.log_posterior.shape)
        variance = self.rss[j, a, b] / rng.chisquare(self.degrees_of_freedom, num_draws)
        # gram = C C', so C'^-1 u has the variance gram^-1 of the generalised least-squares fit, in units of s².
        lower = np.linalg.cholesky(self.gram[j, a, b])
        normal = np.sqrt(variance)[:, None, None] * rng.standard_normal((num_draws, lower.shape[1], 1))
        step = self.correction[j, a, b, :, None] + np.linalg.solve(np.swapaxes(lower, 1, 2), normal)
        theta = self.theta[j] + np.linalg.solve(self.R[j], step)[:, :, 0]
        between = variance * self.g[a]  # negative where runs' means vary less than points do
        within = variance * (1 + self.h[b] * self.mean_spread) + np.minimum(between, 0)
        return ParameterDraws(self.axes[0][j], theta, Noise(np.sqrt(np.maximum(between, 0)), np.sqrt(within)))


def _fit_at_floors(X: np.ndarray, loss: np.ndarray, E: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares on ln(loss) at each floor: `theta` `(J, p)`, residuals and shares of the excess in it `(J, n)`."""
    Q, R = np.linalg.qr(X)
    excess = loss - E[:, None]
    c = np.linalg.solve(*_normal_equations(Q, (excess / loss) ** 2, np.log(excess)))[:, :, 0]

    def look(c):
        fitted = np.exp(np.minimum(c @ Q.T, 50.0))
        return fitted / (E[:, None] + fitted), np.log(loss / (E[:, None] + fitted))

    share, residual = look(c)
    for _ in range(30):  # Gauss-Newton; a step that does not descend is shortened
        step = np.linalg.solve(*_normal_equations(Q, share**2, residual / share))[:, :, 0]
        squares = (residual**2).sum(1)
        for _ in range(12):
            new_share, new_residual = look(c + step)
            worse = ~((new_residual**2).sum(1) <= squares * (1 + 1e-12))
            if not worse.any():
                break
            step[worse] /= 4
        step[worse] = 0.0
        c = c + step
        share, residual = look(c)
        if (np.abs(step) <= 1e-9 * (1 + np.abs(c))).all():
            break
    return np.linalg.solve(R, c.T).T, residual, share


def _normal_equations(Q: np.ndarray, weights: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gram = np.einsum("ni,jn,nk->jik", Q, weights, Q, optimize=True)
    return gram, ((weights * y) @ Q)[:, :, None]
