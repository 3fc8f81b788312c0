"""What bench_gpu.py is run on: small models of a dozen architectures, random texts, and real English."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

VOCABULARY = 1024
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 4096}
SMALL |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
GROUPED = {"num_key_value_heads": 2, "head_dim": 32}
SMALL_GPT = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 4096}
SMALL_GPT |= {"bos_token_id": 0, "eos_token_id": 0}
ARCHITECTURES = {
    "llama": ("LlamaConfig", SMALL | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SMALL | GROUPED),
    "gemma2": (
        "Gemma2Config",
        SMALL | GROUPED | {"sliding_window": 100, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 32},
    ),
    "mistral": ("MistralConfig", SMALL | GROUPED | {"sliding_window": 100}),
    "mixtral": ("MixtralConfig", SMALL | {"num_key_value_heads": 2, "num_local_experts": 4}),
    "cohere": ("CohereConfig", SMALL | {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", SMALL | {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "gpt2": ("GPT2Config", SMALL_GPT),
    "phi": ("PhiConfig", SMALL),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "lfm2": ("Lfm2Config", SMALL | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}),
}


@dataclass
class Bench:
    """Where and how large: `smoke` is for a CPU and a minute, the same code on small shapes."""

    device: torch.device
    smoke: bool
    folder: Path

    @property
    def lengths(self):
        return [1, 2, 3, 17, 64, 129, 300] if self.smoke else [1, 2, 3, 17, 64, 64, 129, 700, 1500, 2049, 4000]

    def texts(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.integers(1, VOCABULARY, length).tolist() for length in lengths]

    def model(self, name, dtype=torch.float32):
        """Random weights, spread enough for a wrong one to show."""
        torch.manual_seed(0)
        config, settings = ARCHITECTURES[name]
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.08)
        return model.to(self.device, dtype)


def all_but_first(texts):
    return [range(1, len(ids)) for ids in texts]


def english(num_texts):
    """Real English without a network: the help texts of Python itself, cut into pieces of about 400 characters."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(6, 0.9, num_texts), 20, 8000).astype(int)
    starts = rng.integers(0, len(text) - 8000, num_texts)
    return [text[start : start + size] for start, size in zip(starts, sizes)]


def english_tokenizer(vocabulary=VOCABULARY):
    """A byte-level BPE trained on those texts."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end
    )


def save_small(bench):
    folder = bench.folder / "small"
    if not folder.exists():
        bench.model("llama").save_pretrained(folder)
        english_tokenizer().save_pretrained(folder)
    return folder
