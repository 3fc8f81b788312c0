"""What a scorer's fingerprint names is what it has loaded: weights, tokenizer, template, adapter's base, commit."""

import copy
import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModelForCausalLM

from hf_ppl_select import PerplexityScorer, score_ppl
from tests.scoring.test_rows import CHAT, CHAT_TEMPLATE

TEXTS = ["The patient presented with fever.", "Numbers 0 1 2 3", "Paris is the capital of France."]


def plain_nll(model, tokenizer, texts=TEXTS):
    """One text at a time after BOS, plain logits, log-softmax in float64."""
    sums = []
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        sums.append(-log_probs.gather(-1, ids[0, 1:, None]).sum().item())
    return sums


def other_weights(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def scored(dataset, scorer):
    return dataset.map(scorer, batched=True)["nll_sum"][:]


@pytest.fixture
def dataset(tmp_path):
    """Of files, so that maps have a cache."""
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "rows")
    return Dataset.load_from_disk(tmp_path / "rows")


def test_new_weights_in_the_same_folder_are_scored_with_and_cached_as_themselves(
    dataset, tiny_model, tiny_tokenizer, tiny_model_dir
):
    scorer = PerplexityScorer(tiny_model_dir, device="cpu")
    for seed in (None, 1, 2):
        if seed is not None:
            other_weights(tiny_model, seed).save_pretrained(tiny_model_dir)
        expected = plain_nll(tiny_model, tiny_tokenizer)
        np.testing.assert_allclose(scored(dataset, scorer), expected, rtol=1e-5)
        np.testing.assert_allclose(
            scored(dataset, PerplexityScorer(tiny_model_dir, device="cpu")), expected, rtol=1e-5
        )


def test_a_scorer_without_a_map_takes_new_weights_too(tiny_model, tiny_tokenizer, tiny_model_dir):
    scorer = PerplexityScorer(tiny_model_dir, device="cpu")
    for seed in (1, 2):
        other_weights(tiny_model, seed).save_pretrained(tiny_model_dir)
        np.testing.assert_allclose(
            scorer({"text": TEXTS})["nll_sum"], plain_nll(tiny_model, tiny_tokenizer), rtol=1e-5
        )
    model = scorer._loaded.engine
    assert scorer({"text": TEXTS}) is not None and scorer._loaded.engine is model  # loaded once


def test_a_new_tokenizer_and_a_new_chat_template_are_taken(dataset, tiny_model, tiny_tokenizer, tiny_model_dir):
    scorer = PerplexityScorer(tiny_model_dir, device="cpu")
    before = scored(dataset, scorer)
    other = copy.deepcopy(tiny_tokenizer)
    other.bos_token = "<|pad|>"
    other.save_pretrained(tiny_model_dir)
    np.testing.assert_allclose(scored(dataset, scorer), plain_nll(tiny_model, other), rtol=1e-5)
    assert not np.allclose(scored(dataset, scorer), before, rtol=1e-3)

    chats = Dataset.from_dict({"messages": [CHAT]})
    counts = []
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE.replace("{{ message['content'] }}{% endgen", "Yes.{% endgen")):
        other.chat_template = template
        other.save_pretrained(tiny_model_dir)
        counts.append(chats.map(scorer, batched=True)["num_tokens"][0])
    answers = [turn["content"] for turn in CHAT if turn["role"] == "assistant"]
    assert counts == [sum(len(other(text)["input_ids"]) for text in each) for each in (answers, ["Yes."] * 2)]


def test_a_new_base_of_an_adapter_is_taken(dataset, tiny_model, tiny_tokenizer, tiny_model_dir, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config).save_pretrained(
        tmp_path / "lora"
    )
    scorer = PerplexityScorer(str(tmp_path / "lora"), device="cpu")
    for seed in (1, 2):
        other_weights(tiny_model, seed).save_pretrained(tiny_model_dir)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
        np.testing.assert_allclose(scored(dataset, scorer), plain_nll(adapted, tiny_tokenizer), rtol=1e-5)


def test_a_hub_revision_that_moves_is_taken_from_one_map_to_the_next(
    dataset, tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)  # transformers 4
    repository = tmp_path / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    expected = {}
    for commit in ("a" * 40, "b" * 40):
        snapshot = repository / "snapshots" / commit
        other_weights(tiny_model, ord(commit[0])).save_pretrained(snapshot)
        tiny_tokenizer.save_pretrained(snapshot)
        expected[commit] = plain_nll(tiny_model, tiny_tokenizer)
    scorer = PerplexityScorer("me/model", device="cpu")
    for commit in expected:
        (repository / "refs" / "main").write_text(commit)
        np.testing.assert_allclose(scored(dataset, scorer), expected[commit], rtol=1e-5)
        assert scorer.settings()["revision"] == commit
    # Named before it moved, loaded after: in another process
    elsewhere = pickle.dumps(scorer)
    (repository / "refs" / "main").write_text("a" * 40)
    np.testing.assert_allclose(pickle.loads(elsewhere)({"text": TEXTS})["nll_sum"], expected["b" * 40], rtol=1e-5)


def test_weights_that_change_between_fingerprint_and_load_are_an_error(tiny_model, tiny_model_dir):
    for scorer in (named := PerplexityScorer(tiny_model_dir), pickle.loads(pickle.dumps(named))):
        scorer.settings()
        other_weights(tiny_model, id(scorer)).save_pretrained(tiny_model_dir)
        with pytest.raises(
            RuntimeError, match="has changed: sha256:.* was to score, but now it is sha256:.*Map again"
        ):
            scorer({"text": TEXTS})
        scorer.settings()
        assert len(scorer({"text": TEXTS})["nll_sum"]) == 3


def test_weights_that_change_during_a_map_are_said_and_not_scored_with(
    tiny_model, tiny_tokenizer, tiny_model_dir, caplog
):
    expected = plain_nll(tiny_model, tiny_tokenizer)
    scorer = PerplexityScorer(tiny_model_dir)

    def map_and_save(row, index):
        if index == 1:
            other_weights(tiny_model, 3).save_pretrained(tiny_model_dir)
        return scorer(row)

    scorer.settings()  # as a map does that gets the scorer itself
    with caplog.at_level(logging.WARNING):
        found = Dataset.from_dict({"text": TEXTS}).map(map_and_save, with_indices=True, new_fingerprint="0" * 16)
    np.testing.assert_allclose(found["nll_sum"], expected, rtol=1e-5)
    assert caplog.text.count("has changed; scoring goes on with what was loaded from it") == 1
    shutil.rmtree(tiny_model_dir)
    np.testing.assert_allclose(scorer({"text": TEXTS})["nll_sum"], expected, rtol=1e-5)


def test_another_name_or_dtype_is_loaded(tiny_model, tiny_tokenizer, tiny_model_dir, tmp_path, monkeypatch):
    other_weights(tiny_model, 1).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    first = PerplexityScorer(tiny_model_dir)({"text": TEXTS})["nll_sum"]
    second = plain_nll(tiny_model, tiny_tokenizer)
    monkeypatch.setattr(score_ppl, "_loaded", None)
    for folder, expected in ((tiny_model_dir, first), (str(tmp_path / "other"), second)):
        monkeypatch.setenv("HF_PPL_SELECT_MODEL", folder)
        np.testing.assert_allclose(scored(Dataset.from_dict({"text": TEXTS}), score_ppl), expected, rtol=1e-5)
        np.testing.assert_allclose(score_ppl({"text": TEXTS})["nll_sum"], expected, rtol=1e-5)
    scorer = PerplexityScorer(tiny_model_dir)
    scorer({"text": TEXTS})
    scorer.dtype = "bfloat16"
    scorer({"text": TEXTS})
    assert scorer._loaded.engine.causal_lm.dtype == torch.bfloat16
    json.dumps(scorer.settings())


def test_what_auto_means_on_this_cpu_is_in_the_fingerprint(tiny_model_dir, monkeypatch):
    """Scores in bfloat16 that another CPU cached are not taken for those in float32; a scorer moves between both."""
    found = {}
    for slow in (False, True):
        monkeypatch.setattr("hf_ppl_select.likelihood.cpu.auto_is_float32", lambda device, slow=slow: slow)
        scorer = PerplexityScorer(tiny_model_dir)
        found[slow] = scorer.settings(), Hasher.hash(scorer), pickle.dumps(scorer)
        assert Hasher.hash(PerplexityScorer(tiny_model_dir, dtype="float32")) not in found[slow]
    assert found[True][0] == found[False][0] | {"auto": "float32"} and found[True][1] != found[False][1]
    for slow in (False, True):
        monkeypatch.setattr("hf_ppl_select.likelihood.cpu.auto_is_float32", lambda device, slow=slow: slow)
        arrived = pickle.loads(found[not slow][2])
        assert (arrived.settings(), Hasher.hash(arrived)) == found[slow][:2] and arrived.dtype == "auto"
