"""LikelihoodEngine against plain logits: architectures, batching, tiles, adapters, autocast."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from hf_ppl_select.likelihood import engine as likelihood
from hf_ppl_select.likelihood import lm_head, packed_attention
from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
from hf_ppl_select.likelihood.models import default_batch_tokens, num_positions
from hf_ppl_select.likelihood.packed_attention import PackedLayout
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer

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


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in (2, 3, 40, 17, 17, 64, 5, 1, 33)]


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_its_own_loss_without_full_logits(name, sequences):
    model = make_model(*ARCHITECTURES[name])
    engine = LikelihoodEngine(model, max_batch_tokens=150)
    engine.head.tile_elements = 7 * VOCAB  # seven positions a tile
    nll = engine.nll(sequences, all_but_first(sequences))
    assert engine.tiled_head, "the fast path should know this architecture"
    np.testing.assert_allclose(nll, plain_nll(model, sequences), rtol=1e-5)
    assert nll[7] == 0.0  # one token: nothing to score


@pytest.mark.parametrize("max_batch_tokens, num_equal", [(64, 500), (1024, 33), (65536, 4)])
def test_padded_batches_are_full_and_hold_little_padding(max_batch_tokens, num_equal):
    engine = LikelihoodEngine(make_model("LlamaConfig", SMALL), max_batch_tokens=max_batch_tokens)
    lengths = np.random.default_rng(0).lognormal(5, 1, 1000).astype(int) + 1
    sequences = [range(length) for length in lengths]
    batches = engine._batches(list(range(1000)), sequences, False)
    assert sorted(sum(batches, [])) == list(range(1000))
    for batch in batches:
        size = len(batch) * max(lengths[batch])
        assert len(batch) == 1 or size <= max_batch_tokens
        assert size - sum(lengths[batch]) <= max_batch_tokens // 32
    # No padding: batches are full, but as many as four workers share evenly
    assert len(engine._batches(list(range(1000)), [range(32)] * 1000, False)) == num_equal


@pytest.fixture
def packing(monkeypatch):
    """Pack also in float32, where exactness shows."""
    monkeypatch.setattr(LikelihoodEngine, "_packing_pays", lambda self: True)


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


def test_out_of_memory_halves_the_batch_and_goes_on(sequences, monkeypatch, caplog):
    model = make_model("LlamaConfig", SMALL)
    expected = plain_nll(model, sequences)
    engine = LikelihoodEngine(model, max_batch_tokens=200)
    sequences, expected = sequences * 3, np.tile(expected, 3)  # batches of equals: padding does not end them
    run, failed = LikelihoodEngine.outputs, []

    def small_memory(self, input_ids, **inputs):
        if input_ids.numel() > 70:
            failed.append(input_ids.numel())
            raise torch.OutOfMemoryError("out of memory")
        return run(self, input_ids, **inputs)

    monkeypatch.setattr(LikelihoodEngine, "outputs", small_memory)
    with caplog.at_level(logging.WARNING):
        nll = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert failed and engine.max_batch_tokens <= 100 and "Out of memory: going on with batches of" in caplog.text
    assert len(failed) == caplog.text.count("Out of memory") <= 3  # what was too much is not tried again
    with pytest.raises(torch.OutOfMemoryError):  # one sequence cannot be halved
        engine.nll([list(range(100))], [range(1, 100)])


MEMORY_OF_LONG_TEXTS = """
import resource, torch, transformers
from hf_ppl_select.likelihood.engine import LikelihoodEngine

torch.set_num_threads(4)  # texts are scored side by side
config = transformers.LlamaConfig(
    vocab_size=131_072, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=8192,
)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.{dtype}).eval()
engine = LikelihoodEngine(model)
engine.nll([[5, 6]], [[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for length in (4096, 700):
    engine.nll([[i % 1000 for i in range(length)]] * 4, [range(1, length)] * 4)
assert engine.num_workers == 4
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_large_vocabulary_and_long_texts_take_little_memory(dtype):
    script = MEMORY_OF_LONG_TEXTS.replace("{dtype}", dtype)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1.0  # GiB; the full logits of the longer text would take 2, of all four 8


def test_batches_on_a_gpu_fit_into_its_free_memory(monkeypatch):
    model = make_model("LlamaConfig", SMALL)
    assert default_batch_tokens(model, torch.device("cpu")) == 1024
    for free, tokens in ((2**20, 1024), (2**26, 2**25 // 4 // (16 * 32 + 4 * 48)), (2**40, 32768)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        assert default_batch_tokens(model, torch.device("cuda")) == tokens


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 150, 10_000])
@pytest.mark.parametrize("tile_elements", [1, 5 * VOCAB, 2**23])
def test_result_does_not_depend_on_batches_or_tiles(sequences, max_batch_tokens, tile_elements, monkeypatch):
    model = make_model("LlamaConfig", SMALL)
    monkeypatch.setitem(lm_head.TILE_ELEMENTS, "cpu", tile_elements)
    monkeypatch.setitem(lm_head.SLICE_ELEMENTS, "cpu", max(1, tile_elements // 3))
    engine = LikelihoodEngine(model, max_batch_tokens=max_batch_tokens)
    nll = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(nll, plain_nll(model, sequences), rtol=1e-5)


def test_result_does_not_depend_on_order_or_neighbours(sequences):
    engine = LikelihoodEngine(make_model("LlamaConfig", SMALL), max_batch_tokens=150)
    nll = engine.nll(sequences, all_but_first(sequences))
    order = np.random.default_rng(1).permutation(len(sequences))
    shuffled = [sequences[i] for i in order]
    np.testing.assert_allclose(engine.nll(shuffled, all_but_first(shuffled)), nll[order], rtol=1e-6)
    np.testing.assert_allclose(engine.nll(sequences[:1], [range(1, 2)]), nll[:1], rtol=1e-6)


def test_only_counted_positions_count(sequences):
    engine = LikelihoodEngine(make_model("LlamaConfig", SMALL))
    ids = sequences[2]
    one_by_one = sum(engine.nll([ids], [[position]])[0] for position in range(1, len(ids)))
    parts = engine.nll([ids, ids, ids], [range(1, 10), range(10, 40), []])
    assert parts[2] == 0.0
    assert parts[0] + parts[1] == pytest.approx(engine.nll([ids], [range(1, 40)])[0], rel=1e-6)
    assert one_by_one == pytest.approx(parts.sum(), rel=1e-6)
    np.testing.assert_allclose(engine.nll([ids], [np.arange(1, 10)]), parts[:1], rtol=1e-6)


def test_nothing_to_score_runs_nothing_but_the_check(sequences):
    engine = LikelihoodEngine(make_model("LlamaConfig", SMALL))
    assert engine.nll([], []).shape == (0,)
    np.testing.assert_array_equal(engine.nll([[], [5]], [[], []]), [0.0, 0.0])


def test_progress_counts_every_token_once(sequences):
    done = []
    engine = LikelihoodEngine(make_model("LlamaConfig", SMALL), max_batch_tokens=64)
    engine.nll(sequences, all_but_first(sequences), progress=done.append)
    assert sum(done) == sum(len(ids) for ids in sequences if len(ids) > 1) and len(done) > 2


def test_wrong_positions_and_batch_size_are_errors(sequences):
    model = make_model("LlamaConfig", SMALL)
    with pytest.raises(ValueError, match="Position 0 cannot count"):
        LikelihoodEngine(model).nll([[1, 2]], [[0, 1]])
    with pytest.raises(ValueError, match="2 sequences but 1 lists"):
        LikelihoodEngine(model).nll([[1, 2], [1, 2]], [[1]])
    with pytest.raises(ValueError, match="max_batch_tokens"):
        LikelihoodEngine(model, max_batch_tokens=0)


@pytest.mark.parametrize("config", [("LlamaConfig", SMALL), ("GPT2Config", SMALL_GPT)])
def test_tokens_and_positions_beyond_the_models_are_named(config):
    model = make_model(*config)
    for ids, wrong in (([1, VOCAB, 2], VOCAB), ([1, -1, 2], -1)):
        message = f"Token id {wrong} is not among the {VOCAB} that {type(model).__name__}.*tokenizer that of the model"
        with pytest.raises(ValueError, match=message):
            LikelihoodEngine(model).nll([[5, 6], ids], [[1], [1, 2]])
        with pytest.raises(ValueError, match=message):
            SharedPrefixScorer(LikelihoodEngine(model)).nll([[5, 6], ids], [1, 1])
    engine = LikelihoodEngine(model)
    full = (np.arange(128) % VOCAB).tolist()
    np.testing.assert_allclose(engine.nll([full], [range(1, 128)]), plain_nll(model, [full]), rtol=1e-5)
    assert np.isfinite(SharedPrefixScorer(engine).nll([[*full, 1]], [5])).all()  # the last token is not read
    message = r"Sequence 1 has 129 tokens, but \w+ has 128 positions: score it in windows of max_length=128"
    with pytest.raises(ValueError, match=message):
        engine.nll([full, [*full, 1]], [[1], [1]])
    with pytest.raises(ValueError, match=message):
        SharedPrefixScorer(engine).nll([full, [*full, 1, 2]], [5, 5])
    assert engine.nll([[*full, 1]], [[]]) == [0.0]  # nothing to score


WHISPER = {"vocab_size": VOCAB, "d_model": 32, "decoder_layers": 1, "decoder_ffn_dim": 8, "max_target_positions": 128}
WHISPER |= {"decoder_attention_heads": 2, "encoder_attention_heads": 2, "encoder_layers": 1, "encoder_ffn_dim": 8}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}


@pytest.mark.parametrize(
    ("config_class", "settings", "positions"),
    [
        ("RobertaConfig", SMALL | {"is_decoder": True}, 127),  # counted from behind the padding's row
        ("WhisperConfig", WHISPER, 128),
        ("MptConfig", {"vocab_size": VOCAB, "d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 128}, 128),
        ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 1, "n_head": 2}, float("inf")),
    ],
)
def test_the_positions_of_a_model_are_those_that_it_can_take(config_class, settings, positions):
    model = make_model(config_class, settings)
    assert num_positions(model) == positions
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(min(positions, 200))[None] % 90 + 3).logits).all()


class OddLlama(transformers.LlamaForCausalLM):
    """An architecture that the tiled head does not know: it adds a constant to some logits after the head."""

    def forward(self, *args, labels=None, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.linspace(-2, 2, VOCAB)
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, VOCAB)
        return output


def test_unknown_architecture_falls_back_to_its_own_logits(sequences, caplog):
    torch.manual_seed(0)
    model = OddLlama(transformers.LlamaConfig(**SMALL, initializer_range=0.3)).eval()
    engine = LikelihoodEngine(model, max_batch_tokens=150)
    with caplog.at_level(logging.WARNING):
        nll = engine.nll(sequences, all_but_first(sequences))
    assert engine.tiled_head is False
    assert "OddLlama" in caplog.text and "full logits" in caplog.text
    np.testing.assert_allclose(nll, plain_nll(model, sequences), rtol=1e-5)


def test_bfloat16_keeps_the_tiled_head_and_loses_little(sequences):
    model = make_model("GPT2Config", SMALL_GPT)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(8)  # large logits, as GPT-2 has, round coarsely in bfloat16
    model.to(torch.bfloat16)
    engine = LikelihoodEngine(model)
    nll = engine.nll(sequences, all_but_first(sequences))
    assert engine.tiled_head
    np.testing.assert_allclose(nll, plain_nll(model.float(), sequences), rtol=0.02)


def test_autocast_runs_the_body_in_bfloat16(sequences):
    model = make_model("LlamaConfig", SMALL)
    full = plain_nll(model, sequences)
    engine = LikelihoodEngine(model, autocast_dtype=torch.bfloat16)
    seen = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    nll = engine.nll(sequences, all_but_first(sequences))
    assert engine.tiled_head and set(seen) == {torch.bfloat16}
    assert model.dtype == torch.float32
    np.testing.assert_allclose(nll, full, rtol=0.02, atol=1e-9)
    assert not np.array_equal(nll, full)


def test_modes_come_back_and_dropout_is_off(sequences):
    model = make_model("GPT2Config", SMALL_GPT | {"resid_pdrop": 0.5, "embd_pdrop": 0.5})
    expected = plain_nll(model, sequences)
    model.train()
    model.transformer.h[0].eval()  # a part that someone froze stays as it was
    modes = [module.training for module in model.modules()]
    np.testing.assert_allclose(LikelihoodEngine(model).nll(sequences, all_but_first(sequences)), expected, rtol=1e-5)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError):
        LikelihoodEngine(model).nll([[1, 2]], [[0]])
    assert [module.training for module in model.modules()] == modes


def test_training_goes_on_after_scoring(sequences):
    model = make_model("LlamaConfig", SMALL).train()
    engine = LikelihoodEngine(model)
    engine.nll(sequences, all_but_first(sequences))
    ids = torch.tensor([sequences[2]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("target_modules", [["q_proj", "down_proj"], ["q_proj", "lm_head"]])
def test_lora_is_seen_also_when_it_changes_later(sequences, target_modules):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("LlamaConfig", SMALL),
        peft.LoraConfig(r=4, target_modules=target_modules, task_type="CAUSAL_LM"),
    ).eval()
    engine = LikelihoodEngine(model)
    before = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(before, plain_nll(model, sequences), rtol=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    after = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(after, plain_nll(model, sequences), rtol=1e-5)
    assert not np.allclose(after, before, rtol=1e-3)


def test_a_head_that_is_saved_beside_lora_is_seen(sequences):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_model("LlamaConfig", SMALL), config).eval()
    engine = LikelihoodEngine(model)
    engine.nll(sequences, all_but_first(sequences))
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.normal_(0, 0.3)
    nll = engine.nll(sequences, all_but_first(sequences))
    np.testing.assert_allclose(nll, plain_nll(model, sequences), rtol=1e-5)


def test_prompt_learning_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_model("LlamaConfig", SMALL), config)
    with pytest.raises(ValueError, match="virtual tokens"):
        LikelihoodEngine(model)


def test_nan_is_an_error_and_never_a_result(sequences):
    model = make_model("LlamaConfig", SMALL)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="LlamaForCausalLM gives NaN"):
        LikelihoodEngine(model).nll(sequences, all_but_first(sequences))


def test_very_unlikely_tokens_stay_finite():
    model = make_model("LlamaConfig", SMALL)
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    engine = LikelihoodEngine(model)
    nll = engine.nll([[1, 5, 9, 13]], [range(1, 4)])
    assert np.isfinite(nll[0]) and nll[0] > 1000
    np.testing.assert_allclose(nll, plain_nll(model, [[1, 5, 9, 13]]), rtol=1e-5)


def test_load_model(tiny_model_dir, tiny_model):
    model, tokenizer = load_model(tiny_model_dir, dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    assert load_model(tiny_model_dir)[0].dtype == torch.float32  # the checkpoint's own
    assert tokenizer("abc")["input_ids"]
    with pytest.raises(OSError, match="Cannot load the model 'nobody/nothing'.*HF_PPL_SELECT_MODEL"):
        load_model("nobody/nothing")
    with pytest.raises(ValueError, match="dtype must be 'auto' or a torch dtype"):
        load_model(tiny_model_dir, dtype="float33")


@pytest.mark.slow
def test_a_real_bfloat16_model_is_packed_on_a_cpu(smollm2_dir):
    model, tokenizer = load_model(smollm2_dir, device="cpu")
    texts = [
        "Fever is a raised body temperature.",
        "Insulin lowers blood glucose; without it, glucose stays in the blood.",
    ]
    ids = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    engine = LikelihoodEngine(model)
    nll = engine.nll(ids, all_but_first(ids))
    assert engine.tiled_head and engine.packs
    np.testing.assert_allclose(nll, plain_nll(model.float(), ids), rtol=0.03)
