"""A causal LM and its tokenizer, ready to score; and how much it can take at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from .cpu import cpu_multiplies, default_device
from .model_identity import adapter_base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_OR_NONE = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
GPU_BATCH_TOKENS = 32768  # measured: more do not make a pass faster, and take memory


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
        name_or_path: Hub id or local folder, of a model or of an adapter (PEFT), which comes with what it is based on.
        revision: Hub branch, tag or commit.
        dtype: `"auto"` keeps the checkpoint's own, but float32 on a CPU without instructions for it, where bfloat16
            takes seven times as long; else a torch dtype or its name, e.g. `"float32"`.
        device: default: CUDA if there is one, else CPU.
        trust_remote_code: run the checkpoint's own Python; off unless you say so.

    Raises:
        OSError: the model is neither a folder nor reachable on the Hub.
        ValueError: no such dtype; no causal language model; the checkpoint lacks weights, or has some of other shapes.
        ImportError: an adapter, without PEFT.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'float32' or 'bfloat16', not {dtype!r}.")
    own, base = {"revision": revision, "trust_remote_code": trust_remote_code}, None
    try:
        base = adapter_base(name_or_path, revision)
        source, options = (base[0], own | {"revision": base[1]}) if base else (name_or_path, own)
        if base:
            _check_peft(name_or_path)
        config = AutoConfig.from_pretrained(source, **options)
        _check_kind(source, config, trust_remote_code)
        tokenizer = load_tokenizer(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        options |= {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = AutoModelForCausalLM.from_pretrained(source, **options)
        _check_weights(source, model, found)
        device = torch.device(device or default_device())
        slow = device.type == "cpu" and not cpu_multiplies(model.dtype)
        if dtype == "auto" and slow and not getattr(model, "is_quantized", False):
            del model  # cast to float32, it would keep buffers that were rounded
            model, _ = AutoModelForCausalLM.from_pretrained(source, **options | {"dtype": torch.float32})
        if base:
            load_adapter(model, name_or_path, revision=revision)
    except OSError as error:
        why = "it is neither a local folder with a model nor in the Hub's cache, and the Hub could not provide it"
        if os.path.isdir(name_or_path):
            of = f"it is an adapter of {base[0]!r}, and " if base else ""
            why = of + str(error).partition("\n")[0].rstrip(".")
        raise OSError(
            f"Cannot load the model {name_or_path!r}: {why}. Check the name, or point HF_PPL_SELECT_MODEL or the "
            "model option to a local folder."
        ) from error
    model = model.to(device).eval()
    if model.device.type == "cpu" and not getattr(model, "is_quantized", False):
        _leave_the_file([*model.parameters(), *model.buffers()])
    return model, tokenizer


def load_adapter(model: PreTrainedModel, name_or_path: str, *, revision: str | None = None) -> None:
    """Load an adapter (PEFT) into the model that it is based on, in place and switched on.

    Raises:
        ImportError: without PEFT.
        ValueError: it lacks weights, or has some of other shapes, or that transformers does not load (DoRA's, in 5).
    """
    _check_peft(name_or_path)
    before = set(map(id, model.parameters()))
    try:
        info = model.load_adapter(name_or_path, adapter_kwargs={"revision": revision})
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # transformers 4, of shapes
        raise ValueError(f"The adapter {name_or_path!r} is not one of this model: {error}") from error
    added = [name for name, weight in model.named_parameters() if id(weight) not in before]
    found = _lacking(name_or_path, revision, added) if info is None else info.to_dict()
    missing = [key for key in found["missing_keys"] if ".ranknum" not in key]  # AdaLoRA's, which is never saved
    if any("lora_magnitude_vector" in key for key in missing):
        raise ValueError(
            f"This version of transformers does not load the magnitudes of the DoRA adapter {name_or_path!r}: merge "
            "it into its model (merge_and_unload), and pass the merged one."
        )
    _check_weights(name_or_path, model, found | {"missing_keys": missing})
    model.to(model.device).eval()
    if model.device.type == "cpu":
        _leave_the_file(weight for weight in model.parameters() if id(weight) not in before)


def _lacking(name_or_path: str, revision: str | None, needed: Iterable[str]) -> dict[str, Any]:
    """What an adapter's file lacks of the parameters that it added to a model, which transformers 4 does not say."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    path = cached_file(name_or_path, "adapter_model.safetensors", revision=revision, **_OR_NONE)
    if path is None:
        return {"missing_keys": [], "mismatched_keys": [], "error_msgs": []}
    with safe_open(path, framework="pt") as file:
        saved = {name.removeprefix("base_model.model.") for name in list(file.keys())}
    in_file = {name.replace(".modules_to_save", "").replace(".default", "") for name in needed}
    in_file = {name.replace("magnitude_vector.weight", "magnitude_vector") for name in in_file}  # DoRA's
    return {"missing_keys": in_file - saved, "mismatched_keys": [], "error_msgs": []}


def switch_adapters(model: PreTrainedModel, *, on: bool) -> None:
    """Have a model with an adapter in it compute with the adapter, or as it was before.

    transformers' own `enable_adapters` passes over the modules that an adapter replaces whole (`modules_to_save`).

    Raises:
        ValueError: to switch off an adapter that has changed the model itself, its biases or its layers.
    """
    for config in model.peft_config.values():
        if not on and (getattr(config, "bias", "none") != "none" or getattr(config, "layer_replication", None)):
            raise ValueError(
                f"The adapter of {config.base_model_name_or_path!r} trains biases of the model itself or repeats its "
                "layers, which cannot be switched off: merge it into the model, and pass the merged one."
            )
    for module in model.modules():
        if hasattr(module, "disable_adapters") and not callable(module.disable_adapters):
            module.enable_adapters(on)


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; of an adapter that has none, that of the model it is based on.

    Raises:
        OSError: there is none, or it cannot be had.
    """
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    found = cached_file(name_or_path, "tokenizer_config.json", revision=revision, **_OR_NONE)
    if found is None and (base := adapter_base(name_or_path, revision)):
        name_or_path, revision = base
    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if found is not None:
            raise
        raise OSError(f"{name_or_path!r} has no tokenizer: save it there, with tokenizer.save_pretrained.") from error


def _check_peft(name: str) -> None:
    if find_spec("peft") is None:
        raise ImportError(f'The model {name!r} is an adapter: pip install "hf-ppl-select[peft]".')


def _check_kind(name: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """ValueError for what `AutoModelForCausalLM` would refuse with the names of all classes, and for half a model."""
    from transformers import AutoModelForCausalLM

    own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model"
    elif type(config) in AutoModelForCausalLM._model_mapping or own_code:
        return
    else:
        kind = "no causal language model"
    raise ValueError(
        f"The model {name!r} is {kind} ({config.model_type}), but perplexity needs one that predicts each token from "
        "those before it: point HF_PPL_SELECT_MODEL or the model option to a causal language model."
    )


def _check_weights(name: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """ValueError that names the weights that were left at random, which transformers only logs."""
    wrong = [
        *(f"{key} is missing" for key in sorted(found["missing_keys"])),
        *map(_of_shape, sorted(found["mismatched_keys"])),
        *map(str, found["error_msgs"]),
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"The weights in {name!r} are not those of {type(model).__name__}, which would start from random numbers: "
            f"{'; '.join(wrong[:5])}{more}. Save the whole model, with its LM head, from the class that it was "
            "trained in, and with the configuration that it was trained with."
        )


def _of_shape(mismatch: tuple | str) -> str:
    if isinstance(mismatch, str):  # as transformers 4 has it
        return f"{mismatch} has another shape"
    key, saved, needed = mismatch
    return f"{key} has the shape {tuple(saved)}, not {tuple(needed)}"


def _leave_the_file(tensors: Iterable[torch.Tensor]) -> None:
    """Copy weights, which on a CPU are pages of the checkpoint's file and change where it is overwritten."""
    for tensor in tensors:
        tensor.data = tensor.data.clone()


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
    names = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len", "max_target_positions")
    most = next((getattr(config, name) for name in names if getattr(config, name, None)), math.inf)
    for name, module in model.named_modules():  # the RoBERTa family counts from behind the padding's row
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            most = min(most, module.num_embeddings - module.padding_idx - 1)
    return most


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
