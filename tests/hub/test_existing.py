"""What stands in a repository or folder already, written by others, stays there and stays loadable."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard

from hf_ppl_select import PerplexityLandscape, ScalingLaw
from hf_ppl_select.hub.existing import existing_readme, join_cards
from hf_ppl_select.hub.push_subset import push_subset_folder_to_hub, push_subset_to_hub, save_subset
from hf_ppl_select.selection.select import plan_selection

MINE = "---\nlanguage: de\ntags:\n- heart\nlicense: apache-2.0\n---\n# Hearts\n\nWritten by hand, ünïcode.\n"


@pytest.fixture
def subset():
    perplexity = np.exp(np.random.default_rng(0).normal(3, 0.4, 20))
    return Dataset.from_dict({"text": [f"t{i}" for i in range(20)], "perplexity": perplexity, "num_tokens": [9] * 20})


def upload(repo_id, repo_type="dataset", **files):
    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True)
    for name, text in files.items():
        path = {"readme": "README.md", "law": "law.json", "csv": "train.csv", "notes": "notes/about.md"}[name]
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=repo_id, repo_type=repo_type)


def readme(hub, repo_id):
    return hub.file(repo_id, "README.md").decode()


def test_a_hand_written_readme_stays_around_our_section(hub, subset, law):
    upload("me/sub", readme=MINE, notes="mine")
    for _ in range(2):  # the second push rewrites our section only
        push_subset_to_hub(subset, "me/sub", law=law, license="cc-by-4.0")
        text = readme(hub, "me/sub")
        assert text.count("Written by hand, ünïcode.") == 1 and text.count("## The scaling law") == 1
        data = DatasetCard(text).data.to_dict()
        assert data["language"] == "de" and data["license"] == "cc-by-4.0"
        assert data["tags"][0] == "heart" and "perplexity" in data["tags"]
        assert data["dataset_info"]["splits"][0]["num_examples"] == 20
    HfApi().upload_file(
        path_or_fileobj=(text + "\nAdded below.\n").encode(),
        path_in_repo="README.md",
        repo_id="me/sub",
        repo_type="dataset",
    )
    push_subset_to_hub(subset.select(range(5)), "me/sub", license="mit")
    text = readme(hub, "me/sub")
    assert text.index("Written by hand") < text.index("# sub") < text.index("Added below.")
    assert (
        "## The scaling law" not in text and "law.json" not in hub.repos["me/sub"].files()
    )  # ours, of an earlier push
    assert hub.file("me/sub", "notes/about.md") == b"mine"


def test_other_configurations_and_splits_load_as_before(hub, subset, tmp_path):
    other = Dataset.from_dict({"x": [1, 2, 3]})
    other.push_to_hub("me/sub", "numbers", split="train")
    other.push_to_hub("me/sub", "numbers", split="test")
    for number in (20, 7):
        push_subset_to_hub(subset.select(range(number)), "me/sub", license="mit")
        cache = str(tmp_path / f"cache{number}")
        for split in ("train", "test"):
            assert load_dataset("me/sub", "numbers", split=split, cache_dir=cache)["x"] == [1, 2, 3]
        assert len(load_dataset("me/sub", "default", split="train", cache_dir=cache)) == number


@pytest.mark.parametrize("theirs", ["law", "csv", "default"])
def test_files_in_the_way_are_not_replaced_unless_told(hub, subset, law, theirs):
    if theirs == "default":
        Dataset.from_dict({"x": [1, 2, 3]}).push_to_hub("me/sub", split="train")
    else:
        upload("me/sub", **{theirs: '{"title": "of the land"}' if theirs == "law" else "x\n1\n"})
    before = dict(hub.repos["me/sub"].files())
    said = {"law": "law.json", "csv": "train.csv", "default": "the configuration 'default'"}[theirs]
    with pytest.raises(ValueError, match=f"me/sub holds {said}.*which hf_ppl_select did not write.*--overwrite"):
        push_subset_to_hub(subset, "me/sub", law=law, license="mit")
    assert hub.repos["me/sub"].files() == before
    push_subset_to_hub(subset, "me/sub", law=law, license="mit", overwrite=True)
    assert json.loads(hub.file("me/sub", "law.json"))["kind"] == "hf_ppl_select/scaling_law"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "A.TSV", "b/a.ndjson", "a.tar.gz", "a.zip"])
def test_compressed_and_rarer_files_of_others_are_their_train_split_too(hub, subset, name):
    HfApi().create_repo("me/sub", repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="me/sub", repo_type="dataset")
    with pytest.raises(ValueError, match=f"me/sub holds {name}, which hf_ppl_select did not write"):
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert set(hub.repos["me/sub"].files()) == {name}


def test_a_foreign_law_json_that_is_not_in_the_way_stays(hub, subset):
    upload("me/sub", law='{"title": "of the land"}')
    push_subset_to_hub(subset, "me/sub", license="mit")
    assert hub.file("me/sub", "law.json") == b'{"title": "of the land"}'


def test_laws_keep_what_others_wrote_too(hub, law, tmp_path):
    upload("me/law", "model", readme=MINE)
    law.push_to_hub("me/law", license="mit")
    text = readme(hub, "me/law")
    assert "Written by hand" in text and ModelCard(text).data.to_dict()["language"] == "de"
    assert ScalingLaw.from_pretrained("me/law").params == law.params
    upload("me/other", "model", law="{}")
    with pytest.raises(ValueError, match="me/other holds law.json, which hf_ppl_select did not write"):
        law.push_to_hub("me/other")
    assert hub.file("me/other", "law.json") == b"{}"

    (tmp_path / "law.json").write_text("{}")
    with pytest.raises(ValueError, match="law.json of something else"):
        law.save_pretrained(tmp_path)
    law.save_pretrained(tmp_path / "new")
    path = tmp_path / "new" / "README.md"
    path.write_text(f"{path.read_text()}\nMy notes.\n")
    law.save_pretrained(tmp_path / "new")
    assert "My notes." in path.read_text()


def test_a_folder_keeps_notes_in_its_readme_and_foreign_files(subset, tmp_path):
    folder = save_subset(subset, tmp_path / "sub")
    (folder / "README.md").write_text(f"My notes above.\n\n{(folder / 'README.md').read_text().split('---', 2)[2]}")
    save_subset(subset.select(range(3)), folder, overwrite=True)
    assert "My notes above." in (folder / "README.md").read_text()
    (folder / "law.json").write_text("{}")
    with pytest.raises(ValueError, match="'law.json', which is no part of a subset"):
        save_subset(subset, folder, overwrite=True)


@pytest.mark.parametrize("notes", ["", "My notes below.\n"])
def test_a_folder_never_inherits_licence_and_source(hub, subset, tmp_path, notes):
    folder = save_subset(subset, tmp_path / "sub", license="mit", source="me/corpus")
    readme, added = folder / "README.md", "license_name: Mine\nlanguage: de\nconfigs:\n- config_name: default\n---\n"
    readme.write_text(readme.read_text().replace("\n---\n", f"\n{added}", 1) + notes)
    before = DatasetCard.load(readme).data.to_dict()
    assert {"license", "license_name", "source_datasets", "language", "configs"} <= before.keys()
    save_subset(subset.select(range(3)), folder, overwrite=True)
    data = DatasetCard.load(readme).data.to_dict()
    assert not {"license", "license_name", "source_datasets"} & data.keys()
    assert data["configs"] == before["configs"] and ("language" in data) == bool(notes)
    assert notes in readme.read_text() and "me/corpus" not in readme.read_text()
    with pytest.raises(ValueError, match="license is missing"):
        push_subset_folder_to_hub(folder, "me/sub")
    assert not hub.repos
    save_subset(subset, folder, license="cc-by-4.0", overwrite=True)
    assert DatasetCard.load(readme).data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    "existing", [None, "", "   \n", "no yaml\n", MINE, "---\n---\n", "text --- with dashes\n---\nmore"]
)
def test_joining_again_changes_nothing_and_loses_nothing(existing):
    ours = "---\nlicense: mit\ntags:\n- a\n---\n\n# Ours\n\n| a |\n|---|\n"
    joined = join_cards(existing, ours)
    assert join_cards(joined, ours) == joined and joined.count("# Ours") == 1
    assert all(
        line in joined for line in (existing or "").splitlines() if line.strip() and ":" not in line and line[0] != "-"
    )
    newer = join_cards(joined, ours.replace("# Ours", "# Newer"))
    assert "# Ours" not in newer and newer.count("# Newer") == 1


def test_a_broken_readme_is_not_replaced(hub, subset):
    upload("me/sub", readme="---\nnot: [closed\n---\ntext")
    with pytest.raises(ValueError, match="YAML block of the README.md that is there cannot be read.*repair it"):
        push_subset_to_hub(subset, "me/sub", license="mit")
    assert list(hub.repos["me/sub"].files()) == ["README.md"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_readme_that_cannot_be_read_is_not_replaced(hub, subset, law, cached):
    upload("me/sub", readme=MINE)
    upload("me/law", "model", readme=MINE)
    if cached:  # an old one, which must not stand for the one that is there now
        for repo_id, repo_type in (("me/sub", "dataset"), ("me/law", "model")):
            existing_readme(repo_id, repo_type, None)
            upload(repo_id, repo_type, readme=MINE.replace("by hand", "anew"))
    before = {name: dict(repo.files()) for name, repo in hub.repos.items()}
    hub.fail = {"(GET|HEAD) .*/resolve/.*README": 500}
    with pytest.raises(ConnectionError, match="README.md that me/sub may have"):
        push_subset_to_hub(subset, "me/sub", license="mit")
    with pytest.raises(ConnectionError, match="README.md that me/law may have"):
        law.push_to_hub("me/law")
    assert {name: repo.files() for name, repo in hub.repos.items()} == before


def test_a_subset_of_two_columns_is_pushed_again(hub, subset):
    rng = np.random.default_rng(1)
    chunks = Dataset.from_dict({"text": [f"t{i}" for i in range(400)], "num_tokens": [9] * 400}).add_column(
        "perplexity", np.exp(rng.normal(3, 0.4, 400))
    )
    chunks = chunks.add_column("ratio", np.exp(rng.normal(0.3, 0.3, 400)))
    columns = ("perplexity", "ratio")
    landscape = PerplexityLandscape.from_dataset(chunks, column=columns)
    plan = plan_selection(chunks, target=((3.1, 0.35), (0.3, 0.25)), column=columns, space="log", num_tokens=900)
    for _ in range(2):
        parts = {"landscape": landscape, "selection": plan, "license": "mit"}
        push_subset_to_hub(plan.apply(chunks), "me/two", **parts)
    assert json.loads(hub.file("me/two", "landscape.json"))["kind"] == "hf_ppl_select/joint_landscape"
    assert "mean ln(ratio)" in readme(hub, "me/two")
    push_subset_to_hub(subset, "me/two", license="mit")
    assert "landscape.json" not in hub.repos["me/two"].files()
