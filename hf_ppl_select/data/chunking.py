"""Documents -> chunks: pieces of text of a fixed number of tokens, the unit that is scored and selected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chunk_documents(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 2048,
    *,
    text_column: str = "text",
    separator: str | None = "\n\n",
    keep_columns: Sequence[str] = (),
) -> dict[str, list]:
    """Cut documents into chunks of `max_length` tokens; a function for `dataset.map`.

    ```python
    dataset = dataset.map(chunk_documents, batched=True, remove_columns=dataset.column_names,
                          fn_kwargs={"tokenizer": tokenizer, "max_length": 2048})
    ```

    Documents of a batch are joined, then cut. Chunks are exact substrings: joined again, they give the documents back,
    and no text is lost; the last chunk is shorter. A character that takes several tokens is never split.

    Args:
        batch: a batch of rows, a dict of lists.
        tokenizer: a fast tokenizer; its special tokens are left out.
        max_length: tokens in a chunk.
        text_column: the column that holds the documents; empty ones (or None) are left out.
        separator: put between documents that are joined; `None` keeps documents apart.
        keep_columns: columns that chunks keep, e.g. `["source"]`; only documents equal in all of them are joined.

    Returns:
        `{"text": chunks}` and the kept columns.

    Raises:
        KeyError: no such column.
        TypeError: not called with `batched=True`, or a document is not a string.
        ValueError: `max_length` below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}.")
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
    for kept, joined in documents.values():
        parts = [f"{text}{separator}" for text in joined[:-1]] + joined[-1:]
        for chunk in _cut(_tokenized(parts, tokenizer), max_length):
            chunks["text"].append(chunk)
            for column, value in zip(keep_columns, kept):
                chunks[column].append(value)
    return chunks


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
        encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        yield from zip(part, encoded["offset_mapping"])
        first = last


def _cut(tokenized: Iterable[tuple[str, list[tuple[int, int]]]], max_length: int) -> Iterator[str]:
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
            pieces.append(text[start:end])
            room -= cut - first
            full = room <= 0 or cut == first
            first, start = cut, end
            if full:
                yield "".join(pieces)
                pieces, room = [], max_length
        if start < len(text):
            pieces.append(text[start:])
    if any(pieces):
        yield "".join(pieces)
