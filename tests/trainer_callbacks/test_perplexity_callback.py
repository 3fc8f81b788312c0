import numpy as np
import pytest
import torch
from callback_trainers import DOMAIN, HELD_OUT, TRAIN, make_trainer, rows_with, teach
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback

from hf_ppl_select import PerplexityLandscape
from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from trainer_callbacks import PerplexityCallback


@pytest.mark.parametrize("kind", ["plain", "sft", "lora"])
def test_logs_what_evaluate_perplexity_gives_by_hand(kind, tiny_model, tiny_tokenizer, tmp_path):
    before = {name: evaluate_perplexity(tiny_model, tiny_tokenizer, texts) for name, texts in HELD_OUT.items()}
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    trainer.train()
    after = {name: evaluate_perplexity(trainer.model, tiny_tokenizer, texts) for name, texts in HELD_OUT.items()}

    logged = rows_with(trainer, "domain_loss")
    assert sorted(logged) == [0, 4]  # nothing is due in between
    for name in HELD_OUT:
        for step, found in ((0, before[name]), (4, after[name])):
            assert logged[step][f"{name}_loss"] == pytest.approx(found.nll_per_token, rel=1e-6)
            assert logged[step][f"{name}_perplexity"] == pytest.approx(found.perplexity, rel=1e-6)
            assert logged[step][f"{name}_bits_per_byte"] == pytest.approx(found.bits_per_byte, rel=1e-6)
        assert logged[0][f"{name}_num_tokens"] == before[name].num_tokens.sum()
        assert logged[0][f"{name}_forgetting"] == 0.0
        assert logged[4][f"{name}_forgetting"] == logged[4][f"{name}_loss"] - logged[0][f"{name}_loss"]
    assert after["domain"].nll_per_token != before["domain"].nll_per_token


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_the_landscape_drifts(kind, tiny_model, tiny_tokenizer, tmp_path):
    chunks = [*TRAIN[:6], ""]  # an empty one has no perplexity and no vote

    def moments():
        rows = Dataset.from_dict({"text": chunks}).map(score_with(tiny_model, tiny_tokenizer), batched=True)
        landscape = PerplexityLandscape.from_dataset(rows)
        return landscape.log_mu, landscape.log_sigma

    before = moments()
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(PerplexityCallback(trainer, {}, landscape=chunks, every_n_steps=2))
    trainer.train()
    after = moments()
    logged = rows_with(trainer, "landscape_log_mu")
    assert sorted(logged) == [0, 2, 4]
    names = ("landscape_log_mu", "landscape_log_sigma")
    for step, expected in ((0, before), (4, after)):
        assert [logged[step][name] for name in names] == pytest.approx(expected, rel=1e-6)
        drift = [now - then for now, then in zip(expected, before, strict=True)]
        assert [logged[step][f"{name}_drift"] for name in names] == pytest.approx(drift, abs=1e-6)
    assert after[0] < before[0] - 0.1


def score_with(model, tokenizer):
    def score(rows):
        found = evaluate_perplexity(model, tokenizer, rows["text"])
        with np.errstate(invalid="ignore"):
            perplexity = np.exp(found.nll_sum / found.num_tokens)
        return {"perplexity": perplexity, "num_tokens": found.num_tokens}

    return score


def test_follows_evaluations_and_measures_a_step_once(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer(
        "sft",
        tiny_model,
        tiny_tokenizer,
        tmp_path,
        max_steps=5,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="general_loss",
        greater_is_better=False,
    )
    seen = []
    trainer.add_callback(LogRecorder(seen))
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=4))
    trainer.train()
    logged = [row for row in trainer.state.log_history if "general_loss" in row]
    assert [row["step"] for row in logged] == [0, 2, 4, 5]
    assert [logs["general_loss"] for logs in seen if "general_loss" in logs] == [row["general_loss"] for row in logged]
    evaluated = [row["step"] for row in trainer.state.log_history if "eval_loss" in row]
    assert evaluated in ([2, 4, 5], [2, 4])  # transformers 4 does not evaluate at the last step
    assert trainer.state.best_metric == min(row["general_loss"] for row in logged if row["step"] in evaluated)
    assert trainer.evaluate()["eval_general_loss"] == pytest.approx(trainer.state.best_metric)  # not a stale value


class LogRecorder(TrainerCallback):
    """Stands for a tracker: it only sees what `on_log` brings."""

    def __init__(self, seen):
        self.seen = seen

    def on_log(self, args, state, control, logs, **kwargs):
        self.seen.append(dict(logs))


def test_a_resumed_run_keeps_its_baseline(tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=1))
    trainer.train()
    unbroken = rows_with(trainer, "general_loss")

    tiny_model.load_state_dict(start)
    resumed = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    resumed.add_callback(PerplexityCallback(resumed, HELD_OUT, every_n_steps=1))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = rows_with(resumed, "general_loss")
    assert sorted(found) == [0, 1, 2, 3, 4]
    for step in (3, 4):
        assert found[step]["general_forgetting"] == pytest.approx(unbroken[step]["general_forgetting"], abs=1e-5)
        assert found[step]["general_forgetting"] == found[step]["general_loss"] - unbroken[0]["general_loss"]


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_forgetting_right_after_a_resume(kind, tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}

    def trainer_of(**more):
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path, **options | more)
        trainer.eval_dataset = trainer.train_dataset
        trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, landscape=DOMAIN, every_n_steps=2))
        return trainer

    trainer = trainer_of(max_steps=2)
    trainer.train()
    expected = rows_with(trainer, "general_loss")[2]
    resumed = trainer_of(max_steps=4, eval_on_start=True)
    resumed.train(resume_from_checkpoint=True)
    found = [row for row in resumed.state.log_history if "general_loss" in row]
    assert [row["step"] for row in found] == [0, 2, 2, 4]  # before the kill, and when it went on
    for name in ("general_loss", "general_forgetting", "domain_forgetting", "landscape_log_mu_drift"):
        assert found[2][name] == pytest.approx(expected[name], rel=1e-6) and expected[name] != 0.0


def test_no_baseline_no_forgetting(tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=2, **options).train()
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=3, **options)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    trainer.train(resume_from_checkpoint=True)
    (row,) = rows_with(trainer, "general_loss").values()
    assert row["step"] == 3 and "general_forgetting" not in row


def test_another_held_out_set_after_a_resume(tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    trainer.train()
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options | {"max_steps": 3})
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT | {"general": ["Something else."]}))
    with pytest.raises(ValueError, match="'general' has 12 tokens, but 22 when this run was at step 0"):
        trainer.train(resume_from_checkpoint=True)


def test_weights_changed_between_two_evaluations(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("plain", tiny_model, tiny_tokenizer, tmp_path)
    trainer.eval_dataset = trainer.train_dataset
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    first = trainer.evaluate()["eval_general_loss"]
    teach(tiny_model, tiny_tokenizer, DOMAIN, steps=1)
    second = trainer.evaluate()["eval_general_loss"]
    assert first != second
    assert second == pytest.approx(evaluate_perplexity(tiny_model, tiny_tokenizer, HELD_OUT["general"]).nll_per_token)


def test_measures_in_the_mixed_precision_of_the_training(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, bf16=True, max_steps=1)
    trainer.add_callback(PerplexityCallback(trainer, {"domain": DOMAIN}))
    trainer.train()
    engine = LikelihoodEngine(tiny_model, autocast_dtype=torch.bfloat16)
    by_hand = evaluate_perplexity(tiny_model, tiny_tokenizer, DOMAIN, engine=engine).nll_per_token
    assert rows_with(trainer, "domain_loss")[1]["domain_loss"] == pytest.approx(by_hand, rel=1e-6)
    assert by_hand != evaluate_perplexity(tiny_model, tiny_tokenizer, DOMAIN).nll_per_token
    assert all(weight.dtype == torch.float32 for weight in tiny_model.parameters())


def test_only_completions_count(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=1)
    pairs = Dataset.from_dict({"prompt": ["What is it?\n", ""], "completion": ["A cough.", "Fever."]})
    texts = Dataset.from_dict({"body": ["A cough.", None, "Fever."]})
    callback = PerplexityCallback(trainer, {"pairs": pairs})
    assert [len(row.counted) for row in callback.held_out[0].rows] == [
        len(tiny_tokenizer(answer)["input_ids"]) for answer in pairs["completion"]
    ]
    callback = PerplexityCallback(trainer, {"texts": texts}, text_column="body")
    assert [row.num_bytes for row in callback.held_out[0].rows] == [8, 0, 6]


def test_bad_held_out_sets(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer("plain", tiny_model, tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="no held-out sets"):
        PerplexityCallback(trainer, {})
    with pytest.raises(ValueError, match="'general' has no token to score in its 2 rows"):
        PerplexityCallback(trainer, {"domain": DOMAIN, "general": ["", ""]})
    with pytest.raises(ValueError, match="'domain' has the columns body, id; name the one with the text"):
        PerplexityCallback(trainer, {"domain": Dataset.from_dict({"body": DOMAIN, "id": [1, 2, 3]})})
    with pytest.raises(TypeError, match="'domain' is one text; pass a list"):
        PerplexityCallback(trainer, {"domain": DOMAIN[0]})
    with pytest.raises(TypeError, match="need names, .* got a list"):
        PerplexityCallback(trainer, DOMAIN)
    rows = Dataset.from_dict({"text": DOMAIN})
    with pytest.raises(TypeError, match="'domain' has the splits train, test; pass one"):
        PerplexityCallback(trainer, {"domain": DatasetDict(train=rows, test=rows)})
    with pytest.raises(TypeError, match="'domain' is a stream"):
        PerplexityCallback(trainer, {"domain": rows.to_iterable_dataset()})
    with pytest.raises(ValueError, match="cannot be called 'eval'"):
        PerplexityCallback(trainer, {"eval": DOMAIN})
    with pytest.raises(ValueError, match="max_length is 4096, but the model has 1024"):
        PerplexityCallback(trainer, HELD_OUT, max_length=4096)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        PerplexityCallback(trainer, HELD_OUT, max_length=1)
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        PerplexityCallback(trainer, HELD_OUT, every_n_steps=0)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="no tokenizer"):
        PerplexityCallback(trainer, HELD_OUT)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="whole weights"):
        PerplexityCallback(trainer, HELD_OUT)
