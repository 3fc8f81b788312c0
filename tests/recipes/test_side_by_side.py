"""Training runs side by side: no run is lost to another's failure, no process left behind."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from recipe_runs import write_or_fail
from warm_processes import ROOT

from command_line import in_one_line
from hf_ppl_select.data.strict import parse_json
from training.side_by_side import run_side_by_side


def test_a_failure_loses_no_other_run(tmp_path):
    paths = [tmp_path / str(k) for k in range(5)]
    tasks = [(path, k == 1) for k, path in enumerate(paths)]
    with pytest.raises(ValueError, match="this one fails") as raised:
        run_side_by_side(write_or_fail, tasks, 2, sizes=[1] * 5, description="Runs")
    processes = {path.read_text() for k, path in enumerate(paths) if k != 1}
    assert len(processes) <= 2 and str(os.getpid()) not in processes and not paths[1].exists()
    # Not raised by our code, so its traceback is shown: that of the process where it was raised
    assert in_one_line(raised.value) is None
    assert "in write_or_fail" in "".join(traceback.format_exception(raised.value))


def test_an_error_of_ours_in_another_process_is_one_line():
    with pytest.raises(ValueError) as raised:
        run_side_by_side(parse_json, [("{", "x.json")], 2, sizes=[1], description="Runs")
    assert in_one_line(raised.value) == str(raised.value) and "x.json is not valid JSON" in str(raised.value)


ENDS = {  # how it is ended: the exit code, and what it says
    "kill": (-signal.SIGKILL, ""),
    "terminate": (128 + signal.SIGTERM, "script.py: terminated.\n"),
    "interrupt": (128 + signal.SIGINT, "script.py: interrupted.\n"),
    "kill a child": (2, "script.py: error: Runs: a process of the 2 side by side was killed, maybe for its memory. "),
}


def test_however_it_ends_it_leaves_no_process_behind(tmp_path):
    code = (
        "import signal, sys; from recipe_runs import write_and_sleep; from command_line import run\n"
        "from training.side_by_side import run_side_by_side\n"
        "def main():\n"
        "    run_side_by_side(write_and_sleep, [(p,) for p in sys.argv[1:]], 2, sizes=[1, 1], description='Runs')\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which tests in the background ignore
        "    run(main)\n"
    )
    (tmp_path / "script.py").write_text(code)
    search = os.pathsep.join(str(ROOT / place) for place in ("", "recipes", "tests"))
    running, paths = {}, {how: [tmp_path / f"{how}-a", tmp_path / f"{how}-b"] for how in ENDS}
    for how in ENDS:
        command = [sys.executable, str(tmp_path / "script.py"), *map(str, paths[how])]
        options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        running[how] = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": search}, **options)
    for how, (code, says) in ENDS.items():
        process = running[how]
        while not all(path.exists() and path.read_text() for path in paths[how]):
            assert process.poll() is None
            time.sleep(0.05)
        children = {int(path.read_text()) for path in paths[how]}
        assert len(children) == 2
        if how == "interrupt":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of them
        elif how == "kill a child":
            os.kill(min(children), signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == code and "Traceback" not in stderr, stderr
        assert not says or says in stderr
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


KEEP_AND_RELEASE = """
import gc, os, sys
import torch
from training.cpu_trainer import keep_large_blocks, release_large_blocks

def resident():  # MiB
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

keep_large_blocks()
before = resident()
blocks = [torch.ones(2**20) for _ in range(100)]  # 4 MiB each
del blocks[::2]
del blocks
gc.collect()
kept = resident() - before
release_large_blocks()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_training_has_kept_is_given_back():
    """In a long process of many trainings memory grew by 2 GB with each."""
    done = subprocess.run([sys.executable, "-c", KEEP_AND_RELEASE], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT / 'recipes'}:{ROOT}"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept, left = map(float, done.stdout.split())
    assert kept > 300 and left < 50
