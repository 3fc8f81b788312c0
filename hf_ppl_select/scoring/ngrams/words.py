"""Texts -> hashes of their words, without a loop over words: some tens of nanoseconds each. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...data.hashing import BASE, mix, powers

_BLOCK = 1 << 16  # bytes hashed together: what fits in a cache
_SPACE, _WORD, _SIGN, _ALONE, _GOES_ON = range(5)  # kinds of bytes
_PAIR = 0xD6E8FEB86659FD93  # odd, so that a pair is another one in the other order


def hash_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash every word of some texts; upper and lower case are the same.

    Words are runs of letters, digits and underscores, and runs of other signs, as NLTK's WordPunctTokenizer and so
    DSIR have them. A character of three or more bytes in UTF-8 is a word alone, so that Chinese or Thai, which have no
    spaces, have words, and typographic quotes are not part of theirs.

    A word of bytes b_0 .. b_n has the hash Σ v(b_i) r^i mod 2^64, mixed: v are random numbers, r is odd. It is the
    same in every process, on every machine.

    Returns:
        the hashes of all words in their order, uint64 `[num_words]`, and how many each text has, int64 `[num_texts]`.
    """
    encoded = [text.lower().encode("utf-8", errors="surrogatepass") for text in texts]
    data = np.frombuffer(b" ".join(encoded), dtype=np.uint8)
    borders = np.cumsum([0, *(len(text) + 1 for text in encoded)])  # where texts begin
    hashes, places = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    begin = 0
    while begin < len(data):
        found, starts, end = _hash_block(data[begin:])
        hashes.append(found)
        places.append(starts + begin)
        begin += end
    return np.concatenate(hashes), np.diff(np.searchsorted(np.concatenate(places), borders))


def hash_ngrams(texts: Sequence[str], num_buckets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The buckets of all words and of all pairs of neighbouring words of a text, int64 `[num_words]` and
    `[num_pairs]`, and how many words each text has, int64 `[num_texts]`; of pairs one less, or none.
    """
    words, num_words = hash_words(texts)
    last = np.cumsum(num_words)[num_words > 0][:-1] - 1  # of each text but the last: no pair goes on from here
    pairs = mix(np.delete(words[:-1] * np.uint64(_PAIR) + words[1:], last))
    return _buckets(words, num_buckets), _buckets(pairs, num_buckets), num_words


def _buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """From 0 to below `num_buckets`, by the upper 32 bits (a multiplication is faster than a remainder)."""
    return ((hashes >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)


def _hash_block(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The words at the beginning of `data`: their hashes, where they start, and where the last one ends."""
    size = _BLOCK
    while True:
        block = data[:size]
        edges = _edges(block)
        if len(block) == len(data) or len(edges):
            break
        size *= 2  # a word is longer
    end = len(block) if len(block) == len(data) else int(edges[-1])
    starts = np.concatenate(([0], edges[: len(edges) - (end < len(block))]))
    ends = np.concatenate((starts[1:], [end]))
    is_word = _KINDS.take(block[starts]) != _SPACE
    starts, ends = starts[is_word], ends[is_word]
    forward, inverses = _powers(size)
    sums = np.zeros(end + 1, dtype=np.uint64)
    np.multiply(_VALUES.take(block[:end]), forward[:end], out=sums[1:])
    np.cumsum(sums, out=sums)
    return mix((sums[ends] - sums[starts]) * inverses[starts]), starts, end


def _edges(block: np.ndarray) -> np.ndarray:
    """Where in a block another word or space begins, but for its own beginning."""
    kinds = _KINDS.take(block)
    goes_on = kinds == _GOES_ON
    if not goes_on.any() and not (kinds == _ALONE).any():
        return np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    first = np.maximum.accumulate(np.where(goes_on, 0, np.arange(len(block))))  # byte of each character
    kinds = kinds[first]
    return np.flatnonzero((kinds[1:] != kinds[:-1]) | ((kinds[1:] == _ALONE) & ~goes_on[1:])) + 1


def _kind(byte: int) -> int:
    if byte >= 0x80:
        # 0xC2 begins signs (no-break space, degree); 0xC3 to 0xDF letters with accents, Greek, Cyrillic, Arabic
        return _GOES_ON if byte < 0xC0 else _ALONE if byte == 0xC2 or byte >= 0xE0 else _WORD
    character = chr(byte)
    return _WORD if character.isalnum() or character == "_" else _SPACE if byte <= 0x20 else _SIGN


_KINDS = np.array([_kind(byte) for byte in range(256)], dtype=np.uint8)
_VALUES = mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(BASE))
_powers = lru_cache(maxsize=2)(powers)
