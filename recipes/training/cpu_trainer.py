"""TRL's SFTTrainer, and what it needs to be quick on a CPU."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer
from trl import SFTTrainer

from hf_ppl_select.likelihood.cpu import cpu_multiplies
from trainer_callbacks.measuring import DivergedError


class StoppingSFTTrainer(SFTTrainer):
    """That ends at the first loss that is no number: no later step would learn from it.

    And that warns of bfloat16, TRL's default, on a CPU that is slow in it.
    """

    def train(self, *args, **kwargs):
        on_cpu = torch.device(self.args.device).type == "cpu"
        if on_cpu and self.args.bf16 and not cpu_multiplies(torch.bfloat16):
            warnings.warn(
                "This CPU has no instructions for bfloat16: with --bf16 false it trains several times as fast.",
                stacklevel=2,
            )
        return super().train(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            raise DivergedError.of(self, "the loss is not finite")
        return loss


LONGEST_EAGER = 384  # tokens of a row: from about 512 on, SDPA is as fast


class CpuSFTTrainer(StoppingSFTTrainer):
    """On a CPU the same loss from plain logits: TRL's fused LM head, made for GPUs, is slower there than the model.

    And attention in plain matrix products for short rows: the backward pass of PyTorch's CPU kernel takes a fifth of a
    training step.
    """

    def train(self, *args, **kwargs):
        if torch.device(self.args.device).type == "cpu":
            keep_large_blocks()
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        is_short = inputs["input_ids"].shape[-1] <= LONGEST_EAGER
        if torch.device(self.args.device).type != "cpu" or not is_short:
            return super().training_step(model, inputs, *args, **kwargs)
        with eager_attention(self.accelerator.unwrap_model(model)):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if torch.device(self.args.device).type == "cpu" and self.args.loss_type == "nll":
            inputs = {**inputs, "use_cache": False}  # with a cache, packed texts would attend to those before them
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@contextmanager
def eager_attention(model: torch.nn.Module) -> Iterator[None]:
    """A model of SDPA attention computes it in plain matrix products until the block ends; others stay as they are:
    those that cannot switch, and those with a cap on the scores, which SDPA leaves out.
    """
    uses_sdpa = (
        model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
        and not getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    )
    try:
        if uses_sdpa:
            model.set_attn_implementation("eager")
        yield
    finally:
        if uses_sdpa:
            model.set_attn_implementation("sdpa")


def keep_large_blocks() -> None:
    """Have glibc keep what a training step frees for the next one: 1.2 to 1.4 times the speed of a small model.

    It returns large blocks to the system as soon as they are free, and each of their pages costs a fault to get back:
    300,000 in a step of 512 tokens. In processes that are not ours the scorer only asks for this up to 32 MiB
    (`keep_freed_memory`). With another C library nothing changes.
    """
    if (mallopt := _of_glibc("mallopt")) is not None:
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(option, 2**30)


def release_large_blocks() -> None:
    """Give back what [`keep_large_blocks`] has kept: between trainings in one process, which else take 2 GB more each
    time that the blocks of one do not fit the next.
    """
    gc.collect()  # a trainer, its model and its optimizer are in circles
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def sft_trainer_class(args) -> type[SFTTrainer]:
    """For a GPU, or for a CPU and the losses that the above computes there."""
    on_cpu = torch.device(args.device).type == "cpu"
    return CpuSFTTrainer if on_cpu and args.loss_type == "nll" else StoppingSFTTrainer


def in_order(trainer_class: type[SFTTrainer]) -> type[SFTTrainer]:
    """That trains on the rows as they lie. (transformers 4 has no `train_sampling_strategy="sequential"`.)"""

    class InOrder(trainer_class):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    return InOrder
