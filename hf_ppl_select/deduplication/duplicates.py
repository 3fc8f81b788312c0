"""Rows whose text has been seen before: equal, equal but for case and blanks, or nearly equal. The first is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from .near_duplicates import QUIET_SECONDS, find_near_duplicates
from .shingles import NGRAM

Deduplicate = Literal["exact", "normalized", "near"]
DEDUPLICATE = ("exact", "normalized", "near")
NEAR_THRESHOLD = 0.8
_MOST_WORDS = 20  # in an n-gram; sentences are of so many
_BATCH = 1000  # rows read together,
_BATCH_BYTES = 1 << 23  # or fewer of that many bytes


def find_duplicates(
    dataset: Any,
    rows: np.ndarray,
    how: Deduplicate,
    *,
    text_column: str = "text",
    threshold: float = NEAR_THRESHOLD,
    ngram: int = NGRAM,
) -> np.ndarray:
    """Which earlier one of `rows` each of them repeats.

    - "exact": the same characters, compared by a 128-bit hash (BLAKE2b). 16 bytes of memory a row.
    - "normalized": the same once lower-cased and with every run of blanks as one space. The same memory.
    - "near": the Jaccard similarity of the sets of runs of `ngram` words is at least `threshold`. MinHash finds the
      pairs to compare, at 0.8 98.1 % of those of just that similarity and 99.99 % of those of 0.9, which are then
      compared exactly. A row is compared with those that were kept, so what only resembles a removed row stays.
      Some 15 μs for a row of 600 bytes, and 200 bytes of memory (400 where most rows have near-duplicates).

    Each includes those before it. Rows without text (None) repeat nothing; near, nor do those without words. Values
    that are no text (messages) are compared as JSON. The same rows in the same order always give the same answer.

    Args:
        dataset: a `datasets.Dataset`, or a dict of columns.
        rows: positions to look at, rising, int64 `[n]`.
        how: see above.
        text_column: which column is compared.
        threshold: of "near", above 0 and at most 1.
        ngram: of "near", words in a run, 1 to 20. Two of a dozen words that differ in one share few runs of five, and
            most of two.

    Returns:
        int64 `[n]`: the position in the dataset of the row that is repeated, one that is kept; -1 for those that are.

    Raises:
        KeyError: no such column.
        ValueError: `how`, `threshold` or `ngram` is not one of those.
    """
    check_deduplicate(how, threshold, ngram)
    texts = Texts(dataset, rows, text_column)
    if how == "near":
        original = find_near_duplicates(texts.batches, len(rows), threshold, ngram)
    else:
        original = _equal(texts, normalize=how == "normalized")
    return np.where(original < 0, -1, np.asarray(rows, dtype=np.int64)[original]) if len(rows) else original


def check_deduplicate(how: str | None, threshold: float = NEAR_THRESHOLD, ngram: int = NGRAM) -> None:
    """Whether that can be done, found out before any work."""
    if how is None:
        return
    if how not in DEDUPLICATE:
        raise ValueError(f"deduplicate={how!r} is not known; it is one of {', '.join(DEDUPLICATE)}.")
    if how == "near" and not 0.0 < threshold <= 1.0:
        raise ValueError(f"near_threshold={threshold!r} must be a similarity above 0 and at most 1.")
    if how == "near" and (type(ngram) is not int or not 1 <= ngram <= _MOST_WORDS):
        raise ValueError(f"near_ngram={ngram!r} must be a whole number of words, from 1 to {_MOST_WORDS}.")


class Texts:
    """The texts of some rows, a batch at a time in memory.

    Raises:
        KeyError: no such column.
    """

    def __init__(self, dataset: Any, rows: np.ndarray, column: str) -> None:
        present = getattr(dataset, "column_names", None)
        present = list(dataset) if present is None else present
        if column not in present:
            raise KeyError(
                f"The dataset has no column {column!r} to look for duplicates in, it has "
                f"{', '.join(present) or 'none'}; pass text_column=."
            )
        self.rows = np.asarray(rows, dtype=np.int64)
        self.column = column
        if hasattr(dataset, "select_columns"):
            self.dataset, self.values = dataset.select_columns([column]).with_format("arrow"), None
        else:
            self.dataset, self.values = None, list(dataset[column])  # by position, also of a DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, which: np.ndarray | None = None) -> Iterator[list[str | None]]:
        """The texts of `rows[which]`, of all by default; values that are no text as JSON."""
        rows = self.rows if which is None else self.rows[which]
        for values in self._values(rows):
            yield as_texts(values)

    def _values(self, rows: np.ndarray) -> Iterator[Sequence[Any]]:
        if self.values is not None:
            for start in range(0, len(rows), _BATCH):
                yield [self.values[row] for row in rows[start : start + _BATCH]]
            return
        chosen = self.dataset if len(rows) == len(self.dataset) else self.dataset.select(rows)
        for table in chosen.iter(_BATCH):
            values = table[self.column]
            some = max(1, _BATCH * _BATCH_BYTES // max(_BATCH_BYTES, values.nbytes))  # documents may be long
            for start in range(0, len(values), some):
                yield values.slice(start, some).to_pylist()


def normalized(text: str) -> str:
    """In lower case, with every run of blanks as one space."""
    return " ".join(text.lower().split())


def as_texts(values: Sequence[Any]) -> list[str | None]:
    """Values as they are compared: those that are no text (messages) as JSON."""
    return [v if v is None or isinstance(v, str) else json.dumps(v, sort_keys=True) for v in values]


def digest_texts(texts: Sequence[str | None], normalize: bool) -> np.ndarray:
    """128 bits of each text (BLAKE2b), once normalized if so wished, uint64 `[texts, 2]`; zeros for None."""
    digests = np.zeros((len(texts), 2), dtype=np.uint64)
    for row, text in enumerate(texts):
        if text is not None:
            text = normalized(text) if normalize else text
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            digests[row] = np.frombuffer(digest, dtype="<u8")
    return digests


def first_equal(digests: np.ndarray) -> np.ndarray:
    """The first row with the same of [`digest_texts`], -1 where it is the first, or has no text; int64 `[rows]`."""
    where = np.flatnonzero(digests.any(axis=1))
    order = where[np.lexsort((digests[where, 1], digests[where, 0]))]  # stable: equal ones in their original order
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    original = np.full(len(digests), -1, dtype=np.int64)
    firsts = order[begins][np.cumsum(begins) - 1] if len(order) else order
    original[order[~begins]] = firsts[~begins]
    return original


def _equal(texts: Texts, normalize: bool) -> np.ndarray:
    digests = np.empty((len(texts), 2), dtype=np.uint64)
    start = 0
    with tqdm(total=len(texts), desc="Hash", unit=" rows", unit_scale=True, delay=QUIET_SECONDS) as bar:
        for batch in texts.batches():
            digests[start : start + len(batch)] = digest_texts(batch, normalize)
            start += len(batch)
            bar.update(len(batch))
    return first_equal(digests)
