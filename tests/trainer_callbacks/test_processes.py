"""Callbacks in processes of their own: two at once under torchrun, and one that is killed."""

import json
import math
import signal
import socket

import numpy as np
import pytest
from callback_run import run
from callback_trainers import GENERAL, comparable, read_rows, same_history, teach
from warm_processes import finish, start

import trainer_callbacks.processes
from trainer_callbacks.processes import SharedEngine

pytestmark = pytest.mark.slow


def start_all(model_dir, folder, runs, num_processes=1):
    """One process, or several that know of each other as torchrun tells them."""
    command = ["tests/callback_run.py", model_dir, folder, json.dumps(runs)]
    environment = {"CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment["MASTER_PORT"] = str(free.getsockname()[1])
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    if num_processes == 1:
        environment, places = {"CUDA_VISIBLE_DEVICES": ""}, [{}]
    return [finish(process) for process in [start(*command, environment=environment | place) for place in places]]


def found_by(folder, process=0):
    return json.loads((folder / f"process-{process}.json").read_text())


@pytest.fixture
def taught_dir(tiny_model, tiny_tokenizer, tmp_path):
    """A model that knows GENERAL, so that it forgets it."""
    teach(tiny_model, tiny_tokenizer, GENERAL)
    folder = tmp_path / "taught"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def test_two_processes_log_the_same_and_end_together(taught_dir, tmp_path):
    bounds = {kind: {"max_forgetting": bound} for kind, bound in (("plain", 0.012), ("sft", 0.012), ("lora", 6e-5))}
    two = start_all(taught_dir, tmp_path / "two", bounds, num_processes=2)
    assert two[0].returncode == two[1].returncode == 0, two[0].stderr[-3000:] + two[1].stderr[-3000:]
    told = [done.stderr.count("training stops: held-out") for done in two]
    assert sorted(told) == [0, 3]  # once for each run, not by each process
    for kind, options in bounds.items():
        run(kind, taught_dir, tmp_path / "one", **options)
        first, second = (found_by(tmp_path / "two" / kind, process) for process in range(2))
        alone = found_by(tmp_path / "one" / kind)
        assert comparable(first["log_history"]) == comparable(second["log_history"])  # to the bit
        assert same_history(first["log_history"], alone["log_history"])  # each scored its share, and has all sums
        assert first["steps"] == second["steps"] == alone["steps"]
        assert 0 < alone["steps"] < 8  # the guard has stopped them all
        shares = np.array([first["calls"], second["calls"]])
        assert (shares.sum(0) == alone["calls"]).all() and (np.ptp(shares, axis=0) <= 1).all()
        points = read_rows(tmp_path / "two" / kind / "points.jsonl")
        alone = read_rows(tmp_path / "one" / kind / "points.jsonl")
        for row in points + alone:
            del row["checksum"]
        assert points == [pytest.approx(row) for row in alone]
        assert 0 < len(points) <= 2


def test_a_problem_in_one_process_ends_all(tiny_model, monkeypatch):
    tiny_model.model.embed_tokens.weight.data[7] = math.nan
    sequences = [[1, 2, 3, 4], [1, 7, 3], [1, 2]]
    told = []
    monkeypatch.setattr(trainer_callbacks.processes, "gather_object", lambda own: told.extend(own) or told)
    engines = [SharedEngine(tiny_model, process=process, num_processes=2) for process in range(2)]
    counted = [range(1, len(ids)) for ids in sequences]
    with pytest.raises(ValueError, match="process 1: LlamaForCausalLM gives NaN"):
        engines[1].nll(sequences, counted)
    with pytest.raises(ValueError, match="process 1: LlamaForCausalLM gives NaN"):
        engines[0].nll(sequences, counted)  # whose own sequences are sound
    assert [(own, problem is None) for own, _, problem in told] == [([1], False), ([0, 2], True)]


def test_a_killed_process_goes_on_where_it_was(taught_dir, tmp_path):
    lower = {"max_forgetting": 0.004, "action": "lower_lr"}
    run("plain", taught_dir, tmp_path / "unbroken", **lower)
    (killed,) = start_all(taught_dir, tmp_path / "broken", {"plain": lower | {"kill_at": 7}})
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "broken" / "plain" / "process-0.json").exists()
    run("plain", taught_dir, tmp_path / "broken", resume=True, **lower)
    unbroken, broken = tmp_path / "unbroken" / "plain", tmp_path / "broken" / "plain"
    log = found_by(unbroken)["log_history"]
    assert same_history(found_by(broken)["log_history"], log)
    assert min(row.get("forgetting_guard_lr_scale", 1.0) for row in log) < 1.0
    assert read_rows(broken / "points.jsonl") == read_rows(unbroken / "points.jsonl")
