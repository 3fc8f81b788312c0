"""A held-out set, tokenized once and measured many times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_ppl_select.perplexity import TextLikelihoods, context_length, score_rows
from hf_ppl_select.rows import TokenizedRow, bos_token, columns_to_score, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_ppl_select.likelihood import LikelihoodEngine


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows as tokens; measured, they give what `hf_ppl_select.perplexity.evaluate_perplexity` does.

    Of texts every token counts, of `prompt` and `completion` those of the completion, of `messages` the assistant's.
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
        text_column: str = "text",
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> HeldOutSet:
        """Tokenize a list of texts or a [`~datasets.Dataset`].

        Raises:
            ValueError: nothing to score in it: no rows, only empty ones, or none of the columns above.
        """
        names = getattr(rows, "column_names", None)
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
        return cls(name, tokenized, bos_token(tokenizer, "auto"), max_length)

    def measure(self, engine: LikelihoodEngine) -> TextLikelihoods:
        """Likelihoods under the engine's model as it is now."""
        max_length = self.max_length or context_length(engine.model)
        return score_rows(self.rows, engine, bos=self.bos, max_length=max_length, stride=max_length // 2)
