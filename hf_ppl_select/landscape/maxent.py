"""The maximum-entropy subset with a given mean and standard deviation of any score columns, and a token budget.

Of each column c the target is a mean mu_c and a standard deviation sigma_c. With z_c = (x_c - mu_c) / sigma_c and

    phi(x) = (z_c, z_c^2 - 1)_c,

a subset meets the target where the mean of phi over it is 0. Among all inclusion probabilities w that do, with given
tokens of each group g, the one of largest entropy is w(x) = sigmoid(l_g + lambda . phi(x)). A row is kept where

    logit(u) - lambda . phi(x) < l_g,

u in (0, 1): in a stream the hash of the row, in memory evenly along the columns (see `drawing`).

All is solved on cells: like rows of one group, summed up. Pure numpy, no file here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from .cells import Cells, blocks
from .reach import FAR_OFF

_RIDGE = 1e-7  # bounds lambda where no subset has the target: the mean of phi is then -1e-7 lambda
_SURE = 1e300  # the level of a group taken whole
_STEEP = 30.0  # of lambda: w falls from 1 to 0 over some hundredths of sigma
_MOST_STEPS = 200
_ANYWHERE = 1e6  # standard deviations
_TOLERANCE = 1e-7  # relative error of moments and tokens at which the dual is solved
_MOST_OFF = 0.05  # a relative error of a deviation that is always worth a warning, but in small subsets
_NEAR, _FAR_SHARE = 5.0, 0.01  # rows that make more of the variance are left out where the target allows it


@dataclass(frozen=True)
class Tilt:
    """Inclusion probabilities w(x) = sigmoid(l_g + lambda . phi(x)), and what is expected of them.

    Attributes:
        centre, scale: mu and sigma of the target `[c]`.
        lambdas: of phi = (z of each column, z^2 - 1 of each column), `[2 c]`.
        levels: of each group.
        farthest: where |z| of a column is larger, w is 0: no subset with such moments can hold that row.
        error: the largest of |mean - mu| / sigma, |deviation / sigma - 1| and 10 |tokens / budget - 1|.
        mu, sigma: moments of what is kept, in expectation `[c]`.
        mu_std, sigma_std: standard errors of them when each row is drawn by itself (to first order) `[c]`.
        num_tokens, num_chunks: in expectation.
        num_tokens_std: standard deviation of the first (rows of a cell counted as equally long).
        num_steps: Newton steps.
        bars: relative errors of means and deviations that nobody need hear of `[2 c]`: 1 %, or a random draw's of that
            size; of deviations at most 5 %, or a normal distribution's, however few rows make up the variance.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    lambdas: tuple[float, ...]
    levels: tuple[float, ...]
    farthest: float
    error: float
    mu: tuple[float, ...]
    sigma: tuple[float, ...]
    mu_std: tuple[float, ...]
    sigma_std: tuple[float, ...]
    num_tokens: float
    num_chunks: float
    num_tokens_std: float
    num_steps: int
    bars: tuple[float, ...]

    @property
    def reached(self) -> bool:
        """Whether there is such a selection: its error is 1 %, or half a random draw's."""
        return self.error <= max(FAR_OFF, 0.5 / np.sqrt(max(self.num_chunks, 1.0)))

    def off(self, x: np.ndarray) -> float:
        """How far the moments of rows `[n, c]` are from the target: the largest error as a share of its bar.

        A thousandth of all errors is added, so that of equals the better is less.
        """
        mu, sigma = np.array(self.centre), np.array(self.scale)
        errors = np.concatenate([(x.mean(0) - mu) / sigma, x.std(0) / sigma - 1])
        shares = np.abs(errors) / self.bars
        return float(shares.max() + 1e-3 * shares.sum())

    def logit(self, x: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """l_g + lambda . phi(x) of rows `[n, c]`, whose groups are `codes` `[n]`; -inf beyond `farthest`."""
        line = np.empty(len(x))
        for rows in blocks(len(x)):
            level = self.levels[0] if codes is None else np.asarray(self.levels)[codes[rows]]
            line[rows] = line_of(x[rows], self.centre, self.scale, self.lambdas, self.farthest) + level
        return line


def line_of(x: np.ndarray, centre: tuple, scale: tuple, lambdas: tuple, farthest: float) -> np.ndarray:
    """lambda . phi(x) of rows `[n, c]`; -inf where |z| of a column is above `farthest`."""
    line, far = np.zeros(len(x)), np.zeros(len(x), dtype=bool)
    for c, (mu, sigma) in enumerate(zip(centre, scale)):
        with np.errstate(over="ignore"):
            z = (x[:, c] - mu) / sigma
        far |= np.abs(z) > farthest
        z = np.clip(z, -1e100, 1e100)
        line += lambdas[c] * z + lambdas[len(centre) + c] * (z * z - 1.0)
    line[far] = -np.inf
    return line


def solve(
    cells: Cells,
    mu: tuple[float, ...],
    sigma: tuple[float, ...],
    budgets: np.ndarray,
    *,
    start: Tilt | None = None,
) -> Tilt:
    """The tilt with these moments and tokens. Where there is none: the nearest, in means of phi, and a large `error`.

    Newton on the dual, which is convex in levels and lambda, for M_g votes of each group,

        (sum_i v_i log(1 + e^(l_g(i) + lambda . phi_i)) - sum_g M_g l_g) / sum M + ridge |lambda|^2 / 2,

    while M moves until the tokens are right (the budget counts tokens, the moments count votes, and w stays a function
    of x alone). The levels are eliminated by a Schur complement: a step costs O(cells c^2) for any number of groups.
    The ridge turns "the mean of phi is 0" into "as near to 0 as can be".

    Args:
        cells: of all rows.
        mu, sigma: target of each column `[c]`, sigma > 0.
        budgets: tokens of each group `[G]`, at least 0.
        start: of other cells of the same rows, near the solution.

    Raises:
        ValueError: a target that is not finite, or a sigma that is not positive.
    """
    mu, sigma, budgets = (np.array(a, dtype=float).reshape(-1) for a in (mu, sigma, budgets))
    if not (np.isfinite([*mu, *sigma]).all() and np.all(sigma > 0)):
        pair = f"mu={mu[0]:g}, sigma={sigma[0]:g}" if len(mu) == 1 else f"mu={mu.tolist()}, sigma={sigma.tolist()}"
        raise ValueError(f"The target ({pair}) needs a finite mu and a finite sigma above 0.")
    number = budgets.sum() * cells.counts.sum() / cells.tokens.sum()
    # Samuelson's inequality: of K numbers none is more than sqrt(K - 1) standard deviations from their mean
    most = 1.1 * np.sqrt(max(number - 1.0, 1.0))
    bounds = [min(_NEAR, most), min(max(_NEAR, np.sqrt(_FAR_SHARE * number)), most), most]
    best = None
    for farthest in dict.fromkeys(bounds) if start is None else [start.farthest]:
        tilt = _solve(cells, mu, sigma, budgets, farthest, _RIDGE, start)
        best = tilt if best is None or tilt.error < best.error else best
        if best.error < 0.1 * FAR_OFF:
            break
    return best


def nearest(cells: Cells, mu: tuple, sigma: tuple, budgets: np.ndarray) -> tuple[tuple, tuple]:
    """The target itself where a tilt without sharp edges has it; else the moments of such a tilt near to it."""
    for ridge in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        tilt = _solve(cells, *map(np.array, (mu, sigma, budgets)), _ANYWHERE, ridge, None)
        if np.abs(tilt.lambdas).max() <= _STEEP:
            break
    return (mu, sigma) if tilt.error <= FAR_OFF else (tilt.mu, tilt.sigma)


def tilted(cells: Cells, lambdas: np.ndarray, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations `[n, c]` of what many tilts keep, without groups: a cloud of what subsets can be.

    Args:
        cells: without far outliers.
        lambdas: of each tilt `[n, 2 c]`, for phi about the moments of the cells themselves.
        budget: expected tokens of each, less than there are.
    """
    mu = cells.votes @ cells.mean / cells.votes.sum()
    sigma = np.sqrt(cells.votes @ ((cells.mean - mu) ** 2 + cells.std**2) / cells.votes.sum())
    z = (cells.mean - mu) / sigma
    score = lambdas @ np.concatenate([z, z * z + (cells.std / sigma) ** 2 - 1.0], axis=1).T
    low, high = -score.max(1) - 40.0, -score.min(1) + 40.0
    for _ in range(40):
        level = (low + high) / 2
        short = expit(level[:, None] + score) @ cells.tokens < budget
        low, high = np.where(short, level, low), np.where(short, high, level)
    w = cells.votes * expit(level[:, None] + score)
    mean = w @ z / w.sum(1, keepdims=True)
    square = w @ (z * z + (cells.std / sigma) ** 2) / w.sum(1, keepdims=True)
    return mu + sigma * mean, sigma * np.sqrt(np.maximum(square - mean**2, 0.0))


def leaning(cells: Cells, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """`(mu, sigma)`, each `[101]` and mu rising, of subsets that lean to lower or higher values of one column.

    They are the maximum-entropy subsets for a mean alone, the plainest there are: w does not thin out the middle.
    Wider subsets are U-shaped: two clumps, the far one made of whatever junk there is.
    """
    slopes = np.sinh(np.linspace(-5.0, 5.0, 101))
    mean, std = tilted(cells, np.stack([slopes, np.zeros(101)], 1), budget)
    return mean[:, 0], std[:, 0]


def _solve(cells, mu, sigma, budgets, farthest, ridge, start) -> Tilt:
    """`solve` without rows farther than `farthest` deviations."""
    with np.errstate(over="ignore"):
        able = np.all(np.abs(cells.mean - mu) <= farthest * sigma, axis=1)
    cells, G = cells.take(able), len(budgets)
    z = (cells.mean - mu) / sigma
    phi = np.concatenate([z, z * z + (cells.std / sigma) ** 2 - 1.0], axis=1)
    has = cells.sum(cells.tokens, G)
    empty, full = budgets <= 0, budgets >= has * (1 - 1e-9)
    levels = np.where(empty, -_SURE, _SURE)
    open_ = ~(empty | full)
    here = open_[cells.codes]
    part, fixed = cells.take(here), cells.votes * full[cells.codes]  # groups taken whole only add their votes
    part = replace(part, codes=np.cumsum(open_)[part.codes] - 1)
    first = None if start is None else (np.clip(start.levels, -700.0, 700.0)[open_], np.array(start.lambdas))
    lambdas, inner, steps = _newton(phi[here], part, budgets[open_], phi.T @ fixed, fixed.sum(), ridge, first)
    levels[open_] = inner
    w = expit(levels[cells.codes] + phi @ lambdas)
    kept = cells.votes * w
    total = max(kept.sum(), 1e-300)
    mean_z = kept @ z / total
    around = (z - mean_z) ** 2 + (cells.std / sigma) ** 2
    spread = np.sqrt(kept @ around / total)
    tokens = cells.sum(cells.tokens * w, G)
    short = np.abs(tokens - budgets) / np.where(budgets > 0, budgets, 1.0)
    noise = w * (1 - w) * cells.votes**2 / cells.counts  # a row is kept or not; ratios to first order
    mu_std = np.sqrt(noise @ around) / total
    sigma_std = np.sqrt(noise @ (around - spread**2) ** 2) / total / np.maximum(2 * spread, 1e-300)
    error = float(max(np.abs(mean_z).max(), np.abs(spread - 1).max(), 10 * short.max()))
    number = max(float(cells.counts @ w), 1e-300)
    draw = np.sqrt(np.maximum(kept @ around**2 / total - spread**4, 0.0) / number) / np.maximum(2 * spread, 1e-300)
    draw = np.minimum(draw, max(_MOST_OFF, (2 * number) ** -0.5))
    bars = np.maximum(FAR_OFF, np.concatenate([spread / np.sqrt(number), draw]))
    floats = (tuple(map(float, a)) for a in (mu, sigma, lambdas, levels))
    moments = (mu + sigma * mean_z, sigma * spread, sigma * mu_std, sigma * sigma_std)
    return Tilt(
        *floats,
        float(farthest),
        error,
        *(tuple(map(float, a)) for a in moments),
        num_tokens=float(tokens.sum()),
        num_chunks=number,
        num_tokens_std=float(np.sqrt(np.sum(cells.tokens**2 / cells.counts * w * (1 - w)))),
        num_steps=steps,
        bars=tuple(map(float, bars)),
    )


def _newton(phi, cells, budgets, fixed, fixed_votes, ridge, start) -> tuple[np.ndarray, np.ndarray, int]:
    """lambda [k], levels [G] of groups that give a part, and steps. `fixed` is the sum of v phi over whole groups."""
    G, k = len(budgets), phi.shape[1]
    if G == 0:
        return np.zeros(k), np.zeros(0), 0

    def total(values: np.ndarray) -> np.ndarray:
        return cells.sum(values, G)

    votes = total(cells.votes)
    mass = budgets * votes / total(cells.tokens)
    levels, lambdas = logit(np.clip(mass / votes, 1e-9, 1 - 1e-9)), np.zeros(k)
    if start is not None:
        (levels, lambdas), mass = start, total(cells.votes * expit(start[0][cells.codes] + phi @ start[1]))

    def look(levels: np.ndarray, lambdas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """w, and the gradient of the dual in levels and lambda."""
        w = expit(levels[cells.codes] + phi @ lambdas)
        kept = cells.votes * w
        return w, (total(kept) - mass) / size, (phi.T @ kept + fixed) / size + bound * lambdas

    # where w is nearly a step, Newton steps from afar are lost: the ridge goes down by and by
    bound = max(ridge, 1e-2) if start is None else ridge
    size, length, moves = mass.sum() + fixed_votes, 1.0, 1
    w, of_levels, of_lambdas = look(levels, lambdas)
    steps = 0
    while steps < _MOST_STEPS:
        steps += 1
        gap = total(cells.tokens * w) / budgets - 1
        steep, off = max(np.abs(of_levels).max(), np.abs(of_lambdas).max()), np.abs(gap).max()
        if steep < max(_TOLERANCE, min(0.1 * off, 1e-2)) or length < 1e-6:
            if bound <= ridge and (off < _TOLERANCE or length < 1e-6):
                break
            if off < 1e-3 or length < 1e-6:
                bound = max(bound / 10, ridge)
            mass = np.minimum(mass / np.clip(1 + gap, 0.5, 2.0) ** min(1.0, 8 / moves), votes * (1 - 1e-9))
            moves += 1
            size = mass.sum() + fixed_votes
            w, of_levels, of_lambdas = look(levels, lambdas)
        bend = cells.votes * w * (1 - w) / size
        A, B = total(bend) + 1e-12, np.stack([total(bend * f) for f in phi.T], 1)
        C = (phi.T * bend) @ phi + bound * np.eye(k)
        schur = C - B.T @ (B / A[:, None])
        unit = np.sqrt(np.maximum(np.diag(schur), 1e-300))
        scaled = schur / np.outer(unit, unit) + 1e-12 * np.eye(k)
        by_lambdas = -np.linalg.solve(scaled, (of_lambdas - B.T @ (of_levels / A)) / unit) / unit
        by_levels = -(of_levels + B @ by_lambdas) / A
        slope = of_levels @ by_levels + of_lambdas @ by_lambdas
        length = min(1.0, (50.0 + np.abs(levels).max()) / max(np.abs(by_levels).max(), 1e-300))
        while True:  # the dual is convex: along the step its slope rises through 0
            w, up, right = look(levels + length * by_levels, lambdas + length * by_lambdas)
            if up @ by_levels + right @ by_lambdas <= 0.5 * abs(slope) or length < 1e-6:
                break
            length /= 2
        levels, lambdas = levels + length * by_levels, lambdas + length * by_lambdas
        of_levels, of_lambdas = up, right
    return lambdas, levels, steps
