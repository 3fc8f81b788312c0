"""What a model is asked at the first call: is it causal, and does it take the faster ways of running it?

Architectures differ in many ways, so each is compared with itself, on a few tokens. Where rounding allows no bound
that holds for all, the question is put so that the answer is exact: the same shapes, another content.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from .lm_head import TiledHead
from .models import has_experts, mixes_beside_attention
from .packed_attention import PackedLayout, packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # as a share of the largest; else 1e-2
NOT_CAUSAL = 0.03  # likewise, for rounded numbers: encoders with random weights have 0.05 to 0.4, causal models 0
REFUSALS = (AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Engine(Protocol):
    """What is asked of a `LikelihoodEngine` here."""

    causal_lm: PreTrainedModel
    device: torch.device
    autocast_dtype: torch.dtype | None
    head: TiledHead
    vocabulary: int
    sample_length: int

    def autocast(self) -> AbstractContextManager: ...
    def outputs(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor: ...
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...


def check_causal(engine: Engine) -> None:
    """Two texts that begin alike must begin with the same outputs, whatever follows.

    Raises:
        ValueError: they do not, so losses would depend on later tokens, and on padding.
    """
    length = engine.sample_length
    begin = max(1, length // 3)
    texts = np.random.default_rng(1).integers(engine.vocabulary, size=(2, length))
    texts[1, :begin] = texts[0, :begin]
    first, second = (engine.outputs(_row(engine, ids))[0, :begin].float() for ids in texts)
    exact = (engine.autocast_dtype or engine.causal_lm.dtype) in TOLERANCE
    exact = exact and not getattr(engine.causal_lm, "is_quantized", False)  # whose scales may depend on all tokens
    error = (first - second).abs().max() / second.abs().max()
    if error > (TOLERANCE[torch.float32] if exact else NOT_CAUSAL):  # NaN is reported for the text that has it
        name = type(engine.causal_lm).__name__
        raise ValueError(
            f"{name} is not a causal language model: what follows a token changes what is predicted for it. Load a "
            "causal one; if this is the decoder of its family, its configuration needs is_decoder=True."
        )


def tiled_head_agrees(engine: Engine) -> bool:
    """Whether body + head gives the model's own logits on a few tokens.

    The class's `forward` is called, past the autocast that a trainer may have wrapped around the instance. A head
    that is no plain linear layer is left to the model, as it may start to differ later.
    """
    model = engine.causal_lm
    if not TiledHead.fits(model):
        return False
    ids = _row(engine, np.arange(min(16, engine.sample_length)) % engine.vocabulary)
    with engine.autocast():
        expected = type(model).forward(model, input_ids=ids, use_cache=False).logits
        try:
            hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        except TypeError:  # a body that takes less than the whole model does
            return False
        if hidden is None or hidden.shape[-1] != model.get_output_embeddings().weight.shape[-1]:
            return False
        found = engine.head.logits(hidden)
    if not (agrees := _agree(found, expected)):
        logger.warning(
            "%s computes its logits in a way the tiled LM head does not know: scoring with full logits, slower "
            "and with more memory.",
            type(model).__name__,
        )
    return agrees


def packing_agrees(engine: Engine) -> bool:
    """Whether two texts in one row get the losses that each gets alone.

    Within rounding, they must; in bfloat16 that is 0.07 nats per token, so smaller faults are asked for exactly: that
    positions are those given, not those in the row, and that no text sees the other: whatever stands before it, its
    losses are the same bits. Experts are multiplied in groups that depend on the whole row, so there the latter is
    left to what the model is made of.
    """
    model = engine.causal_lm
    if getattr(model, "_is_stateful", False) or mixes_beside_attention(model) or not takes_positions(engine):
        return False
    length = engine.sample_length
    ids = np.random.default_rng(0).integers(engine.vocabulary, size=2 * length + length // 2)
    texts = [_row(engine, text) for text in np.split(ids, [length, 2 * length])]
    layout = PackedLayout([length, length // 2], engine.device)
    alone = torch.cat([engine.losses(engine.outputs(text)[0, :-1], text[0, 1:]) for text in texts[1:]])
    try:
        with packed(model, layout):
            rows = [
                engine.outputs(torch.cat([before, texts[2]], dim=1), position_ids=layout.position_ids)[0]
                for before in texts[:2]
            ]
    except REFUSALS as error:
        logger.info("%s takes no packed rows: %s", type(model).__name__, error)
        return False
    others, last = [engine.losses(row[length:-1], texts[2][0, 1:]) for row in rows]
    together = torch.cat([engine.losses(rows[1][:length][:-1], texts[1][0, 1:]), last])
    exact = (engine.autocast_dtype or model.dtype) in TOLERANCE
    within = bool((together - alone).abs().mean() <= (1e-3 if exact else 0.2))
    return within and (has_experts(model) or torch.equal(others, last))


def takes_positions(engine: Engine) -> bool:
    """Whether other `position_ids` give other outputs; some models take them and count for themselves."""
    ids = _row(engine, np.random.default_rng(2).integers(engine.vocabulary, size=engine.sample_length))
    positions = torch.arange(ids.shape[1], device=engine.device)[None]
    try:
        straight, turned = (engine.outputs(ids, position_ids=each) for each in (positions, positions.flip(1)))
    except REFUSALS as error:
        logger.info("%s takes no positions: %s", type(engine.causal_lm).__name__, error)
        return False
    return not torch.equal(straight, turned)


def _row(engine: Engine, ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids)[None].to(engine.device)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within rounding; NaN does not agree."""
    error = (found - expected).abs().max() / expected.abs().max()
    return bool(error <= TOLERANCE.get(expected.dtype, 1e-2))
