"""How sure a law is: intervals for its predictions, gains and parameters, from draws of its posterior.

Points of one run are correlated and runs are few, which the draws of `law.posterior.draws` allow for: were the law
linear and the design balanced, their intervals would be those of a split-plot analysis. `tests/interval_coverage.py`
measures how often they hold the truth. On its simulated probes of the paper's form, percentile intervals of resampled
runs came out twice as wide, as resamples lose runs that tell features apart, and the usual cluster-robust covariance
(CR1) covered 85 % where 95 % is meant. CR2 with the degrees of freedom of Bell & McCaffrey (Survey Methodology 28,
2002) covers as well and is as narrow, but gives no laws to look for optima with.

Intervals are centred at least squares on ln(loss), not at the Huber fit, which strays from it within the noise; all
but those of new measurements are widened to hold the law's own value too. Far beyond the probes' D they rest on the
form, and hold the truth 87 to 98 % of the time even where it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .forms import Law
from .posterior.draws import ParameterDraws, draw_posterior

NUM_DRAWS = 2000
_BLOCK = 2_000_000  # losses at a time


def check_intervals(law: Law) -> str | None:
    """Why a law can have no intervals and what to add, or None."""
    needed, num_runs = len(law.terms) + 2, len(law.runs)
    if num_runs >= needed:
        return None
    return (
        f"intervals of form {law.form!r} need {needed} or more runs, to tell the noise between them, got {num_runs}: "
        "add probe runs, or use a form with fewer parameters."
    )


def parameter_draws(law: Law, num_draws: int = NUM_DRAWS, seed: int = 0) -> ParameterDraws:
    """Laws of the same form that its points leave plausible. The same law, number and seed give the same draws.

    Raises:
        ValueError: there is no run to spare beyond what the form needs, so noise between runs cannot be told.
    """
    return _parameter_draws(law, num_draws, seed)


@lru_cache(maxsize=16)
def _parameter_draws(law: Law, num_draws: int, seed: int) -> ParameterDraws:
    if problem := check_intervals(law):
        raise ValueError(problem)
    points = law.points
    X = law.design_matrix(*points.moments(law.space, law.column), points.num_tokens)
    run_of = np.unique(points.run, return_inverse=True)[1]
    return draw_posterior(X, points.loss, run_of, num_draws, np.random.default_rng(seed))


def loss_interval(
    law: Law,
    mu: Any,
    sigma: Any,
    num_tokens: Any,
    *,
    level: float = 0.95,
    noise: bool = False,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """`(low, high)` of the loss, nats per token; arguments broadcast.

    Args:
        law, mu, sigma, num_tokens: as in [`ScalingLaw.predict`].
        level: how often the interval should hold the truth.
        noise: False: of the mean over many runs there. True: of one newly measured run, its noise included.
        num_draws, seed: of the laws drawn.

    Raises:
        ValueError: see [`parameter_draws`]; or `level` is not between 0 and 1.
    """
    draws, X = parameter_draws(law, num_draws, seed), law.design_matrix(mu, sigma, num_tokens)
    if not noise:
        low, high = _quantiles(draws.predict, X, level, len(draws))
        predicted = law.predict(mu, sigma, num_tokens)
        return np.minimum(low, predicted), np.maximum(high, predicted)
    factor = np.exp(draws.noise.total * np.random.default_rng([seed, 1]).standard_normal(len(draws)))
    low, high = _quantiles(lambda rows: draws.predict(rows) * factor[:, None], X, level, len(draws))
    return low, high


def gain_interval(
    law: Law,
    better: tuple[Any, Any],
    worse: tuple[Any, Any],
    num_tokens: Any,
    *,
    level: float = 0.95,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(low, high, probability_positive)` of the gain L(worse) - L(better), nats per token; arguments broadcast.

    The probability is never quite 0 or 1; where both are the same it is 1/2.

    Args:
        better, worse: `(mu, sigma)` in the law's space, numbers or arrays.
        num_tokens: D, of both.
        level, num_draws, seed: as in [`loss_interval`].

    Raises:
        ValueError: see [`loss_interval`].
    """
    draws = parameter_draws(law, num_draws, seed)
    pair = np.broadcast_arrays(law.design_matrix(*better, num_tokens), law.design_matrix(*worse, num_tokens))
    X, p = np.concatenate(pair, axis=-1), pair[0].shape[-1]
    predicted = law.predict(*worse, num_tokens) - law.predict(*better, num_tokens)

    def gain(rows: np.ndarray) -> np.ndarray:
        return draws.predict(rows[:, p:]) - draws.predict(rows[:, :p])

    low, high = _quantiles(gain, X, level, len(draws))
    positive = _over_rows(lambda rows: (0.5 + 0.5 * np.sign(gain(rows))).sum(0)[None], X, len(draws))[0]
    return np.minimum(low, predicted), np.maximum(high, predicted), (positive + 0.5) / (len(draws) + 1)


def param_intervals(
    law: Law, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """`{name: (low, high)}` of each parameter. Those of E, Dc and aD lean on each other when D spans little."""
    _check_level(level)
    draws = parameter_draws(law, num_draws, seed)
    values = np.column_stack([draws.E, np.exp(draws.theta[:, 0]), draws.theta[:, 1:]])
    own = np.array(list(law.params.values()))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return dict(zip(law.params, zip(np.minimum(low, own).tolist(), np.maximum(high, own).tolist())))


def _quantiles(values: Callable[[np.ndarray], np.ndarray], X: np.ndarray, level: float, num_draws: int) -> np.ndarray:
    """Both ends of `level` of `values(rows)` `(B, rows)` over the draws, at the rows of `X` `(..., p)`: `(2, ...)`."""
    _check_level(level)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return _over_rows(lambda rows: np.quantile(values(rows), tails, axis=0), X, num_draws)


def _over_rows(statistic: Callable[[np.ndarray], np.ndarray], X: np.ndarray, num_draws: int) -> np.ndarray:
    """`statistic(rows)` `(k, rows)` of the rows of `X` `(..., p)`, as many at a time as memory likes: `(k, ...)`."""
    rows = X.reshape(-1, X.shape[-1])
    step = max(1, _BLOCK // num_draws)
    parts = [statistic(rows[start : start + step]) for start in range(0, max(len(rows), 1), step)]
    return np.concatenate(parts, axis=1).reshape(len(parts[0]), *X.shape[:-1])


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
