"""Several sequences in one row, each attending to itself only: no padding, and half the time on a CPU.

A causal attention of length n needs n² / 2 scores. torch's CPU kernel computes nearly all n² of a short text, at 3 ns
each where the bfloat16 product itself takes 0.6. Here queries go in tiles of 128, each against the keys from the first
token of its oldest sequence to its own last: a softmax between two matrix products, the heads of a key side by side.
On a GPU torch's own attention of variable length does it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from .models import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hf_ppl_select_packed"
TILE = 128  # queries; larger ones score more pairs in vain, smaller ones make smaller products


class PackedLayout:
    """Where sequences of these lengths lie in one row.

    Attributes:
        position_ids: `[1, sum(lengths)]`, from 0 in each sequence.
        starts: the first position of each sequence, a list.
        bounds: `[len(lengths) + 1]`, int32, where each sequence starts, and the last one ends.
        longest: the largest length.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        self.longest = max(lengths)
        self.starts = (ends - sizes).tolist()
        self.bounds = to_device(torch.tensor([*self.starts, int(ends[-1])], dtype=torch.int32), device)
        self._start = torch.repeat_interleave(ends - sizes, sizes)  # of each token's sequence
        self.position_ids = to_device((torch.arange(len(self._start)) - self._start)[None], device)
        self._biases: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}

    @cached_property
    def _tiles(self) -> list[tuple[slice, slice, torch.Tensor]]:
        """Queries, keys, and which of them are hidden `[queries, keys]`."""
        start, index = self._start, torch.arange(len(self._start))
        tiles = []
        for first in range(0, len(start), TILE):
            query = slice(first, min(first + TILE, len(start)))
            key = slice(int(start[first]), query.stop)
            hidden = (index[key] > index[query, None]) | (index[key] < start[query, None])
            tiles.append((query, key, hidden.to(self.position_ids.device)))
        return tiles

    def tiles(self, dtype: torch.dtype, groups: int) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Queries, keys, and what to add to their scores: `[groups * queries, keys]`, 0 or -inf; made once per row."""
        if (dtype, groups) not in self._biases:
            self._biases[dtype, groups] = [
                torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
                .masked_fill_(hidden, float("-inf"))
                .repeat(groups, 1)
                for _, _, hidden in self._tiles
            ]
        for (query, key, _), bias in zip(self._tiles, self._biases[dtype, groups]):
            yield query, key, bias


_layout: ContextVar[PackedLayout | None] = ContextVar("packed_layout", default=None)


@contextmanager
def attends_packed(model: PreTrainedModel) -> Iterator[None]:
    """Within this context `model` takes rows in [`packed`], in any thread.

    Raises:
        NotImplementedError: the attention is not the model's to choose.
    """
    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    if not model._can_set_attn_implementation():
        raise NotImplementedError(f"{type(model).__name__} has an attention of its own.")
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def packed(model: PreTrainedModel, layout: PackedLayout) -> Iterator[None]:
    """Within this context `model` takes rows of `layout`: `model(input_ids, position_ids=layout.position_ids)`.

    Raises:
        NotImplementedError: the attention needs more than causal scores (sinks, score caps, biases), or is not the
            model's to choose.
    """
    token = _layout.set(layout)
    try:
        with attends_packed(model):
            yield
    finally:
        _layout.reset(token)


@torch.library.custom_op("hf_ppl_select::packed_attention", mutates_args=())
def _packed_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """`[1, heads, tokens, d]` and keys and values `[1, key heads, tokens, d]` -> `[1, tokens, heads, d]`.

    One opaque step for a compiled layer, which would otherwise be compiled anew for each number of tiles.
    """
    layout = _layout.get()
    if layout is None or query.shape[2] != layout.position_ids.shape[1]:
        raise NotImplementedError("packed attention takes the rows of a layout only.")
    if query.is_cuda:
        return _on_gpu(query, key, value, scaling, layout)
    _, heads, num_tokens, width = query.shape
    key_heads, value_width = key.shape[1], value.shape[-1]
    groups = heads // key_heads
    query = query.reshape(key_heads, groups, num_tokens, width)
    key, value = key[0], value[0]
    out = value.new_empty(num_tokens, key_heads, groups, value_width)
    for at, seen, bias in layout.tiles(query.dtype, groups):
        size = at.stop - at.start
        scores = torch.baddbmm(
            bias, query[:, :, at].reshape(key_heads, groups * size, width), key[:, seen].mT, alpha=scaling
        )
        mixed = torch.bmm(torch.softmax(scores, -1), value[:, seen])
        out[at] = mixed.view(key_heads, groups, size, value_width).permute(2, 0, 1, 3)
    return out.view(1, num_tokens, heads, value_width)


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, layout: PackedLayout
) -> torch.Tensor:
    """Texts of one length are a batch, for which torch has its fastest attention; others go by their bounds."""
    _, heads, num_tokens, width = query.shape
    if width != value.shape[-1] or width % 8 or width > 256 or type(layout) is not PackedLayout:
        raise NotImplementedError("attention of variable length takes heads of one size, a multiple of 8 up to 256.")
    grouped = heads != key.shape[1]
    if layout.longest * len(layout.starts) == num_tokens:
        batch = [
            states.view(states.shape[1], len(layout.starts), layout.longest, width).transpose(0, 1)
            for states in (query, key, value)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(
            *batch, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2).reshape(1, num_tokens, heads, width)

    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
    if grouped and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True  # older releases take fewer key heads as they are
    longest, bounds = layout.longest, layout.bounds
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [tokens, heads, d]
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, **options).contiguous()[None]


def packs_on_gpu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has attention of variable length that is causal there: from 2.11 on, in 16 bits, since Ampere."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return (
        "window_size" in inspect.signature(varlen_attn).parameters
        and dtype in (torch.bfloat16, torch.float16)
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@_packed_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    return value.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of `transformers`."""
    more = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if attention_mask is not None or more:
        raise NotImplementedError(f"packed attention knows no mask and no {', '.join(more) or 'other shapes'}.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # as torch's own attention under autocast
        query, key, value = (states.to(torch.get_autocast_dtype("cuda")) for states in (query, key, value))
    return _packed_attention(query, key, value, scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
