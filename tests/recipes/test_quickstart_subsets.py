"""What the quickstart's report says of its subsets, and of the time that steps took."""

import json
import os
import signal
import subprocess
import sys

import pytest
from datasets import Dataset

from quickstart_steps.runs import Costs, load_costs
from quickstart_steps.subsets import composition_table, in_common

DOCUMENTS = [("clean", "a" * 30), ("ocr_noise", "b" * 50), ("code_table", "c" * 20)]
CHUNKS = [
    ("clean", "one", 3.0, 40),
    ("clean", "two", 2.0, 40),
    ("ocr_noise", "three", 5.0, 30),
    ("code_table", "x", 1, 9),
]
SUBSETS = {
    "selected-0": [0, 1],
    "selected-1": [1, 0],
    "random-deduplicated-0": [0, 2],
    "random-deduplicated-1": [2, 3],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    rows = "".join(json.dumps({"kind": kind, "text": text}) + "\n" for kind, text in DOCUMENTS)
    (tmp_path / "texts" / "documents.jsonl").write_text(rows)
    names = ("kind", "text", "perplexity_ratio", "num_tokens")
    chunks = Dataset.from_list([dict(zip(names, row)) for row in CHUNKS])
    chunks.save_to_disk(tmp_path / "scored")
    for name, rows in SUBSETS.items():
        chunks.select(rows).save_to_disk(tmp_path / name)
    for seed, rows in enumerate(([0, 0, 3], [0, 3, 3])):  # raw documents repeat: two chunks may be of one text
        (tmp_path / f"random-raw-{seed}").mkdir()
        lines = "".join(json.dumps({"kind": CHUNKS[row][0], "text": CHUNKS[row][1]}) + "\n" for row in rows)
        (tmp_path / f"random-raw-{seed}" / "chunks.jsonl").write_text(lines)
    return tmp_path


def test_shares_of_kinds(folder):
    table, _, note = composition_table(folder, [0, 1], ["selected"], num_tokens=75).partition("\n\n")
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert head[1:] == ["documents", "deduplicated", "random raw", "random deduplicated", "selected", "highest ratio"]
    assert rows == [
        ["clean", "30.0%", "50.0%", "50.0%", "25.0%", "100.0%", "50.0%"],
        ["code_table", "20.0%", "25.0%", "50.0%", "25.0%", "0.0%", "0.0%"],
        ["ocr_noise", "50.0%", "25.0%", "0.0%", "50.0%", "0.0%", "50.0%"],
    ]  # the highest ratios are 5 and 3: 70 of 75 tokens
    assert "the 75 tokens of highest perplexity_ratio" in note


def test_without_a_reference_there_is_no_ratio(folder):
    Dataset.from_list([{"kind": "clean", "text": "a", "num_tokens": 9}]).save_to_disk(folder / "scored")
    assert "ratio" not in composition_table(folder, [0, 1], ["selected"], num_tokens=75)


def test_what_subsets_have_in_common(folder):
    text = in_common(folder, [0, 1], ["selected", "random-deduplicated", "random-raw"])
    assert "selected 2 of 2, random deduplicated 1 of 2, random raw 2 of 3." in text
    assert in_common(folder, [0], ["selected"]) == ""


KILLED = """
import os, signal, sys, time
from pathlib import Path
from quickstart_steps.runs import Costs
with Costs(Path(sys.argv[1])).of("Train"):
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_costs_say_what_a_kill_lost(tmp_path):
    path = tmp_path / "costs.json"
    with Costs(path).of("Score"):
        pass
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, path], env=environment)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(KeyError), Costs(path).of("Fit"):
        raise KeyError("an error is no kill: its time is known")
    with Costs(path).of("Train"):
        pass
    seconds, interrupted = load_costs(path)
    assert set(seconds) == {"Score", "Fit", "Train"} and interrupted == {"Train"}
