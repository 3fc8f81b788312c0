"""The folder of a subset, and pushing it with the real client to a Hub on the loopback address."""

import io
import json
import os
import traceback
from contextlib import suppress
from inspect import signature
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from hub.subset_cards import assert_card_is_clean
from huggingface_hub import DatasetCard, HfApi, constants
from loopback_hub import Repo

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.hub.push_subset import (
    check_folder,
    check_hub_access,
    push_subset_folder_to_hub,
    push_subset_to_hub,
    save_subset,
)
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.streaming.sharded_output import ShardedOutput

TOKEN = "hf_ThisIsTheRightOne"
MODEL = "HuggingFaceTB/SmolLM2-135M"


def test_saved_folder_loads_back_equal(subset, selection, law, landscape, tmp_path):
    folder = save_subset(subset, tmp_path / "sub", law=law, landscape=landscape, selection=selection, license="mit")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "data",
        "landscape.json",
        "law.json",
        "selection.json",
    ]
    back = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert back.features == subset.features and back[:] == subset[:]
    assert (
        json.loads((folder / "selection.json").read_text())["indices_sha256"] == selection.report()["indices_sha256"]
    )
    assert type(law).load(folder / "law.json").params == law.params
    assert PerplexityLandscape.load(folder / "landscape.json").mu == landscape.mu
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "sub"]  # nothing left beside it


def test_saving_without_selection_describes_the_rows(subset, tmp_path):
    text = (save_subset(subset, tmp_path / "sub") / "README.md").read_text()
    assert_card_is_clean(text)
    own = PerplexityLandscape.from_dataset(subset)
    assert f"| **this subset** | 200 | 20,000 | {own.mu:.4g} | {own.sigma:.4g} |" in text
    plain = Dataset.from_dict({"text": ["a", "b"]})
    assert "2 chunks of text, selected" in (save_subset(plain, tmp_path / "plain") / "README.md").read_text()


def test_only_a_subset_is_ever_overwritten(subset, tmp_path):
    save_subset(subset, tmp_path / "sub")
    with pytest.raises(FileExistsError, match="already holds a subset"):
        save_subset(subset, tmp_path / "sub")
    save_subset(subset.select(range(5)), tmp_path / "sub", overwrite=True)
    assert len(load_dataset(str(tmp_path / "sub"), split="train", cache_dir=str(tmp_path / "cache"))) == 5

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.tex"):
        save_subset(subset, mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_subset(subset, tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    save_subset(subset, tmp_path / "empty")


def test_a_scored_corpus_is_no_subset(subset, landscape, tmp_path):
    """Its folder has only names that a subset has, too."""
    output = ShardedOutput.open(tmp_path / "scored", 1, {"model": MODEL})
    output.write(0, subset)
    output.publish()
    landscape.save(tmp_path / "scored" / "landscape.json")
    before = {path: path.stat().st_ino for path in (tmp_path / "scored").rglob("*")}
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="scored holds data that is no subset; name another folder"):
            save_subset(subset, tmp_path / "scored", overwrite=overwrite)
        with pytest.raises(ValueError, match="no subset"):
            check_folder(tmp_path / "scored", overwrite)
    assert {path: path.stat().st_ino for path in (tmp_path / "scored").rglob("*")} == before


def test_a_law_beside_no_data_is_no_subset(subset, law, tmp_path):
    law.save_pretrained(tmp_path / "law")
    with pytest.raises(ValueError, match="no subset"):
        save_subset(subset, tmp_path / "law", overwrite=True)
    assert type(law).load(tmp_path / "law" / "law.json").params == law.params


@pytest.mark.parametrize("lost", ["README.md", "selection.json"])
def test_card_or_report_is_enough_to_know_a_subset(subset, selection, tmp_path, lost):
    folder = save_subset(subset, tmp_path / "sub", selection=selection)
    (folder / lost).unlink()
    with pytest.raises(FileExistsError, match="already holds a subset"):
        save_subset(subset, folder)
    save_subset(subset, folder, overwrite=True)


@pytest.mark.parametrize("last", range(12))
def test_a_kill_while_a_mount_point_is_overwritten_leaves_a_subset(
    subset, selection, law, landscape, tmp_path, monkeypatch, last
):
    """Whose entries are replaced one by one; at each step the same command can go on."""
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "sub"))
    parts = {"law": law, "landscape": landscape, "license": "mit"}
    (tmp_path / "sub").mkdir()
    save_subset(subset, tmp_path / "sub", selection=selection, **parts)
    calls = []

    def killing(real):
        def called(path, *args):
            if path.parent == tmp_path / "sub" or path.parent.parent == tmp_path / "sub":
                calls.append(path.name)
                if len(calls) == last + 1:
                    raise KeyboardInterrupt
            return real(path, *args)

        return called

    few = subset.select(range(5))
    with monkeypatch.context() as patch:
        for name in ("unlink", "rename", "replace"):
            patch.setattr(Path, name, killing(getattr(Path, name)))
        with suppress(KeyboardInterrupt):
            save_subset(few, tmp_path / "sub", overwrite=True, **parts)
    save_subset(few, tmp_path / "sub", overwrite=True, **parts)
    found = sorted(name for name in os.listdir(tmp_path / "sub") if not name.endswith(".partial"))
    assert found == ["README.md", "data", "landscape.json", "law.json"]
    assert len(load_rows(str(tmp_path / "sub"))) == 5


def test_other_parquet_files_are_no_rows_of_the_subset(hub, subset, tmp_path):
    folder = save_subset(subset, tmp_path / "sub", license="mit")
    subset.select(range(3)).to_parquet(folder / "data" / "dropped-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="dropped-00000-of-00001.parquet"):
        push_subset_folder_to_hub(folder, "me/sub")
    assert not hub.repos
    (folder / "data" / "dropped-00000-of-00001.parquet").unlink()
    push_subset_folder_to_hub(folder, "me/sub")
    assert sorted(hub.repos["me/sub"].files()) == ["README.md", "data/train-00000-of-00001.parquet"]


def test_a_failed_save_leaves_what_was_there(subset, law, tmp_path, monkeypatch):
    save_subset(subset, tmp_path / "sub")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sub").rglob("*")}

    def full_disk(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(law), "save", full_disk)
    for folder in ("sub", "new"):
        with pytest.raises(OSError, match="No space left"):
            save_subset(subset, tmp_path / folder, law=law, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sub").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_bad_subsets(subset, selection, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        save_subset(subset.select([]), tmp_path / "sub")
    with pytest.raises(TypeError, match="not dict"):
        save_subset({"text": ["a"]}, tmp_path / "sub")
    with pytest.raises(ValueError, match="200 rows and the subset 7"):
        save_subset(subset.select(range(7)), tmp_path / "sub", selection=selection)
    assert not list(tmp_path.iterdir())


def test_data_and_card_arrive_in_one_commit(hub, subset, selection, law, landscape, tmp_path):
    parts = {"law": law, "landscape": landscape, "selection": selection}
    url = push_subset_to_hub(subset, "me/sub", **parts, license="cc-by-4.0", source="me/corpus")
    assert url == f"{hub.endpoint}/datasets/me/sub"
    repo = hub.repos["me/sub"]
    assert not repo.private
    ((_, files),) = repo.commits[1:]
    shard = "data/train-00000-of-00001.parquet"
    assert sorted(files) == ["README.md", shard, "landscape.json", "law.json", "selection.json"]
    back = load_dataset("me/sub", split="train", cache_dir=str(tmp_path / "cache"))
    assert back.features == subset.features and back[:] == subset[:]

    readme = hub.file("me/sub", "README.md").decode()
    assert_card_is_clean(readme)
    data = DatasetCard(readme).data.to_dict()
    assert data["dataset_info"]["splits"][0]["num_examples"] == 200
    assert data["configs"][0]["data_files"][0]["path"] == "data/train-*"
    assert data["license"] == "cc-by-4.0" and "perplexity" in data["tags"]
    assert "## What the law predicts" in readme and "## How to reproduce" in readme
    assert pq.read_table(io.BytesIO(files[shard])).to_pydict() == subset[:]
    assert json.loads(hub.file("me/sub", "law.json"))["params"] == law.params

    everything = b"".join(content for _, files in repo.commits for content in files.values())
    assert TOKEN.encode() not in everything


def test_push_again_and_under_other_names(hub, subset, law):
    push_subset_to_hub(subset, "sub", law=law, license="mit", private=True)
    assert list(hub.repos) == ["me/sub"] and hub.repos["me/sub"].private
    push_subset_to_hub(subset.select(range(9)), "me/sub", license="unknown", private=True)
    data = DatasetCard(hub.file("me/sub", "README.md").decode()).data.to_dict()
    assert data["dataset_info"]["splits"][0]["num_examples"] == 9 and data["license"] == "unknown"
    assert sorted(hub.repos["me/sub"].files()) == ["README.md", "data/train-00000-of-00001.parquet"]  # no stale law

    push_subset_to_hub(subset, "my-org/sub", license="other")
    with pytest.raises(ValueError, match="exists and is public"):
        push_subset_to_hub(subset, "my-org/sub", license="other", private=True)


@pytest.mark.parametrize(
    "license, said", [(None, "license is missing.*licence of its source"), ("CC BY 4.0", "not an identifier")]
)
def test_licence_is_asked_for_before_any_request(hub, subset, license, said):
    with pytest.raises(ValueError, match=said):
        push_subset_to_hub(subset, "me/sub", license=license)
    assert not hub.requests


def test_access_is_checked_before_any_work(hub, use_hub, monkeypatch, subset):
    assert check_hub_access("sub") == "me/sub"
    assert check_hub_access("My-Org/sub") == "My-Org/sub"
    assert not hub.repos

    with pytest.raises(PermissionError, match="me, whose token this is, may push to me, my-org"):
        check_hub_access("someone-else/sub")
    hub.role = "read"
    with pytest.raises(PermissionError, match="may only read"):
        check_hub_access("me/sub")
    hub.role = "fineGrained"  # what such a token may do, only the Hub knows
    assert check_hub_access("someone-else/sub") == "someone-else/sub"
    hub.repos["someone-else/theirs"] = Repo(read_only=True)
    said = "may not do this .403: You don't have write access to someone-else"
    with pytest.raises(PermissionError, match=said):
        push_subset_to_hub(subset, "someone-else/theirs", license="mit")
    for repo_type in ("dataset", "model") if "write" in signature(HfApi.auth_check).parameters else ():
        with pytest.raises(PermissionError, match=said):
            check_hub_access("someone-else/theirs", repo_type=repo_type)
    hub.repos["someone-else/theirs"].read_only = False
    assert check_hub_access("someone-else/theirs") == "someone-else/theirs"
    with pytest.raises(ValueError, match="Repo id must"):
        check_hub_access("a/b/c")
    hub.fail = {"whoami": 503}
    with pytest.raises(ConnectionError, match="the Hub answered 503"):
        check_hub_access("me/sub")

    use_hub(hub.endpoint, token=None)
    with pytest.raises(PermissionError, match="there is no Hugging Face token.*hf auth login.*HF_TOKEN"):
        check_hub_access("me/sub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is on"):
        check_hub_access("me/sub")


@pytest.mark.parametrize("wrong", ["hf_ThisOneIsWrong", "hf_This\nIsTwoLines", "hf_Thïs", "hf This"])
def test_a_wrong_token_is_refused_and_never_shown(hub, subset, caplog, wrong):
    with pytest.raises(PermissionError, match="token") as refused:
        push_subset_to_hub(subset, "me/sub", license="mit", token=wrong)
    told = "".join(traceback.format_exception(refused.value)) + caplog.text
    assert wrong not in told and wrong[3:] not in told
    assert not hub.repos


def test_a_hub_that_repeats_the_token_is_not_repeated(hub, monkeypatch, subset):
    monkeypatch.setattr(hub, "fail", {"repos/create": 403})
    dumps = json.dumps  # also the client's
    monkeypatch.setattr("loopback_hub.json.dumps", lambda *args, **kw: dumps(*args, **kw).replace("me/", TOKEN))
    with pytest.raises(PermissionError) as refused:
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert TOKEN not in str(refused.value)


def test_no_hub_there(hub, waits, subset):
    hub.stop()
    with pytest.raises(ConnectionError, match=f"{hub.endpoint} cannot be reached.*HF_ENDPOINT"):
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert sum(waits) < 5  # seconds: nobody waits long to hear that there is no network


@pytest.mark.parametrize(
    "fail, said",
    [
        ({"repos/create": 500}, "the Hub answered 500"),
        ({"POST .*/commit/": 500}, "the Hub answered 500"),
        ({"PUT /lfs": 500}, "the Hub answered 500"),
        ({"PUT /lfs": 403}, "may not do this"),
        ({"PUT /lfs": 0}, "cannot be reached"),
        ({"info/lfs/objects/batch": 502}, "the Hub answered 502"),
        ({"GET .*/revision/": 0}, "cannot be reached"),
        ({"POST .*/commit/": 401}, "refuses the token"),
    ],
)
def test_a_push_that_stops_says_so_and_can_be_repeated(hub, subset, law, fail, said):
    hub.fail = fail
    said = f"The push to me/sub stopped, which is as it was, or has all of it: .*{said}"
    with pytest.raises((ConnectionError, PermissionError), match=said) as stopped:
        push_subset_to_hub(subset, "me/sub", law=law, license="mit")
    assert "\n" not in str(stopped.value) and TOKEN not in str(stopped.value)
    assert hub.repos.get("me/sub") is None or hub.repos["me/sub"].files() == {}
    hub.fail = {}
    push_subset_to_hub(subset, "me/sub", law=law, license="mit")
    assert sorted(hub.repos["me/sub"].files()) == ["README.md", "data/train-00000-of-00001.parquet", "law.json"]
