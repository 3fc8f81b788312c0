"""What this machine computes in."""

from __future__ import annotations


def training_precision() -> dict[str, bool]:
    """Options of the trainer: bfloat16 autocast where the hardware computes in it, else float32."""
    return {"bf16": fast_bfloat16(), "use_cpu": not _has_gpu()}


def fast_bfloat16() -> bool:
    import torch

    if _has_gpu():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
