"""Each held-out text's likelihood, saved while training, so that runs are compared text by text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ppl_select.data.saving import save_json
from hf_ppl_select.scoring.perplexity import TextLikelihoods
from trainer_callbacks import PerplexityCallback
from trainer_callbacks.held_out import HeldOutSet

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_ppl_select.likelihood.engine import LikelihoodEngine

BASE, LATEST = "held_out_base.json", "held_out.json"


@dataclass(frozen=True)
class RecordedSet(HeldOutSet):
    """A held-out set that remembers what it measured last."""

    latest: list[TextLikelihoods] = field(default_factory=list)

    def measure(self, engine: LikelihoodEngine) -> TextLikelihoods:
        self.latest[:] = [super().measure(engine)]
        return self.latest[0]


class RecordingCallback(PerplexityCallback):
    """[`PerplexityCallback`] that also saves, in the output folder, `nll_sum` (nats) and `num_tokens` of each text.

    `held_out_base.json` is of step 0, the base model; `held_out.json` of the latest measurement.
    """

    def __init__(self, trainer: Trainer, held_out: Any, **options: Any) -> None:
        super().__init__(trainer, held_out, **options)
        self.held_out = [RecordedSet(**vars(one)) for one in self.held_out]

    def measure(self, engine: LikelihoodEngine) -> dict[str, float]:
        metrics = super().measure(engine)
        if self.trainer.is_world_process_zero():
            found = {
                one.name: {name: getattr(one.latest[0], name).tolist() for name in ("nll_sum", "num_tokens")}
                for one in self.held_out
            }
            path = Path(self.trainer.args.output_dir, LATEST if self.trainer.state.global_step else BASE)
            save_json(path, found, kind="text_likelihoods", version=1)
        return metrics
