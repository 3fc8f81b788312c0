"""Documents -> chunks: pieces of text of a fixed number of tokens, the unit that is scored and selected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from .strict import check_text

LEFT_OUT = "left_out"


def chunk_documents(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 2048,
    *,
    text_column: str = "text",
    separator: str | None = "\n\n",
    keep_columns: Sequence[str] = (),
    min_length: int | None = None,
    mark_left_out: bool = False,
) -> dict[str, list]:
    """Cut documents into chunks of `max_length` tokens; a function for `dataset.map`.

    ```python
    dataset = dataset.map(chunk_documents, batched=True, remove_columns=dataset.column_names,
                          fn_kwargs={"tokenizer": tokenizer, "max_length": 2048})
    ```

    Documents of a batch are joined, then cut. Chunks are exact substrings: joined again, they give the documents back.
    A character that takes several tokens is never split. The last chunk is shorter; where it would have fewer than
    `min_length` tokens, which makes a perplexity of little meaning, it is cut anew together with the one before it,
    into halves: no chunk has more than `max_length` tokens, and of two or more none has fewer than `min_length`.

    No text is lost, except with `separator=None`: documents shorter as a whole than `min_length` are left out.
    `mark_left_out` tells which; `len` of them and their characters are what is missing in the chunks.

    Args:
        batch: a batch of rows, a dict of lists.
        tokenizer: a fast tokenizer; its special tokens are left out.
        max_length: tokens in a chunk.
        text_column: the column that holds the documents; empty ones (or None) are left out.
        separator: put between documents that are joined; `None` keeps documents apart.
        keep_columns: columns that chunks keep, e.g. `["source"]`; only documents equal in all of them are joined.
        min_length: least tokens in a chunk, at most half of `max_length`; default: a quarter of it. 0 keeps all
            documents, and cuts every `max_length` tokens.
        mark_left_out: return the documents that are left out, too, and a column `left_out` that is True for them.

    Returns:
        `{"text": chunks}` and the kept columns.

    Raises:
        KeyError: no such column.
        TypeError: not called with `batched=True`, or a document is not a string.
        ValueError: `max_length` below 1, or `min_length` below 0 or above half of it.
    """
    min_length = check_lengths(max_length, min_length)
    for column in (text_column, *keep_columns):
        if column not in batch:
            raise KeyError(f"No column {column!r} to chunk; the columns are {sorted(batch)}. Pass text_column=...")
    texts = batch[text_column]
    if isinstance(texts, str):
        raise TypeError("One row makes many chunks: call dataset.map(chunk_documents, batched=True, ...).")
    for index, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"Row {index} of the batch: column {text_column!r} holds {type(text).__name__}, no string."
            )

    documents: dict[str, tuple[list, list[str]]] = {}
    for index, text in enumerate(texts):
        if text:
            kept = [batch[column][index] for column in keep_columns]
            group = repr(kept) if separator is not None else str(index)
            documents.setdefault(group, (kept, []))[1].append(text)
    chunks: dict[str, list] = {"text": [], **{column: [] for column in keep_columns}}
    if mark_left_out:
        if LEFT_OUT in keep_columns:
            raise ValueError(f"keep_columns has {LEFT_OUT!r}, which mark_left_out=True adds; rename that column.")
        chunks[LEFT_OUT] = []
    for kept, joined in documents.values():
        parts = [f"{text}{separator}" for text in joined[:-1]] + joined[-1:]
        for chunk in _even_tail(_cut(_tokenized(parts, tokenizer), max_length), max_length, min_length):
            text = "".join(piece.text[piece.start : piece.end] for piece in chunk)
            left_out = separator is None and text == joined[0] and _num_tokens(chunk) < min_length
            if left_out and not mark_left_out:
                continue
            chunks["text"].append(text)
            for column, value in zip(keep_columns, kept):
                chunks[column].append(value)
            if mark_left_out:
                chunks[LEFT_OUT].append(left_out)
    return chunks


def check_lengths(max_length: int, min_length: int | None) -> int:
    """The least tokens of a chunk, where None is a quarter of `max_length`.

    Raises:
        ValueError: `max_length` below 1, or `min_length` below 0 or above half of it.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}.")
    least = max_length // 4 if min_length is None else min_length
    if not 0 <= least <= max(1, max_length // 2):
        raise ValueError(
            f"min_length must be from 0 to half of the {max_length} tokens of a chunk, not {min_length}: "
            "a short last chunk is made longer at the cost of the one before it."
        )
    return least


class _Piece(NamedTuple):
    """Part of a chunk: characters `start` to `end` of a text, which are its tokens `first` to `last`."""

    text: str
    start: int
    end: int
    offsets: list[tuple[int, int]]
    first: int
    last: int


def _num_tokens(chunk: list[_Piece]) -> int:
    return sum(piece.last - piece.first for piece in chunk)


def _tokenized(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, num_characters: int = 2**20
) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Each text and where its tokens start and end; about `num_characters` at a time, since offsets take memory."""
    first = 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and size < num_characters:
            size += len(texts[last])
            last += 1
        part = list(texts[first:last])
        try:
            encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except (TypeError, UnicodeEncodeError):
            check_text("".join(part), "a document of the batch")
            raise
        yield from zip(part, encoded["offset_mapping"])
        first = last


def _cut(tokenized: Iterable[tuple[str, list[tuple[int, int]]]], max_length: int) -> Iterator[list[_Piece]]:
    """Fill chunks with tokens of one text after the other; a character of several tokens is never split."""
    pieces, room = [], max_length
    for text, offsets in tokenized:
        first, start = 0, 0
        while first < len(offsets):
            cut = min(first + room, len(offsets))
            while first < cut < len(offsets) and offsets[cut][0] < offsets[cut - 1][1]:
                cut -= 1
            if cut == first and room == max_length:  # one character of more than max_length tokens
                cut = next(
                    (i for i in range(first + 1, len(offsets)) if offsets[i][0] >= offsets[i - 1][1]), len(offsets)
                )
            end = offsets[cut - 1][1] if first < cut < len(offsets) else start if cut == first else len(text)
            pieces.append(_Piece(text, start, end, offsets, first, cut))
            room -= cut - first
            full = room <= 0 or cut == first
            first, start = cut, end
            if full:
                yield pieces
                pieces, room = [], max_length
        if start < len(text):
            pieces.append(_Piece(text, start, len(text), offsets, first, first))
    if any(piece.start < piece.end for piece in pieces):
        yield pieces


def _even_tail(chunks: Iterable[list[_Piece]], max_length: int, min_length: int) -> Iterator[list[_Piece]]:
    """The chunks, the last two of them as halves of what they hold where the last one is too short."""
    before: list[_Piece] | None = None
    last: list[_Piece] | None = None
    for chunk in chunks:
        if before is not None:
            yield before
        before, last = last, chunk
    if before is not None and last is not None and _num_tokens(last) < min_length:
        before, last = _halves(before, last, max_length, min_length)
    yield from (chunk for chunk in (before, last) if chunk is not None)


def _halves(
    before: list[_Piece], last: list[_Piece], max_length: int, min_length: int
) -> tuple[list[_Piece], list[_Piece]]:
    """Cut two chunks anew, as evenly as characters allow; not if one takes so many tokens that nothing fits."""
    pieces = before + last
    total, here = _num_tokens(pieces), 0
    places = []  # how uneven, and where: before which token of which piece
    for index, piece in enumerate(pieces):
        for token in range(piece.first, piece.last):
            whole = token == piece.first or piece.offsets[token][0] >= piece.offsets[token - 1][1]
            if whole and min_length <= here <= max_length and min_length <= total - here <= max_length:
                places.append((abs(2 * here - total), index, token))
            here += 1
    if not places:
        return before, last
    _, index, token = min(places)
    piece = pieces[index]
    place = piece.start if token == piece.first else piece.offsets[token - 1][1]
    left = piece._replace(end=place, last=token)
    right = piece._replace(start=place, first=token)
    return [*pieces[:index], left], [right, *pieces[index + 1 :]]
