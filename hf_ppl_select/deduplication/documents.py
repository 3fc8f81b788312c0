"""Documents without repetitions: rows that repeat an earlier one, and lines and sentences that stand in many of them.

To be done before documents are cut into chunks: chunks of one page and its copy begin at other places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .duplicates import DEDUPLICATE, NEAR_THRESHOLD, Deduplicate, Texts, check_deduplicate, find_duplicates
from .near_duplicates import QUIET_SECONDS
from .passages import Kind, count_documents, cut_passages
from .shingles import NGRAM

if TYPE_CHECKING:
    from datasets import Dataset

NOTHING_LEFT = "nothing_left"
REASONS = (*DEDUPLICATE, NOTHING_LEFT, *(f"{how}_after_cut" for how in DEDUPLICATE))
DROPPED_COLUMNS = ("input_row", "drop_reason", "repeats_row")
_CUT = {"line": "hf_ppl_select_lines_cut", "sentence": "hf_ppl_select_sentences_cut"}  # columns, for a moment


@dataclass(frozen=True, eq=False)
class Deduplicated:
    """Documents without repetitions, and what was dropped of `n` rows.

    Attributes:
        dataset: the rows that are kept, in their order, with all columns.
        source: the rows as they were.
        text_column: what was compared, and cut.
        reasons: why each row was dropped, a position in `REASONS`, or -1 for those kept; int8 `[n]`.
        repeats: the earlier row that it repeats, -1 if none; int64 `[n]`. That one is kept, or dropped for a reason
            further down in `REASONS`.
        characters: of each row, and of those kept what is left; int64 `[n]` each.
        cut: lines and sentences cut out of each row, int32 `[n]` by kind; 0 for dropped rows, which stay whole.
        repeated: the lines and sentences that stand in too many documents: in how many, by hash.
    """

    dataset: Dataset
    source: Dataset
    text_column: str
    reasons: np.ndarray
    repeats: np.ndarray
    characters: np.ndarray
    characters_left: np.ndarray
    cut: Mapping[Kind, np.ndarray]
    repeated: Mapping[Kind, Mapping[int, int]]

    def dropped_rows(self) -> Dataset:
        """The dropped rows as they were, and the columns `input_row`, `drop_reason` and `repeats_row` (or None).

        Raises:
            ValueError: the dataset has a column of such a name.
        """
        import pyarrow as pa

        if taken := set(DROPPED_COLUMNS) & set(self.source.column_names):
            raise ValueError(f"column {min(taken)!r} is added to dropped rows; rename the dataset's own.")
        rows = np.flatnonzero(self.reasons >= 0)
        repeats = self.repeats[rows]
        dropped = self.source.with_format(None).select(rows).add_column("input_row", rows)
        dropped = dropped.add_column("drop_reason", pa.array([REASONS[r] for r in self.reasons[rows]], pa.string()))
        return dropped.add_column("repeats_row", pa.array(repeats, mask=repeats < 0))

    def cut_passages(self) -> Dataset:
        """The lines and sentences cut out of rows that are kept: `input_row`, `start`, `kind`, `documents`, `text`."""
        from datasets import Features, Value

        rows = np.flatnonzero(sum(number for number in self.cut.values()) > 0) if self.cut else np.empty(0, np.int64)
        kinds = {"input_row": "int64", "start": "int64", "kind": "string", "documents": "int64", "text": "string"}
        texts = self.source.with_format(None).select_columns([self.text_column]).select(rows)
        return texts.map(
            _list_passages,
            batched=True,
            with_indices=True,
            remove_columns=[self.text_column],
            fn_kwargs={"rows": rows, "text_column": self.text_column, "repeated": self.repeated},
            features=Features({name: Value(kind) for name, kind in kinds.items()}),
            desc="List",
        )

    def counts(self, rows: np.ndarray | None = None) -> dict[str, Any]:
        """Rows and characters: `input`, `kept`, and dropped by reason, what was cut out too; of some rows (a mask)."""
        which = np.ones(len(self.reasons), dtype=bool) if rows is None else rows
        kept = which & (self.reasons < 0)
        found: dict[str, Any] = {
            "rows": {"input": int(which.sum()), "kept": int(kept.sum())},
            "characters": {"input": int(self.characters[which].sum()), "kept": int(self.characters_left[kept].sum())},
        }
        for code, reason in enumerate(REASONS):
            if (here := which & (self.reasons == code)).any():
                found["rows"][reason] = int(here.sum())
                found["characters"][reason] = int(self.characters[here].sum())
        for kind, number in self.cut.items():
            found[f"{kind}s_cut"] = int(number[kept].sum())
        if self.cut:
            found["characters"]["cut"] = int((self.characters - self.characters_left)[kept].sum())
        return found

    def counts_by(self, column: str) -> dict[str, dict[str, Any]]:
        """[`counts`] for the 30 most frequent values of a column of the dataset, and for `(others)`, in more
        parentheses where a value is called so.

        Raises:
            KeyError: no such column.
        """
        if column not in self.source.column_names:
            raise KeyError(f"no column {column!r} to count by; there are {', '.join(self.source.column_names)}.")
        values = list(map(str, self.source.with_format(None)[column][:]))
        places = {value: place for place, (value, _) in enumerate(Counter(values).most_common(30))}
        codes = np.fromiter((places.get(value, len(places)) for value in values), np.int64, len(values))
        others = "(others)"
        while others in places:
            others = f"({others})"
        names = [*places, others] if (codes == len(places)).any() else places
        return {name: self.counts(codes == code) for code, name in enumerate(names)}


def deduplicate_documents(
    dataset: Dataset,
    *,
    text_column: str = "text",
    how: Deduplicate | None = "near",
    near_threshold: float = NEAR_THRESHOLD,
    near_ngram: int = NGRAM,
    max_line_documents: int | None = None,
    max_sentence_documents: int | None = None,
) -> Deduplicated:
    """Drop rows that repeat an earlier one, and cut lines and sentences that stand in many documents out of all.

    ```python
    found = deduplicate_documents(dataset, how="near", max_sentence_documents=20)
    found.dataset, found.counts(), found.dropped_rows(), found.cut_passages()
    ```

    Rows first, so that the lines of a page and of its copies count once: equal ones, then normalized, then near ones,
    as [`~hf_ppl_select.deduplication.duplicates.find_duplicates`] compares them; the first stays. Then lines, then
    sentences ([`~hf_ppl_select.deduplication.passages.split_passages`]), compared in lower case and whatever the
    blanks. Rows of which nothing is left are dropped, and the others compared once more, as they are now.

    Memory: that of `find_duplicates` and 60 bytes a row, and 40 for each different line or sentence.

    Args:
        dataset: documents, in memory or on disk.
        text_column: the documents; all columns are kept.
        how: "exact", "normalized" (and exact), "near" (and both), or None: no rows.
        near_threshold: of near, the least Jaccard similarity of the sets of n-grams.
        near_ngram: of near, words in an n-gram; 2 where documents have a sentence or two, of which a changed word
            spoils most runs of five.
        max_line_documents: a line that stands in more documents than this is cut out of all; None: no lines.
        max_sentence_documents: the same of sentences; those of fewer than four words that only their line ends, as
            lines of code do, stay.

    Raises:
        KeyError: no such column.
        TypeError: a stream, a dataset of several splits, or a column of something else than text to cut.
        ValueError: an option is out of its range.
    """
    most = check_options(
        dataset, text_column, how, near_threshold, near_ngram, max_line_documents, max_sentence_documents
    )
    every = np.arange(len(dataset))
    reasons = np.full(len(dataset), -1, dtype=np.int8)
    repeats = np.full(len(dataset), -1, dtype=np.int64)
    texts = Texts(dataset, every, text_column)
    lengths = (len(text or "") for batch in texts.batches() for text in batch)
    characters = np.fromiter(lengths, np.int64, len(dataset))

    def drop_repetitions(of: Dataset, position: np.ndarray, suffix: str = "") -> None:
        """Of rows that stand at `position` in the input."""
        for stage in DEDUPLICATE[: DEDUPLICATE.index(how) + 1] if how else ():
            rows = np.flatnonzero(reasons[position] < 0)
            options = {"text_column": text_column, "threshold": near_threshold, "ngram": near_ngram}
            original = find_duplicates(of, rows, stage, **options)
            found = position[rows[original >= 0]]
            reasons[found] = REASONS.index(f"{stage}{suffix}")
            repeats[found] = position[original[original >= 0]]

    drop_repetitions(dataset, every)
    kept = every[reasons < 0]
    left = dataset if len(kept) == len(dataset) else dataset.select(kept)
    repeated = {kind: _count(left, text_column, kind, number) for kind, number in most.items()}
    characters_left = np.where(reasons < 0, characters, 0)
    cut = {kind: np.zeros(len(dataset), dtype=np.int32) for kind in most}
    if any(repeated.values()):
        left, numbers = _cut(left, text_column, repeated)
        for kind, number in numbers.items():
            cut[kind][kept] = number
        after = Texts(left, np.arange(len(left)), text_column)
        characters_left[kept] = [len(text or "") for batch in after.batches() for text in batch]
        blank = np.array([not (text or "").strip() for batch in after.batches() for text in batch], dtype=bool)
        reasons[kept[blank & (sum(numbers.values()) > 0)]] = REASONS.index(NOTHING_LEFT)
        drop_repetitions(left, kept, "_after_cut")
        stays = reasons[kept] < 0
        left = left if stays.all() else left.select(np.flatnonzero(stays))
        for number in (*cut.values(), characters_left):
            number[reasons >= 0] = 0
    return Deduplicated(left, dataset, text_column, reasons, repeats, characters, characters_left, cut, repeated)


def check_options(
    dataset: Any,
    text_column: str,
    how: str | None,
    near_threshold: float,
    near_ngram: int,
    max_line_documents: int | None,
    max_sentence_documents: int | None,
) -> dict[Kind, int]:
    """Whether [`deduplicate_documents`] can do that, found out before any work; the limits of each kind.

    Raises:
        KeyError, TypeError, ValueError: as it does.
    """
    names = getattr(dataset, "column_names", None)
    if isinstance(names, dict):
        raise TypeError(f"The dataset has splits ({', '.join(names)}); pass one of them, like dataset['train'].")
    if not hasattr(dataset, "select"):
        raise TypeError(f"{type(dataset).__name__} cannot be deduplicated: pass a datasets.Dataset, not a stream.")
    check_deduplicate(how, near_threshold, near_ngram)
    given: dict[Kind, Any] = {"line": max_line_documents, "sentence": max_sentence_documents}
    most = {kind: number for kind, number in given.items() if number is not None}
    for kind, number in most.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"max_{kind}_documents must be a whole number, at least 1, not {number!r}.")
    if text_column not in names:
        raise KeyError(f"no column {text_column!r}; there are {', '.join(names)}. Pass text_column=.")
    dtype = getattr(dataset.features[text_column], "dtype", "list")
    if most and dtype not in ("string", "large_string", "null"):
        raise TypeError(f"column {text_column!r} holds {dtype}, no text of lines or sentences.")
    return most


def _count(dataset: Dataset, text_column: str, kind: Kind, more_than: int) -> dict[int, int]:
    texts = Texts(dataset, np.arange(len(dataset)), text_column)
    every = (text for batch in texts.batches() for text in batch)
    bar = tqdm(every, total=len(texts), desc=f"Count {kind}s", unit=" rows", unit_scale=True, delay=QUIET_SECONDS)
    return count_documents(bar, kind, more_than)


def _cut(dataset: Dataset, text_column: str, repeated: Mapping[Kind, Any]) -> tuple[Dataset, dict[Kind, np.ndarray]]:
    """The documents without those passages, and how many were cut out of each."""
    from datasets import Features, Value

    features = Features({**dataset.features, **{_CUT[kind]: Value("int32") for kind in repeated}})
    options = {"text_column": text_column, "repeated": repeated}
    left = dataset.with_format(None).map(_cut_batch, batched=True, fn_kwargs=options, features=features, desc="Cut")
    numbers = {kind: np.array(left[_CUT[kind]][:], dtype=np.int32) for kind in repeated}
    shown = dataset.format
    left = left.remove_columns([_CUT[kind] for kind in repeated])
    left = left.with_format(shown["type"], shown["columns"], shown["output_all_columns"], **shown["format_kwargs"])
    return left, numbers


def _cut_batch(batch: dict[str, list], text_column: str, repeated: Mapping[Kind, Any]) -> dict[str, list]:
    found = [cut_passages(text or "", repeated) for text in batch[text_column]]
    texts = [text if cut or before else before for before, (text, cut) in zip(batch[text_column], found)]
    numbers = {_CUT[kind]: [sum(passage.kind == kind for passage in cut) for _, cut in found] for kind in repeated}
    return {text_column: texts, **numbers}


def _list_passages(
    batch: dict[str, list], indices: list[int], rows: np.ndarray, text_column: str, repeated: Any
) -> dict[str, list]:
    found = [(row, p) for row, text in zip(rows[indices], batch[text_column]) for p in cut_passages(text, repeated)[1]]
    columns = {
        name: [getattr(passage, name) for _, passage in found] for name in ("start", "kind", "documents", "text")
    }
    return {"input_row": [int(row) for row, _ in found], **columns}
