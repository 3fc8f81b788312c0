"""Hidden states -> -log p of the targets, a tile of positions at a time: the full logits never exist.

With a vocabulary of 49k, the float32 logits of 2,048 tokens would take 400 MB, and most of the time goes into moving
such numbers. So the product goes in tiles large enough to be efficient, into one buffer that stays, and the
log-softmax in slices of a tile small enough for a CPU's cache.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from subprocess import SubprocessError
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Logits of one product, in the weights' dtype: on a CPU 256 tokens of a vocabulary of 49k, 25 MB in bfloat16.
TILE_ELEMENTS = {"cpu": 3 * 2**22, "other": 2**28}
# Logits of one log-softmax, in float32: on a CPU 3 MB.
SLICE_ELEMENTS = {"cpu": 3 * 2**18, "other": 2**27}


class TiledHead:
    """The LM head of a model, with the scale and the softcap of its architecture.

    Numbers: the product in the weights' dtype, log-softmax in float32. The logit of the target is a float32 dot
    product, so a bfloat16 model loses nothing to the rounding of its logits.

    Args:
        causal_lm: its output embeddings must be a plain linear layer: see [`~TiledHead.fits`].
        autocast_dtype: multiply in this dtype.
    """

    def __init__(self, causal_lm: PreTrainedModel, autocast_dtype: torch.dtype | None = None) -> None:
        self.causal_lm = causal_lm
        self.autocast_dtype = autocast_dtype
        self.scale, self.softcap = _logit_transform(causal_lm.config.get_text_config())
        device = causal_lm.get_input_embeddings().weight.device
        where = "cpu" if device.type == "cpu" else "other"
        self.tile_elements, self.slice_elements = TILE_ELEMENTS[where], SLICE_ELEMENTS[where]
        self.kernel = one_pass_kernel() if device.type == "cuda" else None
        if self.kernel is not None:
            self.slice_elements = self.tile_elements
        self._local = threading.local()  # a buffer for each thread that scores

    @staticmethod
    def fits(causal_lm: PreTrainedModel) -> bool:
        """Whether the model is a body and a linear head. A quantized or a LoRA head is left to the model."""
        return causal_lm.base_model is not causal_lm and type(causal_lm.get_output_embeddings()) is torch.nn.Linear

    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[vocabulary, hidden]` and the bias, in the dtype to multiply in."""
        head = self.causal_lm.get_output_embeddings()
        weight, bias = head.weight, head.bias
        if self.autocast_dtype:
            weight, bias = weight.to(self.autocast_dtype), None if bias is None else bias.to(self.autocast_dtype)
        return weight, bias

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """All logits `[..., vocabulary]` of few hidden states."""
        weight, bias = self.weights()
        return self._transform(torch.nn.functional.linear(hidden.to(weight.device, weight.dtype), weight, bias))

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target `[n]` from hidden states `[n, hidden]`, float32 `[n]`."""
        weight, bias = self.weights()  # once per batch, not once per tile
        hidden = hidden.to(weight.device, weight.dtype)
        rows = max(1, self.tile_elements // len(weight))
        slice_rows = max(1, self.slice_elements // len(weight))
        losses = []
        for tile, target in zip(hidden.split(rows), targets.to(weight.device).split(rows)):
            tile_logits = self._product(tile, weight, bias, rows)
            target_logit = (tile.float() * weight[target].float()).sum(-1)
            if bias is not None:
                target_logit += bias[target].float()
            normalizers = [
                self._normalizer(self._transform(logits), at)
                for logits, at in zip(tile_logits.split(slice_rows), target.split(slice_rows))
            ]
            losses.append(torch.cat(normalizers) - self._transform(target_logit))
        return torch.cat(losses)

    def _normalizer(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log Σ exp of the logits `[n, vocabulary]`, float32 `[n]`, by way of the log probability of any token."""
        if self.kernel is not None:
            with torch.cuda.device(logits.device):  # Triton launches on the current one
                log_probs, _ = self.kernel(logits, targets)
        else:
            log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(-1, targets[:, None])[:, 0]
        return logits.gather(-1, targets[:, None])[:, 0].float() - log_probs

    def _product(self, tile: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> torch.Tensor:
        """`tile @ weight.T + bias`, in a buffer that the next product overwrites: fresh pages cost time."""
        shape, dtype = (rows, len(weight)), weight.dtype
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            buffer = self._local.buffer = torch.empty(shape, dtype=dtype, device=weight.device)
        out = buffer[: len(tile)]
        return torch.mm(tile, weight.T, out=out) if bias is None else torch.addmm(bias, tile, weight.T, out=out)

    def _transform(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@cache
def one_pass_kernel() -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """trl's Triton kernel, which reads logits once; None where there is none, or where it cannot be compiled."""
    try:
        from triton.errors import TritonError
        from trl.kernels import selective_log_softmax_and_entropy as kernel
    except ImportError:
        return None
    logits = torch.linspace(-9, 9, 3000, device="cuda").bfloat16().view(2, 1500)
    targets = torch.tensor([0, 1499], device="cuda")
    expected = torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(-1, targets[:, None])[:, 0]
    try:
        found, _ = kernel(logits, targets)
    except (OSError, RuntimeError, SubprocessError, TritonError) as error:  # no compiler, driver or header
        logger.warning("Triton does not run here (%s): the LM head is slower without.", error)
        return None
    if not torch.allclose(found, expected, atol=1e-3):
        logger.warning("trl's log-softmax kernel gives other numbers here: the LM head is slower without.")
        return None
    return kernel


def losses_of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of each target `[n]` from logits `[n, vocabulary]`, float32 `[n]`."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _logit_transform(config) -> tuple[float, float | None]:
    """What an architecture multiplies its logits by (Cohere, Granite, Falcon-H1, ...), and its softcap (Gemma)."""
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        if getattr(config, "logits_scaling", None) is not None:
            scale = 1.0 / config.logits_scaling if config.model_type != "hyperclovax" else config.logits_scaling
    return scale, getattr(config, "final_logit_softcapping", None)
