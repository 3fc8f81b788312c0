"""Training runs side by side: no run is lost to another's failure, no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_runs import write_or_fail
from warm_processes import ROOT

from training.side_by_side import run_side_by_side


def test_a_failure_loses_no_other_run(tmp_path):
    paths = [tmp_path / str(k) for k in range(5)]
    tasks = [(path, k == 1) for k, path in enumerate(paths)]
    with pytest.raises(ValueError, match="this one fails"):
        run_side_by_side(write_or_fail, tasks, 2, sizes=[1] * 5, description="Runs")
    processes = {path.read_text() for k, path in enumerate(paths) if k != 1}
    assert len(processes) <= 2 and str(os.getpid()) not in processes and not paths[1].exists()


def test_killed_it_leaves_no_process_behind(tmp_path):
    code = (
        "import sys; from recipe_runs import write_and_sleep; from training.side_by_side import run_side_by_side\n"
        "if __name__ == '__main__':\n"
        "    run_side_by_side(write_and_sleep, [(p,) for p in sys.argv[1:]], 2, sizes=[1, 1], description='Runs')\n"
    )
    (tmp_path / "script.py").write_text(code)
    paths = [tmp_path / "a", tmp_path / "b"]
    search = os.pathsep.join(str(ROOT / place) for place in ("", "recipes", "tests"))
    running = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), *map(str, paths)], env=os.environ | {"PYTHONPATH": search}
    )
    while not all(path.exists() and path.read_text() for path in paths):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    children = {int(path.read_text()) for path in paths}
    assert len(children) == 2
    deadline = time.monotonic() + 120
    while left := [child for child in children if is_running(child)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("num_workers", [1, 2])
def test_tolerated_errors_are_returned_by_number(num_workers, tmp_path):
    tasks = [(tmp_path / str(k), k in (1, 3)) for k in range(4)]
    options = {"sizes": [1] * 4, "description": "Runs", "tolerated": ValueError}
    errors = run_side_by_side(write_or_fail, tasks, num_workers, **options)
    assert sorted(errors) == [1, 3] and all(str(error) == "this one fails" for error in errors.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
