"""Records as parquet, two runs compared by them, calibration, and results as entries for a model on the Hub."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hf_ppl_select.benchmarks import (
    BenchmarkResult,
    BenchmarkResults,
    Record,
    calibration,
    calibration_table,
    compare_records,
    eval_result_entries,
    load_records,
    model_index,
    save_eval_results,
)
from hf_ppl_select.benchmarks.estimates import metric_inputs
from hf_ppl_select.benchmarks.evaluate_modules import METRICS, load_metric
from hf_ppl_select.benchmarks.results import Estimate
from hf_ppl_select.data.saving import checksum


def a_run(num_right=(30, 20), *, model="base", seed=0, names=("medqa_4options", "medmcqa"), digest="d"):
    """Two benchmarks of 40 questions; the first `num_right` of each are right."""
    rng = np.random.default_rng(seed)
    benchmarks = {}
    for name, right in zip(names, num_right, strict=True):
        records = []
        for i in range(40):
            scores = -rng.gamma(2.0, 1.0, size=4) - 1.0
            chosen = 0 if i < right else 1
            scores[chosen] = scores.max() + 0.5
            values = tuple(scores.tolist())
            records.append(Record(i, 0, chosen, values, (1, 2, 3, 4), (1, 2, 3, 5), int(i == 3), f"{digest}{i}"))
        value = load_metric("multiple_choice").compute(**metric_inputs(records))
        ends = ("", "_low", "_high")
        found = {m: Estimate(*(value[f"{m}{end}"] for end in ends), value["n"]) for m in METRICS}
        benchmarks[name] = BenchmarkResult(name, "medical", f"{name}.jsonl", found, tuple(records))
    return BenchmarkResults(model, benchmarks, {}, 40, 7, 1000, 512, 5)


def test_records_survive_and_say_what_they_are(tmp_path):
    import pyarrow.parquet as pq

    run = a_run()
    run.save_records(tmp_path / "new" / "records.parquet")
    found = load_records(tmp_path / "new" / "records.parquet")
    assert found.records == {name: result.records for name, result in run.benchmarks.items()}
    assert found.groups == {"medqa_4options": "medical", "medmcqa": "medical"}
    assert found.settings == {"model": "base", "limit": 40, "seed": 7, "max_length": 512, "num_fewshot": 5} | {
        "dtype": None
    }
    table = pq.read_table(tmp_path / "new" / "records.parquet")
    assert table.num_rows == 80
    assert table.column_names[:5] == ["benchmark", "group", "index", "gold", "predicted"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["records.parquet"]  # nothing half-written


def test_files_that_are_no_records_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(FileNotFoundError, match="no file .*gone.parquet"):
        load_records(tmp_path / "gone.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="torn.parquet is not a parquet file"):
        load_records(tmp_path / "torn.parquet")
    pq.write_table(pa.table({"index": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="other.parquet holds None .* not 'hf_ppl_select/benchmark_records'"):
        load_records(tmp_path / "other.parquet")


def test_comparison_from_files_and_from_results(tmp_path):
    ours, base = a_run((34, 22), model="adapted", seed=1), a_run((30, 20))
    for run in (ours, base):
        run.save_records(tmp_path / f"{run.model}.parquet")
    found = compare_records(tmp_path / "adapted.parquet", tmp_path / "base.parquet")
    assert found == compare_records(ours, base)
    assert (found.ours, found.baseline) == ("adapted", "base")
    assert list(found.rows) == ["medqa_4options", "medmcqa", "average of medical"]
    row = found.rows["medqa_4options"]
    assert (row.ours["choice_accuracy"], row.baseline["choice_accuracy"]) == (34 / 40, 30 / 40)
    difference = row.differences["choice_accuracy"]
    assert difference.value == pytest.approx(0.1) and 0 <= difference.low < 0.1 < difference.high
    assert (row.only_ours, row.only_baseline) == (4, 0)
    assert row.mcnemar_p == pytest.approx(2 / 2**4)
    average = found.rows["average of medical"]
    assert average.differences["choice_accuracy"].value == pytest.approx((4 / 40 + 2 / 40) / 2)
    assert average.ours["choice_accuracy"] == pytest.approx(56 / 80)
    assert (average.mcnemar_p, average.only_ours) == (None, None)
    assert found.rows["medmcqa"].differences == ours.paired_difference(base)["medmcqa"] or ours.seed != 0
    lines = found.to_markdown().splitlines()
    assert len(lines) == 5
    assert "| medqa_4options | 40 | 0.7500 → 0.8500 | +0.1000 [" in lines[2] and "| 4, 0 | 0.125 |" in lines[2]
    assert lines[4].startswith("| average of medical | 80 | 0.6250 → 0.7000 |") and lines[4].endswith("|  |  |")


def test_back_and_forth_mirror_each_other():
    there, back = (
        compare_records(*pair).rows["medmcqa"] for pair in ((a_run((30, 25)), a_run()), (a_run(), a_run((30, 25))))
    )
    for metric in METRICS:
        first, second = there.differences[metric], back.differences[metric]
        assert (first.value, first.low, first.high) == pytest.approx((-second.value, -second.high, -second.low))
    assert there.mcnemar_p == back.mcnemar_p
    assert (there.only_ours, there.only_baseline) == (back.only_baseline, back.only_ours)


def test_only_the_same_questions_are_compared():
    ours = a_run()
    with pytest.raises(ValueError, match="medqa_4options: the two runs did not answer the same questions"):
        compare_records(ours, a_run(digest="other"))
    with pytest.raises(ValueError, match="No benchmark in common"):
        compare_records(ours, a_run(names=("a", "b")))
    some = compare_records(ours, a_run(names=("medqa_4options", "b")))
    assert list(some.rows) == ["medqa_4options"]
    older = a_run()  # saved before questions had digests
    old_records = tuple(replace(record, digest="") for record in older.benchmarks["medmcqa"].records)
    older = replace(older, benchmarks={"medmcqa": replace(older.benchmarks["medmcqa"], records=old_records)})
    assert compare_records(ours, older).rows["medmcqa"].only_ours == 0


def test_mcnemar_agrees_with_a_binomial_test():
    from scipy.stats import binomtest

    metric = load_metric("paired_comparison")
    for ours, theirs in [(0, 0), (1, 0), (5, 1), (30, 12), (700, 600), (3, 3)]:
        right, wrong = [-1.0, -2.0], [-2.0, -1.0]
        found = metric.compute(
            predictions=[right] * ours + [wrong] * theirs + [right] * 4,
            baseline_predictions=[wrong] * ours + [right] * theirs + [right] * 4,
            references=[0] * (ours + theirs + 4),
            num_resamples=10,
        )
        expected = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
        assert found["mcnemar_p"] == pytest.approx(expected)
        assert (found["only_predictions"], found["only_baseline"]) == (ours, theirs)
        assert found["paired_difference"] == pytest.approx((ours - theirs) / (ours + theirs + 4))


def test_calibration_by_benchmark():
    run = a_run()
    found = calibration(run)
    probabilities = []
    for record in run.benchmarks["medmcqa"].records:
        weights = [math.exp(x) for x in record.log_likelihoods]
        probabilities.append([weight / sum(weights) for weight in weights])
    brier = np.mean([(p[0] - 1) ** 2 + sum(x**2 for x in p[1:]) for p in probabilities])
    assert found["medmcqa"]["choice_calibration_brier"] == pytest.approx(brier)
    assert found["medmcqa"]["choice_calibration_confidence"] == pytest.approx(np.mean([max(p) for p in probabilities]))
    lines = calibration_table(run).splitlines()
    assert lines[3].startswith(f"| medmcqa | {brier:.4f} [") and lines[3].endswith("| 0.5000 |")


def test_other_settings_of_measuring_are_told():
    ours, theirs = a_run(), a_run((28, 20))
    compare_records(ours, theirs)
    with pytest.warns(
        UserWarning, match="num_fewshot is 5 in one run and 0 in the other: differences are of that, too"
    ):
        compare_records(ours, replace(theirs, num_fewshot=0))
    with pytest.warns(UserWarning, match="max_length is 512 in one run and 256 in the other"):
        ours.paired_difference(replace(theirs, max_length=256))
    ours = replace(ours, dtype="bfloat16")
    compare_records(ours, theirs)  # of an earlier version, which did not tell
    with pytest.warns(UserWarning, match="dtype is bfloat16 in one run and float32, autocast bfloat16 in the other"):
        compare_records(ours, replace(theirs, dtype="float32, autocast bfloat16"))


def test_results_and_records_of_earlier_versions_load(tmp_path):
    """They say no dtype."""
    import pyarrow.parquet as pq

    run = a_run()
    run.save(tmp_path / "run.json")
    run.save_records(tmp_path / "run.parquet")
    document = json.loads((tmp_path / "run.json").read_text())
    del document["dtype"], document["checksum"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="has no checksum"):
        assert BenchmarkResults.load(tmp_path / "run.json") == run
    table = pq.read_table(tmp_path / "run.parquet")
    header = json.loads(table.schema.metadata[b"hf_ppl_select"])
    del header["dtype"], header["checksum"]
    rows = table.to_pylist()
    header["checksum"] = checksum([header, rows])
    pq.write_table(table.replace_schema_metadata({b"hf_ppl_select": json.dumps(header)}), tmp_path / "run.parquet")
    assert load_records(tmp_path / "run.parquet").settings["dtype"] is None


def test_entries_for_the_hub(tmp_path):
    import huggingface_hub
    import yaml

    run = a_run(names=("medqa_4options", "mine"))
    [entry] = eval_result_entries(run, date="2026-01-02")
    assert entry["dataset"] == {"id": "GBaker/MedQA-USMLE-4-options-hf", "task_id": "medqa_4options"}
    assert entry["value"] == 0.75 and entry["date"] == "2026-01-02"
    assert entry["notes"].startswith(
        "5-shot, log-likelihood of the choices, 40 questions, drawn with seed 7; 95 % interval"
    )
    assert "date" not in eval_result_entries(run)[0]
    path = save_eval_results(run, tmp_path / "model", date="2026-01-02")
    assert path == tmp_path / "model" / ".eval_results" / "hf_ppl_select.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == [entry]
    if hasattr(huggingface_hub, "parse_eval_result_entries"):  # from 1.4 on
        parsed = huggingface_hub.parse_eval_result_entries([entry])
        assert huggingface_hub.eval_result_entries_to_yaml(parsed) == [entry]
    assert save_eval_results(a_run(names=("mine", "yours")), tmp_path / "own") is None
    own = a_run()  # files that are named as benchmarks of the Hub are
    own.benchmarks.update({name: replace(result, group="own") for name, result in own.benchmarks.items()})
    assert eval_result_entries(own) == [] and save_eval_results(own, tmp_path / "own") is None
    assert {entry.dataset_type for entry in model_index(own)} == {"medqa_4options", "medmcqa"}
    assert not (tmp_path / "own").exists()


def test_model_index_for_a_card():
    from huggingface_hub import ModelCardData

    index = model_index(a_run(names=("medqa_4options", "mine")))
    assert [(e.dataset_name, e.metric_type) for e in index[:2]] == [
        ("medqa_4options", "acc"),
        ("medqa_4options", "acc_norm"),
    ]
    assert [e.dataset_type for e in index] == ["GBaker/MedQA-USMLE-4-options-hf"] * 3 + ["mine"] * 3
    assert index[0].metric_value == 0.75
    data = ModelCardData(model_name="x", eval_results=index).to_dict()
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75


def test_a_comparison_of_the_recipe(tmp_path, run_recipe):
    for run in (a_run((34, 22), model="adapted"), a_run()):
        run.save_records(tmp_path / f"{run.model}.parquet")
    files = [str(tmp_path / "adapted.parquet"), str(tmp_path / "base.parquet")]
    _, shown, _ = run_recipe("run_benchmarks", "--compare", *files)
    assert "adapted minus base, question by question" in shown and "0.7500 → 0.8500" in shown
    for arguments, message in [
        (["--compare", files[0]], "compare takes two files of records, not 1"),
        (["--compare", files[0], "gone.parquet"], "no file 'gone.parquet'"),
        ([], "model is needed"),
        (["--model", "x", "--benchmarks", "general_questions", "--output", "a.parquet"], "must not end in .parquet"),
    ]:
        code, _, stderr = run_recipe("run_benchmarks", *arguments)
        assert code == 2 and message in stderr
