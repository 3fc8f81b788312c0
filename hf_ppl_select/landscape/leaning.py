"""Subsets that only lean to lower or to higher perplexities: the plainest ones with a given mean."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def without_outliers(nll: np.ndarray) -> np.ndarray:
    """The values within Tukey's fences, 1.5 interquartile ranges beyond the quartiles."""
    first, third = np.quantile(nll, [0.25, 0.75])
    return nll[np.abs(nll - (first + third) / 2) <= 2.0 * (third - first)]


def leaning_subsets(core: np.ndarray, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """`(mu, sigma)`, each `(101,)` and mu rising, of the subsets that lean without thinning out the middle.

    They are the maximum-entropy subsets for a mean alone, w = sigmoid(a + b x), of a share `kept` of the chunks. Wider
    subsets are U-shaped: two clumps, the far one made of whatever junk there is. 512 quantiles stand for the chunks.
    """
    x = np.quantile(core, (np.arange(512) + 0.5) / 512)
    z = (x - x.mean()) / x.std()
    slopes = np.sinh(np.linspace(-5.0, 5.0, 101))[:, None]
    low, high = -np.abs(slopes) * np.abs(z).max() - 40.0, np.abs(slopes) * np.abs(z).max() + 40.0
    for _ in range(60):
        level = (low + high) / 2
        short = expit(level + slopes * z).mean(axis=1, keepdims=True) < kept
        low, high = np.where(short, level, low), np.where(short, high, level)
    w = expit(level + slopes * z)
    means = (w * x).sum(axis=1) / w.sum(axis=1)
    spreads = np.sqrt((w * (x - means[:, None]) ** 2).sum(axis=1) / w.sum(axis=1))
    return means, spreads
