"""Law points from a training run: (mu, sigma, num_tokens, loss) at each rung of a ladder of token counts."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_ppl_select.law.points import append_law_points, read_law_points

from .held_out import tokenize_sets
from .law_forecast import LawForecast, Moments
from .measuring import measure_and_log, require_own_trainer, stop_training
from .processes import require_whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_ppl_select.law.scaling_law import ScalingLaw
    from hf_ppl_select.likelihood.engine import LikelihoodEngine

logger = logging.getLogger(__name__)


class ScalingLawCallback(TrainerCallback):
    """Records law points: how far training on these chunks had brought the held-out loss after so many tokens.

    At the end of the first step that reaches a rung of the `ladder` it measures the held-out loss (nats per token) and
    writes one row `run, mu, sigma, log_mu, log_sigma, num_tokens, loss[, general_loss]` to the table at `path`. Its
    `num_tokens` is what was trained on by then, in all processes, not the rung: steps are whole batches, and the last
    one also serves a rung that it misses by less than its own size. A row of the same run and num_tokens is replaced,
    so a run resumed from a checkpoint repeats rows and never doubles them.

    It logs `law_point_loss`, `law_point_general_loss` and `law_point_num_tokens`, and with a `law`

    - `law_point_predicted_loss`, with `law_point_predicted_low` and `law_point_predicted_high`, between which the loss
      of a new run should lie 95 times in 100; a loss outside is warned of;
    - `law_point_residual`, measured minus predicted loss;
    - `law_point_next_gain`, by how much the law predicts the loss to fall from here to the next rung.

    All are nats per token. With `stop_when_gain_below`, training stops at the first rung from where this next gain is
    smaller: the law says that going on is not worth it. The step is evaluated and saved if that goes by steps. The
    law alone decides, so a resumed run stops at the same rung; one resumed after its stop ends after one more step.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        path: the table, a `.jsonl` file; made if absent.
        run: name of this training run; points that share it are taken as correlated.
        texts: held-out domain texts, or a [`~datasets.Dataset`].
        ladder: token counts at which to measure, e.g. `(8192, 16384, 32768)`.
        moments: `mu`, `sigma` (of perplexity) and optionally `log_mu`, `log_sigma` (of nll, nats) of the chunks
            trained on so far, and those of other score columns, named as in law points: one mapping if they are the
            same throughout (shuffled chunks of one landscape), a function of num_tokens, or a list of mappings with a
            `num_tokens` each, of which the nearest is taken.
        law: predicts the loss to compare with.
        stop_when_gain_below: nats per token from one rung to the next, e.g. 0.005; needs a `law`.
        general_texts: held-out general texts; adds `general_loss`.
        tokens_per_step: tokens in one step of all processes, where the trainer does not count them.
        text_column, tokenizer, chat_template, max_length: as in [`PerplexityCallback`].

    Raises:
        TypeError, ValueError: an empty set or ladder; moments that lack a field the law needs or that it cannot
            predict at; a table that is none; or tokens that nobody counts: set `include_num_input_tokens_seen="all"`
            (packed rows) or `"non_padding"` in the training arguments.
        OSError: the table cannot be written.

    Example:

    ```python
    args = SFTConfig(packing=True, include_num_input_tokens_seen="all", output_dir="cpt")
    trainer = SFTTrainer(model=model, args=args, train_dataset=subset)
    landscape = PerplexityLandscape.from_dataset(subset)
    moments = {name: getattr(landscape, name) for name in ("mu", "sigma", "log_mu", "log_sigma")}
    ladder = [2**n * 1_000_000 for n in range(6)]
    options = {"ladder": ladder, "moments": moments, "law": ScalingLaw.load("law.json"), "stop_when_gain_below": 0.005}
    trainer.add_callback(ScalingLawCallback(trainer, "points.jsonl", "selected-seed-0", domain_texts, **options))
    ```
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
        stop_when_gain_below: float | None = None,
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
        if stop_when_gain_below is not None:
            if law is None:
                raise ValueError("stop_when_gain_below needs a law, which predicts the gain.")
            if not 0 < stop_when_gain_below < math.inf:
                raise ValueError(f"stop_when_gain_below must be more than 0 nats, got {stop_when_gain_below}.")
        if not run:
            raise ValueError("the run has no name; law points of one run are told by it.")
        self.trainer = trainer
        self.path = Path(path)
        self.run = run
        self.ladder = sorted(ladder)
        self.forecast = LawForecast(moments, self.ladder, law)  # what is wrong with either shows now, not at a rung
        self.stop_when_gain_below = stop_when_gain_below
        self.tokens_per_step = tokens_per_step
        sets = {"loss": texts} | ({} if general_texts is None else {"general_loss": general_texts})
        options = {"text_column": text_column, "chat_template": chat_template, "max_length": max_length}
        self.held_out = tokenize_sets(trainer, sets, tokenizer=tokenizer, **options)
        self._points_in_table()
        self._reached = 0

    def num_tokens(self, state: TrainerState) -> int:
        """Tokens trained on so far."""
        return self.tokens_per_step * state.global_step if self.tokens_per_step else state.num_input_tokens_seen

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        require_own_trainer(self.trainer, state, self)
        self._reached = self.num_tokens(state)
        if state.global_step == 0 and (known := self._points_in_table()):
            logger.warning(
                "%s holds %d points of run %r already: those at the same num_tokens will be replaced, others stay. "
                "Give another training run another name.", self.path, known, self.run
            )  # fmt: skip
        last = next((row for row in reversed(state.log_history) if "law_point_num_tokens" in row), {})
        if self._not_worth_it(last):
            control.should_training_stop = True
            if state.is_world_process_zero:
                logger.warning(
                    "%s was stopped at step %d and stops again after one more; change stop_when_gain_below (%g).",
                    self.run, last["step"], self.stop_when_gain_below
                )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        before, num_tokens = self._reached, self.num_tokens(state)
        self._reached = num_tokens
        if state.global_step >= state.max_steps:
            self._reached += max(num_tokens - before - 1, 0)  # a rung that the last step misses by less than its size
        if not any(before < rung <= self._reached for rung in self.ladder):
            return
        metrics = measure_and_log(self.trainer, lambda engine: self.measure(engine, num_tokens))
        if state.is_world_process_zero:
            losses = {held_out.name: metrics[f"law_point_{held_out.name}"] for held_out in self.held_out}
            row = {"run": self.run, **self.forecast.moments(num_tokens), "num_tokens": num_tokens, **losses}
            append_law_points(self.path, [row])
            self.forecast.warn_if_outside(self.run, metrics)
        if self._not_worth_it(metrics) and not control.should_training_stop:
            stop_training(args, control)
            if state.is_world_process_zero:
                logger.warning(
                    "%s stops after %d tokens: the law predicts %.4g nats per token from its rung to %d, below %g.",
                    self.run, num_tokens, metrics["law_point_next_gain"], self.forecast.next_rung(num_tokens),
                    self.stop_when_gain_below
                )  # fmt: skip

    def measure(self, engine: LikelihoodEngine, num_tokens: int) -> dict[str, float]:
        """What is logged of one law point."""
        metrics: dict[str, float] = {"law_point_num_tokens": num_tokens}
        for held_out in self.held_out:
            metrics[f"law_point_{held_out.name}"] = held_out.measure(engine).nll_per_token
        return metrics | self.forecast.compare(num_tokens, metrics["law_point_loss"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        left = [rung for rung in self.ladder if rung > self._reached]
        if left and state.is_world_process_zero:
            logger.warning("%s ended after %d tokens: no law points at %s.", self.run, self.num_tokens(state), left)

    def _points_in_table(self) -> int:
        """How many points of this run the table holds; an error, before any training, if it cannot be read or written.

        Only process 0 looks, which writes it.
        """
        if not self.trainer.is_world_process_zero():
            return 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK):
            raise PermissionError(f"law points cannot be written to {self.path}; choose another path.")
        if not self.path.exists() or not self.path.stat().st_size:
            return 0
        return int((read_law_points(self.path).run == self.run).sum())

    def _not_worth_it(self, row: Mapping[str, float]) -> bool:
        threshold = self.stop_when_gain_below
        return threshold is not None and row.get("law_point_next_gain", math.inf) < threshold
