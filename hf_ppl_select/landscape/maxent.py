"""The maximum-entropy selection with a given mean, standard deviation and token budget: three numbers.

Among all inclusion probabilities w in [0, 1]^N that keep M votes in expectation and whose kept chunks have mean mu and
standard deviation sigma, the one of largest entropy is

    w(x) = sigmoid(lambda_0 + lambda_1 z + lambda_2 z^2),    z = (x - mu) / sigma.

The three lambdas minimise a convex dual (`v` votes, normally one per chunk; `phi = (1, z, z^2)`):

    g(lambda) = sum_i v_i log(1 + exp(lambda . phi_i)) - M (lambda_0 + lambda_2),

whose gradient is the three constraints: sum v w = M, sum v w z = 0, sum v w z^2 = M. The budget counts tokens while
the moments count chunks, so w has to stay a function of x alone (a length-dependent term would drop the long chunks
first): the dual is solved for M votes, and M is moved until sum t w is the budget. With equal chunks the first M is
right.

Pure numpy: no row, no file, no randomness here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from .maxent_dual import solve_for_budget, start_of
from .maxent_entries import Entries, standardised

_SKETCH_BINS = 2048  # longer inputs are first solved on so many groups, which leaves few passes over the rows


@dataclass(frozen=True)
class MaxentSolution:
    """Inclusion probabilities as three numbers, and how well they meet the target.

    Attributes:
        lambdas: (lambda_0, lambda_1, lambda_2), coefficients of 1, z and z^2 in the logit.
        centre: mu of the target, in `x` units.
        scale: sigma of the target, in `x` units.
        mu: mean of x under the probabilities found.
        sigma: standard deviation of x under them.
        num_tokens: expected number of tokens.
        num_chunks: expected number of chunks.
        converged: the three constraints hold within the tolerance.
        error: the largest of |mu error| / sigma, |sigma error| / sigma and |token error| / budget.
        num_steps: Newton steps over the full input.
        farthest: chunks with |z| above this are out of the question: w is 0. None: there are none.
    """

    lambdas: tuple[float, float, float]
    centre: float
    scale: float
    mu: float
    sigma: float
    num_tokens: float
    num_chunks: float
    converged: bool
    error: float
    num_steps: int
    farthest: float | None = None

    def inclusion_probability(self, values: np.ndarray) -> np.ndarray:
        """w(x) for values `[n]` in the units of the target; NaN gives NaN."""
        return inclusion_probability(values, self.lambdas, self.centre, self.scale, self.farthest)


def inclusion_probability(
    values: np.ndarray,
    lambdas: tuple[float, float, float],
    centre: float,
    scale: float,
    farthest: float | None = None,
) -> np.ndarray:
    """sigmoid(lambda_0 + lambda_1 z + lambda_2 z^2) with z = (values - centre) / scale, in the shape of `values`.

    Where |z| is above `farthest` it is 0.
    """
    with np.errstate(over="ignore"):
        z = standardised(values, centre, scale)
    w = expit(lambdas[0] + z * (lambdas[1] + z * lambdas[2]))
    return w if farthest is None else np.where(np.abs(z) > farthest, 0.0, w)


def farthest_possible(num_chunks: float) -> float:
    """How many standard deviations from its mean a chunk of a subset of so many can be, and a tenth more.

    Samuelson's inequality: no more than sqrt(K - 1). Chunks beyond cannot be taken, only in part and in expectation; a
    dual without them spends no probability on them, and is better conditioned.
    """
    return 1.1 * math.sqrt(max(num_chunks - 1.0, 1.0))


def solve_maxent(
    values: np.ndarray,
    mu: float,
    sigma: float,
    budget: float,
    *,
    num_tokens: np.ndarray | float = 1.0,
    counts: np.ndarray | None = None,
    stds: np.ndarray | None = None,
    weights: str = "chunks",
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> MaxentSolution:
    """Find the maximum-entropy inclusion probabilities for a target.

    Args:
        values: x of each chunk `[n]` (perplexity, or nll for log space), finite; or the bin means of a histogram.
        mu: target mean of x over the kept chunks.
        sigma: target standard deviation of x over the kept chunks, > 0.
        budget: expected number of tokens to keep.
        num_tokens: tokens per chunk, `[n]` or one number (of a bin: its mean).
        counts: chunks per entry `[n]` for a histogram; None means one each.
        stds: standard deviation of x inside each bin of a histogram `[n]`; None counts a bin's chunks as equal.
        weights: what a vote in the moments is: "chunks" (one chunk, one vote) or "tokens".
        tolerance: largest relative error of the three constraints that counts as converged.
        max_steps: most Newton steps over the full input, all together.

    Returns:
        The solution. A target outside the attainable region has none: it comes back with `converged=False` and the
        nearest the solver got. Close to the edge of the region w turns into a step function, whose ends fall between
        two chunks, and the error stays at about one chunk in the budget's number of chunks.

    Raises:
        ValueError: values that are not finite, sigma or budget not positive, budget above the corpus.
    """
    entries = _checked(values, num_tokens, counts, stds, mu, sigma, weights)
    all_votes, all_tokens = entries.all_votes, entries.all_tokens
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"The budget is {budget} tokens; it must be above 0.")
    if budget > all_tokens * (1 + 1e-12):
        raise ValueError(
            f"A budget of {budget:,.0f} tokens is more than the {all_tokens:,.0f} tokens there are; lower it."
        )

    mass = budget * all_votes / all_tokens  # right at once when chunks are equally long, or when tokens vote
    steps, solved = 0, False
    if len(entries.values) > 2 * _SKETCH_BINS:
        groups = entries.grouped(_SKETCH_BINS)[0]
        start, near, solved, _ = solve_for_budget(groups, budget, mass, start_of(groups, mass), 1e-6, max_steps)
    if solved:
        coefficients, _, solved, steps = solve_for_budget(entries, budget, near, start, tolerance, max_steps)
    if not solved:  # at the edge of reach w is a step, for groups at another place than for rows: start afresh
        start = start_of(entries, mass)
        votes, tokens, _, _ = entries.kept(start)
        mass = min(budget * votes / tokens, all_votes)  # near the target chunks may be longer
        coefficients, _, _, more = solve_for_budget(entries, budget, mass, start, tolerance, max_steps)
        steps += more

    votes, tokens, mean, spread = entries.kept(coefficients)
    if weights == "tokens":
        per_entry = (
            1.0 if counts is None else np.broadcast_to(np.asarray(counts, dtype=np.float64), entries.values.shape)
        )
        votes = replace(entries, votes=per_entry).kept(coefficients)[0]
    error = float(max(abs(mean), abs(spread - 1), abs(tokens / budget - 1)))
    return MaxentSolution(
        lambdas=(float(coefficients[0]), float(coefficients[1]), float(coefficients[2])),
        centre=float(mu),
        scale=float(sigma),
        mu=float(mu + sigma * mean),
        sigma=float(sigma * spread),
        num_tokens=tokens,
        num_chunks=votes,
        converged=bool(error <= max(10 * tolerance, 1e-12)),
        error=error,
        num_steps=steps,
    )


def _checked(values, num_tokens, counts, stds, mu, sigma, weights) -> Entries:
    x = np.asarray(values)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"values must be a non-empty 1-d array, not one of shape {x.shape}.")
    x = x if x.dtype.kind == "f" else x.astype(np.float64)
    if not np.isfinite(x.sum()) and not np.isfinite(x).all():
        raise ValueError("values hold NaN or infinity; drop those chunks first.")
    if not (np.isfinite(mu) and np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"The target (mu={mu}, sigma={sigma}) needs a finite mu and a finite sigma above 0.")
    if weights not in ("chunks", "tokens"):
        raise ValueError(f"weights={weights!r} is not known; use 'chunks' or 'tokens'.")

    def column(array):
        array = np.asarray(array, dtype=np.float64)
        return float(array) if array.ndim == 0 else np.broadcast_to(array, x.shape)

    counts, tokens = column(1.0 if counts is None else counts), column(num_tokens)
    token_votes = tokens if isinstance(counts, float) and counts == 1.0 else counts * tokens
    stds = None if stds is None else np.broadcast_to(np.asarray(stds, dtype=np.float64), x.shape)
    return Entries(x, float(mu), float(sigma), token_votes if weights == "tokens" else counts, token_votes, stds)
