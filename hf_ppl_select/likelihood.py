"""The one place that runs a model to score: token ids and which positions count -> summed negative log-likelihood.

The body (embeddings and layers) runs on batches sorted by length and right-padded, without an attention mask: a causal
model's scored tokens never look at the padding behind them. The LM head then runs on small tiles of scored positions
only, so full logits never exist: with a 49k vocabulary, a 2,048-token batch would need 400 MB of them in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TILE_ELEMENTS = {"cpu": 2**23, "other": 2**28}  # logits of one tile: 48 MB (bf16 + float32) on CPU, 1.6 GB elsewhere


def default_device() -> torch.device:
    """CUDA if there is one, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM, in eval mode on its device, and its tokenizer.

    Args:
        name_or_path: Hub id or local folder.
        revision: Hub branch, tag or commit.
        dtype: `"auto"` keeps the checkpoint's own; else a torch dtype or its name, e.g. `"float32"`.
        device: default: CUDA if there is one, else CPU.
        trust_remote_code: run the checkpoint's own Python; off unless you say so.

    Raises:
        OSError: the model is neither a folder nor reachable on the Hub.
        ValueError: no such dtype.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'float32' or 'bfloat16', not {dtype!r}.")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **options)
    except OSError as error:
        raise OSError(
            f"Cannot load the model {name_or_path!r}: it is neither a local folder with a model nor in the Hub's "
            "cache, and the Hub could not provide it. Check the name, or point HF_PPL_SELECT_MODEL or the model "
            "option to a local folder."
        ) from error
    return model.to(device or default_device()).eval(), tokenizer


class LikelihoodEngine:
    """Summed negative log-likelihood of tokens under a causal LM, exact and independent of batching.

    Numbers: matrix products in the model's dtype, log-softmax and sums in float32 and float64. The logit of the target
    is a float32 dot product, so a bfloat16 model loses no precision to the rounding of its logits.

    Args:
        model: any `AutoModelForCausalLM`, also wrapped by PEFT or in training; calls put it in eval mode and back.
        max_batch_tokens: padded tokens in one forward pass; default 2,048 on CPU, 16,384 elsewhere. Only speed and
            memory depend on it.
        autocast_dtype: run the body under autocast in this dtype, e.g. `torch.bfloat16` for float32 training weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_batch_tokens: int | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        on_cpu = self.device.type == "cpu"
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}.")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("Prompt-learning adapters put virtual tokens before the text: merge or leave them out.")
        self.max_batch_tokens = max_batch_tokens or (2048 if on_cpu else 16384)
        self.tile_elements = TILE_ELEMENTS["cpu" if on_cpu else "other"]
        self.autocast_dtype = autocast_dtype
        # PEFT injects LoRA layers into the base model in place, so the base model's body is the adapted one.
        self.causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.logit_scale, self.logit_softcap = _logit_transform(self.causal_lm.config.get_text_config())
        self.tiled_head: bool | None = None  # decided by a comparison with the model's own logits, at the first call

    def nll(
        self,
        sequences: Sequence[Sequence[int]],
        counted: Sequence[Sequence[int]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Sum -log p(token | tokens before it) over the counted positions of each sequence.

        Args:
            sequences: token ids, ragged.
            counted: for each sequence the positions that count, e.g. `range(1, len(ids))`; each is at least 1, since
                the first token has nothing before it.
            progress: called with the number of tokens done after each batch, e.g. a tqdm bar's `update`.

        Returns:
            float64 array `[len(sequences)]`, nats, in input order; 0 where nothing counts.

        Raises:
            ValueError: position 0 is to count, or the model gives NaN.
        """
        if len(sequences) != len(counted):
            raise ValueError(f"{len(sequences)} sequences but {len(counted)} lists of counted positions.")
        totals = np.zeros(len(sequences), dtype=np.float64)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.inference_mode():
                if self.tiled_head is None:
                    self.tiled_head = self._tiled_head_agrees()
                for batch in self._batches(sequences, counted):
                    totals[batch] = self._batch_nll([sequences[i] for i in batch], [counted[i] for i in batch])
                    if progress is not None:
                        progress(sum(len(sequences[i]) for i in batch))
        finally:
            for module in training:
                module.training = True
        if np.isnan(totals).any():
            raise ValueError(
                f"{type(self.causal_lm).__name__} gives NaN for sequence {np.isnan(totals).argmax()}: its weights "
                f"hold NaN, or its activations overflow {self.causal_lm.dtype}; load it with dtype='float32'."
            )
        return totals

    def _batches(self, sequences: Sequence[Sequence[int]], counted: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of sequences of like length, longest first: memory peaks at the start and not hours later."""
        todo = sorted((i for i in range(len(sequences)) if len(counted[i])), key=lambda i: -len(sequences[i]))
        start = 0
        while start < len(todo):
            size = max(1, self.max_batch_tokens // len(sequences[todo[start]]))
            yield todo[start : start + size]
            start += size

    def _batch_nll(self, sequences: list[Sequence[int]], counted: list[Sequence[int]]) -> np.ndarray:
        width = max(len(ids) for ids in sequences)
        input_ids = np.zeros((len(sequences), width), dtype=np.int64)  # padding: any valid id, nothing looks at it
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = ids
        rows = np.repeat(np.arange(len(sequences)), [len(positions) for positions in counted])
        columns = np.concatenate([np.asarray(positions, dtype=np.int64) for positions in counted])
        if columns.min() < 1:
            raise ValueError("Position 0 cannot count: nothing comes before it. Prepend a BOS token, or leave it out.")
        targets = torch.from_numpy(input_ids[rows, columns]).to(self.device)
        at = torch.from_numpy(rows).to(self.device), torch.from_numpy(columns - 1).to(self.device)
        losses = self.losses(self.outputs(torch.from_numpy(input_ids).to(self.device))[at], targets)
        return np.bincount(rows, weights=losses.double().cpu().numpy(), minlength=len(sequences))

    def outputs(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states `[batch, length, hidden]`, or the model's own logits where the tiled head does not apply."""
        with self._autocast():
            if self.tiled_head:
                return self.causal_lm.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
            return self.model(input_ids=input_ids, use_cache=False, **inputs).logits

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target `[n]`, float32, from the outputs one token before it, `[n, hidden or vocabulary]`."""
        return self._tiled_losses(outputs, targets) if self.tiled_head else _losses_of_logits(outputs, targets)

    def _autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype) if self.autocast_dtype else nullcontext()

    def _tiled_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target `[n]` from hidden states `[n, hidden]`, float32, a tile of positions at a time."""
        head = self.causal_lm.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if self.autocast_dtype:  # once per batch, not once per tile
            weight, bias = weight.to(self.autocast_dtype), None if bias is None else bias.to(self.autocast_dtype)
        hidden = hidden.to(weight.device, weight.dtype)
        losses = []
        for tile, target in zip(*(x.split(max(1, self.tile_elements // len(weight))) for x in (hidden, targets))):
            logits = self._transform(torch.nn.functional.linear(tile, weight, bias))
            log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            log_normalizer = (logits.gather(-1, target[:, None]).float() - log_probs.gather(-1, target[:, None]))[:, 0]
            target_logit = (tile.float() * weight[target].float()).sum(-1)
            if bias is not None:
                target_logit += bias[target].float()
            losses.append(log_normalizer - self._transform(target_logit))
        return torch.cat(losses)

    def _transform(self, logits: torch.Tensor) -> torch.Tensor:
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits

    def _tiled_head_agrees(self) -> bool:
        """Whether body + head gives the model's own logits on a few tokens: architectures differ in many ways.

        The class's `forward` is called, past the autocast that a trainer may have wrapped around the instance. A head
        that is no plain linear layer (quantized, LoRA) is left to the model, as it may start to differ later.
        """
        head = self.causal_lm.get_output_embeddings()
        if self.causal_lm.base_model is self.causal_lm or type(head) is not torch.nn.Linear:
            return False
        ids = torch.arange(16, device=self.device)[None] % self.causal_lm.get_input_embeddings().weight.shape[0]
        with self._autocast():
            expected = type(self.causal_lm).forward(self.causal_lm, input_ids=ids, use_cache=False).logits
            hidden = getattr(self.causal_lm.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
            if hidden is None or hidden.shape[-1] != head.weight.shape[-1]:
                return False
            found = self._transform(head(hidden.to(head.weight.device, head.weight.dtype)))
        tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-2
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error <= tolerance:
            logger.warning(
                "%s computes its logits in a way the tiled LM head does not know (off by %.2g of the largest): "
                "scoring with full logits, slower and with more memory.",
                type(self.causal_lm).__name__,
                error,
            )
        return error <= tolerance


def _losses_of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
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
