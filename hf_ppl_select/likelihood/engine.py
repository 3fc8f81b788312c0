"""The one place that runs a model to score: token ids and which positions count -> summed negative log-likelihood.

The body (embeddings and layers) runs on batches sorted by length and right-padded, without an attention mask: a causal
model's scored tokens never look at the padding behind them. A bfloat16 model takes them packed into one row instead,
which is faster. The LM head then runs on tiles of scored positions only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batching import make_batches
from .cpu import default_device, keep_freed_memory, linear_weights_in
from .lm_head import TiledHead, losses_of_logits
from .models import default_batch_tokens, load_model, num_positions, repeated_blocks, to_device, vocabulary_size
from .packed_attention import PackedLayout, attends_packed, packed, packs_on_gpu
from .parallel_batches import LEAST_TOKENS, MOST_WORKERS, num_workers, shared_length, side_by_side
from .self_checks import TOLERANCE, check_causal, packing_agrees, tiled_head_agrees

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

__all__ = ["LikelihoodEngine", "default_device", "load_model"]


class NotANumberError(ValueError):
    """The model gives NaN."""


class LikelihoodEngine:
    """Summed negative log-likelihood of tokens under a causal LM, exact and independent of batching.

    Numbers: matrix products in the model's dtype, log-softmax and sums in float32 and float64.

    Two faster ways of running the model, the tiled LM head and packed rows, are compared with the model's own logits
    at the first call, and left where they differ: architectures differ in many ways.

    Args:
        model: any `AutoModelForCausalLM`, also wrapped by PEFT or in training; calls put it in eval mode and back.
        max_batch_tokens: tokens in one forward pass, with padding; default: 1,024 on a CPU, where up to four passes
            run side by side; what half of the free memory holds on a GPU, at most 32,768. Only speed and memory depend
            on it. Where memory runs out, it is halved, and the pass done again.
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
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}.")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("Prompt-learning adapters put virtual tokens before the text: merge or leave them out.")
        # PEFT injects LoRA layers into the base model in place, so the base model's body is the adapted one.
        self.causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(self.causal_lm, self.device)
        self.autocast_dtype = autocast_dtype
        if self.device.type == "cpu":
            keep_freed_memory()
        self.head = TiledHead(self.causal_lm, autocast_dtype)
        config = self.causal_lm.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self.window = min((window for window in windows if window), default=math.inf)
        self.vocabulary = vocabulary_size(self.causal_lm)
        self.positions = num_positions(self.causal_lm)
        self.sample_length = int(min(self.window, self.positions, 40))  # of texts in self-checks
        self.num_workers = num_workers(self.causal_lm)
        self.shared_length = shared_length(self.causal_lm)
        self.compiled = False
        self.start_tokens: dict[tuple[int, ...], int] = {}  # what the model was asked in start_token.py
        self.tiled_head: bool | None = None  # both decided at the first call
        self.packs: bool | None = None

    def compile(self) -> None:
        """Compile the model's layers: up to a quarter of a minute once; then a GPU takes half to two thirds of the
        time, and a CPU nineteen twentieths.

        The layers are alike, so one is compiled for all, for any number of tokens. Models that cannot be compiled, or
        not right, stay as they are.
        """
        blocks = repeated_blocks(self.causal_lm)
        texts = np.random.default_rng(0).integers(self.vocabulary, size=(2, self.sample_length)).tolist()
        counted = [range(1, len(texts[0]))] * 2
        exact = (self.autocast_dtype or self.causal_lm.dtype) in TOLERANCE
        with self.measuring():
            _, expected = self._launch(texts, counted)
            for block in blocks:
                block.compile(dynamic=True)
            attention = attends_packed(self.causal_lm) if self.packs else nullcontext()
            try:
                # In a worker: compiled code is for the number of threads that it was compiled with
                with (
                    attention,
                    closing(
                        side_by_side(lambda texts: self._launch(texts, counted), [texts], self.num_workers)
                    ) as results,
                ):
                    ((_, (_, found)),) = results
                self.compiled = bool((found - expected).abs().mean() <= (1e-3 if exact else 0.2))
                why = "it would give other numbers"
            except torch._dynamo.exc.TorchDynamoException as error:
                why = " ".join(str(error).split())[:200]
            if not self.compiled:
                logger.warning("%s is not compiled (%s): going on without.", type(self.causal_lm).__name__, why)
                for block in blocks:
                    block._compiled_call_impl = None

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
            ValueError: position 0 is to count, a token id is not in the vocabulary, a sequence is longer than the
                model has positions, the model is not causal, or gives NaN.
            torch.OutOfMemoryError: memory does not hold a single sequence.
        """
        if len(sequences) != len(counted):
            raise ValueError(f"{len(sequences)} sequences but {len(counted)} lists of counted positions.")
        self.check_lengths([len(ids) if len(positions) else 0 for ids, positions in zip(sequences, counted)])
        totals = np.zeros(len(sequences), dtype=np.float64)

        def launch(batch: list[int]) -> tuple[np.ndarray, torch.Tensor]:
            return self._launch([sequences[i] for i in batch], [counted[i] for i in batch])

        with self.measuring():
            todo = [i for i in range(len(sequences)) if len(counted[i])]
            for packs in (False, True):
                batches = self._batches([i for i in todo if self._packs(len(sequences[i])) == packs], sequences, packs)
                workers = self.num_workers if len(batches) > 1 or self.compiled else 1
                attention = attends_packed(self.causal_lm) if packs and batches else nullcontext()
                with attention, closing(side_by_side(launch, batches, workers)) as results:
                    for batch, (rows, losses) in results:
                        weights = losses.double().cpu().numpy()
                        totals[batch] = np.bincount(rows, weights=weights, minlength=len(batch))
                        if progress is not None:
                            progress(sum(len(sequences[i]) for i in batch))
        if np.isnan(totals).any():
            raise NotANumberError(
                f"{type(self.causal_lm).__name__} gives NaN for sequence {np.isnan(totals).argmax()}: its weights "
                f"hold NaN, or its activations overflow {self.causal_lm.dtype}; load it with dtype='float32'."
            )
        return totals

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Eval mode and no gradients, for [`~LikelihoodEngine.outputs`]; each module's mode is put back at the end."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        # A GPU casts them in no time, and has less memory
        dtype = self.autocast_dtype if self.device.type == "cpu" else None
        try:
            with linear_weights_in(self.causal_lm.base_model, dtype), torch.inference_mode():
                if self.packs is None:
                    self.tiled_head = tiled_head_agrees(self)
                    check_causal(self)
                    self.packs = self._packing_pays() and packing_agrees(self)
                yield
        finally:
            for module in training:
                module.training = True

    @property
    def precision(self) -> str:
        """What it computes in: `"bfloat16"`, or `"float32, autocast bfloat16"`."""
        names = [str(dtype).removeprefix("torch.") for dtype in (self.causal_lm.dtype, self.autocast_dtype) if dtype]
        return ", autocast ".join(names)

    def autocast(self) -> AbstractContextManager:
        """What the body runs in."""
        return torch.autocast(self.device.type, self.autocast_dtype) if self.autocast_dtype else nullcontext()

    def outputs(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states `[batch, length, hidden]`, or the model's own logits where the tiled head does not apply."""
        with self.autocast():
            if self.tiled_head:
                return self.causal_lm.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
            return self.model(input_ids=input_ids, use_cache=False, **inputs).logits

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target `[n]`, float32, from the outputs one token before it, `[n, hidden or vocabulary]`."""
        return self.head.losses(outputs, targets) if self.tiled_head else losses_of_logits(outputs, targets)

    def _batches(self, indices: list[int], sequences: Sequence[Sequence[int]], packs: bool) -> list[list[int]]:
        most = self.max_batch_tokens
        total = sum(len(sequences[i]) for i in indices)
        if self.device.type == "cpu" and total:  # as many for each worker, but the same batches for any number of them
            rounds = -(-total // (most * MOST_WORKERS))
            most = min(most, max(-(-total // (rounds * MOST_WORKERS)), LEAST_TOKENS))
        alone = [[i] for i in indices if len(sequences[i]) > self.shared_length]
        shared = [i for i in indices if len(sequences[i]) <= self.shared_length]
        return alone + make_batches(shared, [len(sequences[i]) for i in shared], most, packs)

    @torch.inference_mode()  # in each thread
    def _launch(self, sequences: list[Sequence[int]], counted: list[Sequence[int]]) -> tuple[np.ndarray, torch.Tensor]:
        """The sequence of each counted token `[n]`, and its loss `[n]`, on the device; halves what is too much."""
        num_tokens = sum(map(len, sequences))
        if len(sequences) == 1 or num_tokens <= self.max_batch_tokens:
            try:
                return self._run(sequences, counted)
            except torch.OutOfMemoryError:
                if len(sequences) == 1:
                    logger.error("Memory does not hold one sequence of %d tokens: lower max_length.", num_tokens)
                    raise
            self.lower_batch_tokens(num_tokens)  # out of the handler, whose traceback holds on to the tensors
        half = len(sequences) // 2
        rows, losses = self._launch(sequences[:half], counted[:half])
        more_rows, more_losses = self._launch(sequences[half:], counted[half:])
        return np.concatenate([rows, more_rows + half]), torch.cat([losses, more_losses])

    def lower_batch_tokens(self, too_many: int) -> None:
        """Memory did not hold so many tokens: from now on half of them, also of batches that are made already."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.max_batch_tokens = min(self.max_batch_tokens, max(1, too_many // 2))
        logger.warning("Out of memory: going on with batches of %d tokens.", self.max_batch_tokens)

    def _run(self, sequences: list[Sequence[int]], counted: list[Sequence[int]]) -> tuple[np.ndarray, torch.Tensor]:
        rows = np.repeat(np.arange(len(sequences)), [len(positions) for positions in counted])
        columns = np.concatenate([np.asarray(positions, dtype=np.int64) for positions in counted])
        if columns.min() < 1:
            raise ValueError("Position 0 cannot count: nothing comes before it. Prepend a BOS token, or leave it out.")
        lengths = [len(ids) for ids in sequences]
        inputs = {}
        attention = nullcontext()
        if self._packs(max(lengths)):
            layout = PackedLayout(lengths, self.device)
            input_ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])[None]
            at = np.asarray(layout.starts)[rows] + columns
            inputs["position_ids"] = layout.position_ids
            attention = packed(self.causal_lm, layout)
        else:
            input_ids = np.zeros((len(sequences), max(lengths)), dtype=np.int64)  # padding: nothing looks at it
            for row, ids in enumerate(sequences):
                input_ids[row, : len(ids)] = ids
            at = rows * input_ids.shape[1] + columns
        targets = input_ids.reshape(-1)[at]
        self.check_ids(input_ids, targets)
        with attention:
            outputs = self.outputs(self._to_device(input_ids), **inputs)
        return rows, self.losses(outputs.flatten(0, 1)[self._to_device(at - 1)], self._to_device(targets))

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """ValueError for a sequence longer than the positions that the model has."""
        if lengths and max(lengths) > self.positions:
            longest = int(np.argmax(lengths))
            raise ValueError(
                f"Sequence {longest} has {lengths[longest]} tokens, but {type(self.causal_lm).__name__} has "
                f"{self.positions} positions: score it in windows of max_length={self.positions} tokens or fewer."
            )

    def check_ids(self, input_ids: np.ndarray, targets: np.ndarray) -> None:
        """ValueError for token ids that the model lacks; a GPU would end the process, and name nothing."""
        rows = self.causal_lm.get_input_embeddings().weight.shape[0]
        for ids, most, does in ((input_ids, rows, "reads"), (targets, self.vocabulary, "predicts")):
            if ids.min() < 0 or ids.max() >= most:
                wrong = ids.min() if ids.min() < 0 else ids.max()
                raise ValueError(
                    f"Token id {wrong} is not among the {most} that {type(self.causal_lm).__name__} {does}: is the "
                    "tokenizer that of the model?"
                )

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(values), self.device)

    def _packs(self, longest: int) -> bool:
        """Packed attention knows no sliding window and no chunks: only texts that fit into one are packed."""
        return bool(self.packs) and longest <= self.window

    @property
    def packs_trees(self) -> bool:
        """Whether packed rows may also hold trees of tokens (shared_prefix.py)."""
        return bool(self.packs) and self.device.type == "cpu"

    def _packing_pays(self) -> bool:
        """Measured: 1.3 times the speed in bfloat16 on a CPU that multiplies it, none in float32."""
        dtype = self.autocast_dtype or self.causal_lm.dtype
        if self.device.type == "cuda":
            return packs_on_gpu(self.device, dtype)
        return self.device.type == "cpu" and dtype == torch.bfloat16
