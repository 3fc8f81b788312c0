"""Rows as people have them (text, prompt and completion, messages) -> token ids and the positions that count."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LONGEST_CONTEXT = 4096  # longer texts are scored in windows of at most this many tokens


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids without BOS, the positions among them that count, and the UTF-8 bytes that those tokens spell."""

    ids: list[int]
    counted: Sequence[int]
    num_bytes: int


def bos_token(tokenizer: PreTrainedTokenizerBase, bos: str) -> int | None:
    """The token to prepend as context: BOS, else EOS; None for `bos="none"`.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if bos == "none":
        return None
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ValueError(
            "The tokenizer has neither a BOS nor an EOS token; pass bos='none' to leave the first token unscored."
        )
    return token


def tokenize_rows(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    chat_template: str | None = None,
) -> list[TokenizedRow]:
    """Tokenize a batch of rows, a dict of lists; see [`columns_to_score`] for which columns.

    Raises:
        KeyError: none of these columns is there.
        TypeError: a value is not of the type its column needs.
        ValueError: the chat template marks no assistant token.
    """
    columns = columns_to_score(batch, text_column)
    if columns == ("messages",):
        return [_tokenize_messages(m, i, tokenizer, chat_template) for i, m in enumerate(batch["messages"])]
    if columns == ("prompt", "completion"):
        return _tokenize_pairs(batch["prompt"], batch["completion"], tokenizer)
    return _tokenize_texts(batch[text_column], tokenizer, text_column)


def columns_to_score(rows: Mapping[str, Any], text_column: str) -> tuple[str, ...]:
    """The columns to score: the text column if there is one, else messages, else prompt and completion."""
    for columns in ((text_column,), ("messages",), ("prompt", "completion")):
        if all(column in rows for column in columns):
            return columns
    raise KeyError(
        f"No column {text_column!r} to score; the columns are {sorted(rows)}. Pass "
        f"PerplexityScorer(..., text_column=...), or bring 'prompt' and 'completion', or 'messages'."
    )


def windows(
    row: TokenizedRow, *, bos: int | None, max_length: int, stride: int
) -> Iterator[tuple[list[int], Sequence[int]]]:
    """Cut a row into windows of at most `max_length` tokens: pairs of ids and counted positions, each position >= 1.

    The first window starts with the BOS token if there is one, which a chat template or the text itself may have put
    there already; each later one repeats `stride` tokens as context, so every token is scored exactly once.
    """
    ids, counted = row.ids, np.asarray(row.counted, dtype=np.int64)
    if bos is not None and ids[:1] != [bos]:
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


def _tokenize_texts(texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase, column: str) -> list[TokenizedRow]:
    texts = ["" if text is None else text for text in texts]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Row {index} of the batch: column {column!r} holds {type(text).__name__}, not a string.")
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [TokenizedRow(ids, range(len(ids)), _num_bytes(text)) for ids, text in zip(encoded, texts)]


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogatepass"))


def _tokenize_pairs(
    prompts: Sequence[Any], completions: Sequence[Any], tokenizer: PreTrainedTokenizerBase
) -> list[TokenizedRow]:
    """Prompt and completion are tokenized apart: which tokens count does not depend on a merge across the border."""
    prompt_rows = _tokenize_texts(prompts, tokenizer, "prompt")
    completion_rows = _tokenize_texts(completions, tokenizer, "completion")
    return [
        TokenizedRow(p.ids + c.ids, range(len(p.ids), len(p.ids) + len(c.ids)), c.num_bytes)
        for p, c in zip(prompt_rows, completion_rows)
    ]


def _tokenize_messages(
    messages: Sequence[Mapping[str, Any]],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
) -> TokenizedRow:
    if not messages:
        return TokenizedRow([], range(0), 0)
    if not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise TypeError(f"Row {index} of the batch: 'messages' must be a list of dicts with 'role' and 'content'.")
    encoded = tokenizer.apply_chat_template(
        list(messages),
        chat_template=chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    counted = [position for position, inside in enumerate(encoded["assistant_masks"]) if inside]
    answers = [str(m.get("content") or "") for m in messages if m["role"] == "assistant"]
    if any(answers) and not counted:
        raise ValueError(
            f"Row {index} of the batch: the chat template of {tokenizer.name_or_path!r} marks no assistant token. It "
            "needs {% generation %} ... {% endgeneration %} around the assistant's text; pass such a template as "
            "PerplexityScorer(..., chat_template=...)."
        )
    return TokenizedRow(list(encoded["input_ids"]), counted, sum(_num_bytes(answer) for answer in answers))
