"""One target kept by groups with budgets of their own, all together.

The maximum-entropy selection under a budget for each group keeps a chunk of group g with probability

    w(x) = sigmoid(lambda_g + lambda_1 z + lambda_2 z^2),    z = (x - mu) / sigma:

one level for each group, one shape for all. Restricted to a group it is the maximum-entropy selection with that
group's budget and the moments the group has under w, so each group can be chosen alone, by any strategy, and together
they meet the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from .groups import Groups

_CELLS = 16_384  # the levels and the shape are found on about so many cells of neighbours within a group
_STARTS = 8  # systematic samples that a small group is the best of
_LARGEST = 1e8  # of the shape's coefficients: w is a step function long before
_TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class GroupTargets:
    """The moments each group has under the joint maximum-entropy selection; NaN in groups that give nothing.

    Attributes:
        mu, sigma: of each group.
        num_chunks: expected of each group.
        levels, shape: lambda of each group, and lambda_1 and lambda_2.
        reached: whether there is such a selection; if not, the moments are of the nearest that was found.
    """

    mu: np.ndarray
    sigma: np.ndarray
    num_chunks: np.ndarray
    levels: np.ndarray
    shape: np.ndarray
    reached: bool

    def inclusion(self, group: int, z: np.ndarray) -> np.ndarray:
        """w of chunks of a group, `z = (x - mu) / sigma`."""
        return expit(self.levels[group] + z * (self.shape[0] + z * self.shape[1]))

    def of_last(self, last: int, sums: np.ndarray, mu: float, sigma: float) -> tuple[float, float]:
        """The moments group `last` needs so that all together have `mu` and `sigma`.

        `sums` are the number, sum and sum of squares of `(x - mu) / sigma` over the chunks that the others gave.
        """
        number = self.num_chunks[last]
        mean = -sums[1] / number
        square = (sums[0] + number - sums[2]) / number
        own = (self.mu[last] - mu) / sigma, self.sigma[last] / sigma
        spread = np.sqrt(square - mean**2) if square > mean**2 else 0.0
        if abs(mean - own[0]) > 0.2 * own[1] or not 0.8 * own[1] < spread < 1.25 * own[1]:
            return float(self.mu[last]), float(self.sigma[last])  # too far from what it can well give
        return float(mu + sigma * mean), float(sigma * spread)


def draw_steered(
    w: np.ndarray, z: np.ndarray, tokens: np.ndarray, budget: float, off: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw a few chunks by their probabilities so that they also make up for what is off so far.

    Of several systematic samples along z, each filled to the budget, the one that leaves the sums of z and z^2 - 1
    nearest to their expected values wins. So over many small groups the errors do not add up.

    Args:
        w: inclusion probabilities `[n]`.
        z: `[n]`.
        tokens: of each chunk `[n]`, none above the budget.
        budget: tokens to keep.
        off: the sums of z and of z^2 - 1 over earlier groups less their expected values.
        rng: of the starts.

    Returns:
        Positions.
    """
    order = np.argsort(z, kind="stable")
    passed = np.cumsum(w[order])
    expected = w @ z, w @ (z * z - 1.0)
    longest, best, lowest = tokens.max(), None, np.inf
    for start in (np.arange(_STARTS) + rng.random()) / _STARTS:
        inside = np.zeros(len(z), dtype=bool)
        inside[order] = np.diff(np.floor(passed + start), prepend=0.0) > 0
        gap = budget - tokens[inside].sum()
        lots = w * (1.0 - w) * rng.random(len(z))  # the undecided come and go first
        for position in np.argsort(-lots):
            if 0 <= gap < longest:
                break
            if inside[position] == (gap < 0):
                gap += tokens[position] if inside[position] else -tokens[position]
                inside[position] = not inside[position]
        first = off[0] + z[inside].sum() - expected[0]
        second = off[1] + (z[inside] ** 2 - 1.0).sum() - expected[1]
        if first**2 + second**2 / 4 < lowest:
            best, lowest = np.flatnonzero(inside), first**2 + second**2 / 4
    return best


def group_targets(
    groups: Groups, values: np.ndarray, tokens: np.ndarray, budgets: np.ndarray, mu: float, sigma: float
) -> GroupTargets:
    """How groups share one target: the moments of each under the joint maximum-entropy selection.

    The dual of that problem, minimised over the levels for each shape (lambda_1, lambda_2), is a convex function of
    two numbers; Newton's method finds its minimum. The moments count chunks while the budgets count tokens, so the
    expected chunks of the groups are moved until their tokens are right.

    Args:
        groups: of the chunks that can be chosen.
        values: x of each chunk `[n]`.
        tokens: of each chunk `[n]`.
        budgets: tokens of each group `[G]`.
        mu, sigma: the target of all groups together.
    """
    code, first, second, count, token_sum = _cells(groups, (values - mu) / sigma, tokens)
    total = np.bincount(code, count, len(budgets))
    all_tokens = np.bincount(code, token_sum, len(budgets))
    mass = np.where(all_tokens > 0, total * budgets / np.maximum(all_tokens, 1e-300), 0.0)
    shape, level, reached = np.zeros(2), np.zeros(len(budgets)), False
    for _ in range(30):
        shape, level, reached = _solve(code, first, second, count, total, mass, shape, level)
        w = expit(level[code] + shape[0] * first + shape[1] * second)
        kept_tokens = np.bincount(code, token_sum * w, len(budgets))
        ratio = np.where(kept_tokens > 0, budgets / np.maximum(kept_tokens, 1e-300), 1.0)
        if not reached or np.max(np.abs(ratio - 1.0)) < 1e-6:
            break
        mass = np.minimum(mass * ratio, total)
    kept = np.bincount(code, count * w, len(budgets))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(code, count * w * first, len(budgets)) / kept
        square = np.bincount(code, count * w * second, len(budgets)) / kept
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
    return GroupTargets(mu + sigma * mean, sigma * spread, kept, level, shape, reached)


def _cells(groups: Groups, z: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Neighbours within each group put together: group, mean z, mean z^2, number and tokens of each cell."""
    order = np.lexsort((z, groups.codes))
    code, z, tokens = groups.codes[order], z[order], tokens[order]
    sizes = np.bincount(code, minlength=len(groups.names))
    rank = np.arange(len(z)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    per_group = max(64, _CELLS // max(1, int((sizes > 0).sum())))
    # Fine in the tails: the distance from the nearer end on a scale that is linear first and logarithmic then
    end = np.minimum(rank, sizes[code] - 1 - rank)
    step = np.floor(per_group / 8 * np.arcsinh(end / (per_group / 8)))
    middle = np.floor(rank / np.maximum(sizes[code] / per_group, 1.0))
    new = (np.diff(code, prepend=-1) != 0) | (np.diff(step, prepend=-1) != 0) | (np.diff(middle, prepend=-1) != 0)
    starts = np.flatnonzero(new)
    count = np.diff(np.append(starts, len(z))).astype(np.float64)
    first, second = np.add.reduceat(z, starts) / count, np.add.reduceat(z * z, starts) / count
    return code[starts], first, second, count, np.add.reduceat(tokens, starts)


def _solve(code, first, second, count, total, mass, shape, level) -> tuple[np.ndarray, np.ndarray, bool]:
    """The shape and levels whose expected chunks are `mass` in each group, with mean z 0 and mean z^2 1 over all."""
    empty, full = mass <= 0, mass >= total * (1 - 1e-12)
    goal = np.where(empty | full, 0.0, mass)

    def look(shape, level):
        logit = shape[0] * first + shape[1] * second
        level = _levels(code, logit, count, goal, total, level)
        level[empty], level[full] = -np.inf, np.inf
        w = expit(level[code] + logit)
        kept, bend = count * w, count * w * (1.0 - w)
        gradient = np.array([kept @ first, kept @ second - mass.sum()])
        # the levels follow the shape: what a group's mean z and z^2 already explain is no bend
        weight = np.bincount(code, bend, len(mass))
        a, b = (np.bincount(code, bend * x, len(mass)) / np.maximum(weight, 1e-300) for x in (first, second))
        da, db = first - a[code], second - b[code]
        hessian = np.array([[bend @ (da * da), bend @ (da * db)], [bend @ (da * db), bend @ (db * db)]])
        return level, gradient, hessian

    level, gradient, hessian = look(shape, level)
    size = max(float(mass.sum()), 1e-300)
    for _ in range(100):
        if np.max(np.abs(gradient)) <= _TOLERANCE * size:
            return shape, level, True
        unit = np.sqrt(np.maximum(np.diag(hessian), 1e-300))
        scaled = hessian / np.outer(unit, unit) + 1e-12 * np.eye(2)
        direction = -np.linalg.lstsq(scaled, gradient / unit, rcond=1e-14)[0] / unit
        slope = float(gradient @ direction)
        for halving in range(30):
            candidate = shape + 0.5**halving * direction
            if np.max(np.abs(candidate)) > _LARGEST:
                continue
            found = look(candidate, np.where(np.isfinite(level), level, 0.0))
            ahead = float(found[1] @ direction)  # the dual is convex: its slope along the step rises through 0
            if abs(ahead) <= 0.9 * abs(slope) or np.max(np.abs(found[1])) <= _TOLERANCE * size:
                break
        else:
            break
        shape, (level, gradient, hessian) = candidate, found
    return shape, level, bool(np.max(np.abs(gradient)) <= 1e-4 * size)


def _levels(code, logit, count, goal, total, start) -> np.ndarray:
    """For each group the level with sum count * sigmoid(level + logit) = goal: Newton inside a shrinking bracket."""
    active = (goal > 0) & (goal < total)
    low, high = np.full(len(goal), -np.inf), np.full(len(goal), np.inf)
    np.maximum.at(high_logit := np.full(len(goal), -np.inf), code, logit)
    np.minimum.at(low_logit := np.full(len(goal), np.inf), code, logit)
    middle = np.log(np.where(active, goal, 1.0) / np.where(active, total - goal, 1.0))
    low, high = np.where(active, middle - high_logit, 0.0), np.where(active, middle - low_logit, 0.0)
    level = np.clip(np.where(np.isfinite(start), start, 0.0), low, high)
    for _ in range(200):
        w = expit(level[code] + logit)
        kept = np.bincount(code, count * w, len(goal))
        excess = kept - goal
        if np.all(~active | (np.abs(excess) <= 1e-11 * total) | (high - low <= 1e-13 * (1 + np.abs(level)))):
            break
        low, high = np.where(excess < 0, level, low), np.where(excess > 0, level, high)
        bend = np.bincount(code, count * w * (1.0 - w), len(goal))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = level - excess / bend
        level = np.where((step > low) & (step < high), step, 0.5 * (low + high))
    return level
