"""Dry runs, branches, private repositories, and what is said of repositories and tokens that do not do."""

import json

import pytest
from datasets import Dataset, load_dataset
from hub.push_stages import chunks
from huggingface_hub import HfApi, constants
from loopback_hub import Repo

from hf_ppl_select import ScalingLaw
from hf_ppl_select.hub.push_subset import push_subset_folder_to_hub, push_subset_to_hub, save_subset
from hf_ppl_select.streaming.parquet_files import ParquetFiles
from hf_ppl_select.streaming.select import select_stream

TOKEN = "hf_ThisIsTheRightOne"
SHARD = "data/train-00000-of-00001.parquet"


@pytest.fixture
def folder(tmp_path, law):
    return save_subset(chunks(20), tmp_path / "saved", license="mit", law=law)


@pytest.fixture
def streamed(tmp_path):
    """A streamed selection of three shards, of which the second kept nothing and is left out."""
    scored = tmp_path / "scored"
    scored.mkdir()
    for index in range(3):
        rows = chunks(60, seed=index)
        if index == 1:
            rows = rows.map(lambda row: {"perplexity": 1e9})
        rows.to_parquet(scored / f"train-{index:05d}-of-00003.parquet")
    files = ParquetFiles.find(str(scored), max_score=1000.0)
    select_stream(files, tmp_path / "streamed", target=(20.0, 6.0), num_tokens=300, license="mit")
    return tmp_path / "streamed"


def rows_of(repo_id, tmp_path, revision=None):
    return load_dataset(repo_id, split="train", revision=revision, cache_dir=str(tmp_path / f"cache-{revision}"))


def test_a_saved_folder_arrives_as_it_is(hub, folder, tmp_path):
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMy notes.\n")
    push_subset_folder_to_hub(folder, "me/medical")
    files = hub.repos["me/medical"].files()
    assert files[SHARD] == (folder / SHARD).read_bytes() and files["law.json"] == (folder / "law.json").read_bytes()
    card = files["README.md"].decode()
    assert "# medical\n" in card and "pretty_name: medical" in card and "# saved\n" not in card and "My notes." in card
    there, here = rows_of("me/medical", tmp_path), chunks(20)
    assert there.features == here.features and there[:] == here[:]
    assert "data/manifest.json" not in files  # which `Dataset.push_to_hub` of other rows would make wrong


def test_a_streamed_selection_loads_as_it_was_written(hub, streamed, tmp_path):
    push_subset_folder_to_hub(streamed, "me/streamed")
    files = hub.repos["me/streamed"].files()
    shards = sorted(path for path in files if path.startswith("data/"))
    assert shards == [f"data/train-{i:05d}-of-00002.parquet" for i in range(2)]  # nobody misses the empty one
    there = rows_of("me/streamed", tmp_path)
    here = load_dataset("parquet", data_files=str(streamed / "data/*.parquet"), split="train")
    assert there.features == here.features and there[:] == here[:] and len(there) > 10
    assert "selector.json" in files and json.loads(files["selection.json"])["streaming"] is True


def test_a_folder_that_is_not_whole_is_not_pushed(hub, folder, tmp_path):
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not what was written"):
        push_subset_folder_to_hub(folder, "me/sub")
    with pytest.raises(FileNotFoundError, match="holds no subset"):
        push_subset_folder_to_hub(tmp_path, "me/sub")
    with pytest.raises(ValueError, match="license is missing"):
        push_subset_folder_to_hub(save_subset(chunks(9), tmp_path / "free"), "me/sub")
    assert not hub.requests


def test_a_dry_run_says_what_a_push_does_and_does_nothing(hub, folder, law, use_hub):
    hub.role = "read"  # it takes no right to write
    plan = push_subset_folder_to_hub(folder, "sub", private=True, dry_run=True)
    assert not hub.repos and not any(line.startswith(("POST", "PUT")) for line in hub.requests)
    assert (plan.repo_id, plan.private, plan.is_new, plan.revision) == ("me/sub", True, True, "main")
    hub.role = "write"
    push_subset_folder_to_hub(folder, "sub", private=True)
    files = hub.repos["me/sub"].files()
    assert {file.path: file.num_bytes for file in plan.files} == {name: len(data) for name, data in files.items()}
    assert {file.change for file in plan.files} == {"new"} and plan.num_bytes == sum(map(len, files.values()))
    assert f"private dataset me/sub (new), revision main, in one commit of {plan.num_bytes:,}" in str(plan)

    again = push_subset_folder_to_hub(folder, "me/sub", dry_run=True)
    assert not again.changes and "nothing, all of it is there" in str(again) and again.private and not again.is_new
    other = push_subset_to_hub(chunks(5), "me/sub", license="mit", revision="v2", dry_run=True)
    changes = {file.path: file.change for file in other.files}
    assert changes == {"README.md": "changed", SHARD: "changed", "law.json": "deleted"} and other.revision == "v2"
    assert list(hub.repos["me/sub"].branches) == ["main"]
    assert "law.json, " in str(law.push_to_hub("me/law", dry_run=True)) and "me/law" not in hub.repos
    hub.repos["me/open"] = Repo(commits=[("theirs", {"train.csv": b"x\n1\n"})])
    use_hub(hub.endpoint, None)
    with pytest.raises(ValueError, match="me/open holds train.csv"):  # found before it happens
        push_subset_folder_to_hub(folder, "me/open", dry_run=True)
    assert push_subset_folder_to_hub(folder, "me/never", dry_run=True).is_new  # without any token
    with pytest.raises(ValueError, match="no Hugging Face token to say whose it is; write user/never"):
        push_subset_folder_to_hub(folder, "never", dry_run=True)


def test_branches(hub, folder, law, tmp_path):
    push_subset_folder_to_hub(folder, "me/sub")
    url = push_subset_to_hub(chunks(7), "me/sub", license="mit", revision="v2")
    assert url == f"{hub.endpoint}/datasets/me/sub/tree/v2"
    assert len(rows_of("me/sub", tmp_path, "v2")) == 7 and len(rows_of("me/sub", tmp_path)) == 20
    assert len(hub.repos["me/sub"].commits) == 2 and "law.json" not in hub.repos["me/sub"].files("v2")
    law.push_to_hub("me/law", revision="v1.0")
    assert ScalingLaw.from_pretrained("me/law", revision="v1.0").params == law.params
    with pytest.raises(FileNotFoundError, match="has no law.json"):
        ScalingLaw.from_pretrained("me/law")
    with pytest.raises(FileNotFoundError, match="the repository me/law has no revision 'v9'"):
        ScalingLaw.from_pretrained("me/law", revision="v9")
    for wrong, said in {
        hub.repos["me/law"].sha: "is a commit",
        "a b": "no name of a branch",
        "../x": "no name",
    }.items():
        with pytest.raises(ValueError, match=said):
            law.push_to_hub("me/law", revision=wrong)


def test_private_is_kept_to_before_anything_is_pushed(hub, folder):
    hub.repos["me/sub"] = Repo()
    with pytest.raises(ValueError, match="me/sub exists and is public"):
        push_subset_folder_to_hub(folder, "me/sub", private=True, revision="v2")
    assert list(hub.repos["me/sub"].branches) == ["main"] and not hub.lfs_objects


def test_another_split_keeps_its_rows_unless_its_columns_differ(hub, folder, tmp_path):
    push_subset_folder_to_hub(folder, "me/sub")
    chunks(6, seed=5).push_to_hub("me/sub", split="test")
    push_subset_to_hub(chunks(9), "me/sub", license="mit")
    assert len(rows_of("me/sub", tmp_path)) == 9
    assert load_dataset("me/sub", split="test", cache_dir=str(tmp_path / "test"))[:] == chunks(6, seed=5)[:]
    before = hub.repos["me/sub"].files()
    with pytest.raises(ValueError, match="the split 'test' that is there has other columns"):
        push_subset_to_hub(Dataset.from_dict({"text": ["a"]}), "me/sub", license="mit")
    assert hub.repos["me/sub"].files() == before


@pytest.mark.parametrize("kind", ["gated", "missing", "expired", "closed port", "500", "429"])
def test_a_law_that_cannot_be_loaded(faulty_hub, law, use_hub, kind):
    law.push_to_hub("me/law")
    error, said = {
        "gated": (PermissionError, f"me/law is gated: ask for access at {faulty_hub.endpoint}/me/law"),
        "missing": (FileNotFoundError, "the Hub has no model me/law that this token may read"),
        "expired": (PermissionError, "me/law: the Hub refuses the token .401: User Access Token .* is expired"),
        "closed port": (ConnectionError, "'me/law' is no folder, its law is not in the Hub's cache"),
        "500": (ConnectionError, "'me/law' is no folder, its law is not in the Hub's cache"),
        "429": (ConnectionError, "'me/law' is no folder, its law is not in the Hub's cache"),
    }[kind]
    if kind == "gated":
        faulty_hub.repos["me/law"].gated = True
    elif kind == "missing":
        del faulty_hub.repos["me/law"]
    elif kind == "closed port":
        use_hub("http://127.0.0.1:9", TOKEN)
    else:
        faulty_hub.break_at(0, {"expired": "401"}.get(kind, kind), 10**6)
    with pytest.raises(error, match=said) as caught:
        ScalingLaw.from_pretrained("me/law")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["429", "500", "cut"])
def test_a_law_is_loaded_though_a_request_fails(faulty_hub, law, kind, number):
    law.push_to_hub("me/law")
    faulty_hub.break_at(number, kind)
    assert ScalingLaw.from_pretrained("me/law").params == law.params


def test_a_push_that_finds_others_at_every_try_gives_up(faulty_hub, folder):
    push_subset_folder_to_hub(folder, "me/sub")
    commits = faulty_hub.repos["me/sub"].commits
    faulty_hub.meanwhile = lambda: commits.append(("theirs", {**commits[-1][1], "notes.md": b"%d" % len(commits)}))
    faulty_hub.break_at(0, "meanwhile", 10**6)
    with pytest.raises(ConnectionError, match="me/sub .*others push there all the time .412.*run it again"):
        push_subset_to_hub(chunks(5), "me/sub", license="mit")
    faulty_hub.break_at(-1, "", 0)
    assert len(HfApi().dataset_info("me/sub").siblings) == 4 and faulty_hub.endpoint == constants.ENDPOINT
