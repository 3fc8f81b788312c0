"""Fits of a law's ln(loss) at given floors E, with the points' noise weighted by run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .run_noise import RunCoordinates

_LARGEST_EXPONENT = 50.0
_SINGULAR = 1e-5  # the least that a direction of theta may do to ln(loss), relative to the one that does most
_BLOCK = 1_000_000  # numbers of slopes at a time


class FloorFits:
    """The fit of `ln(E + exp(X @ theta))` to ln(loss) at each of J floors, for one noise, and near it for others.

    The landscape hardly differs within a run. What does differ there, by the excess's share in the loss, would tell
    features apart without comparing runs at all, if only the noise were exactly as assumed: not relied on. So a step
    away from least squares changes what features do to ln(loss) by the same at all points of a run.

    Args:
        X: `(n, p)` design matrix.
        loss: `(n,)`.
        E: `(J,)`.
        runs: the points' runs.
        mean_variance, slope_variance: `(G,)`, of the coordinates of `runs`, relative to the remainder's.

    Attributes:
        log_prior: `(J,)`, of E, flat in what E and theta do to ln(loss), up to a constant.
    """

    def __init__(
        self,
        X: np.ndarray,
        loss: np.ndarray,
        E: np.ndarray,
        runs: RunCoordinates,
        mean_variance: np.ndarray,
        slope_variance: np.ndarray,
    ) -> None:
        self._Q, self._R = np.linalg.qr(X)
        self._E, self._log_loss, self._runs = E[:, None], np.log(loss), runs
        self._weights = 1 / np.sqrt(mean_variance), 1 / np.sqrt(slope_variance)
        self._c = self._least_squares(loss)  # coefficients of Q
        self._away = self._same_within_runs(X)  # (J, p, n): what a step away adds to the slope of ln(loss)
        self._start = self._c
        self._c = _descend(self._c, self._residual_and_slope, self._whiten)
        self._residual, slope = self._residual_and_slope(self._c)
        white, self._white_residual = np.swapaxes(self._whiten(slope), 1, 2), self._whiten(self._residual)
        self._white_Q, self._white_R = _invertible_qr(white)
        flat = self._flat(self._residual, slope)
        # Else the excess is nothing at most points: a floor just below the smallest loss.
        sound = flat[:, :-1].min(1) > _SINGULAR * flat[:, :-1].max(1)
        white_flat = np.abs(np.diagonal(self._white_R, axis1=1, axis2=2))
        with np.errstate(divide="ignore"):
            self._log_flat = np.log(flat).sum(1)
            self._log_white_flat = np.log(white_flat).sum(1)
            self.log_prior = np.where(sound, self._log_flat - self._log_white_flat, -np.inf)

    def follow(
        self, j: np.ndarray, step: np.ndarray, a: np.ndarray, b: np.ndarray, gram: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Go as far from the fits as steps say, along the law and not along its tangent.

        A step says how the weighted projection of ln(fitted loss) on the tangent changes, which Newton's method meets
        (randomise-then-optimise: Bardsley et al., SIAM J. Sci. Comput. 36, 2014).

        Args:
            j: `(B,)`, floors.
            step: `(B, p)`, as [`refit`] gives them.
            a, b: `(B, G)`, weights of runs' means and slopes relative to those of the fits.
            gram: `(B, p, p)`, as [`refit`] gives it.

        Returns:
            The coefficients of X there, `(B, p)`; the weighted sum of squared residuals `(B,)`; and ln of the prior's
            density in steps, relative to that at the fit `(B,)`, minus infinity where the law cannot go so far.
        """
        c, rss, log_prior = np.empty_like(step), np.empty(len(j)), np.empty(len(j))
        for part in np.array_split(np.arange(len(j)), 1 + c.size * len(self._log_loss) // _BLOCK):
            found = self._follow(j[part], step[part], a[part], b[part], gram[part])
            c[part], rss[part], log_prior[part] = found
        return np.linalg.solve(self._R, c.T).T, rss, log_prior

    def _follow(self, j, step, a, b, gram):
        G, goal = a.shape[1], (gram @ step[:, :, None])[:, :, 0]
        means, slopes, rest = np.split(np.swapaxes(self._white_Q[j], 1, 2), [G, 2 * G], axis=2)
        means, slopes = means * (a * self._weights[0])[:, None], slopes * (b * self._weights[1])[:, None]
        tangent = self._runs.join(means, slopes, rest)  # (B, p, n): weighted, in the points' coordinates
        c, residual, to_step, missed = self._newton(j, goal, tangent, (1.0, 1.0))
        if (far := _is_far(missed, goal)).any():
            again = self._newton(j[far], goal[far], tangent[far], (0.25, 0.5, 0.75, 1.0, 1.0, 1.0))
            c[far], residual[far], to_step[far], missed[far] = again
        slope = self._residual_and_slope(c, j)[1]
        with np.errstate(divide="ignore", invalid="ignore"):  # where the excess has vanished
            log_prior = np.log(self._flat(residual, slope)).sum(1) - self._log_flat[j]
            log_prior += np.linalg.slogdet(gram)[1] + self._log_white_flat[j] - np.linalg.slogdet(to_step)[1]
        weights = np.concatenate([a, b, np.ones_like(residual)], axis=1)
        rss = (self._whiten(residual) ** 2 * weights).sum(1)
        return c, rss, np.where(_is_far(missed, goal) | ~np.isfinite(log_prior), -np.inf, log_prior)

    def _newton(self, j, goal, tangent, fractions):
        """Newton's method towards so many parts of the goal, one after the other; what it misses at the end."""
        c = self._c[j]
        residual, slope = self._residual_and_slope(c, j)
        for fraction in fractions:
            to_step = tangent @ np.swapaxes(slope, 1, 2)  # (B, p, p), of coefficients
            gone = (tangent @ (self._residual[j] - residual)[:, :, None])[:, :, 0]
            c = c + _solve_safely(to_step, fraction * goal - gone)
            residual, slope = self._residual_and_slope(c, j)
        gone = (tangent @ (self._residual[j] - residual)[:, :, None])[:, :, 0]
        return c, residual, tangent @ np.swapaxes(slope, 1, 2), goal - gone

    def _flat(self, residual: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """`(J, p + 1)`: sizes of what theta and E do to ln(loss), each less what those before it do."""
        in_E = np.exp(residual - self._log_loss)  # 1 / the fitted loss
        both = np.concatenate([np.swapaxes(slope, 1, 2), in_E[:, :, None]], axis=2)
        return np.abs(np.diagonal(np.linalg.qr(both, mode="r"), axis1=1, axis2=2))

    def refit(self, j: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The fits at floor j with noise of other proportions.

        Args:
            j: number of the floor.
            a, b: `(A, G)` and `(B, G)`, weights of runs' means and slopes relative to those of the fit.

        Returns:
            Of each a and b: the weighted normal matrix `(A, B, p, p)`, the step from the fit `(A, B, p)`, and the
            weighted sum of squared residuals `(A, B)` at the end of that step.
        """
        G, p = len(self._runs.size), self._Q.shape[1]
        parts = np.split(self._white_Q[j], [G, 2 * G])
        pairs = [(part[:, :, None] * part[:, None, :]).reshape(-1, p * p) for part in parts]
        gram = (a @ pairs[0])[:, None] + b @ pairs[1] + pairs[2].sum(0)
        gram = gram.reshape(len(a), len(b), p, p)
        gram += 1e-14 * np.trace(gram, axis1=2, axis2=3)[:, :, None, None] * np.eye(p)
        w = np.split(self._white_residual[j], [G, 2 * G])
        cross = (a @ (parts[0] * w[0][:, None]))[:, None] + b @ (parts[1] * w[1][:, None]) + parts[2].T @ w[2]
        step = np.linalg.solve(gram, cross[..., None])[..., 0]
        best = np.zeros_like(step)
        rss = (a @ w[0] ** 2)[:, None] + b @ w[1] ** 2 + w[2] @ w[2]
        for length in (1.0, 0.3):  # the model is not quite linear: what counts is the residuals after the step
            c = self._c[j] + np.linalg.solve(self._white_R[j], (length * step).reshape(-1, p).T).T
            residual = self._residual_and_slope(c, j)[0]
            means, slopes, rest = np.split(self._whiten(residual).reshape(*rss.shape, -1), [G, 2 * G], axis=2)
            new = np.einsum("abg,ag->ab", means**2, a) + np.einsum("abg,bg->ab", slopes**2, b) + (rest**2).sum(2)
            better, no_worse = new < rss, new <= rss * (1 + 1e-9)
            rss, best = np.where(better, new, rss), np.where(better[:, :, None], length * step, best)
            if no_worse.all():
                break
        return gram, best, rss

    def _look(self, c: np.ndarray, E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of the excess in the fitted loss, and ln(fitted loss)."""
        excess = np.exp(np.minimum(c @ self._Q.T, _LARGEST_EXPONENT))
        return excess / (E + excess), np.log(E + excess)

    def _least_squares(self, loss: np.ndarray) -> np.ndarray:
        def residual_and_slope(c):
            share, fitted = self._look(c, self._E)
            return self._log_loss - fitted, share[:, None, :] * self._Q.T

        excess = loss - self._E
        share = excess / loss
        start = _solve(share[:, None, :] * self._Q.T, share * np.log(excess))
        return _descend(start, residual_and_slope, lambda values: values)

    def _same_within_runs(self, X: np.ndarray) -> np.ndarray:
        features = self._look(self._c, self._E)[0][:, None, :] * (X[:, 2:] - X[:, 2:].mean(0)).T
        away = np.zeros((len(self._E), X.shape[1], len(X)))
        away[:, 2:] = self._runs.average(features) - features
        return np.linalg.solve(self._R.T, away)

    def _residual_and_slope(self, c: np.ndarray, j: int | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """`(J, n)` residuals and `(J, p, n)` slopes of fits `(J, p)` at floors j; no slopes if that is one floor."""
        E = self._E[j]
        share, fitted = self._look(c, E)
        moved = c - self._start[j]
        if isinstance(j, int):  # many at one floor
            return self._log_loss - fitted - moved @ self._away[j], None
        bend = (moved[:, None, :] @ self._away[j])[:, 0]
        return self._log_loss - fitted - bend, share[:, None, :] * self._Q.T + self._away[j]

    def _whiten(self, values: np.ndarray) -> np.ndarray:
        """`(..., n)` in the coordinates of runs, each in units of its noise: `(..., 2 G + n)`."""
        means, slopes, remainder = self._runs.split(values)
        return np.concatenate([means * self._weights[0], slopes * self._weights[1], remainder], axis=-1)


def _descend(c: np.ndarray, residual_and_slope: Callable, whiten: Callable) -> np.ndarray:
    """Gauss-Newton on J problems at once; a step that does not descend is shortened."""
    residual, slope = residual_and_slope(c)
    for _ in range(30):
        white = whiten(residual)
        step, squares = _solve(whiten(slope), white), (white**2).sum(1)
        for _ in range(12):
            new = residual_and_slope(c + step)
            worse = ~((whiten(new[0]) ** 2).sum(1) <= squares * (1 + 1e-12))
            if not worse.any():
                break
            step[worse] /= 4
        step[worse] = 0.0
        c = c + step
        residual, slope = residual_and_slope(c)
        if (np.abs(step) <= 1e-9 * (1 + np.abs(c))).all():
            break
    return c


def _solve(slope: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares of J problems: slopes `(J, p, N)`, targets `(J, N)`."""
    Q, R = _invertible_qr(np.swapaxes(slope, 1, 2))
    return np.linalg.solve(R, (y[:, None, :] @ Q)[:, 0, :, None])[:, :, 0]


def _invertible_qr(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and R, of which R can be solved with even where columns of A vanish or are tied."""
    Q, R = np.linalg.qr(A)
    diagonal = np.arange(R.shape[-1])
    values = R[..., diagonal, diagonal]
    least = 1e-12 * np.abs(values).max(-1, keepdims=True) + 1e-300
    R[..., diagonal, diagonal] = np.where(np.abs(values) < least, least, values)
    return Q, R


def _solve_safely(A: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The solutions `(B, p)` of systems `(B, p, p)`; one that has none gives something."""
    try:
        return np.linalg.solve(A, y[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        Q, R = _invertible_qr(A)
        return np.linalg.solve(R, np.swapaxes(Q, 1, 2) @ y[:, :, None])[:, :, 0]


def _is_far(missed: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return ~(np.abs(missed).max(1) <= 1e-4 * np.abs(goal).max(1))
