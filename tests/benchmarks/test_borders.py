"""Where a token crosses from a question into its choices: the whole is scored, on the tokens it has."""

import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ppl_select.benchmarks.encoding import encode_questions, special_prefix
from hf_ppl_select.benchmarks.questions import Question
from hf_ppl_select.benchmarks.runner import score_requests
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer
from tests.scoring.families import BOS, families

FAMILIES = families()
QUESTIONS = [
    Question(0, "The patient presented with", ("fever", "the dog", "France", "A"), 0),
    Question(1, "The capital of", ("fever", "the dog", "France is Paris."), 2),
    Question(2, "Question? Answer:", ("A", "B", "日本"), 0),
    Question(3, "The capital of France is Paris. Answer: ", ("Paris", "Rome"), 0),
    Question(4, f"{BOS}Hello", ("world", "there"), 0),
]


def whole_log_probability(model, ids):
    """Log p of all tokens but the first."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(1, len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_compared_by_the_whole_text(family, caplog):
    tokenizer, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).eval()
    with caplog.at_level(logging.WARNING):
        requests = encode_questions(QUESTIONS, tokenizer, 512, name="mine")
    found = score_requests(SharedPrefixScorer(LikelihoodEngine(model)), requests, title="mine", progress=False)
    num_crossing = 0
    for question, row, log_likelihoods in zip(QUESTIONS, requests, found, strict=True):
        before = tokenizer(question.prompt.rstrip(), add_special_tokens=False)["input_ids"]
        wholes = [
            tokenizer(f"{question.prompt} {choice}", add_special_tokens=False)["input_ids"]
            for choice in question.choices
        ]
        crosses = any(whole[: len(before)] != before for whole in wholes)
        num_crossing += crosses
        lead = [] if question.prompt.startswith(BOS) else special_prefix(tokenizer)
        assert [list(request.ids) for request in row] == [lead + whole for whole in wholes]
        assert len({request.start for request in row}) == 1 and row[0].start >= 1
        if not crosses:
            assert row[0].start == len(lead) + len(before)
        expected = [whole_log_probability(model, list(request.ids)) for request in row]
        shared = row[0].ids[: row[0].start]
        assert all(request.ids[: request.start] == shared for request in row)
        context = whole_log_probability(model, list(shared))
        assert log_likelihoods == pytest.approx([value - context for value in expected], rel=1e-4)
    said = f"mine: in {num_crossing} of 5 questions a token crosses from the prompt into a choice"
    assert (said in caplog.text) == (num_crossing > 0)
    assert num_crossing >= 3 or family != "across_words"


def test_a_choice_that_changes_the_first_token_is_scored_behind_a_bos():
    tokenizer, _ = FAMILIES["across_words"]
    first = tokenizer.convert_ids_to_tokens(tokenizer("The patient")["input_ids"])[0]
    assert first == "TheĠpat"
    question = Question(7, "The", ("patient", "end"), 0)
    [row] = encode_questions([question], tokenizer, 64)
    assert [request.start for request in row] == [1, 1]
    for request, choice in zip(row, question.choices, strict=True):
        assert list(request.ids) == [tokenizer.bos_token_id, *tokenizer(f"The {choice}")["input_ids"]]
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match="mine, row 7: a choice changes even the prompt's first token.*set its bos_token"
    ):
        encode_questions([question], tokenizer, 64, name="mine")


def test_a_choice_without_tokens_of_its_own_is_refused():
    tokenizer, _ = FAMILIES["word_piece"]
    with pytest.raises(ValueError, match="mine, row 3: the choice ' ' has 0 tokens of its own"):
        encode_questions([Question(3, "The capital", ("of", " "), 0)], tokenizer, 64, name="mine")
