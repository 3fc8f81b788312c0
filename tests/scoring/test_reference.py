"""perplexity_ratio: a model against a reference, both run by hand; adapters, tokenizers, rows of all kinds."""

import copy
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, disable_caching, enable_caching
from datasets.fingerprint import Hasher
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_ppl_select import PerplexityScorer
from hf_ppl_select.scoring.perplexity import REFERENCE_COLUMNS, SCORE_COLUMNS
from tests.scoring.test_batches import ROWS
from tests.scoring.test_rows import CHAT_TEMPLATE
from tests.scoring.test_scorer_model import TEXTS, other_weights, plain_nll

ALL_COLUMNS = (*SCORE_COLUMNS, *REFERENCE_COLUMNS)


@pytest.fixture
def reference(tiny_model, tiny_tokenizer, tmp_path):
    """A folder of other weights than the model's, saved after it."""
    tiny_tokenizer.save_pretrained(tmp_path / "reference")
    other_weights(copy.deepcopy(tiny_model), 5).save_pretrained(tmp_path / "reference")
    return str(tmp_path / "reference")


@pytest.fixture
def scorer(tiny_model_dir, reference):
    return PerplexityScorer(tiny_model_dir, reference=reference, chat_template=CHAT_TEMPLATE, device="cpu")


def test_scores_of_an_earlier_scoring_are_not_left_beside_new_ones(tiny_model_dir, scorer):
    rows = Dataset.from_dict({"text": TEXTS[:3]}).map(scorer, batched=True)
    again = rows.map(scorer, batched=True)
    assert again["perplexity_ratio"][:] == rows["perplexity_ratio"][:]
    plain = PerplexityScorer(tiny_model_dir, device="cpu")
    with pytest.raises(ValueError, match=r"hold reference_nll_sum, perplexity_ratio of an earlier .*remove_columns"):
        plain(rows.with_format("arrow")[:])
    with pytest.raises(ValueError, match="hold ifd of an earlier scoring"):
        plain({"text": TEXTS[0], "ifd": 0.5})


def make_adapter(base, folder, **options):
    """A LoRA adapter with random weights."""
    peft = pytest.importorskip("peft")
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | options
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**options))
    if "modules_to_save" in options:
        with torch.no_grad():
            adapted.get_output_embeddings().modules_to_save["default"].weight.mul_(1.5)
    adapted.save_pretrained(folder)
    return str(folder)


def merged(base, adapter):
    import peft

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return model.merge_and_unload().eval()


def lengths(tokenizer):
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]


def assert_ratios(found, nll, other, tokenizer, rtol=1e-5):
    """`nll` and `other` by hand, in float64."""
    np.testing.assert_allclose(found["nll_sum"], nll, rtol=rtol)
    np.testing.assert_allclose(found["reference_nll_sum"], other, rtol=rtol)
    expected = [math.exp((a - b) / n) for a, b, n in zip(nll, other, lengths(tokenizer), strict=True)]
    np.testing.assert_allclose(found["perplexity_ratio"], expected, rtol=1e-4)
    assert max(expected) / min(expected) > 1.01


def test_both_passes_are_what_each_model_gives_alone(scorer, tiny_model, tiny_tokenizer, reference):
    other = AutoModelForCausalLM.from_pretrained(reference)
    found = scorer({"text": TEXTS})
    assert tuple(found) == ALL_COLUMNS == scorer.columns and scorer.num_passes == 2
    assert_ratios(found, plain_nll(tiny_model, tiny_tokenizer), plain_nll(other, tiny_tokenizer), tiny_tokenizer)
    alone = PerplexityScorer(scorer.model, device="cpu")({"text": TEXTS})
    assert all(np.array_equal(found[name], alone[name]) for name in SCORE_COLUMNS)


def test_a_model_is_no_better_than_itself(tiny_model_dir):
    found = PerplexityScorer(tiny_model_dir, reference=tiny_model_dir, device="cpu")({"text": [*TEXTS, ""]})
    assert found["perplexity_ratio"] == [1.0] * len(TEXTS) + [None]


def test_long_texts_have_the_same_windows_in_both_passes(tiny_model, tiny_tokenizer, tiny_model_dir, reference):
    text = "Hypertension is treated with diuretics or calcium channel blockers. " * 20
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer(text)["input_ids"]]
    scorer = PerplexityScorer(tiny_model_dir, reference=reference, max_length=64, stride=24, device="cpu")
    found = scorer({"text": text})
    for name, model in (("nll_sum", tiny_model), ("reference_nll_sum", LlamaForCausalLM.from_pretrained(reference))):
        expected, scored_to, start = 0.0, 1, 0
        while scored_to < len(ids):
            window = torch.tensor([ids[start : start + 64]])
            with torch.no_grad():
                log_probs = torch.log_softmax(model(window).logits[0, :-1].double(), dim=-1)
            losses = -log_probs.gather(-1, window[0, 1:, None])[:, 0]
            expected += losses[scored_to - start - 1 :].sum().item()
            scored_to = start + window.shape[1]
            start = scored_to - 24
        assert found[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"target_modules": "all-linear"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}],
)
def test_an_adapter_is_its_merged_model_and_the_base_stays_what_it_was(
    tiny_model, tiny_tokenizer, tiny_model_dir, tmp_path, options
):
    adapter = make_adapter(tiny_model_dir, tmp_path / "lora", **options)
    scorer = PerplexityScorer(tiny_model_dir, reference=adapter, device="cpu")
    expected = plain_nll(merged(tiny_model_dir, adapter), tiny_tokenizer)
    for _ in range(2):  # the adapter is off again
        found = scorer({"text": TEXTS})
        assert_ratios(found, plain_nll(tiny_model, tiny_tokenizer), expected, tiny_tokenizer)
    loaded = scorer._loaded
    assert loaded.reference.engine.causal_lm is loaded.engine.causal_lm  # one set of weights
    whole = tmp_path / "merged"
    merged(tiny_model_dir, adapter).save_pretrained(whole)
    tiny_tokenizer.save_pretrained(whole)
    same = PerplexityScorer(tiny_model_dir, reference=str(whole), device="cpu")({"text": TEXTS})
    np.testing.assert_allclose(found["perplexity_ratio"], same["perplexity_ratio"], rtol=1e-4)


@pytest.mark.slow
def test_compiled_layers_know_whether_the_adapter_is_on(tiny_model_dir, tmp_path):
    adapter = make_adapter(tiny_model_dir, tmp_path / "lora")
    rows = {"text": [f"a sentence about number {i} " * (1 + i % 9) for i in range(20)]}
    plain, compiled = (
        PerplexityScorer(tiny_model_dir, reference=adapter, device="cpu", compile=compile) for compile in (False, True)
    )
    expected = plain(rows)
    for found in (compiled(rows), compiled(rows)):
        np.testing.assert_allclose(found["nll_sum"], expected["nll_sum"], rtol=1e-5)
        np.testing.assert_allclose(found["reference_nll_sum"], expected["reference_nll_sum"], rtol=1e-5)
    assert compiled._loaded.engine.compiled and compiled._loaded.reference.engine.compiled


def test_what_does_not_go_together_is_refused(tiny_model, tiny_tokenizer, tiny_model_dir, tmp_path):
    adapter = make_adapter(tiny_model_dir, tmp_path / "lora")
    other_weights(tiny_model, 7).save_pretrained(tmp_path / "another")
    tiny_tokenizer.save_pretrained(tmp_path / "another")
    another = PerplexityScorer(str(tmp_path / "another"), reference=adapter, device="cpu")
    for call in (another.settings, lambda: another({"text": TEXTS})):
        with pytest.raises(ValueError, match=r"reference '.*lora' is an adapter of '.*tiny-model' .*merge the"):
            call()
    biases = make_adapter(tiny_model_dir, tmp_path / "biases", bias="all")
    with pytest.raises(ValueError, match="trains biases of the model itself.*merge it"):
        PerplexityScorer(tiny_model_dir, reference=biases, device="cpu")({"text": TEXTS})
    with pytest.raises(OSError, match="Cannot find the model 'nobody/nothing'"):
        PerplexityScorer(tiny_model_dir, reference="nobody/nothing").settings()
    with pytest.raises(ValueError, match="reference_revision='main' is of no reference"):
        PerplexityScorer(tiny_model_dir, reference_revision="main")


def swapped_words(tokenizer):
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def other_eos(tokenizer):
    tokenizer.eos_token = "<|pad|>"


def special_word(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["fever"]})


def small_letters(tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swapped_words, "vocabulary"),
        (other_eos, "BOS or EOS token"),
        (special_word, "vocabulary|special tokens"),
        (small_letters, "way of cutting a text into tokens"),
    ],
)
def test_other_tokens_are_refused(scorer, reference, change, what):
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.pad_token = "<|endoftext|>"  # as training leaves it: no difference
    tokenizer.save_pretrained(reference)
    assert scorer({"text": TEXTS})["perplexity_ratio"]
    change(tokenizer)
    tokenizer.save_pretrained(reference)
    with pytest.raises(ValueError, match=f"tokenizers of the reference .* differ in their ({what}), so their perplex"):
        scorer({"text": TEXTS})


def test_a_reference_of_fewer_positions_says_what_to_pass(scorer, tiny_model, reference):
    config = copy.deepcopy(tiny_model.config)
    config.max_position_embeddings = 64
    LlamaForCausalLM(config).save_pretrained(reference)
    with pytest.raises(ValueError, match="The reference has 64 positions, but windows are of 1024.*max_length=64"):
        scorer({"text": TEXTS})


def test_without_a_reference_nothing_has_changed(tiny_model_dir, monkeypatch):
    """What was scored before there were references is found in the cache by this state, where bfloat16 is fast."""
    monkeypatch.setattr("hf_ppl_select.likelihood.cpu.auto_is_float32", lambda device: False)
    scorer = PerplexityScorer(tiny_model_dir, max_length=64)
    state = scorer.__getstate__()
    assert state.pop("revision").startswith("sha256:")
    assert list(state.items()) == [
        ("model", tiny_model_dir),
        ("text_column", "text"),
        ("bos", "auto"),
        ("max_length", 64),
        ("stride", None),
        ("dtype", "auto"),
        ("chat_template", None),
        ("split_special_tokens", False),
        ("version", 3),
        ("max_batch_tokens", None),
        ("compile", False),
        ("device", None),
        ("keep_columns", False),
        ("trust_remote_code", False),
    ]
    assert scorer.columns == SCORE_COLUMNS and tuple(scorer({"text": TEXTS})) == SCORE_COLUMNS


def test_the_fingerprint_is_of_the_references_weights_and_a_map_takes_new_ones(
    scorer, tiny_model, tiny_tokenizer, tiny_model_dir, reference, tmp_path
):
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "rows")
    dataset = Dataset.load_from_disk(tmp_path / "rows")
    hashes = {Hasher.hash(PerplexityScorer(tiny_model_dir, chat_template=CHAT_TEMPLATE, device="cpu"))}
    for seed in (5, 1, 2):
        other_weights(tiny_model, seed).save_pretrained(reference)
        expected = plain_nll(tiny_model, tiny_tokenizer)
        hashes.add(Hasher.hash(scorer))
        for one in (scorer, PerplexityScorer(tiny_model_dir, reference=reference, device="cpu")):
            np.testing.assert_allclose(dataset.map(one, batched=True)["reference_nll_sum"], expected, rtol=1e-5)
    assert len(hashes) == 4

    elsewhere = pickle.loads(pickle.dumps(scorer))
    np.testing.assert_allclose(elsewhere({"text": TEXTS})["reference_nll_sum"], expected, rtol=1e-5)
    assert vars(elsewhere).keys() == vars(scorer).keys() and elsewhere.settings() == scorer.settings()
    changed = pickle.loads(pickle.dumps(scorer))
    other_weights(tiny_model, 3).save_pretrained(reference)
    with pytest.raises(RuntimeError, match=r"model '.*reference' has changed: sha256:.* was to score"):
        changed({"text": TEXTS})


def test_a_new_base_of_an_adapter_is_taken_by_both_passes(tiny_model, tiny_tokenizer, tiny_model_dir, tmp_path):
    adapter = make_adapter(tiny_model_dir, tmp_path / "lora")
    scorer = PerplexityScorer(tiny_model_dir, reference=adapter, device="cpu")
    for seed in (1, 2):
        other_weights(tiny_model, seed).save_pretrained(tiny_model_dir)
        found = Dataset.from_dict({"text": TEXTS}).map(scorer, batched=True)
        expected = plain_nll(merged(tiny_model_dir, adapter), tiny_tokenizer)
        assert_ratios(found, plain_nll(tiny_model, tiny_tokenizer), expected, tiny_tokenizer)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
@pytest.mark.parametrize("rows", ROWS)
def test_rows_of_all_kinds_batched_streamed_and_as_tables(scorer, tiny_model_dir, tmp_path, rows, kind):
    if kind == "adapter":
        scorer.reference = make_adapter(tiny_model_dir, tmp_path / "lora")
    whole = PerplexityScorer(scorer.reference, chat_template=CHAT_TEMPLATE, device="cpu")
    dataset = Dataset.from_dict(ROWS[rows])
    expected = dataset.map(whole, batched=True)["nll_sum"][:]
    num_tokens = dataset.map(whole, batched=True)["num_tokens"][:]
    stream = list(dataset.to_iterable_dataset().map(scorer, batched=True, batch_size=2))
    tables = scorer(pa.table(ROWS[rows])).to_pylist()
    for found in (dataset.map(scorer, batched=True), dataset.map(scorer), stream, tables):
        for row, nll, number in zip(found, expected, num_tokens, strict=True):
            assert row["reference_nll_sum"] == pytest.approx(nll, rel=1e-5)
            if number:
                assert math.log(row["perplexity_ratio"]) == pytest.approx((row["nll_sum"] - nll) / number, abs=1e-4)
            else:
                assert row["perplexity_ratio"] is None or math.isnan(row["perplexity_ratio"])
    mapped = dataset.with_format("arrow").map(scorer, batched=True, batch_size=1)
    assert [mapped.features[name].dtype for name in REFERENCE_COLUMNS] == ["float64"] * 2


def test_two_processes(scorer):
    dataset = Dataset.from_dict({"text": TEXTS * 3})
    expected = scorer(dataset[:])
    disable_caching()
    try:
        found = dataset.map(scorer, batched=True, batch_size=2, num_proc=2)
    finally:
        enable_caching()
    for name in ALL_COLUMNS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_a_reference_saved_in_float32_computes_as_the_model_does(tiny_model, tiny_model_dir, reference):
    tiny_model.bfloat16().save_pretrained(tiny_model_dir)
    scorer = PerplexityScorer(tiny_model_dir, reference=reference, device="cpu", dtype="bfloat16")
    scorer({"text": TEXTS})
    assert scorer._loaded.reference.engine.causal_lm.dtype == torch.bfloat16


def test_infinite_ratios_are_kept_and_never_nan():
    from hf_ppl_select.scoring.score_columns import _difference, _exp_means

    nll, other = np.array([4000.0, np.inf, np.inf, 5.0]), np.array([1.0, 1.0, np.inf, np.inf])
    assert list(_exp_means(_difference(nll, other), np.array([2, 2, 2, 2]))) == [math.inf, math.inf, 1.0, 0.0]
