"""Batches side by side: the same numbers, errors that stop the rest, threads given back, and models that may not."""

import math
import threading
import time

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from transformers import LlamaForCausalLM

from hf_ppl_select.likelihood import engine as likelihood
from hf_ppl_select.likelihood import packed_attention
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.parallel_batches import num_workers, shared_length, side_by_side
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer
from tests.likelihood.tiny_architectures import (
    ARCHITECTURES,
    GROUPED,
    SMALL,
    VOCAB,
    all_but_first,
    make_model,
    plain_nll,
)


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(likelihood, "LEAST_TOKENS", 1)  # tiny texts make several batches
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def many_sequences():
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCAB, length).tolist() for length in rng.integers(1, 60, 80)]


def test_results_come_in_order_by_threads_that_share_torchs_own(four_threads):
    seen = {}

    def square(item):
        time.sleep(0.02 * (item % 3))
        seen.setdefault(threading.get_ident(), set()).add(torch.get_num_threads())
        return item * item

    assert list(side_by_side(square, range(20), 2)) == [(i, i * i) for i in range(20)]
    assert len(seen) == 2 and set.union(*seen.values()) == {2}
    assert torch.get_num_threads() == 4
    assert list(side_by_side(square, [], 2)) == []
    torch.set_num_threads(1)  # fewer than when the workers were counted
    assert list(side_by_side(square, range(5), 4)) == [(i, i * i) for i in range(5)]


def test_one_worker_is_a_call_ahead_in_the_same_thread():
    called = []
    results = side_by_side(lambda item: called.append(threading.get_ident()) or -item, range(3), 1)
    assert next(results) == (0, 0) and len(called) == 2
    assert list(results) == [(1, -1), (2, -2)] and set(called) == {threading.get_ident()}


@pytest.mark.parametrize("where", ["function", "reader"])
def test_an_error_stops_what_has_not_begun(where, four_threads):
    called = []

    def run(item):
        called.append(item)
        time.sleep(0.01)
        if where == "function" and item == 3:
            raise RuntimeError("item 3")

    with pytest.raises(RuntimeError, match="item 3"):
        for item, _ in side_by_side(run, range(1000), 4):
            if where == "reader" and item == 3:
                raise RuntimeError("item 3")
    assert len(called) < 100
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_its_own_loss_side_by_side(name, packing, many_sequences, four_threads, monkeypatch):
    monkeypatch.setattr(LikelihoodEngine, "_packing_pays", lambda self: packing)
    monkeypatch.setattr(packed_attention, "TILE", 16)
    model = make_model(*ARCHITECTURES[name])
    attention, done = model.config._attn_implementation, []
    engine = LikelihoodEngine(model, max_batch_tokens=100)
    nll = engine.nll(many_sequences, all_but_first(many_sequences), progress=done.append)
    np.testing.assert_allclose(nll, plain_nll(model, many_sequences), rtol=1e-5)
    assert model.config._attn_implementation == attention
    assert sum(done) == sum(len(ids) for ids in many_sequences if len(ids) > 1)
    assert engine.num_workers == (1 if name.startswith(("mamba", "falcon_h1", "bloom", "gptj")) else 4)


def test_a_bfloat16_model_gives_the_same_side_by_side_as_one_after_the_other(many_sequences, four_threads):
    engine = LikelihoodEngine(make_model("Qwen3Config", SMALL | GROUPED).bfloat16(), max_batch_tokens=200)
    found = engine.nll(many_sequences, all_but_first(many_sequences))
    assert engine.packs and engine.num_workers == 4
    engine.num_workers = 1
    np.testing.assert_array_equal(engine.nll(many_sequences, all_but_first(many_sequences)), found)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(engine.nll(many_sequences, all_but_first(many_sequences)), found)


def test_autocast_reaches_every_thread(many_sequences, four_threads):
    model = make_model("LlamaConfig", SMALL)
    engine = LikelihoodEngine(model, max_batch_tokens=100, autocast_dtype=torch.bfloat16)
    dtypes = set()
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    engine.nll(many_sequences, all_but_first(many_sequences))
    assert engine.num_workers == 4 and dtypes == {torch.bfloat16}


def test_an_interrupted_call_leaves_the_model_as_it_was(many_sequences, four_threads, monkeypatch):
    monkeypatch.setattr(LikelihoodEngine, "_packing_pays", lambda self: True)
    model = make_model("LlamaConfig", SMALL)
    attention = model.config._attn_implementation
    engine = LikelihoodEngine(model.train(), max_batch_tokens=100)

    def interrupt(num_tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.nll(many_sequences, all_but_first(many_sequences), progress=interrupt)
    assert model.config._attn_implementation == attention and model.training
    assert torch.get_num_threads() == 4
    found = engine.nll(many_sequences, all_but_first(many_sequences))
    np.testing.assert_allclose(found, plain_nll(model.eval(), many_sequences), rtol=1e-5)


def rope(kind, **more):
    return {"rope_scaling": {"rope_type": kind, **more}}  # which transformers 5 calls rope_parameters, and takes still


class Custom(LlamaForCausalLM):
    """A model of someone else's, which may keep anything."""


def test_a_text_costs_the_same_beside_a_longer_one_that_frequencies_adapt_to():
    """In Phi-3 texts of over 4,096 tokens have other frequencies, and so have all in a forward pass with them."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5], "original_max_position_embeddings": 32}
    lengths = {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "pad_token_id": 0}
    model = make_model("Phi3Config", SMALL | lengths | rope("longrope", **factors))
    engine = LikelihoodEngine(model, max_batch_tokens=1000)
    assert engine.shared_length == 32 and shared_length(make_model("LlamaConfig", SMALL)) == math.inf
    texts = [[3 + (j * i) % 40 for j in range(length)] for i, length in ((1, 31), (2, 33), (3, 34), (5, 30))]
    alone = np.concatenate([engine.nll([ids], all_but_first([ids])) for ids in texts])
    np.testing.assert_allclose(alone, plain_nll(model, texts), rtol=1e-5)
    np.testing.assert_allclose(engine.nll(texts, all_but_first(texts)), alone, rtol=1e-7)
    prompt = texts[1][:20]
    answers = [prompt + ids[:n] for ids, n in ((texts[0], 8), (texts[2], 16), (texts[3], 9), (texts[0], 17))]
    scorer = SharedPrefixScorer(engine, branching=True)
    expected = [plain_nll(model, [ids])[0] - plain_nll(model, [prompt])[0] for ids in (answers[0], answers[2])]
    np.testing.assert_allclose(scorer.nll(answers, [20] * 4)[[0, 2]], expected, rtol=1e-4)


def test_models_that_keep_something_between_calls_run_one_batch_at_a_time(four_threads):
    assert num_workers(make_model("LlamaConfig", SMALL | rope("default"))) == 4
    assert num_workers(make_model("LlamaConfig", SMALL | rope("linear", factor=2.0))) == 4
    assert num_workers(make_model("LlamaConfig", SMALL | rope("dynamic", factor=2.0))) == 1
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert num_workers(make_model("LlamaConfig", SMALL | rope("longrope", factor=2.0, **factors))) == 1
    model = make_model("LlamaConfig", SMALL)
    assert num_workers(Custom(model.config)) == 1
    assert num_workers(cpu_offload(model, execution_device="cpu")) == 1
    torch.set_num_threads(1)
    assert num_workers(make_model("LlamaConfig", SMALL)) == 1
