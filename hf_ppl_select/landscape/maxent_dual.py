"""The convex dual behind the maximum-entropy selection: three numbers, by damped Newton, in blocks of rows.

[`~hf_ppl_select.landscape.maxent_entries.Entries`] are single chunks or groups of them, each with votes v, features
(1, z, q) and tokens t; q is z^2 for a chunk and the mean of z^2 for a group. Solved is

    minimise  sum_i v_i log(1 + exp(lambda . phi_i)) - M (lambda_0 + lambda_2),    phi = (1, z, q),

for M votes, and M is moved until sum t w is the budget. See [`~hf_ppl_select.landscape.maxent`] for what it is good
for.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from .maxent_entries import Entries

_LARGEST_LAMBDA = 1e10  # w is a step function long before; only targets out of reach get there


def solve_for_budget(
    entries: Entries, budget: float, mass: float, coefficients: np.ndarray, tolerance: float, max_steps: int
) -> tuple[np.ndarray, float, bool, int]:
    """Solve the dual for `mass` votes; move `mass` until the tokens are `budget`: a secant in log-log.

    A target may be in reach of fewer votes only, so a mass without a solution is met half-way from the last one with
    one.

    Returns:
        Coefficients, mass, whether the tokens and moments are met, and Newton steps.
    """
    all_votes, all_tokens = entries.all_votes, entries.all_tokens
    one_solve = all(
        np.allclose(tokens * (all_votes / all_tokens), votes, rtol=1e-12, atol=0)
        for _, _, votes, tokens in entries.blocks()
    )
    steps, slope, good = 0, 1.0, None  # good: (mass, coefficients, log of missing tokens) of the best solution so far
    for _ in range(40):
        found, solved, used = newton(entries, mass, coefficients, tolerance, max_steps - steps)
        steps += used
        if one_solve:
            return found, mass, solved, steps
        gap = math.log(budget / max(float(entries.kept(found)[1]), 1e-300)) if solved else math.inf
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


def start_of(entries: Entries, mass: float) -> np.ndarray:
    """The dual is convex, so any start will do; the lowest of a few bumps, flat, and shallow bowls saves steps."""
    squares, votes = (
        np.concatenate(parts)
        for parts in zip(
            *((q, np.broadcast_to(np.asarray(v, dtype=np.float64), q.shape)) for _, q, v, _ in entries.blocks())
        )
    )
    reach = max(float(np.max(squares)), 1.0)
    best, lowest = np.zeros(3), np.inf
    for curvature in (-2.0, -0.5, -0.1, 0.0, 1.0 / reach, 5.0 / reach):
        shape = curvature * squares
        level = _level(shape, votes, mass)
        softplus = np.maximum(level + shape, 0.0) + np.log1p(np.exp(-np.abs(level + shape)))
        value = float(votes @ softplus) - mass * (level + curvature)
        if value < lowest:
            best, lowest = np.array([level, 0.0, curvature]), value
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


def newton(
    entries: Entries, mass: float, coefficients: np.ndarray, tolerance: float, max_steps: int
) -> tuple[np.ndarray, bool, int]:
    """Damped Newton on the dual, in three dimensions: coefficients, whether the gradient vanishes, and steps.

    A step is halved until the dual goes down without overshooting its minimum along the step: past it lies the flat
    region where every w is 0 or 1 and the Hessian says nothing any more. At rounding level the gradient decides.
    """

    def look(lambdas: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Value, gradient and Hessian of the dual."""
        value, gradient, hessian = (
            -mass * float(lambdas[0] + lambdas[2]),
            np.array([-mass, 0.0, -mass]),
            np.zeros((3, 3)),
        )
        for z, square, votes, _ in entries.blocks():
            logit = lambdas[0] + lambdas[1] * z + lambdas[2] * square
            w = expit(logit)
            softplus = np.maximum(logit, 0.0) - np.log(np.maximum(w, 1.0 - w))
            kept = votes * w
            bend = kept * (1.0 - w)
            features = np.stack([np.ones_like(z), z, square])
            value += float(np.sum(votes * softplus))
            gradient += features @ kept
            hessian += (bend * features) @ features.T
        return value, gradient, hessian

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
        else:  # no way down: rounding level, or a target without a solution
            return coefficients, steepness <= tolerance * mass, step + 1
        coefficients, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
    return coefficients, False, max_steps
