"""Texts that share words: what is trained on must not stand in what is measured on."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

SHARED_RUN = 8  # words in a row: shorter ones are phrases that anybody writes
_WORD = re.compile(r"\w+")
# Chinese and Japanese have no blanks between words: each of their characters (as in `deduplication`) is a word
_WORD_OR_SIGN = re.compile(r"[^\W\u3000-\u9fff]+|\w")


def word_runs(text: str, length: int = SHARED_RUN) -> Iterator[tuple[str, ...]]:
    """All runs of `length` words, in small letters; a text of fewer words is one run, one without words has none.

    Chinese and Japanese characters (U+3000 to U+9FFF) are a word each.
    """
    words = (_WORD if text.isascii() else _WORD_OR_SIGN).findall(text.lower())
    for start in range(max(1, len(words) - length + 1) if words else 0):
        yield tuple(words[start : start + length])


def sharing_runs(texts: Iterable[str], others: Iterable[str]) -> list[int]:
    """The positions of those `texts` that have a run of eight words in common with one of `others`."""
    runs = {run for text in others for run in word_runs(text)}
    return [position for position, text in enumerate(texts) if not runs.isdisjoint(word_runs(text))]


def contained_in(texts: Sequence[str], corpus: Iterable[str]) -> list[int]:
    """The positions of those `texts` that are part of a corpus: most of their runs of eight words stand in it.

    Args:
        texts: few, whose runs fit in memory.
        corpus: texts, read once; they may cut these, or hold them among others.
    """
    runs = [set(word_runs(text)) for text in texts]
    wanted = set().union(*runs)
    found = {run for text in corpus for run in word_runs(text) if run in wanted}
    return [position for position, own in enumerate(runs) if 2 * len(own & found) > len(own)]


def split_apart(texts: Sequence[str], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Split texts in two that have no run of eight words in common, at random by `seed`: their positions, rising.

    Texts that share a run, with one another or by way of others, stay together, so the first part has at most a
    `share` of all characters, and less where large groups stay together.

    Raises:
        ValueError: one of the two would be empty.
    """
    leader = list(range(len(texts)))

    def find(position: int) -> int:
        while leader[position] != position:
            leader[position] = leader[leader[position]]
            position = leader[position]
        return position

    first_with: dict[tuple[str, ...], int] = {}
    for position, text in enumerate(texts):
        for run in word_runs(text):
            leader[find(first_with.setdefault(run, position))] = find(position)
    groups: dict[int, list[int]] = {}
    for position in range(len(texts)):
        groups.setdefault(find(position), []).append(position)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    room = share * sum(map(len, texts))
    first: list[int] = []
    second: list[int] = []
    for group in shuffled:
        size = sum(len(texts[position]) for position in group)
        part = first if size <= room else second
        room -= size if part is first else 0
        part += group
    if not first or not second:
        raise ValueError(
            f"{len(texts)} texts cannot be split in two with a share of {share} in the first: {len(groups)} groups of "
            "them share no run of eight words. Bring more texts, or deduplicate them first."
        )
    return sorted(first), sorted(second)
