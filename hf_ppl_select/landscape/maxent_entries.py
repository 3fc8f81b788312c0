"""What the maximum-entropy dual is solved over: chunks, or groups of chunks of like value.

Grouping takes one pass, in blocks, so that the dual of millions of rows becomes one of thousands. Groups are bins of
`arcsinh(z)`: fine near the target and ever wider far from it. Per bin the votes, the tokens and the sums of z and z^2
are exact, so that only the change of w across one bin is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_BLOCK = 1 << 16  # rows looked at together: their arrays stay in the cache, and memory does not grow with the rows
_FARTHEST = 1e100  # z is clipped here so that z^2 stays finite


def standardised(values: np.ndarray, centre: float, scale: float) -> np.ndarray:
    """`(values - centre) / scale` as float64, clipped so that its square is finite."""
    return np.clip((np.asarray(values, dtype=np.float64) - centre) / scale, -_FARTHEST, _FARTHEST)


@dataclass(frozen=True, eq=False)
class Entries:
    """Chunks or groups of them: `[n]` arrays, or for votes and tokens one number that all entries share.

    Attributes:
        values: x of each chunk, or the mean of a group's.
        centre, scale: z is `(x - centre) / scale`, normally mu and sigma of the target.
        votes: how much each entry counts in the moments.
        tokens: tokens of each entry.
        stds: standard deviation of x inside each group, or None for single chunks.
    """

    values: np.ndarray
    centre: float
    scale: float
    votes: np.ndarray | float = 1.0
    tokens: np.ndarray | float = 1.0
    stds: np.ndarray | None = None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | float, np.ndarray | float]]:
        """Yield (z, mean of z^2, votes, tokens), a block of entries at a time."""

        def part(array):
            return array[rows] if isinstance(array, np.ndarray) else array

        for start in range(0, len(self.values), _BLOCK):
            rows = slice(start, start + _BLOCK)
            z = standardised(self.values[rows], self.centre, self.scale)
            squares = z * z if self.stds is None else z * z + (self.stds[rows] / self.scale) ** 2
            yield z, squares, part(self.votes), part(self.tokens)

    @property
    def all_votes(self) -> float:
        return self._total(self.votes)

    @property
    def all_tokens(self) -> float:
        return self._total(self.tokens)

    def _total(self, array: np.ndarray | float) -> float:
        return float(array.sum()) if isinstance(array, np.ndarray) else float(array) * len(self.values)

    def kept(self, lambdas: np.ndarray) -> tuple[float, float, float, float]:
        """Expected votes, tokens, mean of z and standard deviation of z of what `lambdas` keep."""
        votes = tokens = mean = deviation = 0.0
        for z, squares, v, t in self.blocks():
            w = expit(lambdas[0] + lambdas[1] * z + lambdas[2] * squares)
            kept = v * w
            number, first = float(kept.sum()), float(kept @ z)
            tokens += float((t * w).sum())
            if number <= 0.0:
                continue
            # merged about the means, not E[z^2] - mean^2: a far tail with tiny w must not cancel
            here = first / number
            deviation += float(kept @ ((z - here) ** 2 + (squares - z * z)))
            deviation += (here - mean) ** 2 * votes * number / (votes + number)
            mean += (here - mean) * number / (votes + number)
            votes += number
        return votes, tokens, mean, math.sqrt(deviation / votes) if votes else 0.0

    def grouped(self, num_bins: int) -> tuple[Entries, np.ndarray, np.ndarray]:
        """Sum up entries of like value.

        Args:
            num_bins: bins over the range of the values, at most 65,536.

        Returns:
            The groups in rising order, which bins they are `[num_groups]`, and the bin of each entry, uint16 `[n]`.
        """
        ends = standardised(np.array([self.values.min(), self.values.max()]), self.centre, self.scale)
        low, high = np.arcsinh(ends)
        per_bin = (num_bins - 1) / (high - low) if high > low else 0.0
        sums = np.zeros((4, num_bins))  # votes, votes z, votes z^2, tokens
        bin_of, start = np.empty(len(self.values), dtype=np.uint16), 0
        for z, squares, votes, tokens in self.blocks():
            bins = np.clip((np.arcsinh(z) - low) * per_bin, 0, num_bins - 1).astype(np.intp)
            bin_of[start : start + len(z)] = bins
            start += len(z)
            for i, column in enumerate((votes, votes * z, votes * squares, tokens)):
                one = not isinstance(column, np.ndarray)
                sums[i] += (
                    np.bincount(bins, minlength=num_bins) * column if one else np.bincount(bins, column, num_bins)
                )
        occupied = np.flatnonzero(sums[0] > 0)
        votes, first, second, tokens = sums[:, occupied]
        z = first / votes
        stds = np.sqrt(np.maximum(second / votes - z * z, 0.0))
        return Entries(z, 0.0, 1.0, votes, tokens, stds), occupied, bin_of
