"""LikelihoodEngine against plain logits: architectures, batching, tiles, adapters, autocast."""

import logging

import numpy as np
import pytest
import torch
import transformers

from hf_ppl_select.likelihood import lm_head
from hf_ppl_select.likelihood.engine import LikelihoodEngine, load_model
from hf_ppl_select.likelihood.models import num_positions
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer
from tests.likelihood.tiny_architectures import (
    ARCHITECTURES,
    SMALL,
    SMALL_GPT,
    VOCAB,
    all_but_first,
    make_model,
    plain_nll,
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
    model, tokenizer = load_model(smollm2_dir, device="cpu", dtype="bfloat16")
    texts = [
        "Fever is a raised body temperature.",
        "Insulin lowers blood glucose; without it, glucose stays in the blood.",
    ]
    ids = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    engine = LikelihoodEngine(model)
    nll = engine.nll(ids, all_but_first(ids))
    assert engine.tiled_head and engine.packs
    np.testing.assert_allclose(nll, plain_nll(model.float(), ids), rtol=0.03)
