"""Swap chunks until a subset's tokens fill the budget and its mean and standard deviation are those of the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .maxent_entries import Entries

_CLOSE_ENOUGH = 1e-5  # of sigma: the swaps stop when mean and standard deviation are this close to the target
_MOST_SWAPS = 300
_MOST_FAILURES = 12  # pools in a row without a better swap
_POOL = 256  # chunks in and chunks out that one swap chooses from


@dataclass
class Sums:
    """Of a subset: how many chunks, sums of z and of z^2, and tokens."""

    number: float
    first: float
    second: float
    tokens: float

    @classmethod
    def of(cls, inside: np.ndarray, values: np.ndarray, tokens: np.ndarray | float, mu: float, sigma: float) -> Sums:
        """Of the rows in the bool mask `inside`, block by block."""
        sums, start = cls(0.0, 0.0, 0.0, 0.0), 0
        for z, squares, _, t in Entries(values, mu, sigma, 1.0, tokens).blocks():
            here = inside[start : start + len(z)]
            start += len(z)
            number = int(np.count_nonzero(here))
            sums.number += number
            sums.first += float(z[here].sum())
            sums.second += float(squares[here].sum())
            sums.tokens += float(t[here].sum()) if isinstance(t, np.ndarray) else t * number
        return sums

    def move(self, z: np.ndarray, tokens: np.ndarray, sign: int) -> None:
        """Account for chunks that enter (+1) or leave (-1)."""
        self.number += sign * len(z)
        self.first += sign * float(z.sum())
        self.second += sign * float(z @ z)
        self.tokens += sign * float(tokens.sum())


def settle(
    inside: np.ndarray,
    z: np.ndarray,
    tokens: np.ndarray,
    budget: float,
    sums: Sums,
    undecided: np.ndarray,
    mean_weight: float,
    longest: float,
    rng: np.random.Generator,
) -> float:
    """Change `inside` in place until the tokens fill the budget and z has mean 0 and standard deviation 1.

    Many missing or surplus chunks come and go by systematic sampling, which keeps the moments. Then the best of some
    65,000 swaps (one in, one out; or only one of the two) is made again and again. Chunks whose inclusion was
    undecided move first.

    Args:
        inside: which of the chunks at hand are in the subset, bool `[m]`.
        z: their values, rising `[m]`.
        tokens: their tokens `[m]`.
        budget: tokens to keep: at most this, and less than `longest` below it.
        sums: of the whole subset, of which the chunks at hand may be a part; changed in place.
        undecided: how readily each chunk moves `[m]`, above 0.
        mean_weight: weight of the mean's error against the standard deviation's.
        longest: most tokens of a chunk.
        rng: for the pools that swaps are chosen from.

    Returns:
        The error left: of the mean times `mean_weight`, and of the standard deviation, as a root of squares.
    """
    chunk = float(tokens.mean())

    def cost(number, first, second, gap):
        number = np.maximum(number, 1e-9)
        mean = first / number
        spread = np.sqrt(np.maximum(second / number - mean**2, 0.0))
        off = np.where((gap < 0) | (gap >= chunk), 1.0 + np.abs(gap / chunk - 0.5), 0.0)
        return (mean_weight * mean) ** 2 + (spread - 1.0) ** 2 + np.where(number < 1, np.inf, 100.0 * off)

    for _ in range(20):
        missing = round((budget - sums.tokens) / chunk - 0.5)
        if abs(missing) < 8:
            break
        moved = _some(~inside if missing > 0 else inside, abs(missing), undecided, rng)
        if not len(moved):
            break
        inside[moved] = missing > 0
        sums.move(z[moved], tokens[moved], 1 if missing > 0 else -1)

    failures = 0
    for _ in range(_MOST_SWAPS):
        now = float(cost(sums.number, sums.first, sums.second, budget - sums.tokens))
        if now <= _CLOSE_ENOUGH**2 or failures == _MOST_FAILURES:
            break
        out, into = _pool(inside, z, undecided, rng), _pool(~inside, z, undecided, rng)
        # a last row and column of zeros stand for "nothing leaves" and "nothing enters"
        leaves = np.stack([np.append(a, 0.0) for a in (np.ones(len(out)), z[out], z[out] ** 2, tokens[out])])[
            :, :, None
        ]
        enters = np.stack([np.append(a, 0.0) for a in (np.ones(len(into)), z[into], z[into] ** 2, tokens[into])])
        change = enters[:, None, :] - leaves
        costs = cost(
            sums.number + change[0], sums.first + change[1], sums.second + change[2], budget - sums.tokens - change[3]
        )
        i, j = np.unravel_index(int(np.argmin(costs)), costs.shape)
        if costs[i, j] >= now * (1 - 1e-6):
            failures += 1
            continue
        for moved, sign in ((out[i : i + 1], -1), (into[j : j + 1], 1)):
            inside[moved] = sign > 0
            sums.move(z[moved], tokens[moved], sign)
        failures = 0
    _fit_budget(inside, z, tokens, budget, longest, sums)
    mean = sums.first / max(sums.number, 1.0)
    spread = np.sqrt(max(sums.second / max(sums.number, 1.0) - mean**2, 0.0))
    return float(np.hypot(mean_weight * mean, spread - 1.0))


def _some(mask: np.ndarray, number: int, undecided: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """About `number` positions of the mask by systematic sampling, each with a probability like its `undecided`."""
    positions = np.flatnonzero(mask)
    if len(positions) <= number:
        return positions
    share = undecided[positions]
    passed = np.floor(np.cumsum(np.minimum(share * (number / share.sum()), 1.0)) + rng.random())
    return positions[np.diff(passed, prepend=0.0) > 0]


def _pool(mask: np.ndarray, z: np.ndarray, undecided: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mostly undecided chunks, and a ladder over the values: one far chunk can outweigh many near ones."""
    positions = np.flatnonzero(mask)
    if len(positions) <= _POOL:
        return positions
    low, high = np.arcsinh(z[positions[[0, -1]]])
    rungs = low + (high - low) * (np.arange(_POOL // 2) + rng.random()) / (_POOL // 2)
    ladder = np.searchsorted(z[positions], np.sinh(rungs))
    some = _some(mask, _POOL // 2, undecided, rng)
    return np.union1d(some, positions[np.minimum(ladder, len(positions) - 1)])


def _fit_budget(
    inside: np.ndarray, z: np.ndarray, tokens: np.ndarray, budget: float, longest: float, sums: Sums
) -> None:
    """The budget rule holds whatever happened before: chunks nearest to the target leave, or enter, until it does."""
    if 0 <= budget - sums.tokens < longest:
        return
    candidates = np.flatnonzero(inside if sums.tokens > budget else ~inside)
    for position in candidates[np.argsort(np.abs(z[candidates]), kind="stable")]:
        if 0 <= budget - sums.tokens < longest:
            return
        inside[position] = not inside[position]
        one = slice(position, position + 1)
        sums.move(z[one], tokens[one], 1 if inside[position] else -1)
