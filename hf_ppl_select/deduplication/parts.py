"""Documents in parts, as files on many machines: hashes of each part, and which rows repeat an earlier one of any.

What [`~hf_ppl_select.deduplication.documents.deduplicate_documents`] drops, without all texts in one place. Rows that
share a band of [`~hf_ppl_select.deduplication.near_duplicates.sketch_texts`] are joined. Which of the rows that hang
together so are kept depends on no others: only they are compared, a batch of such groups at a time, anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .duplicates import DEDUPLICATE, Deduplicate, digest_texts, first_equal
from .near_duplicates import bands_and_orders, first_equal_sets, sketch_texts
from .shingles import NGRAM


def hash_names(how: Deduplicate, threshold: float) -> list[str]:
    """What [`hash_part`] returns, by name."""
    stages = DEDUPLICATE[: DEDUPLICATE.index(how) + 1]
    if how != "near":
        return list(stages)
    return [*stages[:-1], "sums", "sizes", *(f"band {k}" for k in range(bands_and_orders(threshold)[0]))]


def hash_part(
    batches: Iterable[Sequence[str | None]], number: int, how: Deduplicate, threshold: float, ngram: int = NGRAM
) -> list[np.ndarray]:
    """The hashes of a part, read once: arrays of `number` rows, named by [`hash_names`].

    Args:
        batches: the texts, some at a time in memory.
        number: of rows.
        how, threshold, ngram: as for [`~hf_ppl_select.deduplication.duplicates.find_duplicates`].

    Returns:
        16 bytes a row for "exact", as many for "normalized", and for "near" 12 and 8 a band (at 0.8: 80).
    """
    digests = {
        stage: np.empty((number, 2), dtype=np.uint64)
        for stage in DEDUPLICATE[: DEDUPLICATE.index(how) + 1]
        if stage != "near"
    }

    def digested(which: None = None) -> Iterator[Sequence[str | None]]:
        start = 0
        for batch in batches:
            for stage, found in digests.items():
                found[start : start + len(batch)] = digest_texts(batch, normalize=stage == "normalized")
            start += len(batch)
            yield batch

    if how != "near":
        deque(digested(), maxlen=0)
        return list(digests.values())
    bands, sums, sizes = sketch_texts(digested, number, threshold, ngram)
    return [*digests.values(), sums, sizes.astype(np.int32), *bands]


def find_repetitions(
    hashes: Callable[[str], np.ndarray],
    compare: Callable[[list[np.ndarray]], Iterable[tuple[int, np.ndarray]]],
    how: Deduplicate,
    threshold: float,
    batch_runs: Callable[[int], int],
) -> np.ndarray:
    """Why each row is dropped, as `deduplicate_documents` would: a position in `DEDUPLICATE`, or -1; int8 `[rows]`.

    Memory: some 90 bytes a row, however many bands there are and however many rows share one.

    Args:
        hashes: of all rows, part after part, the array of a name of [`hash_names`]; each is asked for once.
        compare: is given batches of rows, int64 `[n]` rising, and says for each of them, in any order, its number and
            which rows `find_near_duplicates` on just these texts takes for repetitions, bool `[n]`.
        how, threshold: those of `hash_part`.
        batch_runs: of how many runs of words there are in rows that have candidates, how many to put into a batch.
            A batch has more where so many hang together.
    """
    reasons = np.empty(0, dtype=np.int8)
    for code, stage in enumerate(DEDUPLICATE[: min(DEDUPLICATE.index(how), 1) + 1]):
        digests = hashes(stage)
        if not code:
            reasons = np.full(len(digests), -1, dtype=np.int8)
        rows = np.flatnonzero(reasons < 0)
        reasons[rows[first_equal(digests[rows]) >= 0]] = code
        del digests
    if how != "near":
        return reasons

    rows = np.flatnonzero(reasons < 0)
    sizes = hashes("sizes")[rows]
    repeated = first_equal_sets(hashes("sums")[rows], sizes) >= 0
    reasons[rows[repeated]] = DEDUPLICATE.index("near")
    unique = ~repeated & (sizes > 0)
    rows, sizes = rows[unique], sizes[unique]
    bands = [name for name in hash_names(how, threshold) if name.startswith("band")]
    groups = join_equal((hashes(name)[rows] for name in bands), len(rows))
    batches = [rows[batch] for batch in batches_of(groups, sizes, batch_runs)]
    for number, repeats in compare(batches):
        reasons[batches[number][repeats]] = DEDUPLICATE.index("near")
    return reasons


def join_equal(columns: Iterable[np.ndarray], number: int) -> np.ndarray:
    """Which rows hang together, directly or through others, by an equal value in one of the columns.

    Args:
        columns: of `number` rows each; one at a time in memory.
        number: of rows, below 2^31.

    Returns:
        The number of each row's group, `[number]`.
    """
    groups, num_groups = np.arange(number, dtype=np.int32), number
    for values in columns:
        order = np.argsort(values)
        values = values[order]
        equal = np.flatnonzero(values[1:] == values[:-1])
        first, second = groups[order[equal]], groups[order[equal + 1]]
        new = first != second
        if new.any():
            edges = coo_array((np.ones(new.sum(), dtype=bool), (first[new], second[new])), shape=(num_groups,) * 2)
            num_groups, joined = connected_components(edges, directed=False)
            groups = joined[groups]
    return groups


def batches_of(groups: np.ndarray, sizes: np.ndarray, batch_runs: Callable[[int], int]) -> list[np.ndarray]:
    """The rows of groups of more than one, in batches of whole groups: positions, rising in each batch."""
    crowded = np.flatnonzero(np.bincount(groups)[groups] > 1) if len(groups) else np.empty(0, dtype=np.int64)
    if not len(crowded):
        return []
    runs = np.bincount(groups[crowded], weights=sizes[crowded])
    before = np.cumsum(runs) - runs
    batch = (before // max(1, batch_runs(int(runs.sum())))).astype(np.int64)[groups[crowded]]
    order = np.argsort(batch, kind="stable")
    return np.split(crowded[order], np.flatnonzero(np.diff(batch[order])) + 1)
