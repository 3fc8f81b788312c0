"""Probes as Ray tasks, on a local cluster of two workers and with a stand-in for the recipe."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install hf-ppl-select[ray]")

pytestmark = pytest.mark.slow
RECIPES = str(Path(__file__).resolve().parents[2] / "recipes")
STAND_IN = """
import json, os, sys, time
index, started = int(sys.argv[sys.argv.index("--probe_index") + 1]), time.time()
if index == 2:
    print("fit_law.py: error: no such chunk", file=sys.stderr)
    sys.exit(2)
open(f"{index}.started", "w").close()
while index == 0 and not os.path.exists("1.started") and time.time() < started + 90:
    time.sleep(0.05)  # for the second, however long its worker takes to come up
row = {"args": sys.argv[1:], "started": started, "ended": time.time(), "hf": os.environ.get("HF_HUB_OFFLINE")}
row["beside"] = os.path.exists("1.started")
with open(f"{index}.json", "w") as file:
    json.dump(row, file)
"""
DRIVER = """
import sys
sys.path.insert(0, {recipes!r})
import ray
ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
from fitting.ray_probes import train_with_ray
probes = {{0: "random", 1: "probe-00", 2: "probe-01", 3: "probe-02"}}
try:
    train_with_ray("stand_in.py", ["--config", "x.yaml"], {{i: probes[i] for i in {indices}}})
except ChildProcessError as error:
    print("ERROR", error)
assert not ray.is_initialized()
"""


def drive(folder, *indices):
    (folder / "stand_in.py").write_text(STAND_IN)
    script = DRIVER.format(recipes=RECIPES, indices=indices)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_probes_run_two_at_once_and_a_failed_one_leaves_the_others(tmp_path):
    before = time.time()
    output = drive(tmp_path, 0, 1, 2, 3)
    rows = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1, 3)]
    assert [row["args"] for row in rows] == [["--config", "x.yaml", "--probe_index", str(i)] for i in (0, 1, 3)]
    assert all(row["started"] > before and row["hf"] == "1" for row in rows)
    assert rows[0]["beside"] and rows[1]["started"] < rows[0]["ended"], "the first two overlap"
    assert "4 probes as Ray tasks, no GPU each" in output and "probe-00: done" in output
    assert "ERROR 1 of 4 probes failed; the others are kept. probe-01:" in output
    assert "fit_law.py: error: no such chunk" in output
