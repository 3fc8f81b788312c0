"""Texts that share most of their word n-grams with an earlier one: MinHash finds pairs, which are then compared.

MinHash (Broder, 1997): under a random order of all runs, two sets begin with the same one with probability J, their
Jaccard similarity. Bands of such beginnings are hashed together (LSH; Leskovec et al., Mining of Massive Datasets,
3.4): rows with an equal band are candidates. Only the bands are kept, no signatures; candidates are read again and
compared exactly, so that a row is never taken for a repetition that it is not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from math import ceil, log

import numpy as np
from tqdm import tqdm

from ..data.hashing import mix
from .shingles import NGRAM, random_numbers, run_hashes

QUIET_SECONDS = 3.0  # a bar appears only where one has to wait
Read = Callable[["np.ndarray | None"], Iterator[Sequence["str | None"]]]

_MOST_ORDERS = 128  # random orders of hashes (permutations, as MinHash has them), whose least ones are compared
_RECALL = 0.98  # of pairs just at the threshold
_CHARACTERS = 1 << 18  # hashed at once
_ROUNDS = 8  # of comparing exactly only
_PRECHECK_MINIMA = 256  # of a row, where it is compared with many before it is exactly
_RUNS, _PAIRS = 1 << 21, 1 << 16  # compared at once


@cache
def bands_and_orders(threshold: float) -> tuple[int, int]:
    """How many bands, and random orders in each.

    Of those that find 98 % of the pairs just at the threshold, and not more than 10 % of those of half of it, the ones
    of the fewest orders; where 128 orders are too few for that, the longest bands. At 0.8: 10 bands of 5 orders, which
    find 98.1 % of the pairs of a similarity of 0.8, 99.99 % of 0.9 and 9.8 % of 0.4.
    """
    found = []
    for orders in range(1, _MOST_ORDERS + 1):
        missed = 1 - threshold**orders
        if missed == 1:
            break
        bands = ceil(log(1 - _RECALL) / log(missed)) if missed else 1
        if bands * orders <= _MOST_ORDERS:
            wasted = 1 - (1 - (threshold / 2) ** orders) ** bands
            found.append((wasted > 0.1, bands * orders if wasted <= 0.1 else -orders, bands, orders))
    return min(found)[2:] if found else (_MOST_ORDERS, 1)


def find_near_duplicates(read: Read, number: int, threshold: float, ngram: int = NGRAM) -> np.ndarray:
    """Which row each one repeats: the first of those kept before it whose similarity is at least `threshold`.

    Memory for each row: 8 bytes a band (at 0.8: 80) and 60; twice as much where most rows have candidates.

    Where more than 8 rows that resemble each other somewhat are kept (pages of one template), further ones are first
    compared by 256 minima of each: that overlooks 0.1 % more of the pairs just at the threshold, and takes 256 bytes
    for each such row. Their time grows with the square of their number: 20,000 take a minute.

    Args:
        read: gives the texts of some rows (rising; None: of all), some at a time; called more than once.
        number: of rows.
        threshold: Jaccard similarity of the sets of runs, above 0 and at most 1.
        ngram: words in a run.

    Returns:
        int64 `[number]`: a row, or -1 where a row is kept. Texts without words repeat nothing.
    """
    bands, sums, sizes = sketch_texts(read, number, threshold, ngram)
    original = first_equal_sets(sums, sizes)
    unique = np.flatnonzero((original < 0) & (sizes > 0))
    buckets, rows = _buckets(bands, unique)
    rounds = 0
    with tqdm(desc="Compare", unit=" pairs", unit_scale=True, delay=QUIET_SECONDS) as bar:
        while len(rows):
            heads, members = _next_pairs(buckets, rows)
            settled = np.zeros(number, dtype=bool)
            settled[heads] = True
            if rounds == _ROUNDS:
                signatures = _signatures(read, np.unique(rows), ngram)
            if rounds >= _ROUNDS:
                likely = _likely(*signatures, heads, members, threshold)
                bar.update(int((~likely).sum()))
                heads, members = heads[likely], members[likely]
            rounds += 1
            for start, end in _parts(sizes[heads] + sizes[members]):
                close = _similar(read, heads[start:end], members[start:end], threshold, ngram)
                repeating, firsts = members[start:end][close], heads[start:end][close]
                repeating, which = np.unique(repeating, return_index=True)  # heads rise: these are the first
                new = original[repeating] < 0
                original[repeating[new]] = firsts[which[new]]
                settled[repeating] = True
                bar.update(end - start)
            buckets, rows = _crowded(buckets[~settled[rows]], rows[~settled[rows]])
    chained = original >= 0  # a row equal to one that has itself turned out to repeat another
    chained[chained] = original[original[chained]] >= 0
    original[chained] = original[original[chained]]
    return original


def sketch_texts(
    read: Read, number: int, threshold: float, ngram: int = NGRAM
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Of each row: its bands, uint64 `[rows]` each, a number equal for equal sets, uint64, how many runs, int64.

    They depend on the row's text, the threshold and `ngram` alone. Rows with an equal band, or an equal
    number, may be near."""
    bands = [np.zeros(number, dtype=np.uint64) for _ in range(bands_and_orders(threshold)[0])]
    sums, sizes = np.zeros(number, dtype=np.uint64), np.zeros(number, dtype=np.int64)

    def work(start: int, texts: list[str | None]) -> int:
        runs, numbers = run_hashes(texts, ngram)
        where = start + np.flatnonzero(numbers)
        sizes[where] = numbers = numbers[numbers > 0]
        if len(where):
            values, sums[where] = _sketch(runs, numbers, threshold)
            for band, value in zip(bands, values):
                band[where] = value
        return len(texts)

    # numpy lets go of the interpreter: blocks are hashed side by side, while this thread reads
    workers = min(4, os.cpu_count() or 1)
    waiting: deque[Future] = deque()
    bar = tqdm(total=number, desc="Hash", unit=" rows", unit_scale=True, delay=QUIET_SECONDS)
    with bar, ThreadPoolExecutor(workers) as pool:
        start = 0
        for texts in _blocks(read(None)):
            waiting.append(pool.submit(work, start, texts))
            start += len(texts)
            if len(waiting) > 2 * workers:
                bar.update(waiting.popleft().result())
        for done in waiting:
            bar.update(done.result())
    return bands, sums, sizes


def _blocks(batches: Iterator[Sequence[str | None]]) -> Iterator[list[str | None]]:
    """Texts in blocks of about `_CHARACTERS`."""
    block, size = [], 0
    for batch in batches:
        for text in batch:
            block.append(text)
            size += len(text or "") + 1
            if size >= _CHARACTERS:
                yield block
                block, size = [], 0
    if block:
        yield block


def _sketch(runs: np.ndarray, numbers: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Bands and sums of some texts, of which each has `numbers` runs, at least one."""
    num_bands, num_orders = bands_and_orders(threshold)
    factors = (random_numbers(num_bands * num_orders, "factors") >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    shifts = (random_numbers(num_bands * num_orders, "shifts") >> np.uint64(32)).astype(np.uint32)
    first = np.cumsum(numbers) - numbers
    high = (runs >> np.uint64(32)).astype(np.uint32)
    ordered = np.empty_like(high)
    bands = np.zeros((num_bands, len(numbers)), dtype=np.uint64)
    for order in range(num_bands * num_orders):
        np.multiply(high, factors[order], out=ordered)
        ordered += shifts[order]
        band = bands[order // num_orders]
        band *= np.uint64(0xD1342543DE82EF95)
        band += np.minimum.reduceat(ordered, first)
    return mix(bands), np.add.reduceat(runs, first)


def first_equal_sets(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The first row with the same runs, -1 where it is the first, or has none."""
    original = np.full(len(sums), -1, dtype=np.int64)
    where = np.flatnonzero(sizes)
    order = where[np.argsort(sums[where], kind="stable")]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = sums[order[1:]] != sums[order[:-1]]
    firsts = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    original[order[~begins]] = firsts[~begins]
    return original


def _buckets(bands: list[np.ndarray], unique: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows share a band with others: int64 `[entries]` each of bucket and row, sorted by bucket, then row.

    Empties `bands`, for the memory."""
    buckets, rows, number = [], [], 0
    while bands:
        values = bands.pop()[unique]
        order = np.argsort(values, kind="stable")
        values = values[order]
        begins = np.ones(len(values), dtype=bool)
        begins[1:] = values[1:] != values[:-1]
        bucket, row = _crowded(np.cumsum(begins), unique[order])
        buckets.append(bucket + number)
        rows.append(row)
        number += len(values)
    return np.concatenate(buckets), np.concatenate(rows)


def _crowded(buckets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the buckets of one row."""
    same = buckets[1:] == buckets[:-1]
    crowded = np.zeros(len(buckets), dtype=bool)
    crowded[1:] |= same
    crowded[:-1] |= same
    return buckets[crowded], rows[crowded]


def _next_pairs(buckets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are kept for sure, being the first in all of their buckets, and what each is compared with.

    Pairs are sorted by the former, then the latter."""
    begins = np.ones(len(buckets), dtype=bool)
    begins[1:] = buckets[1:] != buckets[:-1]
    behind = np.zeros(rows.max() + 1, dtype=bool)
    behind[rows[~begins]] = True
    heads = rows[begins][np.cumsum(begins) - 1]
    chosen = ~begins & ~behind[heads]
    heads, rows = heads[chosen], rows[chosen]
    order = np.lexsort((rows, heads))
    heads, rows = heads[order], rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (heads[1:] != heads[:-1]) | (rows[1:] != rows[:-1])
    return heads[new], rows[new]


def _signatures(read: Read, rows: np.ndarray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows, 8 bits of the first run in each of 256 random orders, uint8 `[rows, 256]`; and these rows."""
    factors = (random_numbers(_PRECHECK_MINIMA, "signature") >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    parts = []
    for block in _blocks(read(rows)):
        runs, numbers = run_hashes(block, ngram)
        first = np.cumsum(numbers) - numbers
        high = (runs >> np.uint64(32)).astype(np.uint32)
        minima = [np.minimum.reduceat(high * factor, first) for factor in factors]
        parts.append(np.stack(minima, axis=1).astype(np.uint8))
    return rows, np.concatenate(parts)


def _likely(
    rows: np.ndarray, signatures: np.ndarray, heads: np.ndarray, members: np.ndarray, threshold: float
) -> np.ndarray:
    """Whether pairs are as similar as `threshold` but for three standard errors of what their signatures say."""
    least = threshold - 3 * np.sqrt(threshold * (1 - threshold) / _PRECHECK_MINIMA)
    first, second = np.searchsorted(rows, heads), np.searchsorted(rows, members)
    likely = np.empty(len(heads), dtype=bool)
    for start in range(0, len(heads), 4096):
        here = slice(start, start + 4096)
        equal = signatures[first[here]] == signatures[second[here]]
        likely[here] = np.count_nonzero(equal, axis=1) >= least * _PRECHECK_MINIMA
    return likely


def _parts(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of pairs that have about `_RUNS` runs together, or one pair."""
    whole = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = whole[start - 1] if start else 0
        end = int(np.searchsorted(whole, before + _RUNS, side="right"))
        yield start, (end := min(max(end, start + 1), start + _PAIRS))
        start = end


def _similar(read: Read, heads: np.ndarray, members: np.ndarray, threshold: float, ngram: int) -> np.ndarray:
    """Whether the Jaccard similarity of pairs of rows is at least `threshold`, bool `[pairs]`."""
    rows, where = np.unique(np.concatenate([heads, members]), return_inverse=True)
    hashed = [run_hashes(block, ngram) for block in _blocks(read(rows))]
    runs = np.concatenate([runs for runs, _ in hashed])
    numbers = np.concatenate([numbers for _, numbers in hashed])
    firsts = (np.cumsum(numbers) - numbers)[where]
    numbers = numbers[where]

    # Of every pair the runs of both sides, as 16 bits of which pair, 47 of the run's hash, one of which side
    places = np.arange(numbers.sum()) + np.repeat(firsts - np.cumsum(numbers) + numbers, numbers)
    pairs = np.tile(np.arange(len(heads), dtype=np.uint64), 2) << np.uint64(48)
    pairs[len(heads) :] |= np.uint64(1)
    keys = np.repeat(pairs, numbers)
    keys |= (runs[places] >> np.uint64(17)) << np.uint64(1)
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    equal = keys[1:] >> np.uint64(1) == keys[:-1] >> np.uint64(1)
    pair_of = (keys >> np.uint64(48)).astype(np.int64)
    shared = np.bincount(pair_of[1:][equal], minlength=len(heads))
    either = np.bincount(pair_of, minlength=len(heads)) - shared
    return shared / either >= threshold
