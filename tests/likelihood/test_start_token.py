"""The token before a text: what a model saw between documents, found by asking it."""

import copy
import logging

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
from hf_ppl_select.likelihood.start_token import SENTENCES, start_token
from hf_ppl_select.scoring.perplexity import evaluate_perplexity

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_tokenizer):
    """ChatML, as SmolLM2-Instruct has it: BOS begins a turn, EOS ends it, and documents have a third token."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def make_model(tokenizer, seed=0, initializer_range=0.02):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trained(chat_tokenizer):
    """A model that reads documents after one token, and roles after `<|im_start|>`; by that token."""

    def train(separator):
        model = make_model(chat_tokenizer).train()
        encode = lambda text: chat_tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        rows = [encode(separator + text) for text in SENTENCES]
        rows += [encode(f"<|im_start|>{role}\n") for role in ("user", "assistant", "system")]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    return train


@pytest.mark.parametrize("separator", ["<|endoftext|>", "<|im_end|>", "<|im_start|>"])
def test_a_trained_model_tells_what_it_saw_between_documents(trained, chat_tokenizer, separator, caplog):
    engine = LikelihoodEngine(trained(separator))
    with caplog.at_level(logging.INFO):
        found = start_token(engine, chat_tokenizer)
    assert chat_tokenizer.convert_ids_to_tokens(found) == separator
    assert ("Texts are scored after" in caplog.text) == (separator != "<|im_start|>")
    assert "as unlikely as chance" not in caplog.text
    engine.nll = lambda *args: pytest.fail("the model was asked again")
    assert start_token(engine, chat_tokenizer) == found


@pytest.mark.parametrize("initializer_range", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_knows_no_language_keeps_the_convention_and_is_warned_of(
    chat_tokenizer, seed, initializer_range, caplog
):
    engine = LikelihoodEngine(make_model(chat_tokenizer, seed, initializer_range))
    assert start_token(engine, chat_tokenizer) == chat_tokenizer.bos_token_id
    assert "as unlikely as chance would" in caplog.text and "ln(vocabulary) is 6.0" in caplog.text


def test_the_convention_is_bos_else_eos_and_choices_are_kept(trained, chat_tokenizer):
    engine = LikelihoodEngine(trained("<|endoftext|>"))
    assert start_token(engine, chat_tokenizer, "none") is None
    assert start_token(engine, chat_tokenizer, "bos") == chat_tokenizer.bos_token_id
    assert start_token(engine, chat_tokenizer, "eos") == chat_tokenizer.eos_token_id
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = None
    assert start_token(LikelihoodEngine(make_model(tokenizer)), tokenizer) == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="no BOS token; pass bos='none'"):
        start_token(engine, tokenizer, "bos")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS.*bos='none'"):
        start_token(engine, tokenizer)
    with pytest.raises(ValueError, match="bos must be 'auto' or 'none', 'bos' or 'eos', not 'cls'"):
        start_token(engine, tokenizer, "cls")


def test_what_another_model_chose_is_taken_as_it_is(trained, chat_tokenizer):
    """Models trained from one that chose it are measured as that one is, whatever they would choose themselves."""
    model, other = trained("<|endoftext|>"), chat_tokenizer.bos_token_id
    texts = ["The cat sat on the mat."]
    assert start_token(LikelihoodEngine(model), chat_tokenizer) != other
    found = evaluate_perplexity(model, chat_tokenizer, texts, bos=other)
    assert found.nll_sum == pytest.approx(evaluate_perplexity(model, chat_tokenizer, texts, bos="bos").nll_sum)
    assert found.nll_sum != pytest.approx(evaluate_perplexity(model, chat_tokenizer, texts).nll_sum, rel=1e-3)


@pytest.mark.slow
def test_smollm2_instruct_starts_texts_after_its_document_separator(smollm2_dir):
    """Its BOS begins a turn: "Fever is a raised body temperature." costs 52.0 nats after it, 32.9 after the other."""
    model, tokenizer = load_model(smollm2_dir, device="cpu", dtype="float32")
    found = start_token(LikelihoodEngine(model), tokenizer)
    assert tokenizer.convert_ids_to_tokens(found) == "<|endoftext|>"
    nll = []
    for token in (tokenizer.bos_token_id, found):
        ids = torch.tensor([[token, *tokenizer("Fever is a raised body temperature.")["input_ids"]]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        nll.append(-log_probs[:-1].gather(-1, ids[0, 1:, None]).sum().item())
    np.testing.assert_allclose(nll, [52.0, 32.9], atol=0.1)
