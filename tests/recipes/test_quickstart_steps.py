"""A step of the quickstart is done where its options, what it read and what it left are as they were."""

import json

import pytest

from quickstart_steps.done import Step


@pytest.fixture
def step(tmp_path):
    """A step that is done, with an input that is a file, one that is a folder, and two files that it left."""
    (tmp_path / "scored" / "data").mkdir(parents=True)
    (tmp_path / "scored" / "data" / "shard.parquet").write_bytes(b"a shard")
    (tmp_path / "texts.jsonl").write_text("texts")
    (tmp_path / "law" / "probes").mkdir(parents=True)
    (tmp_path / "law" / "law.json").write_text("the law")
    (tmp_path / "law" / "probes" / "points.jsonl").write_text("points")
    step = Step(tmp_path, "law", ("--seed", "0"), (tmp_path / "texts.jsonl", tmp_path / "scored", tmp_path / "none"))
    assert not step.is_done()
    step.note_done()
    assert step.is_done() and step.is_done()
    return step


def left(step):
    return sorted(path.name for path in step.output.rglob("*"))


@pytest.mark.parametrize("name", ["law.json", "probes/points.jsonl"])
@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "lost"])
def test_damaged_results_are_made_again(step, name, how):
    path = step.output / name
    content = path.read_bytes()
    changed = {"cut": content[:-1], "emptied": b"", "flipped": bytes([content[0] ^ 1]) + content[1:]}
    path.unlink() if how == "lost" else path.write_bytes(changed[how])
    (step.output / "notes.txt").write_text("not of this step")
    assert not step.is_done()
    assert left(step) == ["notes.txt"]  # nothing of it is taken for new
    assert not step.is_done()


@pytest.mark.parametrize("path", ["texts.jsonl", "scored/data/shard.parquet", "scored/data/another.parquet", "none"])
def test_made_from_something_else(step, path, capsys):
    (step.folder / path).write_text("other")
    assert not step.is_done() and left(step) == []
    assert "was made from another" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--seed", "1"), ("--seed", "0", "--more"), ()])
def test_asked_for_otherwise(step, options):
    assert not Step(step.folder, step.name, options, step.reads).is_done() and left(step) == []


def test_of_another_version(step, monkeypatch):
    from quickstart_steps import done

    monkeypatch.setattr(done, "__version__", "0.0.1")
    assert not step.is_done()


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied"])
def test_a_damaged_record(step, how, capsys):
    (record,) = (step.folder / "steps").iterdir()
    text = record.read_text()
    changed = json.loads(text)
    changed["left"]["law.json"] = "0" * 64
    record.write_text({"cut": text[:-20], "flipped": json.dumps(changed), "emptied": ""}[how])
    assert not step.is_done() and left(step) == ["law.json", "points.jsonl", "probes"]
    assert f"{record.name} is not" in capsys.readouterr().out  # the recipe itself goes on from what is there


def test_what_is_added_is_let_alone(step):
    (step.output / "notes.txt").write_text("mine")
    assert step.is_done() and "notes.txt" in left(step)
