"""Trees of tokens against plain scoring: many architectures, shapes of trees, windows, batches, broken models."""

import logging

import numpy as np
import pytest
import torch

from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.likelihood.shared_prefix import SharedPrefixScorer


class RecordingEngine(LikelihoodEngine):
    """Remembers what was run."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def outputs(self, input_ids, **inputs):
        self.calls.append((tuple(input_ids.shape), sorted(inputs)))
        return super().outputs(input_ids, **inputs)


def plain_nll(model, sequences, starts):
    """From the model's own logits, one sequence at a time."""
    totals = []
    for ids, start in zip(sequences, starts, strict=True):
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        totals.append(-sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids))))
    return np.array(totals)


def questions(vocabulary, *, num_questions=5, num_choices=4, seed=0, shared=0, longest=9):
    rng = np.random.default_rng(seed)
    lead = rng.integers(vocabulary, size=shared).tolist()
    sequences, starts = [], []
    for _ in range(num_questions):
        prompt = lead + rng.integers(vocabulary, size=rng.integers(12, 30)).tolist()
        for _ in range(num_choices):
            sequences.append(prompt + rng.integers(vocabulary, size=rng.integers(1, longest)).tolist())
            starts.append(len(prompt))
    return sequences, starts


def settle(model):
    """Weights large enough that what a token sees matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "conv" not in name:
                weight.normal_(0.0, 0.3)
    return model.eval()


def tiny(kind, **options):
    import transformers as t

    torch.manual_seed(0)
    small = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 48, "max_position_embeddings": 256, "pad_token_id": 0}
    small |= {"bos_token_id": 1, "eos_token_id": 2} | options
    made = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(num_key_value_heads=2, **small)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(num_key_value_heads=2, **small)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(num_key_value_heads=2, head_dim=8, **small)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(num_key_value_heads=2, head_dim=8, **small)),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**small)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **small)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        ),
        "bloom": lambda: t.BloomForCausalLM(
            t.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        ),
        "lfm2": lambda: t.Lfm2ForCausalLM(
            t.Lfm2Config(num_key_value_heads=2, layer_types=["conv", "full_attention"], **small)
        ),
        "mamba": lambda: t.MambaForCausalLM(
            t.MambaConfig(
                vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, bos_token_id=1, eos_token_id=2
            )
        ),
    }
    return settle(made[kind]())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma3", "gpt_neox", "gpt2", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_tree_gives_what_single_sequences_give(kind, attention):
    model = tiny(kind)
    model.set_attn_implementation(attention)
    sequences, starts = questions(97)
    scorer = SharedPrefixScorer(LikelihoodEngine(model))
    assert scorer.nll(sequences, starts) == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)
    # Beyond them: opt, whose positions come from the mask; gpt2 of transformers 4: its mask ends at its positions
    if kind != "opt" and (kind, attention) != ("gpt2", "eager"):
        assert scorer.branching is True


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_trees_and_plain_rows_packed_behind_each_other(kind):
    model = tiny(kind, sliding_window=60) if kind == "gemma3" else tiny(kind)
    sequences, starts = questions(97, num_questions=9)
    sequences += [[5, 6, 7, 8, letter] for letter in (10, 11, 12)] + [np.arange(90).tolist()]
    starts += [4, 4, 4, 80]
    engine = RecordingEngine(model, max_batch_tokens=300)
    with engine.measuring():
        engine.packs = True  # by itself only where it pays: bfloat16 on a CPU
    found = SharedPrefixScorer(engine).nll(sequences, starts)
    assert found == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)
    alone = ((1, 89), []) in engine.calls
    assert alone == (kind == "gemma3")  # too long for the window
    packed = [shape for shape, inputs in engine.calls if inputs == ["position_ids"]]
    assert len(packed) > 2 and all(batch == 1 and width <= 300 for batch, width in packed)


@pytest.mark.parametrize("kind", ["bloom", "lfm2", "mamba"])
def test_a_model_that_cannot_read_trees_is_scored_row_by_row(kind, caplog):
    model = tiny(kind)
    sequences, starts = questions(97)
    scorer = SharedPrefixScorer(LikelihoodEngine(model))
    with caplog.at_level(logging.INFO, logger="hf_ppl_select.likelihood.shared_prefix"):
        found = scorer.nll(sequences, starts)
    assert found == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)
    assert scorer.branching is False
    assert "shared prefixes" in caplog.text


def test_letters_after_one_prompt_are_one_plain_row():
    engine = RecordingEngine(tiny("llama"))
    sequences = [[5, 6, 7, 8, letter] for letter in (10, 11, 12, 13)] + [[5, 6, 7, 8, 10]]
    found = SharedPrefixScorer(engine).nll(sequences, [4] * 5)
    assert found == pytest.approx(plain_nll(engine.model, sequences, [4] * 5), rel=1e-5)
    assert engine.calls[-1] == ((1, 4), [])  # the prompt, without a mask
    assert found[0] == found[4]


def test_examples_that_questions_share_run_once():
    model = tiny("llama")
    sequences, starts = questions(97, shared=100)
    engine = RecordingEngine(model)
    scorer = SharedPrefixScorer(engine)
    assert scorer.nll(sequences, starts) == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)
    shape, inputs = engine.calls[-1]
    assert shape[0] == 1 and inputs == ["attention_mask", "position_ids"]
    assert shape[1] < 100 + sum(len(ids) - 100 for ids in sequences)
    assert sum(len(ids) for ids in sequences) > 3 * shape[1]


def test_little_in_common_makes_rows_of_their_own():
    engine = RecordingEngine(tiny("llama"))
    rng = np.random.default_rng(3)
    sequences = [[1, 2, *rng.integers(97, size=20).tolist()] for _ in range(4)]
    SharedPrefixScorer(engine).nll(sequences, [10] * 4)
    assert engine.calls[-1] == ((4, 21), [])


def test_rows_stay_short_and_batches_small(monkeypatch):
    monkeypatch.setattr("hf_ppl_select.likelihood.shared_prefix.ROW_TOKENS", 60)
    model = tiny("llama")
    sequences, starts = questions(97, num_questions=12, shared=40)
    engine = RecordingEngine(model, max_batch_tokens=160)
    found = SharedPrefixScorer(engine).nll(sequences, starts)
    assert found == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)
    trees = [shape for shape, inputs in engine.calls if inputs][1:]  # after the check
    assert len(trees) > 1
    assert all(batch * width <= 160 for batch, width in trees)
    assert max(width for _, width in trees) <= 2 * max(map(len, sequences))


def test_order_batch_size_and_repetition_do_not_matter():
    model = tiny("llama")
    sequences, starts = questions(97, num_questions=8)
    once = SharedPrefixScorer(LikelihoodEngine(model)).nll(sequences, starts)
    order = np.random.default_rng(0).permutation(len(sequences))
    engine = LikelihoodEngine(model, max_batch_tokens=50)
    shuffled = SharedPrefixScorer(engine).nll([sequences[i] for i in order] * 2, [starts[i] for i in order] * 2)
    assert shuffled == pytest.approx(np.concatenate([once[order]] * 2), rel=1e-5)


def test_a_sequence_may_be_one_token_longer_than_the_positions():
    model = tiny("gpt2")
    ids = np.random.default_rng(0).integers(97, size=65).tolist()
    sequences, starts = [ids, ids[:60] + [1, 2, 3, 4, 5]], [60, 60]
    found = SharedPrefixScorer(LikelihoodEngine(model)).nll(sequences, starts)
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids[:-1]])).logits[0].double(), dim=-1)
    assert found[0] == pytest.approx(-sum(log_probs[p - 1, ids[p]].item() for p in range(60, 65)), rel=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_a_sliding_window_keeps_its_effect(kind):
    model = tiny(kind, sliding_window=24)
    sequences, starts = questions(97, num_questions=6, seed=2)  # some fit into the window, some do not
    assert any(len(ids) <= 24 for ids in sequences) and any(len(ids) > 30 for ids in sequences)
    scorer = SharedPrefixScorer(LikelihoodEngine(model))
    assert scorer.window == 24
    assert scorer.nll(sequences, starts) == pytest.approx(plain_nll(model, sequences, starts), rel=1e-4)


def test_the_check_sees_a_lost_mask_and_lost_positions():
    for lost in ("attention_mask", "position_ids"):

        class Forgetful(LikelihoodEngine):
            def outputs(self, input_ids, lost=lost, **inputs):
                kept = {name: value for name, value in inputs.items() if name != lost}
                return super().outputs(input_ids, **kept)

        scorer = SharedPrefixScorer(Forgetful(tiny("llama")))
        sequences, starts = questions(97)
        found = scorer.nll(sequences, starts)
        assert scorer.branching is False, lost
        assert found == pytest.approx(plain_nll(scorer.engine.model, sequences, starts), rel=1e-4)


def test_the_check_sees_a_lost_mask_that_rounding_would_hide(caplog):
    model = tiny("llama").bfloat16()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)  # what a token sees matters little: 0.05 nats, where bfloat16 is allowed 0.1

    class Forgetful(LikelihoodEngine):
        packs_trees = False

        def outputs(self, input_ids, **inputs):
            if "attention_mask" in inputs:
                inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"]).tril()
            return super().outputs(input_ids, **inputs)

    sequences, starts = questions(97)
    scorer = SharedPrefixScorer(Forgetful(model))
    with caplog.at_level(logging.INFO):
        found = scorer.nll(sequences, starts)
    assert scorer.branching is False and "lets the branches of a tree see each other" in caplog.text
    assert found == pytest.approx(plain_nll(model, sequences, starts), rel=0.02)
    assert SharedPrefixScorer(LikelihoodEngine(model))._branching_agrees()


def test_autocast_and_training_mode():
    model = tiny("llama").train()
    sequences, starts = questions(97)
    scorer = SharedPrefixScorer(LikelihoodEngine(model, autocast_dtype=torch.bfloat16))
    found = scorer.nll(sequences, starts)
    assert model.training and all(module.training for module in model.modules())
    assert scorer.branching is True
    model.eval()
    assert found == pytest.approx(plain_nll(model, sequences, starts), rel=0.05)


def test_progress_counts_the_tokens_that_run():
    from tqdm import tqdm

    engine = RecordingEngine(tiny("llama"))
    sequences, starts = questions(97)
    with tqdm(disable=False, file=open("/dev/null", "w")) as bar:  # noqa: SIM115
        SharedPrefixScorer(engine).nll(sequences, starts, bar=bar)
        assert bar.n == bar.total < sum(len(ids) for ids in sequences)


def test_what_memory_did_not_hold_is_not_tried_again(monkeypatch, caplog):
    model = tiny("llama")
    sequences, starts = questions(60, num_questions=16)
    scorer = SharedPrefixScorer(LikelihoodEngine(model, max_batch_tokens=2000))
    expected = scorer.nll(sequences, starts)
    outputs, most = scorer.engine.outputs, 100

    def small_memory(input_ids, **inputs):
        if input_ids.numel() > most:
            raise torch.OutOfMemoryError("out of memory")
        return outputs(input_ids, **inputs)

    monkeypatch.setattr(scorer.engine, "outputs", small_memory)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(scorer.nll(sequences, starts), expected, rtol=1e-5)
    assert 1 <= caplog.text.count("Out of memory") <= 3 and scorer.engine.max_batch_tokens < 2000


def test_errors():
    model = tiny("llama")
    scorer = SharedPrefixScorer(LikelihoodEngine(model))
    assert scorer.nll([], []).shape == (0,)
    with pytest.raises(ValueError, match="2 sequences but 1 starts"):
        scorer.nll([[1, 2], [1, 2]], [1])
    with pytest.raises(ValueError, match="Sequence 1: start 0 must be from 1 to 1"):
        scorer.nll([[1, 2], [1, 2]], [1, 0])
    with pytest.raises(ValueError, match="Sequence 0: start 2"):
        scorer.nll([[1, 2]], [2])
    with torch.no_grad():
        model.get_input_embeddings().weight[50:] = float("nan")
    with pytest.raises(ValueError, match="gives NaN for sequence 1"):
        SharedPrefixScorer(LikelihoodEngine(model), branching=True).nll([[1, 2, 3], [60, 61, 62]], [1, 1])
