"""How often each word and each pair of words stands in some texts, hashed: counts that add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np

from ..batches import read_batch
from ..rows import as_strings, columns_to_score
from .words import hash_ngrams

NUM_BUCKETS = 1 << 18
_CHARACTERS = 1 << 20  # counted at once


class NgramCounts:
    """How often each hashed word and pair of neighbouring words stands in some texts.

    Counts of shards add up to those of the whole, in any order: count them in parallel, and add.

    ```python
    counts = NgramCounts.of(shard_1) + NgramCounts.of(shard_2)
    ```

    Attributes:
        counts: int64 `[num_buckets]`; words and pairs share the buckets, as in DSIR.
    """

    def __init__(self, num_buckets: int = NUM_BUCKETS) -> None:
        if not isinstance(num_buckets, Integral) or isinstance(num_buckets, bool) or not 1 <= num_buckets < 1 << 32:
            raise ValueError(f"num_buckets must be a whole number from 1 to 2**32 - 1, not {num_buckets!r}.")
        self.counts = np.zeros(int(num_buckets), dtype=np.int64)

    @classmethod
    def of(cls, texts: Any, *, text_column: str = "text", num_buckets: int = NUM_BUCKETS) -> NgramCounts:
        """Count a dataset or stream of `datasets`, or any iterable of strings, with a bar where that takes a while.

        Args:
            texts: the rows; read once.
            text_column: as of [`NgramScorer`], of a dataset.
            num_buckets: see [`NgramScorer.fit`].

        Raises:
            KeyError, TypeError: no such column, or what it holds is not text.
        """
        from tqdm import tqdm

        counts = cls(num_buckets)
        total = len(texts) if hasattr(texts, "__len__") else None
        with tqdm(desc="Count n-grams", total=total, unit=" rows", unit_scale=True, delay=1.0) as bar:
            for batch in text_batches(texts, text_column):
                counts.update(batch)
                bar.update(len(batch))
        return counts

    @classmethod
    def from_array(cls, counts: np.ndarray) -> NgramCounts:
        """Counts that were kept elsewhere, int64 `[num_buckets]`.

        Raises:
            ValueError: they are no counts.
        """
        if counts.dtype != np.int64 or counts.ndim != 1 or (counts < 0).any():
            raise ValueError(
                f"n-gram counts are int64 `[num_buckets]` and 0 or more, not {counts.dtype} {list(counts.shape)}."
            )
        found = cls(len(counts))
        found.counts[:] = counts
        return found

    @property
    def num_buckets(self) -> int:
        return len(self.counts)

    @property
    def num_ngrams(self) -> int:
        return int(self.counts.sum())

    def __repr__(self) -> str:
        return f"NgramCounts({self.num_ngrams:,} n-grams in {self.num_buckets:,} buckets)"

    def update(self, texts: Iterable[str]) -> None:
        """Count more texts; None counts nothing."""
        for part in _in_parts(texts):
            words, pairs, _ = hash_ngrams(as_strings(part, "text"), self.num_buckets)
            for buckets in (words, pairs):
                self.counts += np.bincount(buckets, minlength=self.num_buckets)

    def __add__(self, other: NgramCounts) -> NgramCounts:
        """The counts of both.

        Raises:
            ValueError: they have different numbers of buckets.
        """
        if not isinstance(other, NgramCounts):
            return NotImplemented
        if other.num_buckets != self.num_buckets:
            raise ValueError(
                f"counts in {self.num_buckets:,} and in {other.num_buckets:,} buckets do not add up; count both with "
                "the same num_buckets."
            )
        both = NgramCounts(self.num_buckets)
        np.add(self.counts, other.counts, out=both.counts)
        return both


def whole_texts(batch: Mapping[str, Sequence[Any]], text_column: str) -> list[str]:
    """All text of each row of a batch, as [`read_batch`] gives it: the text column; else that of all messages, one
    below the other; else prompt and completion.

    Raises:
        TypeError: a value is of another type than its column needs.
    """
    if text_column in batch:
        return as_strings(batch[text_column], text_column)
    if "messages" in batch:
        return [_text_of(turns, row) for row, turns in enumerate(batch["messages"])]
    pairs = zip(batch["prompt"], batch["completion"])
    return [_text_of(prompt, row) + _text_of(completion, row) for row, (prompt, completion) in enumerate(pairs)]


def _text_of(value: Any, row: int) -> str:
    """A text, or the text of messages, whose content may be in parts."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        return _text_of(value.get("content", value.get("text")), row)
    if isinstance(value, list):
        return "".join(f"{_text_of(part, row)}\n" for part in value)
    raise TypeError(f"Row {row} of the batch holds {type(value).__name__}, where a text or messages must be.")


def text_batches(texts: Any, text_column: str, batch_size: int = 1000) -> Iterator[list[str]]:
    """Any rows that [`NgramCounts.of`] takes, some at a time, as texts."""
    if isinstance(texts, str | Mapping):
        kind = "one text" if isinstance(texts, str) else f"a dict of {', '.join(map(str, texts))}"
        raise TypeError(f"n-grams are counted of a datasets.Dataset or an iterable of texts, not of {kind}.")
    if hasattr(texts, "with_format"):  # a dataset or a stream
        if texts.column_names is not None:  # a stream may not know
            texts = texts.select_columns(list(columns_to_score(dict.fromkeys(texts.column_names), text_column)))
        for rows in texts.with_format(None).iter(batch_size):
            yield whole_texts(read_batch(rows, text_column)[0], text_column)
        return
    rows = iter(texts)
    while batch := list(islice(rows, batch_size)):
        yield as_strings(batch, text_column)


def _in_parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """About `_CHARACTERS` at a time."""
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text or "")
        if size >= _CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part
