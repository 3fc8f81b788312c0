"""Streamed selections over earlier ones: beside new rows lies nothing of the old, and only subsets are overwritten."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.hub.push_subset import check_folder, push_subset_folder_to_hub
from hf_ppl_select.streaming.parquet_files import ParquetFiles
from hf_ppl_select.streaming.select import StreamedSelection, select_stream
from hf_ppl_select.streaming.sharded_output import ShardedOutput
from tests.selection.junk_corpus import make_law

TARGET = {"num_tokens": 60_000, "target": (20.0, 6.0)}


class Killed(BaseException):
    """Caught by nothing."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("scored") / "scored.parquet", np.random.default_rng(0)
    perplexity = np.exp(rng.normal(3.0, 0.5, 4000))
    rows = {"text": [f"chunk {i}" for i in range(4000)], "num_tokens": rng.integers(20, 200, 4000)}
    Dataset.from_dict(rows | {"perplexity": perplexity}).to_parquet(path)
    return ParquetFiles.find(str(path))


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_without_a_law_no_law_stays(files, tmp_path):
    select_stream(files, tmp_path / "new" / "out", **TARGET)
    select_stream(files, tmp_path / "out", law=make_law(), num_tokens=60_000, license="mit", source="me/corpus")
    assert (tmp_path / "out" / "law.json").exists()
    select_stream(files, tmp_path / "out", **TARGET, overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "new" / "out")
    make_law().save(tmp_path / "out" / "law.json")  # also where the rows are the same
    select_stream(files, tmp_path / "out", **TARGET)
    assert not (tmp_path / "out" / "law.json").exists()


@pytest.mark.parametrize("notes", ["", "My notes below.\n"])
def test_a_kill_leaves_no_card_and_report_of_other_rows(files, tmp_path, monkeypatch, notes):
    select_stream(files, tmp_path / "new" / "out", **TARGET)
    select_stream(files, tmp_path / "out", law=make_law(), num_tokens=60_000, license="mit")
    readme = tmp_path / "out" / "README.md"
    readme.write_text(readme.read_text() + notes)
    with monkeypatch.context() as patch:

        def killed(*_):
            raise Killed

        patch.setattr(StreamedSelection, "save", killed)
        with suppress(Killed):
            select_stream(files, tmp_path / "out", **TARGET, overwrite=True)
    left = ["README.md"] * bool(notes) + ["data", "selector.json"]
    assert sorted(os.listdir(tmp_path / "out")) == left and len(load_rows(str(tmp_path / "out")))
    if notes:
        assert "not finished" in readme.read_text() and "The scaling law" not in readme.read_text()
    with pytest.raises(ValueError if notes else FileNotFoundError, match="licence|holds no subset"):
        push_subset_folder_to_hub(tmp_path / "out", "me/sub", dry_run=True, token="hf_none")
    check_folder(tmp_path / "out", overwrite=True)
    select_stream(files, tmp_path / "out", **TARGET)
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "new" / "out")
    assert notes in readme.read_text() and "not finished" not in readme.read_text()
    assert notes or found.pop("README.md") == expected.pop("README.md")
    assert {name: found[name] for name in expected if name != "README.md"} == {
        name: content for name, content in expected.items() if name != "README.md"
    }


def test_a_hand_written_card_stays(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("Written by hand.\n")
    select_stream(files, tmp_path / "out", **TARGET)
    assert "Written by hand." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("published", [True, False])
def test_a_scored_corpus_is_never_overwritten(files, tmp_path, published):
    output = ShardedOutput.open(tmp_path / "scored", 1, {"model": "tiny"})
    output.write(0, Dataset.from_dict({"text": ["a"]}))
    if published:
        output.publish()
        (tmp_path / "scored" / "landscape.json").write_text(json.dumps({"kind": "hf_ppl_select/landscape"}))
    before = contents(tmp_path / "scored")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="scored holds data that is no subset; name another folder"):
            select_stream(files, tmp_path / "scored", **TARGET, overwrite=overwrite)
    assert contents(tmp_path / "scored") == before


def test_a_law_s_folder_is_never_emptied(files, tmp_path):
    make_law().save_pretrained(tmp_path / "law")
    before = contents(tmp_path / "law")
    with pytest.raises(ValueError, match="law holds data that is no subset"):
        select_stream(files, tmp_path / "law", **TARGET)
    assert contents(tmp_path / "law") == before


@pytest.mark.parametrize("readme", [None, "Written by hand.\n"])
def test_killed_before_it_has_a_manifest_it_goes_on(files, tmp_path, readme):
    (tmp_path / "out" / ".unfinished").mkdir(parents=True)
    (tmp_path / "out" / ".unfinished" / ".manifest.json.00000000-1-0.partial").write_text("half")
    if readme:
        (tmp_path / "out" / "README.md").write_text(readme)
    select_stream(files, tmp_path / "out", **TARGET)
    assert len(load_rows(str(tmp_path / "out")))


def test_of_two_selections_at_once_the_one_that_lost_the_folder_says_so(files, tmp_path, monkeypatch):
    keep = ParquetFiles.keep

    def meanwhile(self, selector, batch):
        with monkeypatch.context() as patch:
            patch.setattr(ParquetFiles, "keep", keep)
            select_stream(files, tmp_path / "out", **TARGET, seed=1)
        return keep(self, selector, batch)

    monkeypatch.setattr(ParquetFiles, "keep", meanwhile)
    with pytest.raises(ValueError, match="another command with other settings took"):
        select_stream(files, tmp_path / "out", **TARGET)
    monkeypatch.setattr(ParquetFiles, "keep", keep)
    select_stream(files, tmp_path / "alone" / "out", **TARGET, seed=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone" / "out")
