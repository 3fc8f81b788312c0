"""What this machine computes in."""

from __future__ import annotations


def training_precision() -> dict[str, bool]:
    """Options of the trainer: bfloat16 autocast where the hardware computes in it, else float32."""
    return {"bf16": fast_bfloat16(), "use_cpu": not _has_gpu()}


def fast_bfloat16() -> bool:
    import torch

    from hf_ppl_select.likelihood.cpu import cpu_multiplies

    return torch.cuda.is_bf16_supported() if _has_gpu() else cpu_multiplies(torch.bfloat16)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
