"""A published corpus that lacks a shard, or holds another than was written, is never taken for the whole."""

import json
import os
import random
import shutil

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from faults.kinds import scored

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import checksum
from hf_ppl_select.hub.push_subset import save_subset
from hf_ppl_select.streaming.parquet_files import ParquetFiles
from hf_ppl_select.streaming.select import select_stream
from hf_ppl_select.streaming.sharded_output import ShardedOutput

NUM_SHARDS, NUM_ROWS = 7, 700
ROWS = Dataset.from_dict(scored(NUM_ROWS))


def write(folder, settings=None, publish=True, only=range(NUM_SHARDS)):
    """A corpus in seven shards, of which one has no rows."""
    output = ShardedOutput.open(folder, NUM_SHARDS, settings or {"seed": 0})
    for index in only:
        rows = ROWS.select(range(NUM_ROWS)[index * 110 : (index + 1) * 110] if index != 4 else [])
        if index in output.missing:
            output.write(index, rows)
    if publish:
        output.publish()
    return output


@pytest.fixture
def corpus(tmp_path):
    write(tmp_path / "corpus")
    return tmp_path / "corpus"


def stream(folder):
    out = folder.parent / "streamed"
    return select_stream(ParquetFiles.find(str(folder)), out, num_tokens=5000, target=(22.0, 6.0)).corpus.num_chunks


READERS = {"load_rows": lambda folder: len(load_rows(str(folder))), "stream": stream}


def damage(data, how):
    """Damages a folder of shards; what the error must name."""
    path = sorted(data.glob("*.parquet"))[2]
    content = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        at = len(content) // 3
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    elif how == "another's":
        shutil.copy(sorted(data.glob("*.parquet"))[1], path)
    elif how == "one more":
        path = shutil.copy(path, data / path.name.replace("00002-of", "00004-of"))
    return path.name if how != "one more" else "train-00004-of-00007.parquet"


@pytest.mark.parametrize("how", ["lost", "cut", "emptied", "flipped", "another's", "one more"])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_corpus_is_refused_by_the_name_of_its_shard(corpus, reader, how):
    read = READERS[reader]
    assert read(corpus) == len(range(NUM_ROWS)) - 110  # the fifth shard has no rows
    shutil.rmtree(corpus.parent / "streamed", ignore_errors=True)
    name = damage(corpus / "data", how)
    with pytest.raises(ValueError, match=name):
        read(corpus)
    with pytest.raises(ValueError, match=name):
        write(corpus)  # the same command again


@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
def test_a_damaged_subset_is_refused(tmp_path, how):
    save_subset(ROWS, tmp_path / "subset")
    assert len(load_rows(str(tmp_path / "subset"))) == NUM_ROWS
    (path,) = (tmp_path / "subset" / "data").glob("*.parquet")
    content = path.read_bytes()
    shutil.copy(path, tmp_path / "subset" / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match="holds train-00001-of-00002.parquet, which its manifest.json does not list"):
        load_rows(str(tmp_path / "subset"))
    (tmp_path / "subset" / "data" / "train-00001-of-00002.parquet").unlink()
    changed = {"cut": content[:-100], "flipped": content[:99] + bytes([content[99] ^ 1]) + content[100:]}
    path.unlink() if how == "lost" else path.write_bytes(changed[how])
    with pytest.raises((ValueError, FileNotFoundError), match="train-00000-of-00001|subset"):
        load_rows(str(tmp_path / "subset"))


@pytest.mark.parametrize("reader", READERS)
def test_names_alone_say_how_many_there_are(tmp_path, reader):
    """As of a dataset that came from the Hub, without our manifest; one of another program is let alone."""
    data = tmp_path / "corpus" / "data"
    data.mkdir(parents=True)
    for index in range(3):
        ROWS.shard(3, index, contiguous=True).to_parquet(data / f"train-{index:05d}-of-00003.parquet")
    (data / "manifest.json").write_text('{"files": 3}')
    assert READERS[reader](tmp_path / "corpus") == NUM_ROWS
    (data / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match="lacks train-00001-of-00003.parquet of 3 shards"):
        READERS[reader](tmp_path / "corpus")
    one = data / "train-00002-of-00003.parquet"  # asked for by name
    assert len(load_rows(str(one))) == ParquetFiles.find(str(one)).landscape()[0].num_chunks == 233


@pytest.mark.parametrize("reader", READERS)
def test_of_an_older_manifest_the_rows_are_counted(corpus, reader):
    path = corpus / "data" / "manifest.json"
    document = json.loads(path.read_text())
    del document["shards"], document["checksum"]
    path.write_text(json.dumps(document | {"num_chunks": NUM_ROWS - 110}))
    with pytest.warns(UserWarning, match="manifest.json has no checksum"):
        assert READERS[reader](corpus) == NUM_ROWS - 110
    (corpus / "data" / "train-00002-of-00007.parquet").unlink()
    with pytest.raises(ValueError, match="holds 480 of 590 rows; shards are missing"), pytest.warns(UserWarning):
        READERS[reader](corpus)


def test_bits_that_flip_in_unfinished_shards_are_written_again(tmp_path):
    write(tmp_path / "undisturbed")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed" / "data").iterdir()}
    rng = random.Random(0)
    for trial in range(20):
        folder = tmp_path / f"killed-{trial}"
        write(folder, publish=False, only=range(4))
        path = folder / ".unfinished" / f"train-{rng.randrange(4):05d}-of-00007.parquet"
        if trial % 2:  # the shard, or the note of its hash
            path = path.with_name(f"{path.name}.json")
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="is not what was written; it is written again"):
            write(folder)
        assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == expected


def test_a_kill_at_any_moment_of_publishing_is_made_up_for(tmp_path, monkeypatch):
    write(tmp_path / "undisturbed")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed" / "data").iterdir()}
    from pathlib import Path

    for last in range(20):
        folder, calls = tmp_path / f"killed-{last}", []
        write(folder, publish=False)

        def stop(real, last=last, calls=calls):
            def called(*args, **kwargs):
                calls.append(1)
                if len(calls) == last + 1:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return called

        with monkeypatch.context() as patch:
            for name in ("unlink", "rename", "replace", "write_text"):
                patch.setattr(Path, name, stop(getattr(Path, name)))
            try:
                write(folder)
            except KeyboardInterrupt:
                assert not (folder / "data").exists()
        write(folder)
        assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == expected


def test_the_slower_of_two_runs_at_once_ends_well_and_changes_nothing(tmp_path):
    write(tmp_path / "undisturbed")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed" / "data").iterdir()}
    for index in range(NUM_SHARDS):
        folder = tmp_path / f"both-{index}"
        slower = write(folder, publish=False, only=range(index))
        with slower.writing(index) as aside:
            aside.write_bytes(b"half")
            write(folder)  # the quicker one, meanwhile
            if index % 2:  # which may rename the folder with what is half written in it
                (folder / "data" / aside.name).write_bytes(b"half")
        slower.write(5, ROWS.select([1]))  # had not begun; of the names, that of the fifth, empty one is gone
        slower.publish()
        assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == expected
        assert os.listdir(folder) == ["data"] and len(slower.read(["text"])) == NUM_ROWS - 110


def test_what_a_killed_write_left_is_not_somebody_elses(corpus):
    (corpus.parent / "streamed").mkdir()
    (corpus.parent / "streamed" / ".law.json.00000000-1-0.partial").write_text("half")
    assert stream(corpus) == NUM_ROWS - 110


def test_a_flipped_manifest_is_refused(corpus):
    path, rng = corpus / "data" / "manifest.json", random.Random(1)
    content = path.read_bytes()
    for _ in range(150):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="manifest.json"):
            load_rows(str(corpus))


def test_the_manifest_says_what_is_there(corpus):
    document = json.loads((corpus / "data" / "manifest.json").read_text())
    assert document["seed"] == 0 and len(document["shards"]) == 6  # the one without rows is left out
    for name, shard in document["shards"].items():
        assert shard["num_rows"] == pq.read_metadata(corpus / "data" / name).num_rows
        assert shard["num_bytes"] == (corpus / "data" / name).stat().st_size
    assert document["checksum"] == checksum({name: document[name] for name in document if name != "checksum"})
