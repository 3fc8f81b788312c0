"""Which token a text is scored after: the one that the model saw between documents when it was trained.

Tokenizers do not say which that is. BOS is, as a rule; but chat models may have the mark of a turn there
(`<|im_start|>`, after which they expect a role), and some models were trained with EOS between documents and never saw
their BOS. The model itself knows: after a token that documents begin with, ordinary sentences are much likelier.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

START_TOKENS = ("auto", "bos", "eos", "none")
SENTENCES = (
    "The cat sat on the mat.",
    "She opened the door and looked outside.",
    "In 1998, the company moved its office to Chicago.",
    "Water boils at a hundred degrees.",
    "The capital of France is Paris.",
    "Most birds build their nests in spring.",
    "La casa tiene un jardín muy bonito.",
    "今天天气很好。",
)
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|startoftext|>", "<s>", "</s>", "<bos>")
CLEARLY = 0.95  # another token than the convention's must make the sentences this much likelier, in nats
LANGUAGE = 0.75  # of ln(vocabulary): with more nats per token than this, a model does not know the sentences
CHANCE = 0.9  # likewise: with more, it hardly knows any text
_LONGEST = 48  # tokens of a sentence


class Engine(Protocol):
    """What is asked of a `LikelihoodEngine` here."""

    causal_lm: PreTrainedModel
    vocabulary: int
    positions: float
    start_tokens: dict[tuple[int, ...], int]

    def nll(self, sequences: Sequence[Sequence[int]], counted: Sequence[Sequence[int]]) -> np.ndarray: ...


def check_start(bos: str | int) -> None:
    """ValueError for an unknown choice."""
    if not isinstance(bos, int) and bos not in START_TOKENS:
        raise ValueError(f"bos must be 'auto' or 'none', 'bos' or 'eos', not {bos!r}.")


def start_token(engine: Engine, tokenizer: PreTrainedTokenizerBase, bos: str | int = "auto") -> int | None:
    """The token to put before a text as context, or None.

    A number is that token, for models trained from one that chose it: they are measured as that one is. "bos" and
    "eos" are the tokenizer's, "none" is none. "auto" is BOS, or EOS where there is none, unless the model tells of
    another special token (EOS, padding, unknown, those of its configuration, `SEPARATORS` in its vocabulary) that it
    saw that one between documents: after it, eight fixed sentences cost at least 5 % fewer nats, six of them fewer at
    all, and less than three quarters of what they cost by chance. The model is asked once, with a few hundred tokens;
    its answer depends on its weights only.

    Raises:
        ValueError: an unknown choice, or the tokenizer has no such token.
    """
    check_start(bos)
    if isinstance(bos, int):
        return bos
    convention = tokenizer.eos_token_id if tokenizer.bos_token_id is None or bos == "eos" else tokenizer.bos_token_id
    if bos == "none":
        return None
    if convention is None or (bos == "bos" and tokenizer.bos_token_id is None):
        which = "neither a BOS nor an EOS token" if bos == "auto" else f"no {bos.upper()} token"
        raise ValueError(f"The tokenizer has {which}; pass bos='none' to leave the first token unscored.")
    candidates = _candidates(engine, tokenizer, convention) if bos == "auto" else (convention,)
    if candidates not in engine.start_tokens:
        engine.start_tokens[candidates] = _ask(engine, tokenizer, candidates)
    return engine.start_tokens[candidates]


def _candidates(engine: Engine, tokenizer: PreTrainedTokenizerBase, convention: int) -> tuple[int, ...]:
    """The convention's token, then others that may have stood between documents."""
    names = ("bos", "eos", "pad", "unk", "sep", "cls")
    found = [convention, *(getattr(tokenizer, f"{name}_token_id", None) for name in names)]
    model = engine.causal_lm
    for config in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id"):
            ids = getattr(config, name, None)
            found += ids if isinstance(ids, list | tuple) else [ids]
    added = tokenizer.get_added_vocab()
    found += [added.get(name) for name in SEPARATORS]
    return tuple(dict.fromkeys(token for token in found if token is not None and 0 <= token < engine.vocabulary))


def _ask(engine: Engine, tokenizer: PreTrainedTokenizerBase, candidates: tuple[int, ...]) -> int:
    """The first of the candidates, or another that the model clearly prefers."""
    most = int(min(_LONGEST, engine.positions - 1))
    texts = [ids[:most] for text in SENTENCES if (ids := tokenizer.encode(text, add_special_tokens=False))]
    if not texts:
        return candidates[0]
    sequences = [[token, *ids] for token in candidates for ids in texts]
    nll = engine.nll(sequences, [range(1, len(ids)) for ids in sequences]).reshape(len(candidates), len(texts))
    by_chance = math.log(engine.vocabulary) * sum(map(len, texts))
    total = nll.sum(axis=1)
    best = int(total.argmin())
    clearly = total[best] < CLEARLY * total[0] and (nll[best] < nll[0]).mean() >= 0.75
    chosen = best if clearly and total[best] < LANGUAGE * by_chance else 0
    name = type(engine.causal_lm).__name__
    if total[chosen] > CHANCE * by_chance:
        logger.warning(
            "%s finds ordinary sentences as unlikely as chance would (%.2f nats per token, ln(vocabulary) is %.2f): "
            "its weights may be untrained, or not those of this architecture or tokenizer.",
            name,
            total[chosen] / sum(map(len, texts)),
            math.log(engine.vocabulary),
        )
    if chosen:
        before, after = tokenizer.convert_ids_to_tokens([candidates[0], candidates[chosen]])
        logger.info(
            "Texts are scored after %s, not %s: eight sentences cost %s %.0f nats after it, and %.0f.",
            *(after, before, name, total[chosen], total[0]),
        )
    return candidates[chosen]
