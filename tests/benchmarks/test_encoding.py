"""Tokens and log-likelihoods of questions, as lm-evaluation-harness and full logits give them."""

import numpy as np
import pytest
import torch
from question_files import OWN_ROWS, write_jsonl

from hf_ppl_select.benchmarks import (
    read_benchmarks,
    run_benchmarks,
)
from hf_ppl_select.benchmarks.encoding import encode_questions, model_max_length, special_prefix
from hf_ppl_select.benchmarks.questions import Question


def harness_pair(tokenizer, context, continuation):
    """`TemplateLM._encode_pair` and `HFLM.tok_encode` of lm-evaluation-harness 0.4.13, for causal models."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation, context = context[-n_spaces:] + continuation, context[:-n_spaces]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    plain = {"add_special_tokens": False} if context.startswith(tokenizer.decode(first)) else {}
    whole, before = tokenizer.encode(context + continuation, **plain), tokenizer.encode(context, **plain)
    return tuple(before + whole[len(before) :]), len(before)


def with_bos(tokenizer):
    """A copy that puts BOS before every text, as Llama's and Gemma's tokenizers do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    bos = tokenizer.bos_token
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=bos)


@pytest.mark.parametrize("bos", [False, True])
def test_tokens_are_the_harness_ones(bos, tiny_tokenizer):
    tokenizer = with_bos(tiny_tokenizer) if bos else tiny_tokenizer
    assert special_prefix(tokenizer) == ([tokenizer.bos_token_id] if bos else [])
    questions = [
        Question(0, "Question: what is the capital?\nAnswer:", ("Paris", "new york"), 0),
        Question(1, "A prompt that ends in spaces  ", ("breath", "shortness of breath"), 0),
        Question(2, "and in a newline\n", ("é", "x"), 0),
        Question(3, "<|endoftext|>Question: fever", ("A", "B"), 0),
    ]
    for question, requests in zip(questions, encode_questions(questions, tokenizer, 512), strict=True):
        for choice, request in zip(question.choices, requests, strict=True):
            assert (request.ids, request.start) == harness_pair(tokenizer, question.prompt, f" {choice}")
            assert request.ids.count(tokenizer.bos_token_id) == (bos or question.index == 3)
            assert request.num_truncated == 0


def test_an_eos_that_the_tokenizer_appends_is_left_out(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_bos(tiny_tokenizer)
    special = [("<|endoftext|>", tokenizer.bos_token_id), ("<|pad|>", tiny_tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|pad|>", special_tokens=special
    )
    [[request, _]] = encode_questions([Question(0, "Question:", ("A", "B"), 0)], tokenizer, 64)
    assert request.ids[0] == tokenizer.bos_token_id
    assert tiny_tokenizer.pad_token_id not in request.ids


def test_long_prompts_lose_their_left_end_and_are_counted(tiny_model, tiny_tokenizer, tmp_path):
    long = {**OWN_ROWS[0], "question": "breath " * 600}
    path = write_jsonl(tmp_path / "long.jsonl", [long, OWN_ROWS[1]])
    result = run_benchmarks(tiny_model, tiny_tokenizer, str(path), max_length=64, progress=False).benchmarks["long"]
    assert result.num_truncated == 1
    assert result.records[0].num_truncated > 0
    [question, _] = read_benchmarks(str(path))[0][2]
    [requests] = encode_questions([question], tiny_tokenizer, 64)
    full, start = harness_pair(tiny_tokenizer, question.prompt, " Paris")
    assert requests[1].ids == full[-65:]  # the harness feeds the last 65 but one, and so do we
    assert requests[1].num_truncated == len(full) - 65
    assert requests[1].ids[requests[1].start :] == full[start:]


def test_cut_prompts_are_scored_on_what_the_harness_feeds(tiny_model, tiny_tokenizer, tmp_path):
    """Choices of different lengths leave different contexts, and the last token is predicted but never fed."""
    row = {**OWN_ROWS[0], "question": "breath " * 60, "choices": ["Rome", "shortness of breath", "fever, cough"]}
    path = write_jsonl(tmp_path / "long.jsonl", [row])
    found = run_benchmarks(tiny_model, tiny_tokenizer, str(path), max_length=30, progress=False)
    [(_, _, [question])] = read_benchmarks(str(path))
    expected = []
    for choice in question.choices:
        ids, start = harness_pair(tiny_tokenizer, question.prompt, f" {choice}")
        continuation, fed = ids[start:], ids[-31:][:-1]
        with torch.no_grad():
            log_probs = torch.log_softmax(tiny_model(input_ids=torch.tensor([fed])).logits[0].double(), dim=-1)
        rows = log_probs[-len(continuation) :]
        expected.append(sum(rows[i, token].item() for i, token in enumerate(continuation)))
    assert found.benchmarks["long"].records[0].log_likelihoods == pytest.approx(expected, rel=1e-5)


def test_choice_that_does_not_fit_is_an_error(tiny_tokenizer):
    with pytest.raises(ValueError, match="my, row 3: the choice .* has .* tokens"):
        encode_questions([Question(3, "Question:", ("A", "breath " * 40), 0)], tiny_tokenizer, 32, name="my")


def test_max_length_comes_from_the_model_then_the_tokenizer(tiny_model, tiny_tokenizer):
    from transformers import GPT2Config

    assert model_max_length(tiny_model.config, tiny_tokenizer) == 1024
    assert model_max_length(GPT2Config(n_positions=77), tiny_tokenizer) == 77


# Log-likelihoods


def test_log_likelihoods_are_those_of_full_logits(tiny_model, tiny_tokenizer, own_file):
    results = run_benchmarks(tiny_model, tiny_tokenizer, [str(own_file)], progress=False)
    [(_, _, questions)] = read_benchmarks(str(own_file))
    for question, record in zip(questions, results.benchmarks["mine"].records, strict=True):
        expected = []
        for choice in question.choices:
            ids, start = harness_pair(tiny_tokenizer, question.prompt, f" {choice}")
            with torch.no_grad():
                logits = tiny_model(input_ids=torch.tensor([ids])).logits[0].double()
            log_probs = torch.log_softmax(logits, dim=-1)
            expected.append(sum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids))))
        assert record.log_likelihoods == pytest.approx(expected, rel=1e-5)
        assert record.predicted == int(np.argmax(expected))
        assert record.num_chars == tuple(len(choice) for choice in question.choices)
    assert results.benchmarks["mine"].records[1].num_bytes == (4, 2)  # é has two bytes
    assert results.benchmarks["mine"].records[1].num_chars == (4, 1)


def test_model_with_learned_positions_can_fill_them(tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_positions=48, n_embd=16, n_layer=1, n_head=2)
    path = write_jsonl(tmp_path / "long.jsonl", [{**OWN_ROWS[0], "question": "fever " * 200}])
    results = run_benchmarks(GPT2LMHeadModel(config), tiny_tokenizer, str(path), progress=False)
    assert results.max_length == 48
    assert results.benchmarks["long"].num_truncated == 1


def test_same_tokens_run_once(tiny_model, tiny_tokenizer, tmp_path):
    from hf_ppl_select.likelihood.engine import LikelihoodEngine

    class CountingEngine(LikelihoodEngine):
        shapes = ()

        def outputs(self, input_ids, **inputs):
            self.shapes += (tuple(input_ids.shape),)
            return super().outputs(input_ids, **inputs)

    path = write_jsonl(tmp_path / "twice.jsonl", [OWN_ROWS[0], OWN_ROWS[0]])
    engine = CountingEngine(tiny_model)
    records = run_benchmarks(tiny_model, tiny_tokenizer, str(path), engine=engine, progress=False)
    records = records.benchmarks["twice"].records
    [(_, _, [question, _])] = read_benchmarks(str(path))
    encoded = [harness_pair(tiny_tokenizer, question.prompt, f" {choice}") for choice in question.choices]
    # The prompt once, and each choice's tokens but the last, for both copies of the question together.
    assert engine.shapes[-1] == (1, encoded[0][1] + sum(len(ids) - start - 1 for ids, start in encoded))
    assert records[0].log_likelihoods == records[1].log_likelihoods


def test_a_broken_model_is_an_error(tiny_model, tiny_tokenizer, own_file):
    with torch.no_grad():
        tiny_model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        run_benchmarks(tiny_model, tiny_tokenizer, str(own_file), progress=False)
