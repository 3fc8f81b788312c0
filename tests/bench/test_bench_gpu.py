"""The GPU benchmark runs whole on tiny shapes, also on a CPU: no GPU minute is lost to a typo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).with_name("bench_gpu.py")


@pytest.mark.slow
def test_the_gpu_benchmark_runs_whole(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCH), "--smoke", "--device", "cpu", "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    found = json.loads(output.read_text())
    assert len(found["checks"]) == 8 and all(check["right"] for check in found["checks"].values())
    assert found["checks"]["float32"]["largest_relative_error"] < 1e-5
    speeds = [timing for timing in found["timings"].values() if "tokens_per_second" in timing]
    assert len(speeds) == 11 and all(timing["tokens_per_second"] > 0 for timing in speeds)
    assert "| check | right |" in run.stdout and "| one batch |" in run.stdout


def test_a_cpu_measures_nothing_by_accident():
    run = subprocess.run([sys.executable, str(BENCH), "--device", "cpu"], capture_output=True, text=True)
    assert run.returncode == 1 and "--smoke" in run.stderr
