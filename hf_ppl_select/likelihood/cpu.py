"""What a CPU computes in, and how not to wait there for memory that was there already."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def default_device() -> torch.device:
    """CUDA if there is one, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for matrix products in a dtype, and this torch uses them."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if platform.machine().lower() in ("x86_64", "amd64"):  # with AVX-512 alone it is supported, and slow
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def auto_is_float32(device: str | torch.device | None) -> bool:
    """Whether `dtype="auto"` takes a checkpoint in bfloat16 as float32 on a device, by default the default one."""
    return torch.device(device or default_device()).type == "cpu" and not cpu_multiplies(torch.bfloat16)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor: up to 1.4 times the speed of a small model on a CPU.

    It returns freed blocks to the system at once, whose pages then cost a fault each to get back, until it has seen a
    block of their size freed (M_MMAP_THRESHOLD in mallopt(3)). 32 MiB is the most that it learns from; from then on it
    keeps twice as much. No page of this block is touched, and other allocators do not mind it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def linear_weights_in(model: torch.nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Have the model's linear layers compute with copies of their weights in `dtype`, as autocast makes for every
    batch anew; where there is no autocast, as in what some models compute in float32 all the same, with the weights.

    Parameters, their gradients and hooks are untouched, and so is a layer whose `forward` is somebody's already.
    """
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.dtype == torch.float32]
    layers = [layer for layer in layers if dtype is not None and "forward" not in vars(layer)]
    try:
        for layer in layers:
            layer.forward = _forward_with(layer, layer.weight.detach().to(dtype))
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward_with(layer: torch.nn.Linear, cast: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        weight = cast if torch.is_autocast_enabled(input.device.type) else layer.weight
        return torch.nn.functional.linear(input, weight, layer.bias)

    return forward
