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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_SKETCH_BINS = 4096  # long inputs are first solved on this many bins, which leaves only a few passes over the rows
_LARGEST_LAMBDA = 1e10  # w is a step function long before; only targets out of reach get there
_FARTHEST = 1e100  # z is clipped here so that z^2 stays finite


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

    def inclusion_probability(self, values: np.ndarray) -> np.ndarray:
        """w(x) for values `[n]` in the units of the target; NaN gives NaN."""
        return inclusion_probability(values, self.lambdas, self.centre, self.scale)


def inclusion_probability(
    values: np.ndarray, lambdas: tuple[float, float, float], centre: float, scale: float
) -> np.ndarray:
    """sigmoid(lambda_0 + lambda_1 z + lambda_2 z^2) with z = (values - centre) / scale, in the shape of `values`."""
    with np.errstate(over="ignore"):
        z = np.clip((np.asarray(values, dtype=np.float64) - centre) / scale, -_FARTHEST, _FARTHEST)
    return _sigmoid(lambdas, z)


def _sigmoid(lambdas: Sequence[float] | np.ndarray, z: np.ndarray) -> np.ndarray:
    return expit(lambdas[0] + z * (lambdas[1] + z * lambdas[2]))


def solve_maxent(
    values: np.ndarray,
    mu: float,
    sigma: float,
    budget: float,
    *,
    num_tokens: np.ndarray | float = 1.0,
    counts: np.ndarray | None = None,
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
    x, tokens, counts = _checked(values, num_tokens, counts, mu, sigma, budget)
    total = float(np.sum(counts * tokens))
    if budget > total * (1 + 1e-12):
        raise ValueError(f"A budget of {budget:,.0f} tokens is more than the {total:,.0f} tokens there are; lower it.")
    if weights not in ("chunks", "tokens"):
        raise ValueError(f"weights={weights!r} is not known; use 'chunks' or 'tokens'.")

    z = np.clip((x - mu) / sigma, -_FARTHEST, _FARTHEST)
    token_votes = counts * tokens
    votes = token_votes if weights == "tokens" else counts
    all_votes = float(votes.sum())
    mass = budget * all_votes / total  # right at once when chunks are equally long, or when tokens vote

    options = {"budget": budget, "max_steps": max_steps}
    start = None
    if z.size > 4 * _SKETCH_BINS:
        bins = _sketch(z, votes, token_votes)
        found, near, solved, _ = _solve_for_budget(
            *bins, mass=mass, coefficients=_start(*bins[:2], mass), tolerance=1e-6, **options
        )
        if solved:
            start, mass = found, near
    if start is None:
        start = _start(z, votes, mass)
        w = _sigmoid(start, z)
        votes_per_token = float(votes @ w) / float(token_votes @ w)  # near the target, where chunks may be longer
        mass = min(budget * votes_per_token, all_votes)
    coefficients, _, _, steps = _solve_for_budget(
        z, votes, token_votes, mass=mass, coefficients=start, tolerance=tolerance, **options
    )

    w = _sigmoid(coefficients, z)
    kept = votes * w
    kept_votes = max(float(kept.sum()), np.finfo(float).tiny)
    mean = float(kept @ z) / kept_votes
    # around the mean, not E[z^2] - mean^2: a far tail with tiny w must not cancel
    spread = float(np.sqrt(kept @ (z - mean) ** 2 / kept_votes))
    kept_tokens = float(token_votes @ w)
    error = float(max(abs(mean), abs(spread - 1), abs(kept_tokens / budget - 1)))
    return MaxentSolution(
        lambdas=(float(coefficients[0]), float(coefficients[1]), float(coefficients[2])),
        centre=float(mu),
        scale=float(sigma),
        mu=float(mu + sigma * mean),
        sigma=float(sigma * spread),
        num_tokens=kept_tokens,
        num_chunks=float(counts @ w),
        converged=bool(error <= max(10 * tolerance, 1e-12)),
        error=error,
        num_steps=steps,
    )


def _checked(values, num_tokens, counts, mu, sigma, budget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"values must be a non-empty 1-d array, not one of shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError("values hold NaN or infinity; drop those chunks first.")
    if not (np.isfinite(mu) and np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"The target (mu={mu}, sigma={sigma}) needs a finite mu and a finite sigma above 0.")
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"The budget is {budget} tokens; it must be above 0.")
    tokens = np.broadcast_to(np.asarray(num_tokens, dtype=np.float64), x.shape)
    counts = np.ones_like(x) if counts is None else np.asarray(counts, dtype=np.float64)
    return x, tokens, counts


def _sketch(z: np.ndarray, votes: np.ndarray, token_votes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins along sorted z, of equal chunk count, one chunk each in the tails: mean z, votes and tokens of each."""
    order = np.argsort(z, kind="stable")
    tail = _SKETCH_BINS // 4
    middle = np.linspace(tail, z.size - tail, 2 * tail, endpoint=False).astype(np.int64)
    starts = np.concatenate([np.arange(tail), middle, np.arange(z.size - tail, z.size)])
    sorted_votes = votes[order]
    bin_votes = np.add.reduceat(sorted_votes, starts)
    bin_z = np.add.reduceat(sorted_votes * z[order], starts) / np.maximum(bin_votes, np.finfo(float).tiny)
    return bin_z, bin_votes, np.add.reduceat(token_votes[order], starts)


def _solve_for_budget(
    z: np.ndarray,
    votes: np.ndarray,
    token_votes: np.ndarray,
    budget: float,
    mass: float,
    coefficients: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> tuple[np.ndarray, float, bool, int]:
    """Solve the dual for `mass` votes; move `mass` until the tokens are `budget`: a secant in log-log.

    A target may be in reach of fewer votes only, so a mass without a solution is met half-way from the last one with
    one.
    """
    all_votes = float(votes.sum())
    one_solve = np.allclose(token_votes * (all_votes / float(token_votes.sum())), votes, rtol=1e-12, atol=0)
    steps, slope, good = 0, 1.0, None  # good: (mass, coefficients, log of missing tokens) of the best solution so far
    for _ in range(40):
        found, solved, used = _newton(z, votes, mass, coefficients, tolerance, max_steps - steps)
        steps += used
        if one_solve:
            return found, mass, solved, steps
        gap = math.log(budget / max(float(token_votes @ _sigmoid(found, z)), 1e-300)) if solved else math.inf
        if good is None or abs(gap) < abs(good[2]):
            if good is not None and solved and good[2] < math.inf:
                slope = min(max((good[2] - gap) / math.log(mass / good[0]), 0.25), 4.0)
            if solved:
                good, coefficients = (mass, found, gap), found
            if abs(gap) <= tolerance:
                break
            proposal = mass * math.exp(gap / slope) if solved else 0.7 * mass
        elif abs(mass - good[0]) > 1e-4 * mass:
            proposal = 0.5 * (mass + good[0])
        else:
            break  # more votes have no solution: the budget is out of reach
        proposal = min(proposal, all_votes)
        if steps >= max_steps or abs(proposal - mass) <= 1e-14 * mass:
            break
        mass = proposal
    if good is None:
        return found, mass, False, steps
    return good[1], good[0], abs(good[2]) <= 10 * tolerance, steps


def _start(z: np.ndarray, votes: np.ndarray, mass: float) -> np.ndarray:
    """The dual is convex, so any start will do; the lowest of a few bumps, flat, and shallow bowls saves steps."""
    reach = max(float(np.max(z * z)), 1.0)
    best, lowest = np.zeros(3), np.inf
    for curvature in (-2.0, -0.5, -0.1, 0.0, 1.0 / reach, 5.0 / reach):
        coefficients = np.array([_level(curvature * z * z, votes, mass), 0.0, curvature])
        value = _dual(z, votes, mass, coefficients)
        if value < lowest:
            best, lowest = coefficients, value
    return best


def _level(shape: np.ndarray, votes: np.ndarray, mass: float) -> float:
    """lambda_0 with sum votes * sigmoid(lambda_0 + shape) = mass, by bisection to a rough answer."""
    low, high = -float(shape.max()) - 50.0, -float(shape.min()) + 50.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(votes @ expit(middle + shape)) < mass else (low, middle)
        if high - low < 1e-2:
            break
    return 0.5 * (low + high)


def _dual(z: np.ndarray, votes: np.ndarray, mass: float, coefficients: np.ndarray) -> float:
    logit = coefficients[0] + z * (coefficients[1] + z * coefficients[2])
    softplus = np.maximum(logit, 0.0) + np.log1p(np.exp(-np.abs(logit)))
    return float(votes @ softplus) - mass * float(coefficients[0] + coefficients[2])


def _newton(
    z: np.ndarray, votes: np.ndarray, mass: float, coefficients: np.ndarray, tolerance: float, max_steps: int
) -> tuple[np.ndarray, bool, int]:
    """Damped Newton on the dual, in three dimensions.

    A step is halved until the dual goes down without overshooting its minimum along the step: past it lies the flat
    region where every w is 0 or 1 and the Hessian says nothing any more. At rounding level the gradient decides.
    """
    square = z * z

    def look(lambdas: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        logit = lambdas[0] + z * (lambdas[1] + z * lambdas[2])
        w = expit(logit)
        softplus = np.maximum(logit, 0.0) - np.log(np.maximum(w, 1.0 - w))
        kept = votes * w
        gradient = np.array([kept.sum() - mass, kept @ z, kept @ square - mass])
        bend = kept * (1.0 - w)
        bend_z = bend * z
        sums = [bend.sum(), bend_z.sum(), bend_z @ z, bend_z @ square, (bend * square) @ square]
        value = float(votes @ softplus) - mass * float(lambdas[0] + lambdas[2])
        return value, gradient, np.array([sums[0:3], sums[1:4], sums[2:5]])

    value, gradient, hessian = look(coefficients)
    for step in range(max_steps):
        steepness = float(np.max(np.abs(gradient)))
        unit = np.sqrt(np.diag(hessian))
        if steepness <= 0.1 * tolerance * mass or not np.all(unit > 1e-100):
            return coefficients, steepness <= 0.1 * tolerance * mass, step
        # unit diagonal; the ridge only matters where w is nearly a step function and the Hessian nearly singular
        scaled = hessian / np.outer(unit, unit) + 1e-14 * np.eye(3)
        direction = -np.linalg.lstsq(scaled, gradient / unit, rcond=1e-15)[0] / unit
        slope = float(gradient @ direction)
        rounding = 1e-13 * (abs(value) + mass * float(np.abs(coefficients).max()))
        for halving in range(30):
            candidate = coefficients + 0.5**halving * direction
            new_value, new_gradient, new_hessian = look(candidate)
            if not np.isfinite(new_value) or np.max(np.abs(candidate)) > _LARGEST_LAMBDA:
                continue
            if abs(new_value - value) <= rounding and np.max(np.abs(new_gradient)) < steepness:
                break
            lower = new_value <= value + 1e-4 * 0.5**halving * slope
            if lower and float(new_gradient @ direction) <= -0.5 * slope:
                break
        else:
            return (
                coefficients,
                steepness <= tolerance * mass,
                step + 1,
            )  # no way down: rounding level, or a target without a solution
        coefficients, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
    return coefficients, False, max_steps
