"""What the callbacks share: measure the model as it is now without disturbing its training, and log what was found.

There is one way of logging: a callback takes the trainer, as TRL's own do, and calls `trainer.log`. So what it found
stands in `state.log_history` (and in every checkpoint), in the progress output and in each tracker of `report_to`.
A callback that only got the state could reach none but the first. The log history is also all that callbacks
remember: what they need after a resume (the loss at step 0, a lowered learning rate) is read from it.

A model that gives NaN does not recover: a `DivergedError` ends the training there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_ppl_select.likelihood.engine import LikelihoodEngine, NotANumberError

from .processes import engine_of, require_whole_weights, same_on_all_processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments


class DivergedError(ValueError):
    """Training diverged. Its message says where, and what is likely to help."""

    @classmethod
    def of(cls, trainer: Trainer, what: str) -> DivergedError:
        """Of a trainer as it is now; `what` was seen."""
        args, losses = trainer.args, [row["loss"] for row in trainer.state.log_history if "loss" in row]
        last = f", after a training loss of {losses[-1]:.4g}" if losses else ""
        advice = "lower --learning_rate, to a tenth say"
        if not args.warmup_steps:
            advice += ", or warm up (--warmup_steps)"
        if args.fp16:
            advice += "; or train in bf16 or float32 instead of fp16"
        return cls(
            f"{what} at step {trainer.state.global_step}{last}: training diverged. The likely cause is the learning "
            f"rate, {args.learning_rate:g}; {advice}."
        )


def measure_and_log(
    trainer: Trainer,
    measure: Callable[[LikelihoodEngine], dict[str, float]],
    conclude: Callable[[dict[str, float]], dict[str, float]] = lambda metrics: {},
) -> dict[str, float]:
    """Call `measure` with an engine over the live model, in the precision it trains in, and log what it returns.

    Training goes on as if nothing had happened: no gradient, no random number, no pending log is touched, and modules
    that were in eval mode (a frozen part, say) stay in it.

    Args:
        measure: called on each process; process 0's metrics are taken on all of them.
        conclude: called with these metrics; decides what follows from them, and returns further ones to log.

    Returns:
        the metrics logged.

    Raises:
        DivergedError: the model has come to give NaN.
    """
    model, control = trainer.model, trainer.control
    training, should_log = [module for module in model.modules() if module.training], control.should_log
    engine = engine_of(trainer)
    model.eval()
    try:
        try:
            metrics = same_on_all_processes(measure(engine))
        except NotANumberError as error:
            if trainer.state.global_step == 0:  # before any training
                raise
            raise DivergedError.of(trainer, "the model gives NaN") from error
        metrics |= conclude(metrics)
        # Logged in eval mode: `SFTTrainer.log` would otherwise empty its running training metrics into this row.
        trainer.log(dict(metrics))
    finally:
        for module in training:
            module.training = True
        # Logging clears it, and the training loss due at this very step would be lost.
        control.should_log = should_log
    return metrics


def stop_training(args: TrainingArguments, control: TrainerControl) -> None:
    """End the training after this step as it ends at its last one: evaluated and saved, if that goes by steps."""
    control.should_training_stop = True
    control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
    control.should_save = control.should_save or args.save_strategy == SaveStrategy.STEPS


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


def require_own_trainer(trainer: Trainer, state: TrainerState, callback: TrainerCallback) -> None:
    """Refuse to measure one trainer's model at another's steps.

    Raises:
        ValueError: the callback was made for another trainer than the one it was added to.
    """
    if trainer.state is not state:
        name = type(callback).__name__
        raise ValueError(f"this {name} was made for another trainer; add it to the one it was made with.")


class MeasuringCallback(TrainerCallback):
    """Measures once per step that is due: step 0, every `every_n_steps` steps, each evaluation, and the last step.

    After an evaluation the metrics also join the trainer's own as `eval_<name>`, where `metric_for_best_model` finds
    them. A step that is not due costs nothing: no forward pass, no tokenization, no word between processes.

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

    def conclude(
        self, metrics: dict[str, float], args: TrainingArguments, control: TrainerControl
    ) -> dict[str, float]:
        """What follows from the metrics, which are the same on all processes; returns further ones to log."""
        return {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        require_own_trainer(self.trainer, state, self)
        self._latest = None
        if state.global_step == 0:
            self._measure_once(args, state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or (self.every_n_steps and state.global_step % self.every_n_steps == 0):
            self._measure_once(args, state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: object,
    ) -> None:
        for name, value in self._measure_once(args, state, control).items():
            metrics.setdefault(f"eval_{name}", value)
        control.should_evaluate = False  # what was found may end the training, and this was its evaluation

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if control.should_training_stop:  # maybe by a callback that came after this one, or by an evaluation
            self._measure_once(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._latest = None  # the best model may have been loaded meanwhile

    def _measure_once(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> dict[str, float]:
        """While training, an evaluation may fall on a step already measured, and several evaluations on one step."""
        if self._latest is not None and self._latest[0] == state.global_step and self.trainer.is_in_train:
            return self._latest[1]
        metrics = measure_and_log(self.trainer, self.measure, lambda found: self.conclude(found, args, control))
        self._latest = state.global_step, metrics
        return metrics
