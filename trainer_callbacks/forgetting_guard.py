"""A bound on forgetting: training stops, or goes on more gently, when general text has become too much worse."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .measuring import stop_training
from .perplexity_callback import PerplexityCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

LR_SCALE = "forgetting_guard_lr_scale"


class ForgettingGuard(PerplexityCallback):
    """A [`PerplexityCallback`] that acts when a held-out set's loss has risen by more than `max_forgetting`.

    It measures when that does and logs what that logs, so give it the general text and a [`PerplexityCallback`] the
    rest. Forgetting is the rise of the loss since step 0, in nats per token, of the worst set. Beyond the bound

    - `action="stop"` ends the training after that step, which is evaluated and saved if that goes by steps;
    - `action="lower_lr"` multiplies the learning rate by `factor`, now and in all that the scheduler still gives. It
      does so again only when forgetting is higher than it was then: a lower rate slows forgetting, it undoes none.
      It logs `forgetting_guard_lr_scale`, the product of the factors so far.

    Checkpoints carry the lowered rate (in the scheduler) and the log it is decided by, so a resumed run goes on as an
    unbroken one. A run that was stopped, and is resumed under the same bound, stops again after one step.

    Args:
        trainer: any [`~transformers.Trainer`] with a causal LM, also wrapped by PEFT.
        held_out: what must not be forgotten: name -> texts or a dataset, as in [`PerplexityCallback`].
        max_forgetting: nats per token; 0.1 is a perplexity 10.5 % higher than at step 0.
        action: `"stop"` or `"lower_lr"`.
        factor: between 0 and 1.
        every_n_steps: measure, and so guard, each time so many steps are done; default: when the trainer evaluates.
        options: those of [`PerplexityCallback`].

    Raises:
        TypeError, ValueError: as [`PerplexityCallback`]; a bound, action or factor that makes no sense; a scheduler
            whose learning rate cannot be lowered; or a run resumed from a checkpoint without the loss at step 0.

    Example:

    ```python
    trainer.add_callback(ForgettingGuard(trainer, {"general": general_texts}, max_forgetting=0.1, every_n_steps=50))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        held_out: Mapping[str, Iterable[str] | Any],
        *,
        max_forgetting: float = 0.1,
        action: Literal["stop", "lower_lr"] = "stop",
        factor: float = 0.5,
        every_n_steps: int | None = None,
        **options: Any,
    ) -> None:
        if not held_out:
            raise ValueError('there is nothing to guard; pass a held-out set, e.g. {"general": texts}.')
        if not 0 < max_forgetting < float("inf"):
            raise ValueError(f"max_forgetting must be more than 0 nats per token, got {max_forgetting}.")
        if action not in ("stop", "lower_lr"):
            raise ValueError(f"action must be 'stop' or 'lower_lr', got {action!r}.")
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {factor}.")
        if every_n_steps is None and trainer.args.eval_strategy == "no":
            raise ValueError(
                "the guard would look only once training is over: pass every_n_steps, or set eval_strategy."
            )
        super().__init__(trainer, held_out, every_n_steps=every_n_steps, **options)
        self.max_forgetting = max_forgetting
        self.action = action
        self.factor = factor

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if missing := [held_out.name for held_out in self.held_out if self._at_start(f"{held_out.name}_loss") is None]:
            raise ValueError(
                f"this run goes on from a checkpoint that does not know the loss of {', '.join(missing)} at step 0, "
                "so forgetting cannot be told; add the guard from the start, or leave it out."
            )
        if self.action == "lower_lr":
            schedulers_with_base_lrs(kwargs["lr_scheduler"])
        elif (row := self._last_row(state)) is not None and self._forgetting(row) > self.max_forgetting:
            control.should_training_stop = True
            self._warn(
                "training stops after one more step, as at step %d", row["step"], forgetting=self._forgetting(row)
            )

    def conclude(
        self, metrics: dict[str, float], args: TrainingArguments, control: TrainerControl
    ) -> dict[str, float]:
        forgetting, step = self._forgetting(metrics), self.trainer.state.global_step
        goes_on = self.trainer.is_in_train and not control.should_training_stop
        if self.action == "stop":
            if goes_on and forgetting > self.max_forgetting:
                self._warn("step %d: training stops", step, forgetting=forgetting)
                stop_training(args, control)
            return {}
        scale, bound = self._lowered_so_far()
        if goes_on and forgetting > bound:
            scale *= self.factor
            lower_learning_rate(self.trainer, self.factor)
            self._warn("step %d: the learning rate is now %g of the planned one", step, scale, forgetting=forgetting)
        return {LR_SCALE: scale}

    def _lowered_so_far(self) -> tuple[float, float]:
        """The product of the factors applied, and the forgetting beyond which the next one is."""
        scale, bound = 1.0, self.max_forgetting
        for row in self.trainer.state.log_history:
            if LR_SCALE in row:
                if row[LR_SCALE] < scale:
                    bound = self._forgetting(row)
                scale = row[LR_SCALE]
        return scale, bound

    def _forgetting(self, row: Mapping[str, float]) -> float:
        return max(row[f"{held_out.name}_forgetting"] for held_out in self.held_out)

    def _last_row(self, state: TrainerState) -> Mapping[str, float] | None:
        keys = {f"{held_out.name}_forgetting" for held_out in self.held_out}
        return next((row for row in reversed(state.log_history) if keys <= row.keys()), None)

    def _warn(self, what: str, *values: object, forgetting: float) -> None:
        if self.trainer.is_world_process_zero():
            because = ": held-out loss has risen by %.3f nats per token since step 0 (bound: %g)."
            logger.warning(what + because, *values, forgetting, self.max_forgetting)


def lower_learning_rate(trainer: Trainer, factor: float) -> None:
    """Multiply the learning rate by `factor`, as it is and as the scheduler will set it.

    Schedulers compute each rate from `base_lrs`, which their state keeps in checkpoints. Those without (that react to
    an evaluation) go on from the rate they find in the optimizer.

    Raises:
        ValueError: the scheduler is of neither kind.
    """
    for scheduler in schedulers_with_base_lrs(trainer.lr_scheduler):
        scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]
        scheduler._last_lr = [lr * factor for lr in scheduler.get_last_lr()]  # what the trainer logs
    for group in trainer.optimizer.param_groups:
        group["lr"] *= factor


def schedulers_with_base_lrs(scheduler: Any) -> list[Any]:
    """The scheduler, or those it chains; none if it reacts to an evaluation.

    Raises:
        ValueError: its rates cannot be lowered.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # out of accelerate's wrapper
    if hasattr(scheduler, "base_lrs"):
        return [scheduler]
    if hasattr(scheduler, "_schedulers"):
        return [inner for part in scheduler._schedulers for inner in schedulers_with_base_lrs(part)]
    if type(scheduler).__name__ in ("ReduceLROnPlateau", "GreedyLR"):
        return []
    raise ValueError(
        f"the learning rate of a {type(scheduler).__name__} cannot be lowered from outside; use action='stop', or "
        "another lr_scheduler_type."
    )
