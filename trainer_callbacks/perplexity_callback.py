"""Held-out perplexity while training: what the domain gains, and what general text loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .held_out import HeldOutSet, tokenize_sets
from .measuring import MeasuringCallback

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_ppl_select.likelihood.engine import LikelihoodEngine

LANDSCAPE = "landscape"


class PerplexityCallback(MeasuringCallback):
    """Logs the perplexity of named held-out sets under the model as it trains.

    For each set `name` it logs

    - `<name>_loss`: summed nll over summed tokens, nats per token;
    - `<name>_perplexity`: `exp(loss)`;
    - `<name>_bits_per_byte`: summed nll in bits over UTF-8 bytes, which compares across tokenizers;
    - `<name>_forgetting`: loss now minus loss at step 0, nats per token. Above 0 the model has become worse at the
      set, which of general text is forgetting; below 0 it has learned;

    and at step 0 `<name>_num_tokens`, the tokens that count. Of the chunks of `landscape` it logs how the perplexity
    landscape moves, each chunk with one vote:

    - `landscape_log_mu`, `landscape_log_sigma`: mean and standard deviation of the chunks' nll, nats per token;
    - `landscape_log_mu_drift`, `landscape_log_sigma_drift`: these minus what they were at step 0. The perplexities
      that a subset was selected by are those of step 0: the drift says how far the model has left them.

    It measures at step 0, every `every_n_steps` steps, after each evaluation of the trainer, and at the last step. The
    numbers of step 0 are read from the trainer's log history, which checkpoints carry, so a resumed run keeps them. A
    run resumed from a checkpoint made without this callback has none and logs no forgetting and no drift.

    The numbers are those of `hf_ppl_select.scoring.perplexity.evaluate_perplexity`, in the mixed precision of the
    training.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        held_out: name -> texts, or a [`~datasets.Dataset`] with a text column, `messages` (the assistant's tokens
            count) or `prompt` and `completion`, texts or messages (the completion counts), with `tools` and
            `chat_template_kwargs` beside messages; e.g. `{"domain": ..., "general": ...}`.
        landscape: a fixed sample of the corpus's chunks, of the same kinds; a few hundred will do.
        text_column: the column of a dataset that holds the text.
        tokenizer: default: the trainer's.
        chat_template: for `messages`, instead of the tokenizer's own.
        max_length: tokens in one window; default: the model's positions, at most 4,096.
        every_n_steps: measure each time so many steps are done; default: only when the trainer evaluates.

    Raises:
        TypeError: `held_out` does not go from names to texts; a set is one text, several splits or a stream.
        ValueError: no sets, a set with nothing to score, a name that the trainer uses itself, or a trainer that shards
            the weights. When training goes on from a checkpoint: a set other than the one measured at step 0.

    Example:

    ```python
    trainer = SFTTrainer(model="HuggingFaceTB/SmolLM2-135M", train_dataset=subset)
    held_out = {"domain": domain_texts, "general": general_texts}
    trainer.add_callback(PerplexityCallback(trainer, held_out, landscape=chunks["text"][:200], every_n_steps=100))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        held_out: Mapping[str, Iterable[str] | Any],
        *,
        landscape: Iterable[str] | Any | None = None,
        text_column: str = "text",
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        max_length: int | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(trainer, every_n_steps=every_n_steps)
        if not held_out and landscape is None:
            raise ValueError('there are no held-out sets; pass at least one, e.g. {"domain": texts}.')
        options = {
            "tokenizer": tokenizer,
            "text_column": text_column,
            "chat_template": chat_template,
            "max_length": max_length,
        }
        self.held_out = tokenize_sets(trainer, held_out, **options)
        if taken := {"train", "eval", LANDSCAPE} & {held_out.name for held_out in self.held_out}:
            raise ValueError(f"a held-out set cannot be called {taken.pop()!r}: its numbers would look like others'.")
        self.landscape: HeldOutSet | None = None
        if landscape is not None:
            (self.landscape,) = tokenize_sets(trainer, {LANDSCAPE: landscape}, **options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        for name, now in self._num_tokens().items():
            if (before := self._at_start(name)) not in (None, now):
                raise ValueError(
                    f"the held-out set {name.removesuffix('_num_tokens')!r} has {now} tokens, but {before} when this "
                    "run was at step 0: it is another set (or tokenizer), and forgetting would mean nothing. Pass the "
                    "same set, or give this one another name."
                )

    def measure(self, engine: LikelihoodEngine) -> dict[str, float]:
        metrics, changes = {}, {}
        for held_out in self.held_out:
            name, found = held_out.name, held_out.measure(engine)
            metrics[f"{name}_loss"] = found.nll_per_token
            metrics[f"{name}_perplexity"] = found.perplexity
            metrics[f"{name}_bits_per_byte"] = found.bits_per_byte
            changes[f"{name}_loss"] = f"{name}_forgetting"
        if self.landscape is not None:
            found = self.landscape.measure(engine)
            scored = found.num_tokens > 0
            nll = found.nll_sum[scored] / found.num_tokens[scored]
            for name, value in (("log_mu", nll.mean()), ("log_sigma", nll.std())):
                metrics[f"{LANDSCAPE}_{name}"] = float(value)
                changes[f"{LANDSCAPE}_{name}"] = f"{LANDSCAPE}_{name}_drift"
        starts = self.trainer.state.global_step == 0
        for name, change in changes.items():
            at_start = metrics[name] if starts else self._at_start(name)
            if at_start is not None:
                metrics[change] = metrics[name] - at_start
        return metrics | (self._num_tokens() if starts else {})

    def _num_tokens(self) -> dict[str, int]:
        sets = self.held_out + ([self.landscape] if self.landscape is not None else [])
        return {f"{one.name}_num_tokens": sum(len(row.counted) for row in one.rows) for one in sets}

    def _at_start(self, key: str) -> float | None:
        return next((row[key] for row in self.trainer.state.log_history if row["step"] == 0 and key in row), None)
