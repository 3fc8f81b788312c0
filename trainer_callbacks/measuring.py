"""What the callbacks share: measure the model as it is now without disturbing its training, and log what was found.

There is one way of logging: a callback takes the trainer, as TRL's own do, and calls `trainer.log`. So what it found
stands in `state.log_history` (and in every checkpoint), in the progress output and in each tracker of `report_to`.
A callback that only got the state could reach none but the first.

A model that gives NaN does not recover: the engine's error ends the training there.

In runs of several processes each measures everything, on its own copy of the weights. None waits for another, and all
have the same log history. That needs whole weights on each process: FSDP and ZeRO-3 are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

from hf_ppl_select.likelihood import LikelihoodEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def measure_and_log(trainer: Trainer, measure: Callable[[LikelihoodEngine], dict[str, float]]) -> dict[str, float]:
    """Call `measure` with an engine over the live model, in the precision it trains in, and log what it returns.

    Training goes on as if nothing had happened: no gradient, no random number, no pending log is touched.

    Returns:
        the metrics, as returned by `measure`.
    """
    model, control = trainer.model, trainer.control
    was_training, should_log = model.training, control.should_log
    engine = LikelihoodEngine(model, autocast_dtype=AUTOCAST_DTYPES.get(trainer.accelerator.mixed_precision))
    model.eval()
    try:
        metrics = measure(engine)
        # Logged in eval mode: `SFTTrainer.log` would otherwise empty its running training metrics into this row.
        trainer.log(dict(metrics))
    finally:
        model.train(was_training)
        # Logging clears it, and the training loss due at this very step would be lost.
        control.should_log = should_log
    return metrics


def require_whole_weights(trainer: Trainer) -> None:
    """Refuse trainers that shard the weights, where measuring on each process by itself would hang."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise ValueError(
            "the callbacks of trainer_callbacks need the whole weights on each process, but this trainer shards them "
            "(FSDP or DeepSpeed ZeRO-3); train with DDP or ZeRO-2, or measure the saved checkpoints instead."
        )


def tokenizer_of(trainer: Trainer) -> PreTrainedTokenizerBase:
    """The tokenizer the trainer trains with.

    Raises:
        ValueError: the trainer has none.
    """
    if trainer.processing_class is None:
        raise ValueError(
            "the trainer has no tokenizer; pass `processing_class=` to it or `tokenizer=` to the callback."
        )
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


class MeasuringCallback(TrainerCallback):
    """Measures once per step that is due: step 0, every `every_n_steps` steps, each evaluation, and the last step.

    After an evaluation the metrics also join the trainer's own as `eval_<name>`, where `metric_for_best_model` finds
    them.

    Args:
        trainer: the trainer this callback is added to.
        every_n_steps: measure each time so many steps are done; `None` leaves it to the trainer's `eval_strategy`.
    """

    def __init__(self, trainer: Trainer, *, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, got {every_n_steps}; leave it out to follow eval_strategy."
            )
        require_whole_weights(trainer)
        self.trainer = trainer
        self.every_n_steps = every_n_steps
        self._latest: tuple[int, dict[str, float]] | None = None

    def measure(self, engine: LikelihoodEngine) -> dict[str, float]:
        """Metrics of the live model, by name."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._latest = None
        if state.global_step == 0:
            self._measure_once(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or (self.every_n_steps and state.global_step % self.every_n_steps == 0):
            self._measure_once(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: object,
    ) -> None:
        for name, value in self._measure_once(state.global_step).items():
            metrics.setdefault(f"eval_{name}", value)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._latest = None  # the best model may have been loaded meanwhile

    def _measure_once(self, step: int) -> dict[str, float]:
        """An evaluation may fall on a step already measured, and several evaluation sets on one step."""
        if self._latest is None or self._latest[0] != step:
            self._latest = step, measure_and_log(self.trainer, self.measure)
        return self._latest[1]
