"""Rows as people have them (text, prompt and completion, messages) -> token ids and the positions that count."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .messages import TEMPLATE_COLUMNS, render, render_with_spans, template_options
from .spans import bytes_of_first, count_spans, num_bytes, token_extents

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LONGEST_CONTEXT = 4096  # longer texts are scored in windows of at most this many tokens


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids without BOS, the positions among them that count, and the UTF-8 bytes of the text that those spell.

    `num_bytes_first` of these bytes are the token's at position 0, which cannot be scored where nothing precedes it.
    A `complete` row starts as it does in training, by its chat template: nothing comes before it as context, unless
    its first token counts.
    """

    ids: list[int]
    counted: Sequence[int]
    num_bytes: int
    num_bytes_first: int = 0
    complete: bool = False

    def follows(self, bos: int | None) -> bool:
        """Whether a BOS goes before the ids: there is one, it is not there already, and the row needs one."""
        starts = self.complete and not (len(self.counted) and self.counted[0] == 0)
        return bos is not None and self.ids[:1] != [bos] and not starts


def tokenize_rows(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    chat_template: str | None = None,
    split_special_tokens: bool = False,
) -> list[TokenizedRow]:
    """Tokenize a batch of rows, a dict of lists; see [`columns_to_score`] for which columns.

    Of a text every token counts. Of messages those count that a character of the template's `{% generation %}` blocks
    is part of. Of prompt and completion, texts or lists of messages, those count that come after what the tokens of
    the prompt alone and of both together have in common, as in TRL's `SFTTrainer`: a token that crosses the border
    counts whole, and warns. The EOS that `SFTTrainer` writes behind a text counts where it stands in the row.

    Args:
        batch: columns; beside messages also `tools` and `chat_template_kwargs`.
        tokenizer: special tokens that it puts around a text are left out; `windows` puts BOS before it.
        text_column: which column holds the text.
        chat_template: instead of the tokenizer's own.
        split_special_tokens: take what looks like a special token in a text (`<|im_end|>`) as the text it is.

    Raises:
        KeyError: none of these columns is there.
        TypeError: a value is not of the type its column needs.
        ValueError: the chat template refuses a row or marks no assistant token; the tokenizer does not say where its
            tokens lie in the text; or `split_special_tokens` is asked for of messages.
    """
    columns = columns_to_score(batch, text_column)
    if columns[0] == text_column:
        return _tokenize_texts(batch[text_column], tokenizer, text_column, split_special_tokens)
    pairs = zip(batch["prompt"], batch["completion"]) if columns[0] == "prompt" else ()
    if columns[0] == "prompt" and not any(_is_list(prompt) and _is_list(completion) for prompt, completion in pairs):
        return _tokenize_pairs(batch["prompt"], batch["completion"], tokenizer, split_special_tokens)
    if split_special_tokens:
        raise ValueError("split_special_tokens is for texts: a chat template writes special tokens into messages.")
    more = [name for name in columns if name in TEMPLATE_COLUMNS]
    options = [
        template_options(row, chat_template, **{name: batch[name][row] for name in more})
        for row in range(len(batch[columns[0]]))
    ]
    if columns[0] == "prompt":
        return _tokenize_chat_pairs(batch["prompt"], batch["completion"], tokenizer, options)
    return _tokenize_messages(batch["messages"], tokenizer, options)


def columns_to_score(rows: Mapping[str, Any], text_column: str) -> tuple[str, ...]:
    """The columns to score: the text column if there is one, else messages, else prompt and completion; with messages
    also those of [`TEMPLATE_COLUMNS`] that are there.
    """
    for columns in ((text_column,), ("messages",), ("prompt", "completion")):
        if all(column in rows for column in columns):
            more = () if columns[0] == text_column else TEMPLATE_COLUMNS
            return columns + tuple(column for column in more if column in rows)
    raise KeyError(
        f"No column {text_column!r} to score; the columns are {sorted(rows)}. Pass "
        "text_column=..., or bring 'prompt' and 'completion', or 'messages'."
    )


def is_one_row(rows: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether `rows` is one row, whose text is a string and whose messages are dicts, or a batch, a dict of lists.

    A text that is a list of strings looks like a batch. It is a row where `datasets` says so, or where another column
    has not as many values.

    Args:
        rows: one of the two.
        columns: those to score, as [`columns_to_score`] gives them.
    """
    if type(rows).__name__ in ("LazyBatch", "LazyRow"):  # of `Dataset.map`; to import datasets takes a second
        return type(rows).__name__ == "LazyRow"
    first = rows[columns[0]]
    if not _is_list(first):
        return True
    if len(first) and isinstance(first[0], Mapping):
        return True
    if columns[0] == "messages" and not len(first):  # one empty conversation, or no row at all
        others = [value for name, value in rows.items() if name not in columns]
        return any(not _has_length(value) or len(value) for value in others)
    return not all(_has_length(values) and len(values) == len(first) for values in rows.values())


def windows(
    row: TokenizedRow, *, bos: int | None, max_length: int, stride: int
) -> Iterator[tuple[list[int], Sequence[int]]]:
    """Cut a row into windows of at most `max_length` tokens: pairs of ids and counted positions, each position >= 1.

    The first window starts with the BOS token if there is one, which the text itself may have put there already, and
    which a complete row needs only to have its first token scored; each later one repeats `stride` tokens as context,
    so every token is scored exactly once.
    """
    ids, counted = row.ids, np.asarray(row.counted, dtype=np.int64)
    if row.follows(bos):
        ids, counted = [bos, *ids], counted + 1
    counted = counted[counted >= 1]
    if not len(counted):
        return
    if len(ids) <= max_length:
        yield ids, counted
        return
    logger.info("A text of %d tokens is scored in windows of %d.", len(row.ids), max_length)
    start, end, scored = 0, max_length, 0
    while True:
        before, scored = scored, int(np.searchsorted(counted, end))  # positions rise: no scan of a book per window
        if scored > before:
            yield ids[start:end], counted[before:scored] - start
        if end == len(ids):
            return
        start = end - stride
        end = min(start + max_length, len(ids))


def _tokenize_texts(
    texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase, column: str, split_special_tokens: bool
) -> list[TokenizedRow]:
    texts = as_strings(texts, column)
    if not texts:
        return []
    encoded = _encode(tokenizer, texts, split_special_tokens)
    rows = []
    for index, (ids, text) in enumerate(zip(encoded["input_ids"], texts)):
        rows.append(TokenizedRow(ids, range(len(ids)), num_bytes(text), _first(text, ids, index, encoded, tokenizer)))
    return rows


def _tokenize_pairs(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    split_special_tokens: bool,
) -> list[TokenizedRow]:
    prompts, completions = as_strings(prompts, "prompt"), as_strings(completions, "completion")
    wholes = [prompt + completion for prompt, completion in zip(prompts, completions)]
    return _completions(prompts, wholes, tokenizer, split_special_tokens)


def _tokenize_chat_pairs(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    options: Sequence[Mapping[str, Any]],
) -> list[TokenizedRow]:
    befores, wholes = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        prompt = [] if prompt is None else prompt
        if completion is None or not len(completion):
            befores.append("")
            wholes.append("")
            continue
        if not _is_list(prompt) or not _is_list(completion) or not len(prompt):
            raise TypeError(
                f"Row {row} of the batch: 'prompt' and 'completion' must both be texts, or both lists of messages."
            )
        befores.append(render(prompt, row, tokenizer, {**options[row], "add_generation_prompt": True}))
        wholes.append(render([*prompt, *completion], row, tokenizer, options[row]))
    return _completions(befores, wholes, tokenizer, complete=True)


def _completions(
    prompts: Sequence[str],
    wholes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    split_special_tokens: bool = False,
    complete: bool = False,
) -> list[TokenizedRow]:
    """Rows of which those tokens count that come after the ones that each prompt and whole text begin with alike."""
    if not prompts:
        return []
    befores = _encode(tokenizer, prompts, split_special_tokens)["input_ids"]
    encoded = _encode(tokenizer, wholes, split_special_tokens)
    rows, crossing = [], []
    for index, (prompt, whole, before, ids) in enumerate(zip(prompts, wholes, befores, encoded["input_ids"])):
        shared = next((i for i, (a, b) in enumerate(zip(before, ids)) if a != b), min(len(before), len(ids)))
        begin = len(prompt)
        if (shared < len(before) or not whole.startswith(prompt)) and shared < len(ids):
            crossing.append(index)
            begin = min(begin, _begin(index, shared, encoded, whole, tokenizer))
        first = _first(whole, ids, index, encoded, tokenizer) - num_bytes(whole[:begin]) if shared == 0 else 0
        spelled = num_bytes(whole[begin:]) if shared < len(ids) else 0
        rows.append(TokenizedRow(ids, range(shared, len(ids)), spelled, max(first, 0), complete))
    if crossing:
        logger.info("In %d of %d rows, as row %d, a token crosses the border.", len(crossing), len(rows), crossing[0])
        warnings.warn(
            "A token crosses from a prompt into its completion (or the chat template writes the prompt alone "
            "otherwise). All tokens from the first on that are not the prompt's count, as in TRL's SFTTrainer. Let a "
            "completion begin with the space before it, and not a prompt end with it, and none crosses there.",
            stacklevel=2,
        )
    return rows


def _tokenize_messages(
    conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase, options: Sequence[Mapping[str, Any]]
) -> list[TokenizedRow]:
    texts, spans = [], []
    for row, messages in enumerate(conversations):
        empty = messages is None or (isinstance(messages, Sized) and not len(messages))
        text, found = ("", []) if empty else render_with_spans(messages, row, tokenizer, options[row])
        texts.append(text)
        spans.append(found)
    if not texts:
        return []
    encoded = _encode(tokenizer, texts)
    if encoded.encodings is None and any(spans):
        raise ValueError(_no_offsets(next(row for row, found in enumerate(spans) if found), tokenizer))
    rows = []
    for row, ids in enumerate(encoded["input_ids"]):
        counts = count_spans(texts[row], spans[row], encoded.encodings[row]) if spans[row] else ((), 0, 0)
        rows.append(TokenizedRow(ids, *counts, complete=True))
    return rows


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split_special_tokens: bool = False
) -> BatchEncoding:
    options = {"split_special_tokens": True} if split_special_tokens else {}  # else the tokenizer's own setting
    try:
        return tokenizer(list(texts), add_special_tokens=False, verbose=False, **options)
    except (TypeError, UnicodeEncodeError) as error:
        for row, text in enumerate(texts):
            if half := re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"Row {row} of the batch holds half a character, {half[0]!r}; write it anew."
                ) from error
        raise


def _first(text: str, ids: Sequence[int], row: int, encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> int:
    """UTF-8 bytes of a text's first token."""
    if encoded.encodings is not None:
        return bytes_of_first(text, encoded.encodings[row])
    return min(num_bytes(tokenizer.decode(ids[:1])), num_bytes(text))  # a Python tokenizer has no offsets


def _begin(row: int, token: int, encoded: BatchEncoding, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The character of a text from which a token was made."""
    if encoded.encodings is None:
        raise ValueError(_no_offsets(row, tokenizer))
    return int(token_extents(encoded.encodings[row])[0][token])


def _no_offsets(row: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"Row {row} of the batch: {type(tokenizer).__name__} does not say where in a text its tokens lie, so those "
        "that count cannot be told; load a fast tokenizer, one with a tokenizer.json."
    )


def as_strings(texts: Sequence[Any], column: str) -> list[str]:
    texts = ["" if text is None else text for text in texts]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            fix = "join its parts, or give each a row of its own" if _is_list(text) else "make it one, or leave it out"
            kind = type(text).__name__
            raise TypeError(f"Row {index} of the batch: column {column!r} holds {kind}, not a string: {fix}.")
    return texts


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _has_length(value: Any) -> bool:
    """Whether it may be a batch's column: a list, an array or a tensor."""
    return isinstance(value, Sized) and not isinstance(value, str | bytes | Mapping) and getattr(value, "ndim", 1) > 0
