"""Batches of a CPU's work side by side, each on its share of the threads, and a GPU's one after the other.

A forward pass is thousands of small steps. When all threads work at one of them, each waits for the slowest, and all
for Python between two steps: an eighth of the time on two cores. When each works at a batch of its own, none does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 4  # each takes the memory of a batch; one of many threads waits for Python less
LEAST_TOKENS = 256  # in a batch, so that matrix products stay efficient


def num_workers(model: PreTrainedModel) -> int:
    """How many batches of `model` may run at a time.

    One on a GPU, and wherever a forward pass may leave something on a module that another one reads: models of
    others' code or with a state, older ones that keep their attention to themselves, rotary embeddings that adapt to
    the length of a text, and weights that hooks bring in and out.
    """
    if model.get_input_embeddings().weight.device.type != "cpu":
        return 1
    keeps = (
        not type(model).__module__.startswith("transformers.")
        or getattr(model, "_is_stateful", False)
        or not model._can_set_attn_implementation()
        or any(hasattr(module, "_hf_hook") or _adapts(module) for module in model.modules())
    )
    return 1 if keeps else max(1, min(MOST_WORKERS, torch.get_num_threads()))


def _adapts(module: torch.nn.Module) -> bool:
    kinds: Any = getattr(module, "rope_type", None)
    return any(kind in ("dynamic", "longrope") for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]))


def shared_length(model: PreTrainedModel) -> float:
    """The tokens up to which texts may share a forward pass.

    A rotary embedding that adapts does so to the longest text, and to the others with it, once that is longer than the
    model first was.
    """
    if not any(_adapts(module) for module in model.modules()):
        return math.inf
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    known = [one.get("original_max_position_embeddings") for one in every]
    known += [getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return min((length for length in known if length), default=1)


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Each item and `function(item)`, in order, `workers` at a time; torch's threads are shared among them.

    With one worker, the next call is made before a result is handed on: a GPU has work while its results are read.
    An error of the function is raised here; calls not begun by then are not made.
    """
    if workers == 1:
        waiting: list[tuple[Item, Result]] = []
        for item in items:
            waiting.append((item, function(item)))
            if len(waiting) == 2:
                yield waiting.pop(0)
        yield from waiting
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, "batch", torch.set_num_threads, (max(1, threads // workers),)) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for item, future in zip(items, futures):
                    yield item, future.result()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # also what threads that start later take
