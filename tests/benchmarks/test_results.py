"""What a run of benchmarks found: metrics, group averages, saving, paired differences, the recipe."""

import json
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from question_files import MEDQA, write_jsonl

from hf_ppl_select.benchmarks import (
    METRICS,
    BenchmarkResults,
    Record,
    load_metric,
    own_benchmark,
    resolve_benchmarks,
    run_benchmarks,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tiny_model, tiny_tokenizer, own_file, tmp_path):
    write_jsonl(
        tmp_path / "medqa_4options.jsonl", [{**MEDQA, "label": i % 4, "sent1": f"fever {i}"} for i in range(12)]
    )
    benchmarks = [own_benchmark(own_file, group="medical"), "medqa_4options", "general_questions"]
    return run_benchmarks(tiny_model, tiny_tokenizer, benchmarks, data_dir=tmp_path, limit=12, seed=3, progress=False)


def test_metrics_are_those_of_the_modules(results):
    for result in results.benchmarks.values():
        hits = [record.gold == record.predicted for record in result.records]
        assert result.metrics["choice_accuracy"].value == pytest.approx(np.mean(hits))
        nats = -sum(record.log_likelihoods[record.gold] for record in result.records)
        num_bytes = sum(record.num_bytes[record.gold] for record in result.records)
        assert result.metrics["choice_bits_per_byte"].value == pytest.approx(nats / math.log(2) / num_bytes)
        found = load_metric("multiple_choice").compute(
            predictions=[record.log_likelihoods for record in result.records],
            references=[record.gold for record in result.records],
            num_chars=[record.num_chars for record in result.records],
            seed=3,
        )
        estimate = result.metrics["choice_accuracy_norm"]
        assert [estimate.value, estimate.low, estimate.high] == [
            found[f"choice_accuracy_norm{end}"] for end in ("", "_low", "_high")
        ]


def test_group_average_counts_each_benchmark_once(results):
    for metric in METRICS:
        mine, medqa = (results.benchmarks[name].metrics[metric] for name in ("mine", "medqa_4options"))
        average = results.groups["medical"][metric]
        assert average.value == pytest.approx((mine.value + medqa.value) / 2)
        assert average.low <= average.value <= average.high
        assert average.n == mine.n + medqa.n == 16
        assert results.groups["general"][metric].value == results.benchmarks["general_questions"].metrics[metric].value


def test_markdown_has_a_row_for_each_benchmark_and_true_group(results):
    lines = results.to_markdown().splitlines()
    assert lines[0] == "| benchmark | questions | acc | acc_norm | bits per byte |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| mine",
        "| medqa_4options",
        "| general_questions",
        "| average of medical",
    ]
    accuracy = results.benchmarks["mine"].metrics["choice_accuracy"]
    assert f"| mine | 4 | {accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}] |" in lines[2]


def test_results_survive_saving(results, tmp_path):
    results.save(tmp_path / "out" / "results.json")
    assert BenchmarkResults.load(tmp_path / "out" / "results.json") == results
    assert json.loads(json.dumps(results.to_dict()))["benchmarks"]["mine"]["records"][0]["gold"] == 1
    (tmp_path / "other.json").write_text('{"kind": "hf_ppl_select/scaling_law"}', encoding="utf-8")
    with pytest.raises(ValueError, match="benchmark_results"):
        BenchmarkResults.load(tmp_path / "other.json")


def test_paired_difference_sees_what_two_intervals_do_not(results):
    """Of 60 questions this run has 36 right; the other has the same right but for 5: the intervals overlap."""

    def run(num_right):
        records = []
        for i in range(60):
            predicted = 0 if i < num_right else 1
            log_likelihoods = tuple(-1.0 if choice == predicted else -2.0 for choice in range(4))
            records.append(Record(i, 0, predicted, log_likelihoods, (1,) * 4, (1,) * 4))
        return replace(results, benchmarks={"mine": replace(results.benchmarks["mine"], records=tuple(records))})

    ours, theirs = run(36), run(31)
    difference = ours.paired_difference(theirs)["mine"]["choice_accuracy"]
    assert difference.value == pytest.approx(5 / 60)
    assert 0 < difference.low < difference.value < difference.high < 0.2
    apart = [
        load_metric("multiple_choice").compute(
            predictions=[r.log_likelihoods for r in run.benchmarks["mine"].records], references=[0] * 60
        )
        for run in (ours, theirs)
    ]
    assert apart[0]["choice_accuracy_low"] < apart[1]["choice_accuracy_high"]
    back = theirs.paired_difference(ours)["mine"]["choice_accuracy"]
    assert (back.value, back.low, back.high) == pytest.approx((-difference.value, -difference.high, -difference.low))
    same = ours.paired_difference(ours)["mine"]["choice_bits_per_byte"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_paired_difference_averages_groups_and_checks_the_questions(results):
    rows = results.paired_difference(results)
    assert list(rows) == ["mine", "medqa_4options", "general_questions", "average of medical"]
    mine = results.benchmarks["mine"]
    fewer = replace(results, benchmarks={"mine": replace(mine, records=mine.records[1:])})
    with pytest.raises(ValueError, match="mine: the two runs did not answer the same questions"):
        results.paired_difference(fewer)
    with pytest.raises(ValueError, match="No benchmark in common"):
        results.paired_difference(replace(results, benchmarks={}))


def test_same_seed_same_results(tiny_model, tiny_tokenizer, results, own_file, tmp_path):
    benchmarks = [own_benchmark(own_file, group="medical"), "medqa_4options", "general_questions"]
    again = run_benchmarks(tiny_model, tiny_tokenizer, benchmarks, data_dir=tmp_path, limit=12, seed=3, progress=False)
    assert again == results


# The recipe


def test_recipe_runs_from_yaml_saves_and_compares(run_recipe, tiny_model_dir, own_file, tmp_path):
    base, config = tmp_path / "out" / "base.json", tmp_path / "config.yaml"
    config.write_text(
        f"model: {tiny_model_dir}\nbenchmarks: ['{own_file}', general_questions]\n"
        f"limit: 8\ndtype: float32\noutput: {base}\n"
    )
    code, stdout, stderr = run_recipe("run_benchmarks", "--config", config)
    assert code == 0 and "| general_questions | 8 |" in stdout, stderr
    assert BenchmarkResults.load(base).limit == 8
    second = ("--output", tmp_path / "second.json", "--compare_with", base)
    _, stdout, _ = run_recipe("run_benchmarks", "--config", config, *second)
    compared = stdout.split("question by question")[1]
    kept = base.read_bytes()
    code, _, stderr = run_recipe("run_benchmarks", "--config", config, "--compare_with", base)
    assert code == 2 and "would replace it; name another --output" in stderr and base.read_bytes() == kept
    assert re.search(r"\| mine \| 4 \| (0\.\d+) → \1 \| \+0.0000 \[\+0.0000, \+0.0000\] \|.*\| 0, 0 \| 1 \|", compared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "MODEL", "--benchmarks", "medqqa"], "no benchmark 'medqqa'. Near names: .*medqa_4options"),
        (["--model", "MODEL", "--benchmarks", "absent.jsonl"], "no file absent.jsonl"),
        (["--model", "absent-folder/model", "--benchmarks", "general_questions"], "absent-folder/model"),
        (
            ["--model", "MODEL", "--benchmarks", "general_questions", "--data_files", "x"],
            "data_files must be entries like",
        ),
        (["--model", "MODEL", "--benchmarks", "general_questions", "--limit", "0"], "limit must be"),
        (["--model", "MODEL", "--benchmarks", "general_questions", "--compare_with", "gone.json"], "gone.json"),
    ],
)
def test_recipe_errors_are_one_line_and_write_nothing(arguments, message, run_recipe, tiny_model_dir, tmp_path):
    output = tmp_path / "out" / "results.json"
    arguments = [tiny_model_dir if argument == "MODEL" else argument for argument in arguments]
    code, _, stderr = run_recipe("run_benchmarks", *arguments, "--output", output)
    assert code == 2 and re.search(message, stderr)
    assert not output.parent.exists()


def test_shipped_config_has_only_known_options():
    from trl import TrlParser

    options_class = runpy.run_path(str(ROOT / "recipes" / "run_benchmarks.py"))["BenchmarkOptions"]
    config = ROOT / "recipes" / "configs" / "benchmarks.yaml"
    (options,) = TrlParser(options_class).parse_args_and_config(["--config", str(config)])
    assert [benchmark.group for benchmark in resolve_benchmarks(options.benchmarks)].count("medical") == 4
