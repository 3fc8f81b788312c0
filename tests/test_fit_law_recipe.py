"""fit_law.py: probes from a scored corpus to a law on a tiny model; known points alone; what bad input gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(ROOT / "recipes" / "fit_law.py")
WORDS = "fever cough pain heart lung kidney acute chronic the of and in with patients treatment dose risk"


def fit_law(*options, cwd):
    """Run the recipe; its options as strings."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, RECIPE, *map(str, options)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def scored(tmp_path, tiny_model_dir):
    from datasets import Dataset

    from hf_ppl_select import PerplexityScorer

    rng, words = np.random.default_rng(0), WORDS.split()
    texts = [" ".join(rng.choice(words[: rng.integers(2, len(words))], size=12)) for _ in range(240)]
    dataset = Dataset.from_dict({"text": texts})
    dataset.map(PerplexityScorer(tiny_model_dir), batched=True).to_parquet(tmp_path / "scored.parquet")
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:10]))
    return tmp_path / "scored.parquet"


def options(scored, model, **changed):
    named = {
        "dataset_name": scored,
        "eval_file": scored.parent / "held_out.jsonl",
        "model_name_or_path": model,
        "num_probes": 6,
        "num_tokens": 1200,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "output_dir": scored.parent / "law",
    } | changed
    return [part for name, value in named.items() for part in (f"--{name}", value)]


def test_probes_to_law_and_on_after_a_kill(scored, tiny_model_dir):
    from hf_ppl_select import ScalingLaw

    law_path = scored.parent / "law" / "law.json"
    done = fit_law(*options(scored, tiny_model_dir), cwd=scored.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    law = ScalingLaw.load(law_path)
    assert law.report.num_runs == 6 and law.report.num_points == 18 and law.model == tiny_model_dir
    assert "<- chosen" in done.stdout and "best landscape" in done.stdout
    assert {path.name for path in law_path.parent.glob("*.png")} >= {
        "law_surface.png",
        "predicted_against_measured.png",
    }
    rows = [json.loads(line) for line in (law_path.parent / "points.jsonl").read_text().splitlines()]
    for run in {row["run"] for row in rows}:
        losses = [row["loss"] for row in rows if row["run"] == run]
        assert losses == sorted(losses, reverse=True), "a random model learns with every token"

    # As if killed before the last probe's last rung: the others are left alone, that one is trained again
    kept = "".join(json.dumps(row) + "\n" for row in rows[:-1])
    (law_path.parent / "points.jsonl").write_text(kept)
    law_path.unlink()
    again = fit_law(*options(scored, tiny_model_dir), cwd=scored.parent)
    assert again.returncode == 0, again.stderr[-3000:]
    assert ScalingLaw.load(law_path).params == pytest.approx(law.params, rel=1e-3)
    assert again.stdout.count("train_runtime") == 1 < done.stdout.count("train_runtime")

    changed = fit_law(*options(scored, tiny_model_dir, learning_rate=2e-3), cwd=scored.parent)
    assert changed.returncode == 2 and "another learning_rate" in changed.stderr


def test_known_points_need_no_probes(tmp_path, shared_data):
    points = shared_data / "law_points" / "smollm2_medquad.jsonl"
    done = fit_law("--points", points, "--num_probes", 0, "--output_dir", tmp_path / "law", "--use_cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "log_parabola  linear       6   0.982  0.0176" in done.stdout
    assert (tmp_path / "law" / "law.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_file": "missing.jsonl"}, "missing.jsonl"),
        ({"num_tokens": 10**9}, "10"),
        ({"num_probes": 2, "num_tokens": 600, "form": "paper"}, "needs at least 8 law points, got 6"),
        ({"learning_rat": 1}, "learning_rat"),
    ],
)
def test_bad_input_is_one_error_and_no_law(scored, tiny_model_dir, changed, message):
    done = fit_law(*options(scored, tiny_model_dir, **changed), cwd=scored.parent)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (scored.parent / "law" / "law.json").exists()


def test_a_dataset_that_was_never_scored_says_how(tmp_path, tiny_model_dir):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fever"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"text": "cough"}\n')
    done = fit_law(*options(rows, tiny_model_dir), cwd=tmp_path)
    assert done.returncode == 2 and "dataset.map(score_ppl, batched=True)" in done.stderr
