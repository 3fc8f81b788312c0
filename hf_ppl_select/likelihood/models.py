"""A causal LM and its tokenizer, ready to score; and how much it can take at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GPU_BATCH_TOKENS = 32768  # measured: more do not make a pass faster, and take memory


def default_device() -> torch.device:
    """CUDA if there is one, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy from the CPU; to a GPU without waiting for what it works at, which pageable memory would."""
    gpu = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if gpu else tensor.to(device)


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


def default_batch_tokens(model: PreTrainedModel, device: torch.device) -> int:
    """Tokens in one forward pass: 1,024 on a CPU, whose caches they fit; on a GPU what half of its free memory holds,
    at most 32,768, beyond which a pass gains nothing.

    A token takes about 16 vectors of the hidden size, 4 of the MLP's, in the model's dtype, while a layer works on it.
    """
    if device.type != "cuda":
        return 1024
    config = model.config.get_text_config()
    hidden = config.hidden_size
    width = 16 * hidden + 4 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(max(free // 2 // (width * model.dtype.itemsize), 1024), GPU_BATCH_TOKENS))


def repeated_blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of a model: the longest list of modules of one class in it."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    return max(lists, key=len, default=[])


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many token ids a model both reads and predicts; the embeddings on either side may have rows beyond them."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(embedding.weight.shape[0] for embedding in embeddings if getattr(embedding, "weight", None) is not None)


def num_positions(model: PreTrainedModel) -> float:
    """How many positions a model has; infinite where its configuration does not say."""
    config = model.config.get_text_config()
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), math.inf)


def mixes_beside_attention(model: PreTrainedModel) -> bool:
    """Whether tokens see their neighbours otherwise than through attention: convolutions, recurrent layers."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    attention = {"full_attention", "sliding_attention", "chunked_attention"}
    return not attention.issuperset(kinds) or any(
        isinstance(m, torch.nn.Conv1d | torch.nn.RNNBase) for m in model.modules()
    )


def has_experts(model: PreTrainedModel) -> bool:
    """Whether the model is a mixture of experts."""
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor: up to 1.4 times the speed of a small model on a CPU.

    It returns freed blocks to the system at once, whose pages then cost a fault each to get back, until it has seen a
    block of their size freed (M_MMAP_THRESHOLD in mallopt(3)). 32 MiB is the most that it learns from; from then on it
    keeps twice as much. No page of this block is touched, and other allocators do not mind it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
