"""The maximum-entropy subset itself: probabilities, then systematic sampling along the values, then small repairs.

Time and memory are linear in the rows with small constants: values are read in blocks, the dual is solved over groups
of like value, and beyond the columns only three bytes per row are kept. See [`choose_maxent`].
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from .attainable import region_of_groups
from .far_chunks import pick_far
from .maxent import MaxentSolution, farthest_possible, solve_maxent
from .maxent_entries import Entries, standardised
from .settling import Sums, settle
from .systematic import NUM_BINS, WORKING_ROWS, systematic, undecided, working_rows
from .targets import FAR_OFF

_GOOD = 2e-4  # relative error of mu and sigma that needs no second attempt
_FAR = 0.003  # a chunk is far when it alone makes more than this share of the variance
_ATTEMPTS = (1, 2, 4, 8, 16, 3, 6, 12)  # least numbers of far chunks that share their part of the variance
_DEPTH = 3
_MANY = 2_000_000  # rows of which a group holds too few to matter, and one pass takes long
_TOLERANCE = 1e-6
_NUDGE = 3e-4


def choose_maxent(
    values: np.ndarray, num_tokens: np.ndarray, budget: float, mu: float, sigma: float, seed: int
) -> tuple[np.ndarray, MaxentSolution]:
    """The maximum-entropy subset with mean `mu` and standard deviation `sigma`: systematic sampling, then swaps.

    Inclusion probabilities come from [`~hf_ppl_select.landscape.maxent.solve_maxent`] on groups of like value. Walking
    along the values and taking a chunk whenever the running sum of probabilities (from a start drawn from `seed`)
    passes a whole number keeps every stretch of the values at its expected share, so the moments are already close;
    swaps then settle tokens and moments. Where single chunks weigh so much that this does not do (a far tail, few
    chunks), the far chunks are chosen first and the rest is solved anew around them.

    Args:
        values: x of each chunk `[n]`, finite.
        num_tokens: tokens of each chunk `[n]`, or one number.
        budget: tokens to keep.
        mu, sigma: target, in units of x.
        seed: of all randomness here.

    Returns:
        Positions of the chunks (rising), and the solution behind them.

    Raises:
        ValueError: values that are not finite, sigma or budget not positive, or a budget above the corpus.
    """
    values, tokens = np.asarray(values), np.asarray(num_tokens, dtype=np.float64)
    if not len(values) or not np.isfinite([values.min(), values.max()]).all():
        raise ValueError("values must be at least one and finite; drop chunks without a finite perplexity first.")
    if not (np.isfinite(mu) and np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"The target (mu={mu}, sigma={sigma}) needs a finite mu and a finite sigma above 0.")
    if tokens.ndim and len(tokens) and tokens.min() == tokens.max():
        tokens = tokens[0]
    inside, solution, _ = _choose(
        values, tokens if tokens.ndim else float(tokens), budget, mu, sigma, np.random.default_rng(seed), _DEPTH
    )
    return np.flatnonzero(inside), solution


def _choose(
    values: np.ndarray,
    tokens: np.ndarray | float,
    budget: float,
    mu: float,
    sigma: float,
    rng: np.random.Generator,
    depth: int,
) -> tuple[np.ndarray, MaxentSolution, float]:
    """Bool mask `[n]` of the chunks taken, the solution, and the relative error of the moments."""
    farthest = farthest_possible(budget / float(np.mean(tokens)))
    if values.min() < mu - farthest * sigma or values.max() > mu + farthest * sigma:
        able = (values >= mu - farthest * sigma) & (values <= mu + farthest * sigma)
        their_tokens = tokens[able] if isinstance(tokens, np.ndarray) else tokens
        if np.sum(their_tokens if isinstance(tokens, np.ndarray) else tokens * np.count_nonzero(able)) >= budget:
            inside = np.zeros(len(values), dtype=bool)
            inside[able], solution, error = _choose(values[able], their_tokens, budget, mu, sigma, rng, depth)
            if solution.error < FAR_OFF:  # else no whole subset will do: as near as can be
                return inside, replace(solution, farthest=farthest), error

    entries = Entries(values, mu, sigma, 1.0, tokens)
    groups, bins, bin_of = entries.grouped(NUM_BINS)
    solution = solve_maxent(
        groups.values,
        0.0,
        1.0,
        budget,
        num_tokens=groups.tokens / groups.votes,
        counts=groups.votes,
        stds=groups.stds,
        tolerance=_TOLERANCE,
    )
    if solution.converged or len(values) > _MANY:
        chance = expit(
            np.polynomial.polynomial.polyval(groups.values, solution.lambdas) + solution.lambdas[2] * groups.stds**2
        )
        solution = replace(
            solution, centre=float(mu), scale=float(sigma), mu=mu + sigma * solution.mu, sigma=sigma * solution.sigma
        )
    else:  # close to the edge of reach w is a step, which may fall inside a group
        solution = _solve_rows(values, tokens, budget, mu, sigma)
        entries = replace(entries, scale=solution.scale)
        chance, start = np.zeros(NUM_BINS), 0
        for z, squares, _, _ in entries.blocks():
            w = expit(solution.lambdas[0] + solution.lambdas[1] * z + solution.lambdas[2] * squares)
            chance += np.bincount(bin_of[start : start + len(z)], w, NUM_BINS)
            start += len(z)
        chance = chance[bins] / groups.votes
    inside = systematic(bin_of, bins, groups.votes.astype(np.int64), chance, rng)
    logit = np.polynomial.polynomial.polyval(groups.values, solution.lambdas)
    working = working_rows(bin_of, bins, groups.votes, logit, rng)
    error = _repair(inside, values, tokens, budget, mu, sigma, solution, working, rng)
    if error > _GOOD and depth > 0 and solution.error < FAR_OFF:
        return _far_first(values, tokens, budget, mu, sigma, rng, depth, inside, solution, error)
    return inside, solution, error


def _solve_rows(
    values: np.ndarray, tokens: np.ndarray | float, budget: float, mu: float, sigma: float
) -> MaxentSolution:
    """Solve over single chunks; for a target on the very edge, where no finite lambdas do, a sigma just inside."""
    first = solve_maxent(values, mu, sigma, budget, num_tokens=tokens, tolerance=_TOLERANCE)
    if first.converged:
        return first
    for nudge in (1.0 - _NUDGE, 1.0 + _NUDGE):
        solution = solve_maxent(values, mu, sigma * nudge, budget, num_tokens=tokens, tolerance=_TOLERANCE)
        if solution.converged:
            return replace(solution, converged=False, error=_NUDGE)
    return first


def _repair(
    inside: np.ndarray,
    values: np.ndarray,
    tokens: np.ndarray | float,
    budget: float,
    mu: float,
    sigma: float,
    solution: MaxentSolution,
    working: np.ndarray,
    rng: np.random.Generator,
) -> float:
    """Settle `inside` in place with swaps among the working rows; the relative error that is left."""
    sums = Sums.of(inside, values, tokens, mu, sigma)
    relative = min(max(1.0, sigma / max(abs(mu), 1e-300)), 100.0)  # of mu where sigma is larger
    longest = float(np.max(tokens))
    for rows in (working, np.arange(len(values)) if len(working) < len(values) else working):
        z = standardised(values[rows], mu, sigma)
        order = np.argsort(z, kind="stable")
        rows, z = rows[order], z[order]
        some = inside[rows]
        own = z * (sigma / solution.scale)
        logit = solution.lambdas[0] + own * (solution.lambdas[1] + own * solution.lambdas[2])
        their_tokens = tokens[rows] if isinstance(tokens, np.ndarray) else np.full(len(z), tokens)
        error = settle(some, z, their_tokens, budget, sums, undecided(logit), relative, longest, rng)
        inside[rows] = some
        if 0 <= budget - sums.tokens < longest:
            break  # else so many chunks are missing that all rows have to take part
    return error


def _far_first(
    values: np.ndarray,
    tokens: np.ndarray | float,
    budget: float,
    mu: float,
    sigma: float,
    rng: np.random.Generator,
    depth: int,
    inside: np.ndarray,
    solution: MaxentSolution,
    error: float,
) -> tuple[np.ndarray, MaxentSolution, float]:
    """Choose the far chunks first, then solve for the others, whose target follows: the best of a few attempts.

    In expectation a chunk that makes half of the subset's variance can be taken by a tenth; in a subset it is there or
    not, and all the others have to make up for it.
    """
    number = solution.num_chunks
    z = standardised(values, mu, sigma)
    is_far = z * z > _FAR * number
    far, others = np.flatnonzero(is_far), np.flatnonzero(~is_far)
    best = inside, solution, error
    if not len(far) or not len(others):
        return best
    far = far[np.argsort(-np.abs(z[far]), kind="stable")]
    far_z = z[far]
    del z, is_far
    chance = solution.inclusion_probability(values[far])
    groups = Entries(values[others], mu, sigma).grouped(NUM_BINS)[0]
    near_tokens = tokens[others] if isinstance(tokens, np.ndarray) else tokens
    for least in _ATTEMPTS[: 2**depth]:
        taken = pick_far(far_z, chance, number, groups, least, rng)
        left = number - len(taken)
        far_tokens = float(tokens[far[taken]].sum()) if isinstance(tokens, np.ndarray) else tokens * len(taken)
        if left < 2 or far_tokens >= budget:
            continue
        mean = -far_z[taken].sum() / left
        variance = (number - (far_z[taken] ** 2).sum()) / left - mean**2
        region = region_of_groups(groups.values, groups.stds, groups.votes, min(left, len(others)), "linear")
        if variance <= 0 or not region.contains(mean, np.sqrt(variance)):
            continue
        part, _, _ = _choose(
            values[others],
            near_tokens,
            budget - far_tokens,
            mu + sigma * mean,
            sigma * np.sqrt(variance),
            rng,
            depth - 1,
        )
        mask = np.zeros(len(values), dtype=bool)
        mask[others[part]] = True
        mask[far[taken]] = True
        near = np.sort(rng.permutation(len(others))[:WORKING_ROWS])
        here = _repair(mask, values, tokens, budget, mu, sigma, solution, np.concatenate([others[near], far]), rng)
        if here < best[2]:
            best = mask, solution, here
        if here <= _GOOD:
            break
    return best
