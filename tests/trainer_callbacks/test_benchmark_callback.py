import json

import pytest
from callback_trainers import make_trainer, rows_with

from hf_ppl_select.benchmarks import own_benchmark, run_benchmarks
from trainer_callbacks import BenchmarkCallback


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_benchmark_callback_logs_values_with_intervals(kind, tiny_model, tiny_tokenizer, tmp_path):
    own = tmp_path / "own.jsonl"
    questions = [{"question": f"What is {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(8)]
    own.write_text("".join(json.dumps(question) + "\n" for question in questions))
    trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path)
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


def write_questions(path, count, word="Is"):
    questions = [{"question": f"{word} {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(count)]
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


def test_the_average_of_a_group_and_solved_examples(tiny_model, tiny_tokenizer, tmp_path):
    examples = write_questions(tmp_path / "examples.jsonl", 4, "Was")
    pair = [
        own_benchmark(write_questions(tmp_path / f"{name}.jsonl", 6, name), group="mine", examples=examples)
        for name in ("one", "two")
    ]
    trainer = make_trainer("sft", tiny_model, tiny_tokenizer, tmp_path, max_steps=1)
    trainer.add_callback(BenchmarkCallback(trainer, pair, limit=4, num_fewshot=2))
    trainer.train()
    row = rows_with(trainer, "mine_choice_bits_per_byte")[1]
    found = run_benchmarks(tiny_model, tiny_tokenizer, pair, limit=4, num_fewshot=2, progress=False)
    assert row["mine_choice_bits_per_byte"] == pytest.approx(found.groups["mine"]["choice_bits_per_byte"].value)
    parts = [row[f"{name}_choice_bits_per_byte"] for name in ("one", "two")]
    assert row["mine_choice_bits_per_byte"] == pytest.approx(sum(parts) / 2)


def test_results_of_earlier_steps_after_a_resume(tiny_model, tiny_tokenizer, tmp_path):
    own = str(write_questions(tmp_path / "own.jsonl", 6))
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def run(limit=None, **options):
        tiny_model.load_state_dict(start)
        saving = {"save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer("plain", tiny_model, tiny_tokenizer, tmp_path / "run", **saving)
        callback = BenchmarkCallback(trainer, own, every_n_steps=1, results_dir=tmp_path / "results", limit=limit)
        trainer.add_callback(callback)
        trainer.train(**options)
        return callback.results

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "step-1.json").write_text("of an earlier run")  # which begins by removing it
    (tmp_path / "results" / "step-17.json").write_text("of an earlier run")
    unbroken = run()
    assert not (tmp_path / "results" / "step-17.json").exists()
    (tmp_path / "results" / "step-3.json").write_text("cut off")  # of a later step than the checkpoint's: not read
    resumed = run(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert sorted(resumed) == sorted(unbroken) == [0, 1, 2, 3, 4]
    for step in (0, 2):
        assert resumed[step] == unbroken[step]
    assert resumed[4].paired_difference(resumed[0])["own"]["choice_bits_per_byte"].value == pytest.approx(
        unbroken[4].paired_difference(unbroken[0])["own"]["choice_bits_per_byte"].value, abs=1e-5
    )
    assert unbroken[4].dtype == "float32"
    with pytest.raises(ValueError, match="step-0.json was measured with limit None, and this run has 4"):
        run(limit=4, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
