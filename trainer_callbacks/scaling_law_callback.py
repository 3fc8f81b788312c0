"""Law points from a training run: (mu, sigma, num_tokens, loss) at each rung of a ladder of token counts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_ppl_select.law_points import append_law_points

from .held_out import HeldOutSet
from .measuring import measure_and_log, require_whole_weights, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_ppl_select.likelihood import LikelihoodEngine
    from hf_ppl_select.scaling_law import ScalingLaw

logger = logging.getLogger(__name__)

MOMENTS = ("mu", "sigma", "log_mu", "log_sigma")
Moments = Mapping[str, float]


class ScalingLawCallback(TrainerCallback):
    """Records law points: how far training on these chunks had brought the held-out loss after so many tokens.

    At the end of the first step that reaches a rung of the `ladder` it measures the held-out loss (nats per token) and
    writes one row `run, mu, sigma, log_mu, log_sigma, num_tokens, loss[, general_loss]` to the table at `path`. Its
    `num_tokens` is what was trained on by then, not the rung: steps are whole batches, and the last one also serves a
    rung that it misses by less than its own size. A row of the same run and num_tokens is replaced, so a run resumed
    from a checkpoint repeats rows and never doubles them.

    It logs `law_point_loss` and `law_point_num_tokens`, and with a `law` also `law_point_predicted_loss` and
    `law_point_residual` (measured minus predicted); all losses in nats per token.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        path: the table, a `.jsonl` file; made if absent.
        run: name of this training run; points that share it are taken as correlated.
        texts: held-out domain texts, or a [`~datasets.Dataset`].
        ladder: token counts at which to measure, e.g. `(8192, 16384, 32768)`.
        moments: `mu`, `sigma` (of perplexity) and optionally `log_mu`, `log_sigma` (of nll, nats) of the chunks
            trained on so far: one mapping if they are the same throughout (shuffled chunks of one landscape), a
            function of num_tokens, or a list of mappings with a `num_tokens` each, of which the nearest is taken.
        law: predicts the loss to compare with.
        general_texts: held-out general texts; adds `general_loss`.
        tokens_per_step: tokens in one step, where the trainer does not count them.
        text_column, tokenizer, chat_template, max_length: as in [`PerplexityCallback`].

    Raises:
        ValueError: an empty set or ladder; moments that lack a field the law needs; or tokens that nobody counts: set
            `include_num_input_tokens_seen="all"` (packed rows) or `"non_padding"` in the training arguments.
    """

    def __init__(
        self,
        trainer: Trainer,
        path: str | os.PathLike,
        run: str,
        texts: Iterable[str] | Any,
        *,
        ladder: Sequence[int],
        moments: Moments | Sequence[Moments] | Callable[[int], Moments],
        law: ScalingLaw | None = None,
        general_texts: Iterable[str] | Any | None = None,
        tokens_per_step: int | None = None,
        text_column: str = "text",
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> None:
        require_whole_weights(trainer)
        if not ladder or min(ladder) < 1:
            raise ValueError(f"the ladder must hold token counts of at least 1, got {list(ladder)}.")
        if tokens_per_step is None and trainer.args.include_num_input_tokens_seen == "no":
            raise ValueError(
                "the trainer does not count the tokens it trains on: set include_num_input_tokens_seen='all' (packed "
                "rows) or 'non_padding' in its arguments, or pass tokens_per_step to ScalingLawCallback."
            )
        self.trainer = trainer
        self.path = path
        self.run = run
        tokenizer = tokenizer or tokenizer_of(trainer)
        options = {"text_column": text_column, "chat_template": chat_template, "max_length": max_length}
        self.held_out = [HeldOutSet.from_rows("loss", texts, tokenizer, **options)]
        if general_texts is not None:
            self.held_out.append(HeldOutSet.from_rows("general_loss", general_texts, tokenizer, **options))
        self.ladder = sorted(ladder)
        self.law = law
        self.tokens_per_step = tokens_per_step
        self._moments = moments
        self._num_tokens_before_step = self._reached = 0
        self.moments(self.ladder[0])  # a missing field shows now, not after an hour of training

    def moments(self, num_tokens: int) -> dict[str, float]:
        """The known ones of `mu, sigma, log_mu, log_sigma` of what is trained on by `num_tokens` tokens."""
        if callable(self._moments):
            row = self._moments(num_tokens)
        elif isinstance(self._moments, Mapping):
            row = self._moments
        else:
            row = min(self._moments, key=lambda point: abs(point["num_tokens"] - num_tokens))
        found = {name: float(row[name]) for name in MOMENTS if row.get(name) is not None}
        needed = {"mu", "sigma"}
        if self.law is not None and self.law.space == "log":
            needed |= {"log_mu", "log_sigma"}
        if missing := sorted(needed - found.keys()):
            raise ValueError(
                f"the moments at {num_tokens} tokens lack {', '.join(missing)}; they hold {', '.join(row)}."
            )
        return found

    def num_tokens(self, state: TrainerState) -> int:
        """Tokens trained on so far."""
        return self.tokens_per_step * state.global_step if self.tokens_per_step else state.num_input_tokens_seen

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._num_tokens_before_step = self.num_tokens(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        before, num_tokens = self._num_tokens_before_step, self.num_tokens(state)
        self._reached = num_tokens
        if state.global_step >= state.max_steps:
            self._reached += max(num_tokens - before - 1, 0)  # a rung that the last step misses by less than its size
        if not any(before < rung <= self._reached for rung in self.ladder):
            return
        metrics = measure_and_log(self.trainer, lambda engine: self.measure(engine, num_tokens))
        if state.is_world_process_zero:
            losses = {held_out.name: metrics[f"law_point_{held_out.name}"] for held_out in self.held_out}
            row = {"run": self.run, **self.moments(num_tokens), "num_tokens": num_tokens, **losses}
            append_law_points(self.path, [row])

    def measure(self, engine: LikelihoodEngine, num_tokens: int) -> dict[str, float]:
        """What is logged of one law point."""
        metrics: dict[str, float] = {"law_point_num_tokens": num_tokens}
        for held_out in self.held_out:
            metrics[f"law_point_{held_out.name}"] = held_out.measure(engine).nll_per_token
        if self.law is not None:
            moments = self.moments(num_tokens)
            prefix = "log_" if self.law.space == "log" else ""
            predicted = self.law.predict(moments[f"{prefix}mu"], moments[f"{prefix}sigma"], num_tokens)
            metrics["law_point_predicted_loss"] = float(predicted)
            metrics["law_point_residual"] = metrics["law_point_loss"] - float(predicted)
        return metrics

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if left := [rung for rung in self.ladder if rung > self._reached]:
            logger.warning("%s ended after %d tokens: no law points at %s.", self.run, self.num_tokens(state), left)
