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
    law: Law, best: tuple[Any, Any], random: tuple[Any, Any], num_tokens: float, seed: int
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


def places(
    region: SearchRegion,
    free_sigma: FreeSigma | None,
    bound: ForgettingBound | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The (mu, sigma) of one column at which the best of a plausible law may lie, on a grid."""
    mu, sigma = region.grid(161, 33, free_sigma if bound is None else None)
    if bound is not None:
        allowed = bound.excess(mu, sigma) <= 0
        mu, sigma = (mu[allowed], sigma[allowed]) if allowed.any() else (mu, sigma)
        if free_sigma is not None:  # of each mean the sigma that `search` takes
            order = np.lexsort((np.abs(sigma - free_sigma(mu)), mu))
            first = np.unique(mu[order], return_index=True)[1]
            mu, sigma = mu[order][first], sigma[order][first]
    return mu, sigma


def place_intervals(
    law: Law, candidates: tuple[np.ndarray, np.ndarray], best: tuple[Any, Any], seed: int
) -> dict[str, Any]:
    """Where the best (mu, sigma) of many plausible laws lie among candidates; the bound is the general law's own.

    Of two columns each interval is one per column, and there is none of a sigma that the law leaves free.
    """
    theta = parameter_draws(law, seed=seed).theta[:NUM_OPTIMA]
    least = (law.design_matrix(*candidates, 1.0) @ theta.T).argmin(0)
    found = dict(zip(("mu_interval", "sigma_interval"), zip(best, (values[least] for values in candidates))))
    if isinstance(law.column, str):
        return {name: _around(value, values) for name, (value, values) in found.items()}
    if not any(term.needs_sigma for term in law.terms):
        del found["sigma_interval"]
    return {name: tuple(map(_around, value, values.T)) for name, (value, values) in found.items()}


def _around(value: float, values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the values, and the value itself, which a grid may have missed by a step."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(min(low, value)), float(max(high, value))
