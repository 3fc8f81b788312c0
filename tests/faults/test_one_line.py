"""What goes wrong outside of us is said in one line, without a traceback, and an exit code that is not 0."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from datasets import Dataset, load_dataset
from faults.kinds import scored
from recipe_runs import TEXTS, write_jsonl
from warm_processes import ROOT

from command_line import run
from hf_ppl_select.hub.push_subset import save_subset

pytest_plugins = ["recipe_fixtures"]


def said(capsys, error):
    """Exit code and what `run` says of an error that is raised elsewhere than in our code."""
    place = {"error": error}
    exec(compile("def main():\n    raise error", "/usr/lib/library.py", "exec"), place)
    with pytest.raises(SystemExit) as exit:
        run(place["main"])
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr and stderr.count("\n") == 1
    return exit.value.code, stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/law.json"),
            "the disk is full for /out/law.json",
        ),
        (OSError(errno.EBUSY, "Device or resource busy", "/out"), "busy: /out; it is in use, or a mount point"),
        (FileExistsError(errno.EEXIST, "File exists", "/out"), "File exists: /out; a file is in the way of a folder"),
        (OSError(errno.EROFS, "Read-only file system", "/out"), "/out; the disk is read-only: name another place"),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "/out; it may not be written or read"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            "disk is full",
        ),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), r"half a character ('\ud800')"),
    ],
)
def test_errors_of_the_machine(error, message, capsys):
    code, stderr = said(capsys, error)
    assert code == 2 and message in stderr


def test_what_a_native_writer_says_of_a_full_disk_lies_behind_its_last_word(capsys):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")
    error.__context__ = RuntimeError("basic_ios::clear: iostream error")
    assert "the disk is full" in said(capsys, error)[1]
    assert "the disk is full" in said(capsys, Exception("No space left on device (os error 28)"))[1]  # tokenizers
    assert "read-only: name another place" in said(capsys, Exception("Read-only file system (os error 30)"))[1]
    with pytest.raises(RuntimeError, match="unexpected pos"):  # which may be anything
        said(capsys, RuntimeError("unexpected pos 640 vs 598"))


def test_control_c(capsys):
    code, stderr = said(capsys, KeyboardInterrupt())
    assert code == 130 and "interrupted" in stderr


def test_a_full_disk_while_weights_are_written(capsys):
    from safetensors import SafetensorError

    code, stderr = said(capsys, SafetensorError("I/O error: No space left on device (os error 28)"))
    assert code == 2 and "the disk is full; free some space" in stderr


@pytest.mark.parametrize("name", ["../../x", "me/a\nb", "a/b/c", "me/" + "x" * 200])
def test_names_that_are_no_repository(name, common, tmp_path, run_recipe, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nothing")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    config = common | {"dataset_name": rows, "push_to_hub": True, "hub_model_id": name}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    Dataset.from_dict(scored(100)).to_parquet(tmp_path / "scored.parquet")
    subset = ["--num_tokens", 900, "--license", "other", "--strategy", "low", "--output_dir", tmp_path / "subset"]
    for command in (
        ["cpt", "--config", tmp_path / "config.yaml"],
        ["select_subset", "--dataset_name", tmp_path / "scored.parquet", *subset, "--push_to_hub", name],
    ):
        code, _, stderr = run_recipe(*command)
        assert (
            code == 2 and f"{name!r} is no id of a repository, like user/name" in stderr and "Traceback" not in stderr
        )
    assert not (tmp_path / "run").exists() and not (tmp_path / "subset").exists()


def test_a_truncated_shard_of_another_program(tmp_path, run_recipe):
    (tmp_path / "scored" / "data").mkdir(parents=True)
    path = tmp_path / "scored" / "data" / "train-00000-of-00001.parquet"
    Dataset.from_dict(scored(100)).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    options = ["--dataset_name", tmp_path / "scored", "--num_tokens", 900, "--output_dir", tmp_path / "subset"]
    for more in (["--strategy", "low"], ["--streaming", "--target_mu", 20, "--target_sigma", 5]):
        code, _, stderr = run_recipe("select_subset", *options, *more)
        assert code == 2 and "cannot be read" in stderr and "scored" in stderr
        assert "Traceback" not in stderr.rpartition("select_subset.py: error")[2]


@pytest.fixture
def mounted(tmp_path):
    """An empty folder that is a mount point, as output folders in containers are."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_an_output_folder_that_is_a_mount_point(mounted):
    rows = Dataset.from_dict(scored(100))
    (mounted / "lost+found").mkdir()
    save_subset(rows, mounted)
    save_subset(rows.select(range(50)), mounted, overwrite=True)
    assert len(load_dataset("parquet", data_files=str(mounted / "data" / "*.parquet"), split="train")) == 50
    assert sorted(os.listdir(mounted)) == ["README.md", "data", "lost+found"]


def test_an_output_folder_that_is_called_a_mount_point(tmp_path, monkeypatch):
    """The same where nothing can be mounted: such a folder is never renamed."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(folder))
    real = os.rename

    def rename(old, new, **options):
        if str(folder) in (str(old), str(new)):
            raise OSError(errno.EBUSY, "Device or resource busy", str(folder))
        return real(old, new, **options)

    monkeypatch.setattr(os, "rename", rename)
    rows = Dataset.from_dict(scored(100))
    save_subset(rows, folder)
    with pytest.raises(FileExistsError):
        save_subset(rows, folder)
    save_subset(rows.select(range(50)), folder, overwrite=True)
    assert sorted(os.listdir(folder)) == ["README.md", "data"] and os.listdir(tmp_path) == ["mounted"]


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "x.py: interrupted.\n"), (signal.SIGTERM, 143, "x.py: terminated.\n")],
)
def test_told_to_end_in_a_process_of_its_own(number, code, says, tmp_path):
    script = (
        "import os, signal, sys; sys.path.insert(0, 'recipes'); sys.argv[0] = 'x.py'; from command_line import run\n"
        "from hf_ppl_select.data.saving import written_aside\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which tests in the background ignore
        "def main():\n"
        f"    with written_aside({str(tmp_path / 'out.txt')!r}) as aside:\n"
        "        aside.write_text('half')\n"
        f"        os.kill(os.getpid(), {number:d}); signal.pause()\n"
        "run(main)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, says) and not list(tmp_path.iterdir())
    # One of several processes, which may wait for the others where no exception ends it, dies at once
    launched = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"RANK": "0"}, timeout=60)
    assert launched.returncode == (code if number == signal.SIGINT else -number)
