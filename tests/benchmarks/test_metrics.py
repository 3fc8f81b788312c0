"""The `evaluate` modules against values worked out by hand, and as files that load without the Hub."""

import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_ppl_select.benchmarks import METRICS, MODULES, load_metric

FOLDER = Path(sys.modules["hf_ppl_select.benchmarks"].__file__).parent / "metrics"
# Three questions with 2, 3 and 4 choices. Right by sum: the first only; per character: the first and the second.
INPUTS = {
    "predictions": [[-1.0, -2.0], [-6.0, -4.0, -9.0], [-3.0, -2.0, -1.0, -4.0]],
    "references": [0, 0, 3],
    "num_chars": [[1, 1], [12, 2, 6], [2, 2, 2, 2]],
    "num_bytes": [[1, 1], [14, 2, 6], [2, 2, 2, 5]],
}
VALUES = {
    "choice_accuracy": 1 / 3,
    "choice_accuracy_norm": 2 / 3,
    "choice_bits_per_byte": (1 + 6 + 4) / np.log(2) / (1 + 14 + 5),
}


def test_values_by_hand_with_intervals_around_them():
    found = load_metric("multiple_choice").compute(**INPUTS)
    assert {name: found[name] for name in METRICS} == pytest.approx(VALUES, rel=1e-12)
    assert found["n"] == 3
    with_interval = (*METRICS, "choice_calibration_brier")
    for name in with_interval:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    ends = {f"{name}{end}" for name in with_interval for end in ("", "_low", "_high")}
    assert set(found) == ends | {"choice_calibration_ece", "choice_calibration_confidence", "n"}


def test_what_needs_lengths_is_left_out_without_them():
    metric = load_metric("multiple_choice")
    plain = metric.compute(predictions=INPUTS["predictions"], references=INPUTS["references"])
    whole = metric.compute(**INPUTS)
    assert {key for key in whole if key not in plain} == {
        f"{name}{end}" for name in METRICS[1:] for end in ("", "_low", "_high")
    }
    assert plain == {key: whole[key] for key in plain}


def test_interval_of_a_proportion_agrees_with_the_normal_one():
    right = np.arange(400) < 240  # 60 % of 400: standard error sqrt(0.6 * 0.4 / 400) = 0.0245
    found = load_metric("multiple_choice").compute(
        predictions=[[-1.0, -2.0] if r else [-2.0, -1.0] for r in right], references=[0] * 400, num_resamples=4000
    )
    assert found["choice_accuracy"] == pytest.approx(0.6)
    assert found["choice_accuracy_low"] == pytest.approx(0.6 - 1.96 * 0.0245, abs=0.005)
    assert found["choice_accuracy_high"] == pytest.approx(0.6 + 1.96 * 0.0245, abs=0.005)


def test_interval_of_bits_per_byte_agrees_with_the_ratio_estimator():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 40, size=500)
    nats = length * rng.gamma(4.0, 0.25, size=500)
    found = load_metric("multiple_choice").compute(
        predictions=[[-x, -1.0] for x in nats], references=[0] * 500, num_bytes=[[n, 1] for n in length]
    )
    ratio = nats.sum() / length.sum()
    # The linearised standard error of a ratio of sums.
    error = np.sqrt(np.sum((nats - ratio * length) ** 2)) / length.sum() / np.log(2)
    assert found["choice_bits_per_byte"] == pytest.approx(ratio / np.log(2))
    assert found["choice_bits_per_byte_high"] - found["choice_bits_per_byte_low"] == pytest.approx(
        3.92 * error, rel=0.1
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    metric, covered = load_metric("multiple_choice"), Counter()
    for seed in range(60):  # 2 choices, log-likelihoods of N(0, 1) differences: right half of the time, 1 nat a byte
        scores = np.stack([-rng.gamma(2.0, 1.0, size=200), -rng.gamma(2.0, 1.0, size=200)], axis=1)
        lengths = {"num_chars": [[2, 2]] * 200, "num_bytes": [[2, 2]] * 200}
        found = metric.compute(
            predictions=scores.tolist(), references=[0] * 200, **lengths, seed=seed, num_resamples=300
        )
        for name in METRICS:
            truth = 1 / np.log(2) if name == "choice_bits_per_byte" else 0.5
            covered[name] += found[f"{name}_low"] <= truth <= found[f"{name}_high"]
    assert min(covered[name] for name in METRICS) >= 51  # 95 % is 57; below 51 has a probability of about 0.002


def test_seed_decides_the_intervals_and_nothing_else_does():
    rng = np.random.default_rng(2)
    inputs = {
        "predictions": (-rng.gamma(2.0, 1.0, size=(997, 4))).tolist(),
        "references": rng.integers(4, size=997).tolist(),
        "num_chars": rng.integers(1, 9, size=(997, 4)).tolist(),
        "num_bytes": rng.integers(1, 9, size=(997, 4)).tolist(),
    }
    metric = load_metric("multiple_choice")
    first = metric.compute(**inputs, seed=5)
    np.random.seed(99)
    assert metric.compute(**inputs, seed=5) == first
    other, narrow = metric.compute(**inputs, seed=6), metric.compute(**inputs, seed=5, confidence=0.5)
    for name in (*METRICS, "choice_calibration_brier"):
        low, high = f"{name}_low", f"{name}_high"
        assert other[name] == first[name]
        assert (other[low], other[high]) != (first[low], first[high])
        assert narrow[high] - narrow[low] < first[high] - first[low]


def test_combine_takes_every_module():
    inputs = {**INPUTS, "baseline_predictions": [[-2.0, -1.0], *INPUTS["predictions"][1:]]}
    found = evaluate.combine([load_metric(name) for name in MODULES]).compute(**inputs)
    assert {name: found[name] for name in METRICS} == pytest.approx(VALUES)
    assert found["paired_difference"] == pytest.approx(1 / 3)
    assert found["mcnemar_p"] == 1.0  # one question that only one got right says nothing
    assert 0 < found["choice_calibration_brier"] < 2


def test_calibration_by_hand():
    # Sure by 0.8 and right three times of four; sure by 0.5 (a tie) and right once of two.
    sure, tie = [np.log(0.8), np.log(0.2)], [-3.0, -3.0]
    found = load_metric("multiple_choice").compute(
        predictions=[sure] * 4 + [tie] * 2, references=[0, 0, 0, 1, 0, 1], num_bins=5
    )
    assert found["choice_calibration_ece"] == pytest.approx((4 * 0.05 + 0) / 6)
    assert found["choice_calibration_brier"] == pytest.approx((3 * 0.08 + 1.28 + 2 * 0.5) / 6)
    assert found["choice_calibration_confidence"] == pytest.approx((4 * 0.8 + 2 * 0.5) / 6)
    assert found["choice_calibration_brier_low"] <= found["choice_calibration_brier"]


def test_calibration_of_certainty():
    metric = load_metric("multiple_choice")
    right = metric.compute(predictions=[[0.0, float("-inf")]] * 3, references=[0] * 3)
    assert (right["choice_calibration_brier"], right["choice_calibration_ece"]) == (0.0, 0.0)
    wrong = metric.compute(predictions=[[0.0, -2000.0]] * 3, references=[1] * 3)
    assert (wrong["choice_calibration_brier"], wrong["choice_calibration_ece"]) == (2.0, 1.0)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_has_not():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.5, 1.0, size=20_000)
    references = (rng.random(20_000) > probability).astype(int).tolist()
    honest = np.log(np.stack([probability, 1 - probability], axis=1))
    metric = load_metric("multiple_choice")
    errors = [
        metric.compute(predictions=(factor * honest).tolist(), references=references, num_resamples=2)[
            "choice_calibration_ece"
        ]
        for factor in (1.0, 3.0)
    ]
    assert errors[0] < 0.02 < 0.1 < errors[1]


def test_paired_comparison_can_be_per_character():
    rows = {"predictions": [[-6.0, -4.0]], "baseline_predictions": [[-6.0, -1.0]], "references": [0]}
    metric = load_metric("paired_comparison")
    assert metric.compute(**rows)["paired_difference"] == 0.0
    chars = {"num_chars": [[12, 2]]}
    assert metric.compute(**rows, **chars)["paired_difference"] == 0.0  # given for the others, and not used
    assert metric.compute(**rows, **chars, normalized=True)["paired_difference"] == 0.0  # both right
    assert metric.compute(**{**rows, "baseline_predictions": [[-60.0, -1.0]]}, **chars, normalized=True)[
        "paired_difference"
    ] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="normalized=True needs num_chars"):
        metric.compute(**rows, normalized=True)


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    metric, covered = load_metric("paired_comparison"), 0
    for seed in range(60):  # right with probability 0.6 and 0.5, and mostly on the same questions
        hard = rng.random(200)
        rows = [[[-1.0, -2.0] if h < p else [-2.0, -1.0] for h in hard] for p in (0.6, 0.5)]
        found = metric.compute(
            predictions=rows[0], baseline_predictions=rows[1], references=[0] * 200, seed=seed, num_resamples=300
        )
        covered += found["paired_difference_low"] <= 0.1 <= found["paired_difference_high"]
    assert covered >= 51


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [], "baseline_predictions": [], "references": []}, "no questions"),
        (
            {"predictions": [[-1.0, -2.0]], "baseline_predictions": [[-1.0, float("nan")]], "references": [0]},
            "Question 0: a log-likelihood in baseline_predictions is NaN",
        ),
        (
            {"predictions": [[-1.0, -2.0]], "baseline_predictions": [[-1.0, -2.0, -3.0]], "references": [0]},
            "Question 0: 2 choices in predictions, 3 in the baseline",
        ),
    ],
)
def test_bad_input_of_a_comparison_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        load_metric("paired_comparison").compute(**inputs)


def test_batches_add_up():
    metric = load_metric("multiple_choice")
    for i in range(3):
        metric.add_batch(**{key: INPUTS[key][i : i + 1] for key in ("predictions", "references")})
    assert metric.compute(**{key: INPUTS[key] for key in ("num_chars", "num_bytes")}) == metric.compute(**INPUTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": [0, 3, 3]}, "Question 1: reference 3 is no index of 3 choices"),
        ({"references": [0, -1, 3]}, "Question 1: reference -1"),
        ({"predictions": [[-1.0, float("nan")], *INPUTS["predictions"][1:]]}, "Question 0: a log-l.*NaN"),
        ({"predictions": [[float("-inf")] * 2, *INPUTS["predictions"][1:]]}, "none of them is finite"),
        ({"num_bins": 0}, "num_bins must be at least 1, not 0"),
        ({"num_chars": [[1, 1], [12, 2], [2, 2, 2, 2]]}, "Question 1: num_chars"),
        ({"num_chars": [[1, 0], [12, 2, 6], [2, 2, 2, 2]]}, "Question 0: num_chars"),
        ({"num_chars": [[1, 1]]}, "num_chars has 1 questions, references 3"),
        ({"num_bytes": [[1, 1], [14, 2, 6], [2, 2]]}, "Question 2: num_bytes"),
        ({"predictions": [[float("-inf"), -1.0], *INPUTS["predictions"][1:]]}, "Question 0: .*right.*not finite"),
        ({key: [] for key in INPUTS}, "no questions"),
    ],
)
def test_bad_input_is_refused_and_the_question_named(change, message):
    with pytest.raises(ValueError, match=message):
        load_metric("multiple_choice").compute(**{**INPUTS, **change})


def test_unknown_metric_lists_those_there_are():
    with pytest.raises(ValueError, match="no metric 'accuracy'; there are multiple_choice, paired_comparison"):
        load_metric("accuracy")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_card(name):
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    sections = [
        "## Metric description",
        "How to use",
        "Inputs",
        "Output values",
        "Examples",
        "Limitations",
        "Citation",
    ]
    assert [section for section in sections if section not in card] == []
    assert card.startswith("---\ntitle:")


def test_loads_offline_from_a_read_only_folder_in_two_processes_at_once(tmp_path):
    package = tmp_path / "metrics"
    shutil.copytree(FOLDER, package, ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(package.rglob("*"))
    for path in [package, *files]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    code = (
        "import evaluate, sys\n"
        f"metric = evaluate.load({str(package / 'multiple_choice')!r})\n"
        "print(metric.compute(predictions=[[-1.0, -2.0], [-1.0, -2.0]], references=[0, 1])['choice_accuracy'])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["0.5", "0.5"]
    assert sorted(package.rglob("*")) == files  # root may write anywhere; nothing did
    for path in [package, *files]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
