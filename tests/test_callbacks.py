import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from hf_ppl_select.benchmarks import run_benchmarks
from hf_ppl_select.likelihood import LikelihoodEngine
from hf_ppl_select.perplexity import evaluate_perplexity
from trainer_callbacks import BenchmarkCallback, PerplexityCallback, ScalingLawCallback, TokensPerSecondCallback

TRAIN = [f"Fever and cough number {i} are treated with rest, tea and {i % 7} tablets." for i in range(48)]
DOMAIN = ["Hypertension is treated with diuretics.", "The patient had a cough.", "No fever."]
GENERAL = ["The capital of France is Paris.", "Letters and numbers 1 2 3."]
HELD_OUT = {"domain": DOMAIN, "general": GENERAL}


def make_trainer(kind, model, tokenizer, folder, **options):
    options = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | options
    if kind == "plain":
        ids = [tokenizer(text)["input_ids"][:24] for text in TRAIN]
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = Trainer(model, TrainingArguments(**options), train_dataset=rows, processing_class=tokenizer)
        return trainer
    peft_config = None
    if kind == "lora":
        peft_config = pytest.importorskip("peft").LoraConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]
        )
    return SFTTrainer(
        model,
        SFTConfig(max_length=32, **options),
        train_dataset=Dataset.from_dict({"text": TRAIN}),
        eval_dataset=Dataset.from_dict({"text": DOMAIN}) if "eval_strategy" in options else None,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def rows_with(trainer, key):
    return {row["step"]: row for row in trainer.state.log_history if key in row}


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
        assert logged[0][f"{name}_forgetting"] == 0.0
        assert logged[4][f"{name}_forgetting"] == logged[4][f"{name}_loss"] - logged[0][f"{name}_loss"]
    assert after["domain"].nll_per_token != before["domain"].nll_per_token


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_training_goes_on_as_if_nothing_had_been_measured(kind, tiny_model, tiny_tokenizer, tmp_path):
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # draws random numbers, so that a shifted generator would show
    runs = []
    for measured in (False, True):
        tiny_model.load_state_dict(start)
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
        modes = []
        if measured:
            trainer.add_callback(PerplexityCallback(trainer, HELD_OUT, every_n_steps=1))
        trainer.add_callback(ModeRecorder(modes))
        trainer.train()
        training = [row for row in trainer.state.log_history if "loss" in row]
        weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
        runs.append((training, modes, weights))
    (without_log, without_modes, without), (with_log, with_modes, with_) = runs
    assert with_log == without_log and [row["step"] for row in with_log] == [1, 2, 3, 4]  # no loss row is swallowed
    assert with_modes == without_modes == [True] * 4  # back in train mode
    assert all(torch.equal(with_[name], without[name]) for name in without)


class ModeRecorder(TrainerCallback):
    def __init__(self, modes):
        self.modes = modes

    def on_step_end(self, args, state, control, model, **kwargs):
        self.modes.append(model.training)


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
    assert trainer.state.best_metric == min(row["general_loss"] for row in logged[1:])
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


def test_no_baseline_no_forgetting(tiny_model, tiny_tokenizer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=2, **options).train()
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=3, **options)
    trainer.add_callback(PerplexityCallback(trainer, HELD_OUT))
    trainer.train(resume_from_checkpoint=True)
    (row,) = rows_with(trainer, "general_loss").values()
    assert row["step"] == 3 and "general_forgetting" not in row


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
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        PerplexityCallback(trainer, HELD_OUT, every_n_steps=0)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="no tokenizer"):
        PerplexityCallback(trainer, HELD_OUT)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="whole weights"):
        PerplexityCallback(trainer, HELD_OUT)


def test_benchmark_callback_logs_values_with_intervals(tiny_model, tiny_tokenizer, tmp_path):
    own = tmp_path / "own.jsonl"
    questions = [{"question": f"What is {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(8)]
    own.write_text("".join(json.dumps(question) + "\n" for question in questions))
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path)
    callback = BenchmarkCallback(trainer, str(own), limit=6, every_n_steps=2)
    trainer.add_callback(callback)
    trainer.train()
    logged = rows_with(trainer, "own_choice_accuracy")
    assert sorted(logged) == sorted(callback.results) == [0, 2, 4]
    by_hand = run_benchmarks(tiny_model, tiny_tokenizer, str(own), limit=6, progress=False).benchmarks["own"]
    for metric, estimate in by_hand.metrics.items():
        for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            assert logged[4][f"own_{metric}{suffix}"] == pytest.approx(value, rel=1e-6)
        assert estimate.low <= estimate.value <= estimate.high
    paired = callback.results[4].paired_difference(callback.results[0])["own"]["choice_bits_per_byte"]
    assert paired.value == pytest.approx(
        logged[4]["own_choice_bits_per_byte"] - logged[0]["own_choice_bits_per_byte"], rel=1e-6
    )
    with pytest.raises(ValueError, match="medmcqa"):  # a near name, before training starts
        BenchmarkCallback(trainer, "medmcq")


MOMENTS = {"mu": 22.0, "sigma": 10.0, "log_mu": 3.0, "log_sigma": 0.4}


def law_trainer(model, tokenizer, folder, **options):
    """Steps of 4 packed rows of 32 tokens: 128 tokens a step."""
    options = {"packing": True, "packing_strategy": "wrapped", "include_num_input_tokens_seen": "all"} | options
    return make_trainer("sft", model, tokenizer, folder, **options)


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_law_points_at_the_rungs(tiny_model, tiny_tokenizer, tmp_path):
    table = tmp_path / "points.jsonl"
    law = SimpleNamespace(space="log", predict=lambda mu, sigma, num_tokens: mu + sigma + num_tokens / 1000)
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(
        ScalingLawCallback(
            trainer,
            table,
            "seed-0",
            DOMAIN,
            ladder=[500, 100, 120, 10_000],
            moments=MOMENTS,
            law=law,
            general_texts=GENERAL,
        )
    )
    trainer.train()
    rows = read_rows(table)
    assert [row["num_tokens"] for row in rows] == [128, 512]  # two rungs in one step make one point
    for row in rows:
        assert list(row) == ["run", *MOMENTS, "num_tokens", "loss", "general_loss"]
        assert {name: row[name] for name in MOMENTS} == MOMENTS and row["run"] == "seed-0"
    logged = rows_with(trainer, "law_point_loss")
    assert sorted(logged) == [1, 4]
    for step, row in zip((1, 4), rows, strict=True):
        assert logged[step]["law_point_loss"] == row["loss"]
        assert logged[step]["law_point_predicted_loss"] == pytest.approx(3.4 + row["num_tokens"] / 1000)
        assert logged[step]["law_point_residual"] == row["loss"] - logged[step]["law_point_predicted_loss"]
    by_hand = evaluate_perplexity(tiny_model, tiny_tokenizer, DOMAIN).nll_per_token
    assert rows[-1]["loss"] == pytest.approx(by_hand, rel=1e-6)


def test_law_points_are_not_doubled_on_resume(tiny_model, tiny_tokenizer, tmp_path):
    table = tmp_path / "points.jsonl"
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    prefixes = [{"num_tokens": 128 * i, "mu": 20.0 + i, "sigma": 5.0} for i in range(1, 5)]

    def run(**options):
        tiny_model.load_state_dict(start)
        trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, save_strategy="steps", save_steps=2)
        trainer.add_callback(
            ScalingLawCallback(trainer, table, "run", DOMAIN, ladder=[128, 256, 384, 512], moments=prefixes)
        )
        trainer.train(**options)

    run()
    unbroken = read_rows(table)
    assert [row["mu"] for row in unbroken] == [21.0, 22.0, 23.0, 24.0] and "log_mu" not in unbroken[0]
    run(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = read_rows(table)
    assert [(row["run"], row["num_tokens"]) for row in resumed] == [("run", 128 * i) for i in range(1, 5)]
    for row, expected in zip(resumed, unbroken, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_diverged_run_ends_without_a_law_point(tiny_model, tiny_tokenizer, tmp_path):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    table = tmp_path / "points.jsonl"
    options = {"ladder": [7, 14], "moments": lambda num_tokens: MOMENTS, "tokens_per_step": 7}
    trainer.add_callback(ScalingLawCallback(trainer, table, "r", DOMAIN, **options))
    tiny_model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        trainer.train()
    assert trainer.state.global_step == 1 and not table.exists()


def test_the_end_of_the_ladder(tiny_model, tiny_tokenizer, tmp_path, caplog):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, max_steps=2)
    options = {"ladder": [7, 20, 21], "moments": lambda num_tokens: MOMENTS, "tokens_per_step": 7}
    trainer.add_callback(ScalingLawCallback(trainer, tmp_path / "points.jsonl", "r", DOMAIN, **options))
    trainer.train()
    assert [row["num_tokens"] for row in read_rows(tmp_path / "points.jsonl")] == [7, 14]
    assert "r ended after 14 tokens: no law points at [21]" in caplog.text


def test_bad_law_options(tiny_model, tiny_tokenizer, tmp_path):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    options = {"ladder": [100], "moments": MOMENTS}
    with pytest.raises(ValueError, match="ladder must hold token counts"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"ladder": [0, 100]})
    with pytest.raises(ValueError, match="lack sigma; they hold mu"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"moments": {"mu": 3.0}})
    with pytest.raises(ValueError, match="lack log_mu, log_sigma"):
        law = SimpleNamespace(space="log")
        moments = {"mu": 3.0, "sigma": 1.0}
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"moments": moments}, law=law)
    with pytest.raises(ValueError, match="no token to score"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", [], **options)
    trainer.args.include_num_input_tokens_seen = "no"
    with pytest.raises(ValueError, match="does not count the tokens"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options)


def test_the_bar_shows_tokens_per_second(tiny_model, tiny_tokenizer, tmp_path, capsys):
    options = {"disable_tqdm": False, "include_num_input_tokens_seen": "non_padding"}
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, **options)
    TokensPerSecondCallback.replace_bar_of(trainer)
    trainer.train()
    bar = capsys.readouterr().err
    assert re.search(r"[1-9][\d,]* tokens/s\]", bar)
    assert sum(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks) == 1

    uncounted = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, disable_tqdm=False)
    before = [type(callback) for callback in uncounted.callback_handler.callbacks]
    TokensPerSecondCallback.replace_bar_of(uncounted)
    assert [type(callback) for callback in uncounted.callback_handler.callbacks] == before
