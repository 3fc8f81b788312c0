"""How sure an optimum is: its loss, its gain over random, and its place, over plausible parameters of the law."""

from __future__ import annotations

from typing import Any

import numpy as np

from .forms import Law
from .intervals import gain_interval, loss_interval, parameter_draws
from .optimum_search import ForgettingBound, FreeSigma
from .trust import SearchRegion

NUM_OPTIMA = 500  # plausible laws whose optimum is sought
LARGEST = 1e300  # stands for losses beyond all numbers, so that what is saved stays JSON


def finite(x: Any) -> float:
    """A float; infinity, and what comes of subtracting infinities, becomes [`LARGEST`]."""
    return float(np.clip(np.nan_to_num(x, nan=LARGEST), -LARGEST, LARGEST))


def gain_intervals(
    law: Law, best: tuple[float, float], random: tuple[float, float], num_tokens: float, seed: int
) -> dict[str, Any]:
    """The fields of an `Optimum` that say how sure its loss and gain are. `best` and `random` are (mu, sigma)."""
    draws = parameter_draws(law, seed=seed)
    X = law.design_matrix([best[0], random[0]], [best[1], random[1]], num_tokens)
    noise = np.random.default_rng([seed, 2]).standard_normal((len(draws), 2))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # random may lie absurdly far from the probes
        low, high, probability = gain_interval(law, best, random, num_tokens, seed=seed)
        losses = draws.predict(X) * np.exp(np.hypot(draws.noise.between, draws.noise.within)[:, None] * noise)
        # Two excesses over E are equal when aD*ln(tokens) differs by as much as their logarithms do.
        times = np.exp(draws.theta @ (X[1] - X[0]) / draws.theta[:, 1])
        losses = np.minimum(losses, LARGEST)
    times = np.where(draws.theta[:, 1] > 0, times, np.inf)
    ends = num_tokens * np.quantile(times, [0.025, 0.975], method="inverted_cdf")
    return {
        "gain_interval": (finite(low), finite(high)),
        "measured_gain_interval": _around(finite(low), losses[:, 1] - losses[:, 0]),
        "gain_probability": float(probability) if best != random else 0.0,
        "loss_interval": tuple(map(float, loss_interval(law, *best, num_tokens, seed=seed))),
        "random_tokens_interval": tuple(float(end) if np.isfinite(end) else None for end in ends),
    }


def place_intervals(
    law: Law,
    region: SearchRegion,
    best: tuple[float, float],
    free_sigma: FreeSigma | None,
    bound: ForgettingBound | None,
    seed: int,
) -> dict[str, Any]:
    """Where the best (mu, sigma) of many plausible laws lie, on a grid; the bound is the general law's own."""
    mu, sigma = region.grid(161, 33, free_sigma if bound is None else None)
    if bound is not None:
        allowed = bound.excess(mu, sigma) <= 0
        mu, sigma = (mu[allowed], sigma[allowed]) if allowed.any() else (mu, sigma)
        if free_sigma is not None:  # of each mean the sigma that `search` takes
            order = np.lexsort((np.abs(sigma - free_sigma(mu)), mu))
            first = np.unique(mu[order], return_index=True)[1]
            mu, sigma = mu[order][first], sigma[order][first]
    theta = parameter_draws(law, seed=seed).theta[:NUM_OPTIMA]
    least = (law.design_matrix(mu, sigma, 1.0) @ theta.T).argmin(0)
    return {"mu_interval": _around(best[0], mu[least]), "sigma_interval": _around(best[1], sigma[least])}


def _around(value: float, values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the values, and the value itself, which a grid may have missed by a step."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(min(low, value)), float(max(high, value))
