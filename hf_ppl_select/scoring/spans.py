"""Where in a text each of its tokens lies, and what follows from it: which tokens count, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding


def num_bytes(text: str) -> int:
    """UTF-8 bytes, also of a lone surrogate."""
    return len(text.encode("utf-8", errors="surrogatepass"))


def token_extents(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """The characters from which, and up to which, each token was made: int64 `[num_tokens]` each.

    Tokens that are bytes of one character all have its extent, and so has the space that some tokenizers put before
    a word. Byte-level tokenizers with `trim_offsets` leave the spaces that a token begins with out of its offsets;
    here they are back.
    """
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
    before = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
    cut = np.flatnonzero((starts > before) | (starts == ends))
    names = encoding.tokens if len(cut) else []
    for token in cut:
        if names[token].startswith("Ġ"):
            starts[token] = min(before[token], starts[token])
            ends[token] = max(ends[token], starts[token] + 1)
    return starts, ends


def count_spans(text: str, spans: Sequence[tuple[int, int]], encoding: Encoding) -> tuple[list[int], int, int]:
    """The tokens that count where the characters of `spans` do: those made from at least one of them.

    Returns:
        the positions of these tokens; the UTF-8 bytes of the spans and of what else a token spells that crosses their
        borders; and those of them that token 0 alone spells.
    """
    inside = np.zeros(len(text) + 1, dtype=bool)
    for begin, end in spans:
        inside[begin:end] = True
    before = np.concatenate([[0], np.cumsum(inside)])
    starts, ends = token_extents(encoding)
    counted = np.flatnonzero(before[ends] > before[starts]).tolist()
    for token in counted:
        inside[starts[token] : ends[token]] = True
    borders = np.flatnonzero(np.diff(inside, prepend=False)).tolist()
    spelled = "".join(text[begin:end] for begin, end in zip(borders[::2], borders[1::2]))
    return counted, num_bytes(spelled), bytes_of_first(text, encoding) if counted[:1] == [0] else 0


def bytes_of_first(text: str, encoding: Encoding) -> int:
    """UTF-8 bytes of the characters that only the first token is made from, and of what is before it in the text."""
    if len(encoding) < 2:
        return num_bytes(text)
    end = max(encoding.token_to_chars(0)[1], 1)  # 0 of a space that `trim_offsets` leaves out
    return num_bytes(text[: min(end, encoding.token_to_chars(1)[0])])
