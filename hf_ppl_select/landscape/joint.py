"""The landscape of a corpus in two score columns together: exact moments of both logarithms, and cells for subsets.

A histogram like [`~hf_ppl_select.landscape.landscape.PerplexityLandscape`], over pairs of logarithms. Its bins start
1/256 nat wide and double while more than 16,384 of them are occupied, so that neither memory nor the file grows with
the corpus. Widths depend on all chunks together and not on the order in which shards are merged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..data.columns import read_columns
from ..data.saving import load_json, save_json
from ..data.schema import Numbers, Text
from .cells import Cells, blocks
from .histogram import Histogram
from .maxent import nearest
from .reach import log_name
from .saved import BIN, read_sums
from .scores import as_column, check_log_space, digits, in_words, which_are_scored

FINEST, MOST = 256, 16_384  # bins per nat; occupied bins
_SCHEMA_VERSION = 1
_SUMS = ("count", "tokens", "weight", "v_first", "v_second", "v2_first", "v2_second")
_FAR = 1 << 31  # more than any bin's number: both numbers of a bin make one

Pair = tuple[float, float]


@dataclass(frozen=True, eq=False)
class JointLandscape(Histogram):
    """The joint distribution of two scores over the chunks of a corpus, in logarithms (nats).

    Build it with `PerplexityLandscape.from_dataset(dataset, column=(first, second))`; shards merge.

    Attributes:
        column: names of the two scores; `(a, b)` and `(b, a)` do not mix.
        bins: `(num_bins, 2)` int64, occupied bins; bin (i, j) holds logarithms in `[i, i + 1)` and `[j, j + 1)`
            divided by `bins_per_nat`.
        sums: `(num_bins, 7)` float64: chunks, tokens, weight w, then Σ w·v of each column and Σ w·v² of each, where v
            is the offset of a logarithm from the middle of its bin, in nats.
        bins_per_nat: 256, halved until at most 16,384 bins are occupied.
        weights: `"chunks"` (one chunk, one vote) or `"tokens"`.
        num_skipped: chunks that lack a score (empty text); left out of everything else.
        num_infinite: chunks with an infinite score; left out too.
        model: the model that scored the chunks, if told.
    """

    column: tuple[str, str]
    bins: np.ndarray
    sums: np.ndarray
    bins_per_nat: int = FINEST
    weights: Literal["chunks", "tokens"] = "chunks"
    num_skipped: int = 0
    num_infinite: int = 0
    model: str | None = None

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        column: tuple[str, str],
        *,
        num_tokens_column: str = "num_tokens",
        weights: Literal["chunks", "tokens"] = "chunks",
        model: str | None = None,
    ) -> JointLandscape:
        """The landscape of a scored dataset; arguments and errors are those of `PerplexityLandscape.from_dataset`."""
        landscape, start = cls._empty(column, weights, model), 0
        for first, second, tokens in read_columns(dataset, *column, num_tokens_column):
            landscape = landscape._with(np.stack([first, second], axis=1), tokens, start)
            start += len(tokens)
        if not start:
            raise ValueError("the dataset has no rows, so it has no landscape.")
        return landscape._checked()

    @classmethod
    def from_values(
        cls,
        values: Any,
        num_tokens: Any = None,
        *,
        column: tuple[str, str],
        weights: Literal["chunks", "tokens"] = "chunks",
        model: str | None = None,
    ) -> JointLandscape:
        """The landscape of arrays: both scores `(num_chunks, 2)` and tokens `(num_chunks,)` (1 if not given)."""
        values = np.asarray(values, dtype=float)
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"scores of {in_words(column)} must be (num_chunks, 2), got {values.shape}.")
        tokens = np.ones(len(values)) if num_tokens is None else np.asarray(num_tokens, dtype=float).reshape(-1)
        if len(tokens) != len(values):
            raise ValueError(f"{in_words(column)} have {len(values)} values, num_tokens has {len(tokens)}.")
        return cls._empty(column, weights, model)._with(values, tokens, 0)._checked()

    @classmethod
    def _empty(cls, column: tuple[str, str], weights: str, model: str | None) -> JointLandscape:
        if weights not in ("chunks", "tokens"):
            raise ValueError(f"weights must be 'chunks' or 'tokens', got {weights!r}.")
        nothing = np.empty((0, 2), dtype=np.int64), np.empty((0, len(_SUMS)))
        return cls(as_column(column), *nothing, weights=weights, model=model)

    def _with(self, values: np.ndarray, num_tokens: np.ndarray, start: int) -> JointLandscape:
        """With more chunks, block by block; `start` is the first row's number in errors."""
        landscape = self
        for rows in blocks(len(values)):
            x, tokens = values[rows], num_tokens[rows]
            scored = np.all(
                [which_are_scored(x[:, c], tokens, name, start + rows.start) for c, name in enumerate(self.column)], 0
            )
            finite = scored & np.isfinite(x).all(axis=1)
            logs, tokens = np.log(x[finite]), tokens[finite]
            bins = np.floor(logs * FINEST).astype(np.int64)
            v, one = logs - (bins + 0.5) / FINEST, np.ones(len(tokens))
            w = one if self.weights == "chunks" else tokens
            sums = np.column_stack([one, tokens, w, w[:, None] * v, w[:, None] * v**2])
            skipped, infinite = int((~scored).sum()), int((scored & ~finite).sum())
            part = replace(self, bins=bins, sums=sums, bins_per_nat=FINEST, num_skipped=skipped, num_infinite=infinite)
            landscape = landscape.merge(part)
        return landscape

    def merge(self, other: JointLandscape) -> JointLandscape:
        """The landscape of both corpora together.

        Raises:
            ValueError: another model scored `other`, it is of other columns, or its weights differ.
        """
        self._check_same_kind(other)
        per_nat = min(self.bins_per_nat, other.bins_per_nat)
        parts = self._as_coarse_as(per_nat), other._as_coarse_as(per_nat)
        both = replace(
            self,
            bins=np.concatenate([part.bins for part in parts]),
            sums=np.concatenate([part.sums for part in parts]),
            bins_per_nat=per_nat,
            num_skipped=self.num_skipped + other.num_skipped,
            num_infinite=self.num_infinite + other.num_infinite,
            model=self.model or other.model,
        )
        return both._summed().at_most(MOST)

    def at_most(self, most: int) -> JointLandscape:
        """The same in bins so wide that at most `most` are occupied (or 1 nat)."""
        landscape = self
        while len(landscape.bins) > most and landscape.bins_per_nat > 1:
            landscape = landscape._as_coarse_as(landscape.bins_per_nat // 2)._summed()
        return landscape

    def _as_coarse_as(self, per_nat: int) -> JointLandscape:
        """In wider bins, which may repeat."""
        bins = self.bins // (self.bins_per_nat // per_nat)
        shift = (self.bins + 0.5) / self.bins_per_nat - (bins + 0.5) / per_nat
        sums = self.sums.copy()
        w, v = sums[:, 2:3], self.sums[:, 3:5]
        sums[:, 3:5] += w * shift
        sums[:, 5:7] += 2 * shift * v + w * shift**2
        return replace(self, bins=bins, sums=sums, bins_per_nat=per_nat)

    def _summed(self) -> JointLandscape:
        """With each bin once, in rising order."""
        first, second = self.bins.T
        keys, place = np.unique(first * 2 * _FAR + second + _FAR, return_inverse=True)
        sums = np.stack([np.bincount(place, values, len(keys)) for values in self.sums.T], axis=1)
        return replace(self, bins=np.stack([keys // (2 * _FAR), keys % (2 * _FAR) - _FAR], axis=1), sums=sums)

    def moments(self, space: str = "log") -> tuple[Pair, Pair]:
        """`(m, s)`: means and standard deviations of both logarithms, nats.

        Raises:
            ValueError: another space.
        """
        cells = self.cells(space)
        w = cells.votes / cells.votes.sum()
        mu = w @ cells.mean
        sigma = np.sqrt(w @ ((cells.mean - mu) ** 2 + cells.std**2))
        return tuple(map(float, mu)), tuple(map(float, sigma))

    log_mu = property(lambda self: self.moments()[0], doc="Means of ln(score) `(first, second)`, nats.")
    log_sigma = property(lambda self: self.moments()[1], doc="Standard deviations of ln(score), nats.")

    def cells(self, space: str = "log", outliers: bool = True) -> Cells:
        """The bins as cells of two columns, for [`~hf_ppl_select.landscape.maxent.solve`].

        Without `outliers` those within Tukey's fences in both columns, 1.5 interquartile ranges beyond the quartiles.
        """
        check_log_space(space)
        counts, tokens, w = self.sums[:, :3].T
        offset = self.sums[:, 3:5] / w[:, None]
        variance = self.sums[:, 5:7] / w[:, None] - offset**2
        std = np.sqrt(np.where(variance > 1e-20, variance, 0.0))  # equal chunks get 0, not rounding noise
        mean = (self.bins + 0.5) / self.bins_per_nat + offset
        cells = Cells(w, tokens, mean, std, counts, np.zeros(len(w), dtype=np.int64))
        if outliers:
            return cells
        inside = np.ones(len(w), dtype=bool)
        for x in mean.T:
            order = np.argsort(x)
            rank = np.cumsum(w[order]) - w[order] / 2
            first, third = np.interp([0.25 * w.sum(), 0.75 * w.sum()], rank, x[order])
            inside &= np.abs(x - (first + third) / 2) <= 2.0 * (third - first) + 1 / self.bins_per_nat
        return cells.take(inside)

    def out_of_reach(self, num_tokens: float, space: str, mu: Pair, sigma: Pair) -> str:
        """The error about a target that no subset has."""
        near = nearest(self.cells(space), mu, sigma, np.array([num_tokens]))
        names = " and ".join(map(log_name, self.column))
        return (
            f"No subset of {num_tokens:,.0f} tokens has {names} of means {digits(mu)} and standard deviations "
            f"{digits(sigma)} together; near to that are means {digits(near[0])}, standard deviations "
            f"{digits(near[1])}. Choose a target inside; fewer tokens reach further."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same back, bit by bit."""
        derived = ("log_mu", "log_sigma", "num_chunks", "num_tokens")  # for readers of the file
        return {
            "model": self.model,
            "column": list(self.column),
            "weights": self.weights,
            "num_skipped": self.num_skipped,
            "num_infinite": self.num_infinite,
            "summary": {name: getattr(self, name) for name in derived},
            "bins_per_nat": self.bins_per_nat,
            "bins": self.bins.tolist(),
            **{name: self.sums[:, i].tolist() for i, name in enumerate(_SUMS)},
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any], where: str = "the landscape") -> JointLandscape:
        """The reverse of [`to_dict`]; ValueError, naming `where` and the field, of what is no landscape."""
        bins, sums = read_sums(d, _SUMS, [Text()], [Numbers(BIN, size=2)], where)
        names = ("bins_per_nat", "weights", "num_skipped", "num_infinite", "model")
        return cls(as_column(d.get("column", ())), bins, sums, **{name: d[name] for name in names})

    def save(self, path: str | os.PathLike) -> None:
        save_json(path, self.to_dict(), kind="joint_landscape", version=_SCHEMA_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> JointLandscape:
        return load_json(path, kind="joint_landscape", version=_SCHEMA_VERSION, read=cls.from_dict)

    def __repr__(self) -> str:
        mu, sigma = self.moments()
        return (
            f"JointLandscape(column={self.column!r}, log_mu=({digits(mu)}), log_sigma=({digits(sigma)}), "
            f"num_chunks={self.num_chunks}, num_tokens={self.num_tokens}, model={self.model!r})"
        )
