"""Several commands on one folder of shards: copies of one write each once, of others only one has the folder."""

import threading
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hf_ppl_select.data.shards import check_folder_of_shards, load_manifest
from hf_ppl_select.streaming import sharded_output
from hf_ppl_select.streaming.sharded_output import ShardedOutput

TAKEN = "another command with other settings took .*out meanwhile; name another folder"


class Killed(BaseException):
    """Caught by nothing."""


def rows(text):
    return Dataset.from_dict({"text": [text]})


def check_published(folder, seed, texts):
    """A whole folder of one command, as its manifest says."""
    data = folder / "data"
    check_folder_of_shards(data, [path.name for path in data.glob("*.parquet")])
    assert load_manifest(data / "manifest.json")[0] == {"seed": seed}
    found = pa.concat_tables(pq.read_table(path) for path in sorted(data.glob("*.parquet")))
    assert found["text"].to_pylist() == texts
    assert [path.name for path in folder.iterdir()] == ["data"]


def test_of_two_settings_before_the_first_shard_the_second_gets_the_folder(tmp_path):
    first = ShardedOutput.open(tmp_path / "out", 2, {"seed": 0})
    second = ShardedOutput.open(tmp_path / "out", 2, {"seed": 1})
    with pytest.raises(ValueError, match=TAKEN):
        first.write(0, rows("first"))
    assert second.missing == [0, 1] and not list(tmp_path.rglob("*.partial"))
    for index in range(2):
        second.write(index, rows("second"))
    with pytest.raises(ValueError, match=TAKEN):
        first.publish()
    assert not second.published
    second.publish()
    for late in (lambda: first.write(1, rows("first")), first.publish):
        with pytest.raises(ValueError, match=TAKEN):
            late()
    check_published(tmp_path / "out", 1, ["second"] * 2)


@pytest.mark.parametrize("published", [False, True])
def test_a_shard_that_is_half_written_when_the_folder_is_taken(tmp_path, published):
    first = ShardedOutput.open(tmp_path / "out", 1, {"seed": 0})
    with pytest.raises(ValueError, match=TAKEN), first.writing(0) as aside:
        aside.write_bytes(b"half")
        second = ShardedOutput.open(tmp_path / "out", 1, {"seed": 1})
        second.write(0, rows("second"))
        if published:
            second.publish()
        aside.parent.mkdir(exist_ok=True)
        pq.write_table(rows("first").data.table, aside)
    second.publish()
    check_published(tmp_path / "out", 1, ["second"])


def test_what_was_published_and_is_overwritten_meanwhile_is_left_to_the_other(tmp_path):
    first = ShardedOutput.open(tmp_path / "out", 1, {"seed": 0})
    first.write(0, rows("first"))
    first.publish()
    second = ShardedOutput.open(tmp_path / "out", 1, {"seed": 1}, overwrite=True)
    second.write(0, rows("second"))
    for late in (lambda: first.write(0, rows("first")), first.publish):
        with pytest.raises(ValueError, match=TAKEN):
            late()
    second.publish()
    check_published(tmp_path / "out", 1, ["second"])


def test_copies_whose_bytes_differ_write_a_shard_and_its_note_as_one_step(tmp_path, monkeypatch):
    """As scores differ in the last digit: the second writes all it has while the first is between the two."""
    outputs = [ShardedOutput.open(tmp_path / "out", 1, {"seed": 0}) for _ in range(2)]
    second = threading.Thread(target=outputs[1].write, args=(0, rows("second")))
    real = sharded_output.save_note

    def save_note(path, shard):
        real(path, shard)
        if not second.ident:
            second.start()
            second.join(0.5)

    monkeypatch.setattr(sharded_output, "save_note", save_note)
    outputs[0].write(0, rows("first"))
    second.join(30)
    outputs[1].publish()
    check_published(tmp_path / "out", 0, ["first"])


def test_a_copy_that_is_killed_between_note_and_shard_leaves_the_other_s_as_it_is(tmp_path, monkeypatch):
    slower, quicker = (ShardedOutput.open(tmp_path / "out", 1, {"seed": 0}) for _ in range(2))
    with monkeypatch.context() as patch:

        def killed(path, shard):
            real(path, shard)
            raise Killed

        real = sharded_output.save_note
        with suppress(Killed), slower.writing(0) as aside:
            quicker.write(0, rows("quicker"))
            pq.write_table(rows("slower").data.table, aside)
            patch.setattr(sharded_output, "save_note", killed)
    quicker.publish()
    check_published(tmp_path / "out", 0, ["quicker"])


def test_a_kill_while_a_folder_is_overwritten_leaves_none_that_nobody_wrote(tmp_path, monkeypatch):
    output = ShardedOutput.open(tmp_path / "out", 3, {"seed": 0})
    for index in range(3):
        output.write(index, rows("first"))
    output.publish()

    def killed(path, **options):
        (path / "manifest.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sharded_output.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            ShardedOutput.open(tmp_path / "out", 1, {"seed": 1}, overwrite=True)
    second = ShardedOutput.open(tmp_path / "out", 1, {"seed": 1}, overwrite=True)
    second.write(0, rows("second"))
    second.publish()
    assert load_manifest(tmp_path / "out" / "data" / "manifest.json")[0] == {"seed": 1}
