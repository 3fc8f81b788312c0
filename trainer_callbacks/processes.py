"""Measuring in runs of several processes: the work is shared, and what was found is the same on each.

Every process holds the whole weights (DDP), so of n processes each scores an n-th of the sequences and all get all the
sums. The metrics then logged are those of process 0, to the bit, so that no process stops or keeps a best checkpoint
while another goes on. Where processes hold parts of the weights (FSDP, DeepSpeed ZeRO-3, tensor parallelism) measuring
is refused; under DeepSpeed ZeRO-1 and 2, and of benchmarks, each process scores everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from hf_ppl_select.likelihood.engine import LikelihoodEngine

if TYPE_CHECKING:
    from transformers import Trainer

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SharedEngine(LikelihoodEngine):
    """An engine that splits its sequences over processes with the same weights; each must make the same calls."""

    def __init__(self, model, *, process: int, num_processes: int, **options) -> None:
        super().__init__(model, **options)
        self.process, self.num_processes = process, num_processes

    def nll(
        self,
        sequences: Sequence[Sequence[int]],
        counted: Sequence[Sequence[int]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        # Dealt out by length, so that all have about the same to do
        longest_first = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
        own = longest_first[self.process :: self.num_processes]
        sums, problem = None, None
        try:
            sums = super().nll([sequences[i] for i in own], [counted[i] for i in own], progress=progress)
        except ValueError as error:  # the others wait for this process: all of them end with it
            problem = type(error)(f"process {self.process}: {error}")
        found = gather_object([(own, sums, problem)])
        if problems := [problem for *_, problem in found if problem is not None]:
            raise problems[0]
        totals = np.zeros(len(sequences), dtype=np.float64)
        for share, sums, _ in found:
            totals[share] = sums
        return totals


def engine_of(trainer: Trainer) -> LikelihoodEngine:
    """An engine over the live model, in the mixed precision it trains in."""
    accelerator = trainer.accelerator
    options = {"autocast_dtype": AUTOCAST_DTYPES.get(accelerator.mixed_precision)}
    whole = (
        accelerator.distributed_type.startswith("MULTI_") and getattr(accelerator, "parallelism_config", None) is None
    )
    if whole and accelerator.num_processes > 1:
        place = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
        return SharedEngine(trainer.model, **place, **options)
    return LikelihoodEngine(trainer.model, **options)


def same_on_all_processes(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of process 0, on each process."""
    return broadcast_object_list([metrics])[0]


def shards_weights(trainer: Trainer) -> bool:
    """Whether each process holds a part of the weights: FSDP, DeepSpeed ZeRO-3, or a model sharded at load time."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    zero_3 = plugin is not None and plugin.zero_stage == 3
    return trainer.is_fsdp_enabled or zero_3 or getattr(trainer, "is_distributed_loading_by_transformers", False)


def require_whole_weights(trainer: Trainer) -> None:
    """Refuse trainers that shard the weights, where measuring would hang or see parts of them.

    Raises:
        ValueError: see [`shards_weights`].
    """
    if shards_weights(trainer):
        raise ValueError(
            "the callbacks of trainer_callbacks need the whole weights on each process, but this trainer shards them "
            "(FSDP, DeepSpeed ZeRO-3 or tensor parallelism); train with DDP or ZeRO-2, or measure the saved "
            "checkpoints instead."
        )
