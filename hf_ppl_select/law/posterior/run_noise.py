"""Each run's points as their mean, their slope in ln D, and what remains: there, noise of runs is independent."""

from __future__ import annotations

import numpy as np


class RunCoordinates:
    """An orthogonal change of coordinates of vectors over points, in which V = I + g ZZ' + h xx' is diagonal.

    Z says which run a point is of, x is ln D less its mean over the run. A run of m points whose x² sum to w has
    variance 1 + m*g in its mean's coordinate, 1 + w*h in its slope's and 1 elsewhere. What is computed from these is
    a sum of squares, so nothing cancels however far g and h are from 0.

    Args:
        log_tokens: `(n,)`, ln D.
        run_of: `(n,)` integers 0 to G - 1, ascending.
    """

    def __init__(self, log_tokens: np.ndarray, run_of: np.ndarray) -> None:
        self.run_of, self.starts = run_of, np.searchsorted(run_of, np.arange(run_of[-1] + 1))
        self.size = np.diff(np.append(self.starts, len(run_of))).astype(float)
        self.x = log_tokens - self.average(log_tokens)
        spread = self._sums(self.x**2)
        self.has_slope = spread > 1e-12 * np.maximum(1.0, log_tokens.max() ** 2)
        self.x[~self.has_slope[run_of]] = 0.0
        self.spread = np.where(self.has_slope, spread, 0.0)
        self._slope_scale = np.sqrt(np.where(self.has_slope, spread, 1.0))
        self.num_slopes = int(self.has_slope.sum())
        self.num_remaining = len(run_of) - len(self.size) - self.num_slopes

    def average(self, values: np.ndarray) -> np.ndarray:
        """Each point's run's average of `(..., n)`."""
        return (self._sums(values) / self.size)[..., self.run_of]

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of `(..., n)`: runs' means times √m and slopes times √w, each `(..., G)`, and what remains, `(..., n)`."""
        means = self._sums(values) / np.sqrt(self.size)
        slopes = self._sums(values * self.x) / self._slope_scale
        remainder = values - (means / np.sqrt(self.size))[..., self.run_of]
        return means, slopes, remainder - (slopes / self._slope_scale)[..., self.run_of] * self.x

    def join(self, means: np.ndarray, slopes: np.ndarray, remainder: np.ndarray) -> np.ndarray:
        """The reverse of [`split`]: `(..., n)`."""
        remainder = remainder + (means / np.sqrt(self.size))[..., self.run_of]
        return remainder + (slopes / self._slope_scale)[..., self.run_of] * self.x

    def variances(self, log_shift: np.ndarray, log_drift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the coordinates of means and slopes, in units of the remainder's: `(A, G)` and `(B, G)`.

        Args:
            log_shift, log_drift: ln(1 + m*g) and ln(1 + w*h) of the run where m, and w, is largest.
        """
        m, w = self.size / self.size.max(), self.spread / max(self.spread.max(), 1e-300)
        return tuple((1 - part) + part * np.exp(log)[:, None] for part, log in ((m, log_shift), (w, log_drift)))

    def ratios(self, log_shift: np.ndarray, log_drift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g, and h times the mean of x² over a run's points, averaged over runs."""
        h = np.expm1(log_drift) / max(self.spread.max(), 1e-300) if self.num_slopes else np.zeros_like(log_drift)
        return np.expm1(log_shift) / self.size.max(), h * (self.spread / self.size).mean()

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self.starts, axis=-1)
