"""Tiny models of many architectures, and what they give by themselves."""

import numpy as np
import torch
import transformers
from torch import nn

VOCAB = 103
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
SMALL_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128} | {
    name: SMALL[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = {
    "llama, tied": ("LlamaConfig", SMALL | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SMALL | GROUPED),
    "gemma2, softcap": (
        "Gemma2Config",
        SMALL | GROUPED | {"sliding_window": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "cohere, logit scale": ("CohereConfig", SMALL | {"logit_scale": 0.25}),
    "granite, logits scaling": ("GraniteConfig", SMALL | {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "falcon_h1, head multiplier, hybrid": (
        "FalconH1Config",
        SMALL
        | {"num_key_value_heads": 2, "lm_head_multiplier": 0.5, "mamba_d_ssm": 64, "mamba_n_heads": 8}
        | {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16},
    ),
    "gpt2, absolute positions": ("GPT2Config", SMALL_GPT),
    "phi, head bias": ("PhiConfig", SMALL),
    "opt, projected embeddings": (
        "OPTConfig",
        {name: SMALL[name] for name in SMALL if name != "intermediate_size"}
        | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    ),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "gptj, head bias": ("GPTJConfig", SMALL_GPT | {"rotary_dim": 4}),
    "mistral, sliding window": ("MistralConfig", SMALL | {"num_key_value_heads": 2, "sliding_window": 8}),
    "mixtral, experts": ("MixtralConfig", SMALL | {"num_key_value_heads": 2, "num_local_experts": 4}),
    "bloom, alibi": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba, state space": (
        "MambaConfig",
        {"vocab_size": VOCAB, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    ),
}


def make_model(config_class: str, settings: dict) -> nn.Module:
    """A random model whose logits are spread enough for a wrong one to show."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (parameter.dim() > 1 and "conv" not in name) or "bias" in name:
                parameter.normal_(0, 0.3)
    return model


def all_but_first(sequences):
    return [range(1, len(ids)) for ids in sequences]


def plain_nll(model, sequences) -> np.ndarray:
    """The definition: one text at a time, the model's own mean loss times the tokens it is the mean of."""
    with torch.no_grad():
        return np.array(
            [
                model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1)
                if len(ids) > 1
                else 0.0
                for ids in sequences
            ]
        )
