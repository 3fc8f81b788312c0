"""Held-out perplexity while training: what the domain gains, and what general text loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .held_out import HeldOutSet
from .measuring import MeasuringCallback, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from hf_ppl_select.likelihood import LikelihoodEngine


class PerplexityCallback(MeasuringCallback):
    """Logs the perplexity of named held-out sets under the model as it trains.

    For each set `name` it logs

    - `<name>_loss`: summed nll over summed tokens, nats per token;
    - `<name>_perplexity`: `exp(loss)`;
    - `<name>_bits_per_byte`: summed nll in bits over UTF-8 bytes, which compares across tokenizers;
    - `<name>_forgetting`: loss now minus loss at step 0, nats per token. Above 0 the model has become worse at the
      set, which of general text is forgetting; below 0 it has learned.

    It measures at step 0, every `every_n_steps` steps, after each evaluation of the trainer, and at the last step. The
    loss at step 0 is read from the trainer's log history, which checkpoints carry, so a resumed run keeps it. A run
    resumed from a checkpoint made without this callback has none and logs no forgetting.

    The numbers are those of `hf_ppl_select.perplexity.evaluate_perplexity`, in the mixed precision of the training.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        held_out: name -> texts, or a [`~datasets.Dataset`] with a text column, `messages` (the assistant's tokens
            count) or `prompt` and `completion` (the completion counts), e.g. `{"domain": ..., "general": ...}`.
        text_column: the column of a dataset that holds the text.
        tokenizer: default: the trainer's.
        chat_template: for `messages`, instead of the tokenizer's own.
        max_length: tokens in one window; default: the model's positions, at most 4,096.
        every_n_steps: measure each time so many steps are done; default: only when the trainer evaluates.

    Raises:
        ValueError: no sets, a set with nothing to score, or a trainer that shards the weights.

    Example:

    ```python
    trainer = SFTTrainer(model="HuggingFaceTB/SmolLM2-135M", train_dataset=subset)
    trainer.add_callback(PerplexityCallback(trainer, {"domain": domain, "general": general}, every_n_steps=100))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        held_out: Mapping[str, Iterable[str] | Any],
        *,
        text_column: str = "text",
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        max_length: int | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(trainer, every_n_steps=every_n_steps)
        if not held_out:
            raise ValueError('there are no held-out sets; pass at least one, e.g. {"domain": texts}.')
        tokenizer = tokenizer or tokenizer_of(trainer)
        options = {"text_column": text_column, "chat_template": chat_template, "max_length": max_length}
        self.held_out = [HeldOutSet.from_rows(name, rows, tokenizer, **options) for name, rows in held_out.items()]

    def measure(self, engine: LikelihoodEngine) -> dict[str, float]:
        metrics = {}
        for held_out in self.held_out:
            name, found = held_out.name, held_out.measure(engine)
            metrics[f"{name}_loss"] = found.nll_per_token
            metrics[f"{name}_perplexity"] = found.perplexity
            metrics[f"{name}_bits_per_byte"] = found.bits_per_byte
            at_start = self._logged_at_start(f"{name}_loss", found.nll_per_token)
            if at_start is not None:
                metrics[f"{name}_forgetting"] = found.nll_per_token - at_start
        return metrics

    def _logged_at_start(self, key: str, now: float) -> float | None:
        state = self.trainer.state
        if state.global_step == 0:
            return now
        return next((row[key] for row in state.log_history if row["step"] == 0 and key in row), None)
