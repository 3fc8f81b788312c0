"""Texts packed into rows: each as if it were alone, and none where a model would see its neighbours."""

import logging

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from hf_ppl_select.likelihood import engine as likelihood
from hf_ppl_select.likelihood import packed_attention
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.packed_attention import PackedLayout
from tests.likelihood.tiny_architectures import (
    ARCHITECTURES,
    GROUPED,
    SMALL,
    VOCAB,
    all_but_first,
    make_model,
    plain_nll,
)

NEVER_PACKED = {
    "falcon_h1, head multiplier, hybrid": "carries a state",
    "mamba, state space": "carries a state",
    "bloom, alibi": "has biases",
    "gemma2, softcap": "caps its scores",
    "gptj, head bias": "has an attention of its own",
}
if transformers.__version__.startswith("4."):
    NEVER_PACKED["opt, projected embeddings"] = "makes a mask"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_give_what_each_text_gives_alone(name, sequences, packing, monkeypatch):
    monkeypatch.setattr(packed_attention, "TILE", 16)  # texts end within tiles and span several
    model = make_model(*ARCHITECTURES[name])
    attention = model.config._attn_implementation
    engine = LikelihoodEngine(model, max_batch_tokens=150)
    nll = engine.nll(sequences, all_but_first(sequences))
    assert engine.packs == (name not in NEVER_PACKED)
    np.testing.assert_allclose(nll, plain_nll(model, sequences), rtol=1e-5)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 150, 10_000])
def test_packed_rows_do_not_depend_on_batches_order_or_neighbours(sequences, max_batch_tokens, packing, monkeypatch):
    monkeypatch.setattr(packed_attention, "TILE", 8)
    engine = LikelihoodEngine(make_model("Qwen3Config", SMALL | GROUPED), max_batch_tokens=max_batch_tokens)
    nll = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(nll, plain_nll(engine.model, sequences), rtol=1e-5)
    order = np.random.default_rng(1).permutation(len(sequences))
    shuffled = [sequences[i] for i in order]
    np.testing.assert_allclose(engine.nll(shuffled, all_but_first(shuffled)), nll[order], rtol=1e-6)


def test_a_model_that_sees_its_neighbours_in_a_row_is_not_packed(sequences, packing, monkeypatch):
    model = make_model("LlamaConfig", SMALL)

    def without_mask(self, dtype, groups):
        for query, key, hidden in self._tiles:
            yield query, slice(0, key.stop), torch.zeros(groups * hidden.shape[0], key.stop, dtype=dtype)

    for dtype in (torch.float32, torch.bfloat16):
        engine = LikelihoodEngine(model.to(dtype))
        engine.nll(sequences, all_but_first(sequences))
        assert engine.packs
        with monkeypatch.context() as patch:
            patch.setattr(PackedLayout, "tiles", without_mask)
            engine = LikelihoodEngine(model.to(dtype))
            engine.nll(sequences, all_but_first(sequences))
            assert engine.packs is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_short_convolution_is_never_packed(dtype, packing):
    """It mixes neighbours outside attention, too little for a comparison of losses in bfloat16 to tell."""
    settings = SMALL | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    model = make_model("Lfm2Config", settings)
    with torch.no_grad():
        model.model.layers[0].conv.conv.weight.normal_(0, 0.5)
    model.to(dtype)
    texts = [np.random.default_rng(i).integers(0, VOCAB, length).tolist() for i, length in enumerate((3, 6, 2, 9, 2))]
    engine = LikelihoodEngine(model)
    np.testing.assert_allclose(engine.nll(texts, all_but_first(texts)), plain_nll(model, texts), rtol=0.02)
    assert engine.packs is False


class ShiftingLlama(transformers.LlamaForCausalLM):
    """Each token also sees a little of the one before it, in whatever row they are."""

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(
            lambda *args: args[2] + 0.01 * nn.functional.pad(args[2], (0, 0, 1, -1))
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_look_at_a_neighbour_in_a_row_is_seen(dtype, packing):
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(**SMALL, initializer_range=0.3)
    for model_class, packs in ((transformers.LlamaForCausalLM, True), (ShiftingLlama, False)):
        engine = LikelihoodEngine(model_class(settings).eval().to(dtype))
        engine.nll([[1, 2]], [[1]])
        assert engine.packs is packs


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_texts_of_one_length_attend_on_a_gpu_as_in_tiles(key_heads):
    """The kernels differ, but what they are given can be checked here; tests/bench/bench_gpu.py does the rest."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 150, heads, 16).transpose(1, 2) for heads in (4, key_heads, key_heads))
    layout = PackedLayout([30] * 5)
    token = packed_attention._layout.set(layout)
    try:
        expected = packed_attention._packed_attention(query, key, value, 0.3)
    finally:
        packed_attention._layout.reset(token)
    torch.testing.assert_close(packed_attention._on_gpu(query, key, value, 0.3, layout), expected)


def test_layers_that_do_not_compile_right_are_left_as_they_are(sequences, monkeypatch, caplog):
    model = make_model("LlamaConfig", SMALL)
    expected = plain_nll(model, sequences)

    def wrong(block, **options):
        block._compiled_call_impl = lambda hidden, *args, **kwargs: 0.5 * hidden

    def failing(block, **options):
        def fail(*args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")  # which all of torch's are

        block._compiled_call_impl = fail

    for compile, why in ((wrong, "other numbers"), (failing, "no compiler here")):
        monkeypatch.setattr(nn.Module, "compile", compile)
        engine = LikelihoodEngine(model)
        with caplog.at_level(logging.WARNING):
            engine.compile()
        assert not engine.compiled and why in caplog.text
        np.testing.assert_allclose(engine.nll(sequences, all_but_first(sequences)), expected, rtol=1e-5)


def test_texts_beyond_a_sliding_window_are_not_packed(sequences, packing, monkeypatch):
    layouts = []
    monkeypatch.setattr(likelihood, "PackedLayout", lambda *args: layouts.append(args[0]) or PackedLayout(*args))
    model = make_model("MistralConfig", SMALL | {"num_key_value_heads": 2, "sliding_window": 20})
    engine = LikelihoodEngine(model, max_batch_tokens=64)
    np.testing.assert_allclose(engine.nll(sequences, all_but_first(sequences)), plain_nll(model, sequences), rtol=1e-5)
    assert layouts and max(map(max, layouts)) <= 20
