"""Hashes of the word n-grams (runs of, say, five words) of texts, many at once: numpy's arithmetic over their bytes.

A word's hash is the polynomial Σ table[byte] · P^position mod 2^64, summed over the bytes of all texts at once, which
P's inverse brings to the word's own start. A run's hash is a sum of its words' hashes, times an odd number for each
place. Both are mixed by splitmix64, which also draws all constants: nothing depends on a process, a version or
PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from ..data.hashing import BASE, mix, powers

NGRAM = 5  # words
_PIECE = 1 << 18  # bytes summed at once, and of the longest word; so that sums stay in the processor's cache
_BLANK = 32  # and the control characters below it


def run_hashes(texts: Sequence[str | None], ngram: int = NGRAM) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `ngram` words.

    Words are lower-cased, and end at blanks and control characters; Chinese and Japanese characters (U+3000 to U+9FFF)
    are a word each. A text of fewer than `ngram` words is one run, one without words has none.

    Args:
        texts: some megabytes of them at most; memory is 30 times their size.
        ngram: words in a run, at least 1.

    Returns:
        Hashes, uint64 `[runs]`, text after text, each as often as it stands there; and the number of each text's runs,
        int64 `[texts]`.
    """
    encoded = [_normalized(text) for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1)
    hashes, starts = _word_hashes(b" ".join(encoded) + b" ")
    until = np.searchsorted(starts, ends)
    counts = np.diff(until, prepend=0)
    first = until - counts
    numbers = np.where(counts < ngram, np.minimum(counts, 1), counts - ngram + 1)

    runs = np.zeros(len(hashes), np.uint64)
    factors = random_numbers(ngram, "runs") | np.uint64(1)
    for place, factor in enumerate(factors[: len(hashes)]):
        runs[: len(hashes) - place] += hashes[place:] * factor
    if (short := (counts > 0) & (counts < ngram)).any():
        runs[first[short]] = 0
        for place, factor in enumerate(factors[: ngram - 1]):
            longer = first[short & (counts > place)]
            runs[longer] += hashes[longer + place] * factor
    kept = np.arange(len(hashes)) - np.repeat(first, counts) < np.repeat(numbers, counts)
    return mix(runs[kept]), numbers


def random_numbers(number: int, purpose: str) -> np.ndarray:
    """The same `number` uint64 for a purpose, always."""
    start = np.uint64(int.from_bytes(purpose.encode()[:8], "little"))
    return mix(mix(start + np.arange(1, number + 1, dtype=np.uint64) * np.uint64(BASE)))


def _normalized(text: str | None) -> bytes:
    if text is None:
        return b""
    text = text.lower()
    if text.isascii():
        return text.encode("ascii")
    return " ".join(text.split()).encode("utf-8", "surrogatepass")  # blanks beyond ASCII


def _word_hashes(buffer: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word, and where it starts; a word of more bytes than `_PIECE` counts as several."""
    data = np.frombuffer(buffer, np.uint8)
    starts = _word_starts(data)
    table, powers, inverses = _tables()
    hashes = np.empty(len(starts), np.uint64)
    limits = np.append(starts[1:], len(data))  # up to which there are only blanks after a word
    done = 0
    while done < len(starts):
        here = starts[done]
        until = max(done + 1, int(np.searchsorted(limits, here + _PIECE, side="right")))
        terms = table.take(data[here : min(limits[until - 1], here + _PIECE)])
        terms *= powers[: len(terms)]
        first = starts[done:until] - here
        hashes[done:until] = np.add.reduceat(terms, first) * inverses.take(first)
        done = until
    return mix(hashes), starts


def _word_starts(data: np.ndarray) -> np.ndarray:
    """Where words start, int64; the last byte is a blank."""
    blank = data <= _BLANK
    begins = ~blank
    begins[1:] &= blank[:-1]
    if data.max() >= 0xE3:
        alone = (data >= 0xE3) & (data <= 0xE9)  # the first of the three bytes of U+3000 to U+9FFF
        begins |= alone
        begins[3:] |= alone[:-3] & ~blank[3:]
    starts = np.flatnonzero(begins)
    if len(data) > _PIECE:
        gaps = np.diff(starts, append=len(data))
        for start, gap in zip(starts[gaps > _PIECE], gaps[gaps > _PIECE]):
            length = int(np.argmax(blank[start : start + gap]))
            starts = np.concatenate([starts, np.arange(start + _PIECE, start + length, _PIECE)])
        starts.sort()
    return starts


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random number for each byte, 0 for blanks; the powers of P, and their inverses."""
    table = random_numbers(256, "bytes")
    table[: _BLANK + 1] = 0
    return table, *powers(_PIECE)
