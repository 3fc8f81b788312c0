"""Messages as a chat template writes them: the text that a model sees, and where in it the assistant speaks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")  # what a row may bring beside its messages
# What the Python in a template raises on contents, tools and variables that it does not expect
_OF_TEMPLATES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_BEGINS, _ENDS = "\ufdd0", "\ufdd1"  # code points that Unicode keeps out of texts


def template_options(
    row: int, chat_template: str | None, tools: Any = None, chat_template_kwargs: Any = None
) -> dict[str, Any]:
    """Arguments of `apply_chat_template` for a row, as TRL's `SFTTrainer` takes them from these columns.

    Args:
        row: its number in the batch, for errors.
        chat_template: instead of the tokenizer's own.
        tools: the row's `tools`: JSON schemas, or a JSON string of them.
        chat_template_kwargs: the row's variables for the template.

    Raises:
        TypeError: `chat_template_kwargs` is not a mapping.
        ValueError: `tools` is a string, but not JSON.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Row {row} of the batch: column 'tools' is not JSON ({error!s:.200}).") from error
    if not isinstance(chat_template_kwargs, Mapping | None):
        kind = type(chat_template_kwargs).__name__
        raise TypeError(f"Row {row} of the batch: column 'chat_template_kwargs' holds {kind}, not a dict.")
    return {"chat_template": chat_template, "tools": tools, **(chat_template_kwargs or {})}


def render(
    messages: Sequence[Mapping[str, Any]], row: int, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> str:
    """The text of messages under the chat template; `options` are those of [`template_options`].

    Raises:
        TypeError: not a list of messages.
        ValueError: there is no chat template, or it refuses these messages (a role, an order of roles).
    """
    from jinja2 import TemplateError

    turns = messages if isinstance(messages, Iterable) else [None]
    if not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        raise TypeError(f"Row {row} of the batch: 'messages' must be a list of dicts with 'role' and 'content'.")
    template = _template_of(tokenizer, options)
    try:
        return tokenizer.apply_chat_template(list(messages), **{**options, "chat_template": template}, tokenize=False)
    except (TemplateError, *_OF_TEMPLATES) as error:
        roles = ", ".join(str(turn["role"]) for turn in messages)
        raise ValueError(
            f"Row {row} of the batch: the chat template of {tokenizer.name_or_path!r} refuses messages of the roles "
            f"{roles:.200} ({error!s:.300}); change or leave out the row, or pass "
            "PerplexityScorer(..., chat_template=...)."
        ) from error


def render_with_spans(
    messages: Sequence[Mapping[str, Any]], row: int, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """The text of messages, and the spans of characters in it that `{% generation %}` blocks write.

    The spans are found by rendering the template a second time with a character at either end of each block, so a
    block may also lie in a macro, where transformers' own count of characters is off.

    Raises:
        TypeError, ValueError: as [`render`]; the template marks no assistant, or what it marks is changed afterwards.
    """
    text = render(messages, row, tokenizer, options)
    marked = mark_blocks(_template_of(tokenizer, options))
    spans = []
    if marked is not None:
        if _BEGINS in text or _ENDS in text:
            raise ValueError(f"Row {row} of the batch holds U+FDD0 or U+FDD1, which are no characters: take them out.")
        found, spans = take_marks(render(messages, row, tokenizer, {**options, "chat_template": marked}))
        if found != text:
            raise ValueError(
                f"Row {row} of the batch: what the {{% generation %}} blocks of the chat template write cannot be "
                "found in its text; put the marks where the assistant's text is written, with nothing (a filter, a "
                "macro's caller) that changes it afterwards."
            )
    if not spans and any(_says_something(turn) for turn in messages):
        raise ValueError(
            f"Row {row} of the batch: the chat template of {tokenizer.name_or_path!r} marks no assistant token. It "
            "needs {% generation %} ... {% endgeneration %} around the assistant's text; pass such a template as "
            "PerplexityScorer(..., chat_template=...)."
        )
    return text, spans


@lru_cache
def mark_blocks(template: str) -> str | None:
    """The template with U+FDD0 and U+FDD1 inside either end of each generation block; None where it has no block.

    It is put together from Jinja's own tokens, from which whitespace control has already taken what it takes; `+`
    keeps it from taking more.
    """
    from jinja2 import Environment

    tokens = [(kind, value) for _, kind, value in Environment(trim_blocks=True, lstrip_blocks=True).lex(template)]
    written, block, has_blocks = [], "", False
    for place, (kind, value) in enumerate(tokens):
        if kind == "block_begin":
            block = next(value for kind, value in tokens[place:] if kind == "name")
            has_blocks |= block == "generation"
            written.append(f"{_ENDS}{{%+" if block == "endgeneration" else "{%+")
        elif kind == "block_end":
            written.append(f"+%}}{_BEGINS}" if block == "generation" else "+%}")
        elif kind in ("variable_begin", "variable_end"):
            written.append(value.strip().strip("-+"))
        elif kind in ("raw_begin", "raw_end"):
            written.append("{%+ raw %}" if kind == "raw_begin" else "{%+ endraw +%}")
        elif kind == "data" and value.endswith("{"):  # it would join the brace of a tag
            written.append(value[:-1] + "{{ '{' }}")
        elif not kind.startswith("comment"):
            written.append(value)
    last_newline = "\n" if tokens and tokens[-1][1].endswith("\n") else ""  # Jinja drops one at the end
    return "".join(written) + last_newline if has_blocks else None


def take_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the spans between them; blocks in blocks are one span."""
    pieces, spans, position, depth, begin = [], [], 0, 0, 0
    for piece in re.split(f"([{_BEGINS}{_ENDS}])", marked):
        if piece == _BEGINS:
            begin = begin if depth else position
            depth += 1
        elif piece == _ENDS:
            depth -= 1
            if not depth:
                spans.append((begin, position))
        else:
            pieces.append(piece)
            position += len(piece)
    if depth > 0:  # `continue_final_message` ends the text inside of the block
        spans.append((begin, position))
    return "".join(pieces), spans


def _template_of(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """The source of the template that `apply_chat_template` would take."""
    try:
        return tokenizer.get_chat_template(options["chat_template"], options["tools"])
    except ValueError as error:
        raise ValueError(
            f"Messages need a chat template, and the tokenizer {tokenizer.name_or_path!r} gives none ({error}); pass "
            "PerplexityScorer(..., chat_template=...)."
        ) from error


def _says_something(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" and any(value for name, value in turn.items() if name not in ("role", "name"))
