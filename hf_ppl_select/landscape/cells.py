"""Like rows summed up: what subsets of a corpus are reckoned on, a few thousand cells for any number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL = 32_768  # so many rows are cells by themselves
_WIDTH = {1: 1 / 540, 2: 1 / 32}  # of cells near the middle, in interquartile ranges; ever wider far from it
_BLOCK = 1 << 18  # rows looked at together: memory does not grow with the rows


@dataclass(frozen=True, eq=False)
class Cells:
    """Like rows of one group, summed up.

    Attributes:
        votes: how much each counts in the moments `[n]`: rows, or their tokens.
        tokens: `[n]`.
        mean, std: of each column over the rows of a cell `[n, c]`.
        counts: rows `[n]`.
        codes: group of each, from 0 `[n]`.
    """

    votes: np.ndarray
    tokens: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    counts: np.ndarray
    codes: np.ndarray

    @classmethod
    def of_rows(cls, x: np.ndarray, tokens: np.ndarray, codes: np.ndarray | None = None, few: int = SMALL) -> Cells:
        """Cells of rows `[n, c]` (finite), with their tokens `[n]` and groups `[n]`; up to `few`, each row is one."""
        n, columns = x.shape
        codes = np.zeros(n, dtype=np.int32) if codes is None else codes
        if n <= few:
            ones = np.ones(n)
            return cls(ones, tokens.astype(float), x.astype(float), np.zeros(x.shape), ones, codes)
        low, middle, high = np.quantile(x[:: max(1, n // 100_000)], [0.25, 0.5, 0.75], axis=0)
        scale = np.where(high > low, high - low, 1.0)
        width = _WIDTH.get(columns, _WIDTH[2])
        ends = np.floor(np.arcsinh((np.stack([x.min(0), x.max(0)]) - middle) / scale) / width).astype(np.int64)
        shape = (int(codes.max()) + 1, *(ends[1] - ends[0] + 1))
        key = np.empty(n, dtype=np.int64)
        for rows in blocks(n):
            place = np.floor(np.arcsinh((x[rows] - middle) / scale) / width).astype(np.int64) - ends[0]
            key[rows] = np.ravel_multi_index((codes[rows], *place.T), shape, mode="clip")
        if np.prod(shape, dtype=float) <= 1 << 22:
            size, kept = int(np.prod(shape)), None
        else:
            kept, key = np.unique(key, return_inverse=True)
            size = len(kept)
        sums = np.zeros((2 + 2 * columns, size))
        for rows in blocks(n):
            d = (x[rows] - middle) / scale  # about the median sums of squares keep their digits
            with np.errstate(over="ignore"):
                for i, v in enumerate((None, tokens[rows], *d.T, *(d**2).T)):
                    sums[i] += np.bincount(key[rows], v, size)
        occupied = np.flatnonzero(sums[0])
        counts, tokens, *moments = sums[:, occupied]
        first, second = (np.stack(m, 1) / counts[:, None] for m in (moments[:columns], moments[columns:]))
        with np.errstate(over="ignore", invalid="ignore"):
            std = np.nan_to_num(np.sqrt(np.maximum(second - first**2, 0.0)), nan=0.0, posinf=0.0)
        of_cell = (occupied if kept is None else kept) // np.prod(shape[1:], dtype=np.int64)
        return cls(counts, tokens, middle + scale * first, scale * std, counts, of_cell)

    def sum(self, values: np.ndarray, groups: int) -> np.ndarray:
        """Sum of `values` `[n]` in each group."""
        return np.bincount(self.codes, values, groups)

    def take(self, which: np.ndarray) -> Cells:
        """Some of them."""
        return Cells(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def blocks(n: int) -> list[slice]:
    """Slices of up to 262,144 rows that make up `n`."""
    return [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
