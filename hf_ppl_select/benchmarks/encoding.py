"""Questions to token ids as lm-evaluation-harness makes them: encode prompt + continuation, split after the prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
_UNSET_MAX_LENGTH = 10**9  # tokenizers without a limit say 10**30


@dataclass(frozen=True)
class Request:
    """A choice to score: the tokens from `start` on; `num_truncated` tokens were cut from the prompt's left."""

    ids: tuple[int, ...]
    start: int
    num_truncated: int


def model_max_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens: the model's positions, else the tokenizer's limit, else 2,048."""
    config = config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    limit = tokenizer.model_max_length
    return int(limit) if limit is not None and limit < _UNSET_MAX_LENGTH else DEFAULT_MAX_LENGTH


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens, usually one BOS or none, that the tokenizer itself puts before a text."""
    with_special = _encode(tokenizer, ["a"], add_special_tokens=True)[0]
    plain = _encode(tokenizer, ["a"], add_special_tokens=False)[0]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return with_special[:start]
    raise ValueError(f"{type(tokenizer).__name__} encodes a text otherwise with special tokens than without.")


def encode_questions(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, *, name: str = "benchmark"
) -> list[list[Request]]:
    """Token ids of every choice after its prompt.

    The ids are encode(prompt + " " + choice), and what they have beyond encode(prompt) is scored; spaces at the
    prompt's end belong to the continuation. Where a token crosses from the prompt into one of a question's choices, as
    those of tokenizers do whose tokens hold several words, all of its choices are scored from where the first of them
    leaves the prompt's tokens: so they are still compared on one text. These questions are counted in a warning;
    lm-evaluation-harness scores them on tokens of another text.

    Where the ids exceed `max_length` + 1, the prompt loses its left end; the one token more is the last, which is
    predicted and never fed to the model.

    Args:
        questions: what to encode.
        tokenizer: special tokens that it puts first (BOS) are kept, and never doubled; others are left out.
        max_length: tokens the model can read.
        name: the benchmark's, for errors.

    Returns:
        for each question one [`Request`] per choice.

    Raises:
        ValueError: a choice has no tokens of its own, or alone exceeds `max_length`.
    """
    prefix = special_prefix(tokenizer)
    first_special = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first_text = tokenizer.decode([first_special]) if first_special is not None else None

    prompts = [question.prompt.rstrip() for question in questions]
    wholes = [f"{question.prompt} {choice}" for question in questions for choice in question.choices]
    prompt_ids = _encode(tokenizer, prompts)
    whole_ids = iter(_encode(tokenizer, wholes))

    requests, num_crossing = [], 0
    for question, prompt, before in zip(questions, prompts, prompt_ids, strict=True):
        lead = [] if first_text and prompt.startswith(first_text) else prefix
        wholes = [next(whole_ids) for _ in question.choices]
        num_shared = [_num_shared(before, whole) for whole in wholes]
        shared = min(num_shared)
        if shared < len(before):
            num_crossing += 1
            if not shared and not lead and first_special is None:
                raise ValueError(
                    f"{name}, row {question.index}: a choice changes even the prompt's first token, and the tokenizer "
                    "has no BOS or EOS to put before it; set its bos_token."
                )
            lead = lead if shared or lead else [first_special]  # the first token can only be scored after another
        row = []
        for choice, whole, own in zip(question.choices, wholes, num_shared, strict=True):
            num_scored = len(whole) - shared
            if not 0 < len(whole) - own <= num_scored <= max_length:
                raise ValueError(
                    f"{name}, row {question.index}: the choice {choice!r} has {len(whole) - own} tokens of its own, "
                    f"and {num_scored} to score; there must be at least one, and at most the model's {max_length}."
                )
            ids = [*lead, *whole]
            kept = ids[-max_length - 1 :]
            row.append(Request(tuple(kept), len(kept) - num_scored, len(ids) - len(kept)))
        requests.append(row)
    if num_crossing:
        logger.warning(
            "%s: in %d of %d questions a token crosses from the prompt into a choice; their choices are scored from "
            "before that token on.",
            name,
            num_crossing,
            len(questions),
        )
    return requests


def _num_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: no warning about long texts, which are cut and counted here.
    encoded = tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]
