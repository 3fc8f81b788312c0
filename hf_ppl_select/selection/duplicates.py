"""Rows whose text has been seen before: equal, equal but for case and blanks, or nearly equal. The first is kept."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

Deduplicate = Literal["exact", "normalized", "near"]
DEDUPLICATE = ("exact", "normalized", "near")
NEAR_THRESHOLD = 0.8
_SHINGLE = 5  # words
_NUM_PERM = 128
_BATCH = 10_000
_QUIET_SECONDS = 3.0  # a bar appears only where one has to wait


def find_duplicates(
    dataset: Any,
    rows: np.ndarray,
    how: Deduplicate,
    *,
    text_column: str = "text",
    threshold: float = NEAR_THRESHOLD,
) -> np.ndarray:
    """Which of `rows` repeat the text of an earlier one of them.

    - "exact": the same characters, compared by a 128-bit hash (BLAKE2b). 16 bytes of memory a row.
    - "normalized": the same once lower-cased and with every run of blanks as one space. The same memory.
    - "near": the Jaccard similarity of the sets of 5-word shingles, as 128 MinHash permutations estimate it, is at
      least `threshold`. Candidates come from an LSH index, which at 0.8 finds 87 % of the pairs just there and
      99.9 % of those of 0.9. A row is compared with the rows that were kept, so what only resembles a removed row
      stays. Needs `datasketch`; for texts of 600 bytes some 0.2 ms a row, and 8 kB of memory for each row kept.

    Rows without text (None) repeat nothing. Values that are no text (messages) are compared as JSON. The same rows in
    the same order always give the same answer.

    Args:
        dataset: a `datasets.Dataset`, or a dict of columns.
        rows: positions to look at, rising, int64 `[n]`.
        how: see above.
        text_column: which column is compared.
        threshold: of "near", above 0 and at most 1.

    Returns:
        Bool mask `[n]`: True for the repetitions.

    Raises:
        KeyError: no such column.
        ValueError: `how` or `threshold` is not one of those.
        ImportError: "near" without datasketch.
    """
    check_deduplicate(how, threshold)
    texts = _texts(dataset, rows, text_column)
    bar = tqdm(texts, total=len(rows), desc="Look for duplicates", unit=" rows", unit_scale=True, delay=_QUIET_SECONDS)
    if how == "near":
        return _near(bar, len(rows), threshold)
    return _equal(bar, len(rows), normalize=how == "normalized")


def check_deduplicate(how: str | None, threshold: float = NEAR_THRESHOLD) -> None:
    """Whether that can be done, found out before any work."""
    if how is None:
        return
    if how not in DEDUPLICATE:
        raise ValueError(f"deduplicate={how!r} is not known; it is one of {', '.join(DEDUPLICATE)}, or None.")
    if how == "near":
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"near_threshold={threshold!r} must be a similarity above 0 and at most 1.")
        _import_datasketch()


def _equal(texts: Iterator[str | None], number: int, normalize: bool) -> np.ndarray:
    digests = np.zeros((number, 2), dtype=np.uint64)
    present = np.zeros(number, dtype=bool)
    for i, text in enumerate(texts):
        if text is None:
            continue
        text = " ".join(text.lower().split()) if normalize else text
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        digests[i] = np.frombuffer(digest, dtype="<u8")
        present[i] = True
    where = np.flatnonzero(present)
    order = where[np.lexsort((digests[where, 1], digests[where, 0]))]  # stable: equal ones in their original order
    repeats = np.zeros(number, dtype=bool)
    repeats[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return repeats


def _near(texts: Iterator[str | None], number: int, threshold: float) -> np.ndarray:
    MinHash, MinHashLSH = _import_datasketch()
    # Candidates are checked, so more of them cost time only; above 0.98 a single band would be left
    index = MinHashLSH(threshold=min(threshold, 0.98), num_perm=_NUM_PERM, weights=(0.1, 0.9))
    empty = MinHash(num_perm=_NUM_PERM, seed=1, scheme="affine32", hashfunc=zlib.crc32)
    kept: dict[int, np.ndarray] = {}
    repeats = np.zeros(number, dtype=bool)
    for i, text in enumerate(texts):
        shingles = _shingles(text)
        if not shingles:
            continue
        sketch = empty.copy()
        sketch.update_batch(shingles)
        values = sketch.hashvalues
        if any(np.mean(kept[key] == values) >= threshold for key in index.query(sketch)):
            repeats[i] = True
        else:
            index.insert(i, sketch, check_duplication=False)
            kept[i] = values
    return repeats


def _shingles(text: str | None) -> list[bytes]:
    words = (text or "").lower().encode("utf-8", "surrogatepass").split()
    if len(words) <= _SHINGLE:
        return [b" ".join(words)] if words else []
    return list({b" ".join(words[k : k + _SHINGLE]) for k in range(len(words) - _SHINGLE + 1)})


def _texts(dataset: Any, rows: np.ndarray, column: str) -> Iterator[str | None]:
    """The texts of some rows, a batch at a time in memory. The column is checked at once."""
    present = getattr(dataset, "column_names", None)
    present = list(dataset) if present is None else present
    if column not in present:
        raise KeyError(
            f"The dataset has no column {column!r} to look for duplicates in, it has {', '.join(present) or 'none'}; "
            "pass text_column=."
        )

    def read() -> Iterator[str | None]:
        if hasattr(dataset, "select_columns"):
            whole = len(rows) == len(dataset)
            chosen = dataset.select_columns([column])
            chosen = (chosen if whole else chosen.select(rows)).with_format("arrow")
            batches = (batch[column].to_pylist() for batch in chosen.iter(_BATCH))
        else:
            values = list(dataset[column])  # by position, also of a DataFrame
            batches = ([values[i] for i in rows[k : k + _BATCH]] for k in range(0, len(rows), _BATCH))
        for batch in batches:
            for value in batch:
                yield value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)

    return read()


def _import_datasketch() -> tuple[Any, Any]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ImportError(
            'deduplicate="near" needs datasketch: pip install "hf-ppl-select[dedup]". '
            '"exact" and "normalized" do without.'
        ) from error
    return MinHash, MinHashLSH
