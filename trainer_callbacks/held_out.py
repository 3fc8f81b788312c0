"""A held-out set, tokenized once and measured many times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import IterableDataset

from hf_ppl_select.likelihood.start_token import start_token
from hf_ppl_select.scoring.perplexity import TextLikelihoods, context_length, score_rows
from hf_ppl_select.scoring.rows import TokenizedRow, columns_to_score, tokenize_rows

from .measuring import tokenizer_of
from .processes import engine_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from hf_ppl_select.likelihood.engine import LikelihoodEngine


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows as tokens; measured, they give what `hf_ppl_select.scoring.perplexity.evaluate_perplexity` does.

    Of texts every token counts, of `prompt` and `completion` those of the completion, of `messages` the assistant's:
    see [`hf_ppl_select.scoring.rows.tokenize_rows`].
    """

    name: str
    rows: list[TokenizedRow]
    bos: int | None
    max_length: int | None

    @classmethod
    def from_rows(
        cls,
        name: str,
        rows: Iterable[str] | Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        bos: int | None,
        text_column: str = "text",
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> HeldOutSet:
        """Tokenize a list of texts or a [`~datasets.Dataset`]; `bos` is the token to put before each.

        Raises:
            ValueError: nothing to score in it: no rows, only empty ones, or none of the columns above.
            TypeError: it is one text, several splits, or a stream.
        """
        names = getattr(rows, "column_names", None)
        if isinstance(rows, str):
            raise TypeError(f"the held-out set {name!r} is one text; pass a list of texts, e.g. [{rows[:20]!r}].")
        if isinstance(rows, Mapping):
            raise TypeError(f"the held-out set {name!r} has the splits {', '.join(map(str, rows))}; pass one of them.")
        if isinstance(rows, IterableDataset):
            raise TypeError(
                f"the held-out set {name!r} is a stream; pass rows of it: Dataset.from_list(list(stream.take(500)))."
            )
        batch = {text_column: list(rows)} if names is None else rows.with_format(None)[:]
        if names is not None:
            try:
                columns_to_score(batch, text_column)
            except KeyError as error:
                raise ValueError(
                    f"the held-out set {name!r} has the columns {', '.join(names)}; name the one with the text "
                    "(text_column=), or bring 'prompt' and 'completion', or 'messages'."
                ) from error
        tokenized = tokenize_rows(batch, tokenizer, text_column=text_column, chat_template=chat_template)
        if not any(len(row.counted) for row in tokenized):
            raise ValueError(f"the held-out set {name!r} has no token to score in its {len(tokenized)} rows.")
        return cls(name, tokenized, bos, max_length)

    def measure(self, engine: LikelihoodEngine) -> TextLikelihoods:
        """Likelihoods under the engine's model as it is now."""
        max_length = self.max_length or context_length(engine.model)
        return score_rows(self.rows, engine, bos=self.bos, max_length=max_length, stride=max_length // 2)


def tokenize_sets(
    trainer: Trainer,
    held_out: Mapping[str, Iterable[str] | Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    chat_template: str | None = None,
    max_length: int | None = None,
) -> list[HeldOutSet]:
    """Named held-out sets with the trainer's tokenizer, and windows that its model can read.

    Raises:
        TypeError: `held_out` does not go from names to rows.
        ValueError: as [`HeldOutSet.from_rows`]; `max_length` does not suit the model; or there is no tokenizer.
    """
    if not isinstance(held_out, Mapping):
        raise TypeError(f'held-out sets need names, e.g. {{"domain": texts}}; got a {type(held_out).__name__}.')
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length must be at least 2, not {max_length}.")
    context_length(trainer.model, max_length)
    tokenizer = tokenizer or tokenizer_of(trainer)
    options = {"text_column": text_column, "chat_template": chat_template, "max_length": max_length}
    # Asked of the model before it trains: a resumed run has its checkpoint's weights only later, and measures alike
    options["bos"] = start_token(engine_of(trainer), tokenizer)
    return [HeldOutSet.from_rows(name, rows, tokenizer, **options) for name, rows in held_out.items()]
