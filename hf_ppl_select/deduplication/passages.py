"""Lines and sentences that stand in many documents: found by counting, and cut out of all of them.

As C4 (Raffel et al., JMLR 2020) and CCNet (Wenzek et al., LREC 2020) remove what sites repeat on every page.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["line", "sentence"]
# . ? ! and what closes a quotation, before a blank and no small letter; not after a title, an initial or the like
_SHORT = ("Dr", "Mr", "Ms", "St", "vs", "cf", "al", "Mrs", "Fig", "Eq", "Prof", r"e\.g", r"i\.e", "[A-Z]")
_NO_END = "".join(rf"(?<!\b{word}\.)" for word in _SHORT)
_SENTENCE_END = re.compile(
    r"[.!?…。！？\r\n]"  # first, so that nothing else is looked at
    rf"(?:(?<=[.!?…]){_NO_END}[\"'”’)\]]*\s+(?![a-z\s])|(?<=[。！？])[。！？]*[」』”’）]*\s*|(?<=[\r\n])\s*)"
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_ENDS = {"line": _LINE_END, "sentence": _SENTENCE_END}
_WORD = re.compile(r"[\u3000-\u9fff]|[^\s\u3000-\u9fff]+")  # Chinese and Japanese characters are a word each
_LEAST_WORDS = 4  # of what ends with its line alone
_MANY = 1 << 22  # counted together


class Passage(NamedTuple):
    """A line or sentence that was cut out of a document.

    Attributes:
        start: its first character in the document.
        kind: "line" or "sentence".
        documents: in how many it stands.
        text: with the blanks that end it.
    """

    start: int
    kind: Kind
    documents: int
    text: str


def split_passages(text: str, kind: Kind) -> list[str]:
    """The lines or sentences of a text, each with what ends it: joined, they are the text.

    A sentence ends with its line, and at . ? ! … before a blank and no small letter, except after "Dr.", "e.g.", an
    initial and the like; and at 。！？.
    """
    ends = [match.end() for match in _ENDS[kind].finditer(text)]
    starts = [0, *ends]
    parts = [text[start:end] for start, end in zip(starts, [*ends, len(text)])]
    return parts if parts[-1] else parts[:-1]


def passage_hash(passage: str) -> int:
    """64 bits of a passage in lower case, with every run of blanks as one; 0 if there is nothing else."""
    words = " ".join(passage.lower().split())
    if not words:
        return 0
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def count_documents(texts: Iterable[str | None], kind: Kind, more_than: int) -> dict[int, int]:
    """In how many documents each line or sentence stands: of those in more than `more_than`, by their hash.

    Of sentences that only their line ends, those of fewer than four words are not counted, and so never cut.

    Memory: some 40 bytes for each different one.
    """
    hashes, counts = np.empty(0, np.uint64), np.empty(0, np.int32)
    new: list[int] = []

    def merge() -> None:
        nonlocal hashes, counts
        every = np.concatenate([hashes, np.array(new, dtype=np.uint64)])
        times = np.concatenate([counts, np.ones(len(new), dtype=np.int32)])
        new.clear()
        order = np.argsort(every)
        every = every[order]
        first = np.flatnonzero(np.append(True, every[1:] != every[:-1])) if len(every) else order
        hashes, counts = every[first], np.add.reduceat(times[order], first) if len(every) else times

    for text in texts:
        passages = (passage for passage in split_passages(text or "", kind) if _counts(passage, kind))
        new.extend({passage_hash(passage) for passage in passages} - {0})
        if len(new) >= max(_MANY, len(hashes) // 2):
            merge()
    merge()
    often = counts > more_than
    return dict(zip(hashes[often].tolist(), counts[often].tolist()))


def _counts(passage: str, kind: Kind) -> bool:
    """Every line counts; of what ends with its line, and not as a sentence does, what has four words or more.

    Shorter ones are "else:" and ")" of code, "Status: ok" of records, a word of wrapped prose: they stand in many good
    texts.
    """
    ended = passage.rstrip().rstrip("\"'”’)]」』").endswith(tuple(".!?…。！？"))
    if kind == "line" or (ended and re.search(r"\w", passage)):
        return True
    return next(islice(_WORD.finditer(passage), _LEAST_WORDS - 1, None), None) is not None


def cut_passages(text: str, repeated: Mapping[Kind, Mapping[int, int]]) -> tuple[str, list[Passage]]:
    """A document without its repeated lines, then without its repeated sentences, and what was cut out.

    Args:
        text: the document.
        repeated: as [`count_documents`] counts them, of either kind or both.
    """
    parts = [(0, text)]
    cut: list[Passage] = []
    for kind in ("line", "sentence"):
        if often := repeated.get(kind):
            left: list[tuple[int, str]] = []
            for start, part in parts:
                for passage in split_passages(part, kind):
                    if (number := often.get(passage_hash(passage))) is None:
                        left.append((start, passage))
                    else:
                        cut.append(Passage(start, kind, number, passage))
                    start += len(passage)
            parts = left
    return "".join(part for _, part in parts), sorted(cut)
