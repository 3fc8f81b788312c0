"""The trainer's progress bar, with tokens per second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from transformers import ProgressCallback

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class TokensPerSecondCallback(ProgressCallback):
    """Takes the place of the trainer's own bar and adds the tokens per second since training began (or went on).

    The trainer must count tokens: `include_num_input_tokens_seen="all"` or `"non_padding"`.

    ```python
    TokensPerSecondCallback.replace_bar_of(trainer)
    ```
    """

    @classmethod
    def replace_bar_of(cls, trainer: Trainer) -> None:
        """Nothing to do where there is no bar, or a notebook's, or tokens are not counted."""
        counts = trainer.args.include_num_input_tokens_seen != "no"
        if counts and trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(cls())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and state.global_step:  # else the time left counts the steps before a resume
            self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step
        self._started, self._tokens_before = time.monotonic(), state.num_input_tokens_seen

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.training_bar is not None:
            tokens = int(state.num_input_tokens_seen) - self._tokens_before
            rate = tokens / max(time.monotonic() - self._started, 1e-9)
            self.training_bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)
