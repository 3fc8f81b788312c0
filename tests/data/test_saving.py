"""Saving: all or nothing, JSON with a kind and a version."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ppl_select.data.saving import _sweep, check_not_input, load_json, save_json, write_atomically, written_aside

ROOT = Path(__file__).parents[2]


def test_text_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "result.txt"
    write_atomically(path, "old é\n")
    write_atomically(str(path), "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    assert os.listdir(path.parent) == ["result.txt"]


def test_it_is_as_readable_as_any_other_file(tmp_path):
    (tmp_path / "other").write_text("")
    write_atomically(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "result.txt"
    write_atomically(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.txt"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.bin"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), written_aside(path) as aside:
        aside.write_bytes(b"half")
        assert aside.name.startswith(".") and path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.bin"]
    with pytest.raises(FileNotFoundError), written_aside(path):
        pass  # nothing was written
    assert path.read_text() == "old"


def test_a_file_that_is_not_there_is_told_by_what_it_should_be(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere.json does not exist; name the file .* saved as a scaling_law"
    ):
        load_json(tmp_path / "nowhere.json", kind="scaling_law", version=1)
    with pytest.raises(IsADirectoryError, match="is a folder; name the file in it that was saved as a scaling_law"):
        load_json(tmp_path, kind="scaling_law", version=1)


def test_json_comes_back(tmp_path):
    payload = {"mu": 0.1 + 0.2, "name": "é", "list": [1, None, True]}
    save_json(tmp_path / "law.json", payload, kind="scaling_law", version=3)
    assert load_json(tmp_path / "law.json", kind="scaling_law", version=3) == payload
    document = json.loads((tmp_path / "law.json").read_text())
    assert document["kind"] == "hf_ppl_select/scaling_law" and document["schema_version"] == 3


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        save_json(tmp_path / "law.json", {"mu": float("nan")}, kind="scaling_law", version=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "law.json is not valid JSON"),
        ("[1]", "law.json holds 'list', not 'hf_ppl_select/scaling_law'"),
        ("{}", "holds None, not"),
        ('{"kind": "hf_ppl_select/landscape"}', "'hf_ppl_select/landscape', not 'hf_ppl_select/scaling_law'"),
        ('{"kind": "hf_ppl_select/scaling_law", "schema_version": 9}', "has schema version 9, .* reads 1"),
        ('{"kind": "hf_ppl_select/scaling_law"}', "has schema version None, .* reads 1"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_json(tmp_path / "law.json", kind="scaling_law", version=1)


def test_binary_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "law.json", kind="scaling_law", version=1)
    (tmp_path / "law.json").write_bytes(b"\x93\xff\x00PNG")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_json(tmp_path / "law.json", kind="scaling_law", version=1)


def test_what_killed_writers_left_is_removed_and_what_live_ones_write_stays(tmp_path):
    """Killed in the middle of a file, a process leaves a hidden one; the next that writes there removes it."""
    code = "import os, signal, sys; from hf_ppl_select.data.saving import written_aside\n"
    code += "with written_aside(sys.argv[1]) as aside:\n    aside.write_text('half')\n    "
    die, wait = "os.kill(os.getpid(), signal.SIGKILL)", "print(1, flush=True); sys.stdin.read()"
    killed = subprocess.run([sys.executable, "-c", code + die, tmp_path / "plot.png"], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.glob(".plot.png.*.partial"))) == 1
    write_atomically(tmp_path / "mine.txt", "mine")  # this process has looked before
    with subprocess.Popen(
        [sys.executable, "-c", code + wait, tmp_path / "other.png"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as live:
        live.stdout.readline()
        _sweep.cache_clear()
        write_atomically(tmp_path / "mine.txt", "mine again")
        names = sorted(path.name.partition(".png")[0] for path in tmp_path.iterdir())
        assert names == [".other", "mine.txt"]
        live.stdin.close()
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "other.png"]


def test_the_folder_to_write_is_not_the_one_to_read(tmp_path):
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "a/", "a/data", "a/data/train-00000-of-00001.parquet", "link", "b/../a"):
        with pytest.raises(ValueError, match=r"output_dir .*a holds the rows to read; name another folder"):
            check_not_input(tmp_path / "a", f"{tmp_path}/{name}")
    for name in (f"{tmp_path}/ab", f"{tmp_path}/a/texts.jsonl", str(tmp_path), "user/name"):
        check_not_input(tmp_path / "a", name)
