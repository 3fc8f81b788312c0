"""Which tokens of messages count: masks from characters, over tokenizers, templates and conversations."""

import copy

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.scoring.rows import tokenize_rows
from hf_ppl_select.scoring.texts import score_rows
from tests.scoring.chats import CONVERSATIONS, END, TEMPLATES
from tests.scoring.families import families

FAMILIES = families()
ALL_FAMILIES = [*FAMILIES, "smollm2"]


@pytest.fixture(scope="module")
def model():
    """For any of the tokenizers: random, float32, with as many embeddings as the largest needs."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=50_000, max_position_embeddings=2048, initializer_range=0.5)
    return LlamaForCausalLM(config).eval()


def tokenizer_and_twin(name, request):
    if name != "smollm2":
        return copy.deepcopy(FAMILIES[name][0]), FAMILIES[name][1]
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("smollm2_dir"))
    return tokenizer, tokenizer


def mask_by_hand(pieces, ids, twin):
    """Which tokens are made from a character that counts, and the bytes of these tokens and pieces together."""
    text, counts = "", []
    for piece, is_answer in pieces:
        text += piece
        counts += [is_answer] * len(piece)
    encoded = twin(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    counted, spelled = [], {place for place, inside in enumerate(counts) if inside}
    for token, (begin, end) in enumerate(encoded["offset_mapping"]):
        if any(counts[begin:end]):
            counted.append(token)
            spelled |= set(range(begin, end))
    return counted, sum(len(text[place].encode()) for place in spelled)


def nll_by_hand(model, ids, counted):
    with torch.no_grad():
        losses = -model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(losses[position - 1, ids[position]].item() for position in counted)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tokens_bytes_and_nll_are_those_of_the_marked_characters(family, template, model, request):
    tokenizer, twin = tokenizer_and_twin(family, request)
    source, write = TEMPLATES[template]
    rows = tokenize_rows({"messages": CONVERSATIONS}, tokenizer, chat_template=source)
    bos = tokenizer.bos_token_id
    scored = score_rows(rows, LikelihoodEngine(model), bos=bos, max_length=2048, stride=1024)
    for index, (messages, row) in enumerate(zip(CONVERSATIONS, rows, strict=True)):
        pieces = [(piece.replace(END, tokenizer.eos_token), counts) for piece, counts in write(messages)]
        text = "".join(piece for piece, _ in pieces)
        assert text == tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
        counted, num_bytes = mask_by_hand(pieces, row.ids, twin)
        assert list(row.counted) == counted
        assert (scored.num_tokens[index], scored.num_bytes[index]) == (len(counted), num_bytes)
        lead = [bos] if row.ids[:1] != [bos] else []
        nll = nll_by_hand(model, lead + row.ids, [position + len(lead) for position in counted])
        assert scored.nll_sum[index] == pytest.approx(nll, rel=1e-5)
