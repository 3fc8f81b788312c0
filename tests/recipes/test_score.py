"""recipes/score.py as a user runs it: chunks, shards, kills, refusals, and what is left in the folder."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from recipe_runs import write_jsonl
from warm_processes import ROOT, finish, start

import score
from command_line import parse_options
from hf_ppl_select import PerplexityLandscape, PerplexityScorer, chunk_documents
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.streaming.sharded_output import ShardedOutput, hash_rows

RECIPE = ROOT / "recipes" / "score.py"
SENTENCES = [
    "The patient presented with fever, cough and shortness of breath.",
    "Hypertension is treated with diuretics, ACE inhibitors or calcium channel blockers.",
    "Is 5 mg enough? No: 10 mg, é 👩‍⚕️.",
]


@pytest.fixture
def documents(tmp_path):
    """60 documents of two sources, some empty, as a .jsonl file."""
    path = tmp_path / "documents.jsonl"
    rows = [
        {"answer": SENTENCES[i % 3] * (i % 5) or None, "source": "NIH" if i % 2 else "CDC", "n": i} for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def options(documents, tiny_model_dir):
    return {
        "dataset_name": documents,
        "text_column": "answer",
        "model_name_or_path": tiny_model_dir,
        "chunk_length": 32,
        "shard_size": 10,
    }


def command(output_dir, **options) -> list[str]:
    options |= {"output_dir": output_dir}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def run(output_dir, **options) -> None:
    """The recipe in this process."""
    score.main(*parse_options(score.make_parser(), command(output_dir, **options)))


def launched(output_dir, rank=0, size=1, before="", **options):
    """The recipe as `accelerate launch` and `torchrun` start one of several processes."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)} if size > 1 else None
    return start("recipes/score.py", *command(output_dir, **options), before=before, environment=environment)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_end_to_end(options, tiny_tokenizer, tmp_path, capsys):
    run(tmp_path / "scored", **options, keep_columns="source")
    written = files(tmp_path / "scored")
    shards = [name for name in written if name.endswith(".parquet")]
    assert set(written) - set(shards) == {"data/manifest.json", "landscape.json", "landscape.png"}
    assert "Saved to" in capsys.readouterr().out

    rows = load_rows(str(tmp_path / "scored"))
    assert rows.column_names == ["source", "text", "perplexity", "nll_sum", "num_tokens", "num_bytes"]
    assert len(shards) == -(-len(rows) // 10) > 3
    assert {name: rows.features[name].dtype for name in rows.column_names[2:]} == {
        "perplexity": "float64",
        "nll_sum": "float64",
        "num_tokens": "int32",
        "num_bytes": "int32",
    }
    documents = load_rows(str(options["dataset_name"]))
    chunks = documents.map(
        chunk_documents,
        batched=True,
        remove_columns=documents.column_names,
        fn_kwargs={"tokenizer": tiny_tokenizer, "max_length": 32, "text_column": "answer", "keep_columns": ["source"]},
    )
    assert rows["text"][:] == chunks["text"][:] and set(rows["source"]) == {"NIH", "CDC"}
    expected = chunks.map(PerplexityScorer(options["model_name_or_path"]), batched=True)
    assert rows["perplexity"][:] == pytest.approx(expected["perplexity"][:], rel=1e-6)
    landscape = PerplexityLandscape.load(tmp_path / "scored" / "landscape.json")
    assert landscape.num_chunks == len(rows) and landscape.num_tokens == sum(rows["num_tokens"])
    assert landscape.model == options["model_name_or_path"]
    assert load_dataset(str(tmp_path / "scored"))["train"][0] == rows[0]

    run(tmp_path / "scored", **options, keep_columns="source")  # complete: nothing to score, nothing changes
    assert files(tmp_path / "scored") == written


KILLED = """
import os, signal
from hf_ppl_select.scoring import perplexity
from hf_ppl_select.data import saving

moment, number = {!r}, {}
count = 0

def killing(function):
    def counted(*args, **kwargs):
        global count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted

if moment == "scoring":
    perplexity.PerplexityScorer.score = killing(perplexity.PerplexityScorer.score)
elif moment == "writing":  # the shard lies aside, written but not renamed
    saving.os.replace = killing(os.replace)
else:
    from hf_ppl_select.streaming.sharded_output import ShardedOutput
    ShardedOutput.publish = killing(ShardedOutput.publish)
"""


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(options, tmp_path, monkeypatch):
    run(tmp_path / "undisturbed", **options)
    expected = files(tmp_path / "undisturbed")
    num_shards = sum(name.endswith(".parquet") for name in expected)
    killed = tmp_path / "killed"
    # os.replace: the manifest, two shards and their notes, and the next note dies. Then two more shards. Then all, but
    # not published
    for moment, number, num_finished in (("writing", 7, 2), ("scoring", 3, 4), ("publishing", 1, num_shards)):
        run_ = finish(launched(killed, before=KILLED.format(moment, number), **options))
        assert run_.returncode == -signal.SIGKILL, run_.stderr
        assert len(list((killed / ".unfinished").glob("train-*.parquet"))) == num_finished
        assert not (killed / "data").exists() and not (killed / "landscape.json").exists()
        with pytest.raises(FileNotFoundError):
            load_rows(str(killed))  # nobody takes a part for the whole
    monkeypatch.setattr(PerplexityScorer, "score", lambda *args, **kwargs: pytest.fail("a shard is scored again"))
    run(killed, **options)
    assert files(killed) == expected


@pytest.mark.slow
def test_two_processes_share_the_shards_and_a_lost_one_is_made_up_for(options, tmp_path):
    run(tmp_path / "alone", **options)
    expected = files(tmp_path / "alone")
    second = launched(tmp_path / "shared", 1, 2, **options)  # the first one starts the folder
    first, second = (finish(process) for process in (launched(tmp_path / "shared", 0, 2, **options), second))
    out = first.stdout + second.stdout
    assert first.returncode == second.returncode == 0
    assert files(tmp_path / "shared") == expected
    assert out.count("Saved to") in (1, 2) and out.count("still to score") == 2

    lonely = finish(launched(tmp_path / "half", 0, 2, **options))  # and the second one never comes
    assert lonely.returncode == 0 and "Process 0 is done" in lonely.stdout
    num_shards = sum(name.endswith(".parquet") for name in expected)
    assert len(list((tmp_path / "half" / ".unfinished").glob("*.parquet"))) == -(-num_shards // 2)
    run(tmp_path / "half", **options)
    assert files(tmp_path / "half") == expected


def test_a_rank_that_is_none_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=2 of WORLD_SIZE=2"):
        run(tmp_path / "scored", **options)


def test_changed_settings_are_refused_by_name_and_overwrite_starts_anew(options, documents, tmp_path, monkeypatch):
    folder = tmp_path / "scored"
    run(folder, **options)
    before = files(folder)
    with pytest.raises(ValueError, match="bos was 'auto', is 'none'; shard_size was 10, is 20.*overwrite"):
        run(folder, **options | {"shard_size": 20}, bos="none")
    weights = Path(options["model_name_or_path"]) / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-4] + b"\x00\x00\x00\x01")
    with pytest.raises(ValueError, match="has other settings: revision was 'sha256:.*', is 'sha256:"):
        run(folder, **options)
    weights.write_bytes(original)
    text = documents.read_text()
    documents.write_text(text.replace("fever", "chill"))
    with pytest.raises(ValueError, match="has other settings: chunks_sha256 was"):
        run(folder, **options)
    documents.write_text(text)
    assert files(folder) == before
    run(folder, **options, max_batch_tokens=100)  # decides nothing
    assert files(folder) == before

    run(folder, **options, bos="none", overwrite=True)
    after = files(folder)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)


def test_settings_may_change_while_no_shard_is_finished(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PerplexityScorer, "score", lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("NaN")))
        with pytest.raises(ValueError, match="NaN"):
            run(tmp_path / "scored", **options, dtype="float16")
    run(tmp_path / "scored", **options)
    assert json.loads((tmp_path / "scored" / "data" / "manifest.json").read_text())["dtype"] == "auto"


def test_a_folder_with_other_data_is_left_alone(options, tmp_path):
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "precious.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="has data that was not written here"):
        run(folder, **options, overwrite=True)
    assert files(folder) == {"data/precious.txt": b"precious"}
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileExistsError):
        run(tmp_path / "file", **options)


def test_rows_as_they_are_keep_their_columns_and_empty_ones_are_counted(options, tmp_path):
    run(tmp_path / "scored", **options | {"chunk_length": 0, "shard_size": 7})
    rows, documents = load_rows(str(tmp_path / "scored")), load_rows(str(options["dataset_name"]))
    assert rows.select_columns(documents.column_names)[:] == documents[:]
    assert [row["perplexity"] is None for row in rows] == [not row["answer"] for row in documents]
    assert PerplexityLandscape.load(tmp_path / "scored" / "landscape.json").num_skipped == 12
    # scored again, now from the scored rows: the columns are replaced
    run(tmp_path / "again", **options | {"chunk_length": 0, "shard_size": 7, "dataset_name": tmp_path / "scored"})
    assert load_rows(str(tmp_path / "again"))[:] == rows[:]


def test_no_score_of_another_model_stays(options, tmp_path, capsys):
    texts = [{"answer": f"Fever and cough for {i} days.", "perplexity_ratio": 1.5, "ifd": 0.5} for i in range(9)]
    named = options | {"dataset_name": write_jsonl(tmp_path / "earlier.jsonl", texts), "chunk_length": 0}
    run(tmp_path / "scored", **named)
    assert "Columns of an earlier scoring are left out: perplexity_ratio, ifd." in capsys.readouterr().out
    assert not {"perplexity_ratio", "ifd"} & {*load_rows(str(tmp_path / "scored")).column_names}


def test_a_shard_of_empty_rows_keeps_the_types(options, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"answer": "fever" if i == 7 else ""}) + "\n" for i in range(8)))
    run(tmp_path / "scored", **options | {"dataset_name": path, "chunk_length": 0, "shard_size": 3})
    rows = load_rows(str(tmp_path / "scored"))
    assert rows["perplexity"][:7] == [None] * 7 and rows[7]["perplexity"] > 1


def test_one_chunk(options, tmp_path):
    run(tmp_path / "scored", **options | {"chunk_length": 100_000})
    (row,) = load_rows(str(tmp_path / "scored"))
    assert row["num_tokens"] > 1024  # longer than the model: scored in windows
    assert PerplexityLandscape.load(tmp_path / "scored" / "landscape.json").sigma == 0


def test_short_documents_kept_apart_are_left_out_and_counted(options, tiny_tokenizer, tmp_path, capsys):
    rows = [json.loads(line) for line in options["dataset_name"].read_text().splitlines()]
    texts = [row["answer"] for row in rows if row["answer"]]
    short = [text for text in texts if len(tiny_tokenizer(text)["input_ids"]) < 30]
    assert 0 < len(short) < len(texts) / 2
    apart = options | {"separator": "none", "chunk_length": 64}
    run(tmp_path / "scored", **apart, min_length=30)
    scored = load_rows(str(tmp_path / "scored"))
    assert "".join(scored["text"]) == "".join(text for text in texts if text not in short)
    manifest = json.loads((tmp_path / "scored" / "data" / "manifest.json").read_text())
    assert manifest["documents_left_out"] == len(short) and manifest["min_length"] == 30
    assert manifest["characters_left_out"] == sum(map(len, short))
    out = capsys.readouterr().out
    assert f"{len(short)} of 60 documents have fewer than 30 tokens and are left out" in out

    with pytest.raises(ValueError, match="has other settings: .*min_length was 30, is 16"):
        run(tmp_path / "scored", **apart)
    run(tmp_path / "all", **apart, min_length=0)
    assert "".join(load_rows(str(tmp_path / "all"))["text"]) == "".join(texts)
    with pytest.raises(ValueError, match="All documents of .* are that short; pass --min_length 0"):
        run(tmp_path / "none", **apart | {"chunk_length": 100_000})
    assert not (tmp_path / "none").exists()


def test_messages_with_a_template_from_a_file(options, tmp_path):
    from tests.scoring.test_rows import CHAT, CHAT_TEMPLATE

    (tmp_path / "template.jinja").write_text(CHAT_TEMPLATE)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHAT, "tools": None}) + "\n")
    chats = options | {"dataset_name": tmp_path / "chats.jsonl", "chunk_length": 0}
    with pytest.raises(ValueError, match="chat_template"):
        run(tmp_path / "scored", **chats)
    run(tmp_path / "scored", **chats, chat_template_file=tmp_path / "template.jinja")
    assert load_rows(str(tmp_path / "scored"))[0]["num_tokens"] > 5
    pair = {"prompt": CHAT[:1], "completion": CHAT[1:2], "tools": None}
    (tmp_path / "chats.jsonl").write_text(json.dumps(pair) + "\n")
    run(tmp_path / "pairs", **chats, chat_template_file=tmp_path / "template.jinja")
    assert load_rows(str(tmp_path / "pairs"))[0]["num_bytes"] == len("<assistant>A high temperature.")


@pytest.mark.parametrize(
    ("content", "changed", "error", "message"),
    [
        ("", {}, ValueError, "rows.jsonl"),
        ('{"question": "a"}\n', {}, KeyError, r"No column 'answer' to chunk; the columns are \['question'\]"),
        ('{"question": "a"}\n', {"chunk_length": 0}, KeyError, "No column 'answer' to score"),
        ('{"answer": ""}\n{"answer": null}\n', {}, ValueError, "has no text: all of its 2 rows are empty"),
        ('{"answer": ""}\n', {"chunk_length": 0}, ValueError, "has no text: all of its 1 rows are empty"),
        ('{"messages": []}\n', {"chunk_length": 0}, ValueError, "has no text: all of its 1 rows are empty"),
        ('{"answer": 5}\n', {}, TypeError, "column 'answer' holds int"),
        ('{"answer": "a"}\n', {"keep_columns": "source"}, KeyError, "No column 'source'"),
        ('{"answer": "a"}\n', {"bos": "maybe"}, ValueError, "bos must be 'auto' or 'none'"),
        ('{"answer": "a"}\n', {"model_name_or_path": "nobody/nothing"}, OSError, "Cannot find the model"),
        ('{"answer": "a"}\n', {"dataset_name": "./missing.jsonl"}, FileNotFoundError, "missing.jsonl"),
        ('{"answer": "a"}\n', {"dataset_split": "train[9:]"}, ValueError, r"train\[9:\]"),
    ],
)
def test_wrong_input_is_one_error_and_leaves_nothing(options, tmp_path, content, changed, error, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=message):
        run(tmp_path / "scored", **options | {"dataset_name": path} | changed)
    assert not (tmp_path / "scored").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("chunk_length: 12.5", "chunk_length: 12.5; it must be a whole number"),
        ("chunk_length: 0\nmin_length: 30", "min_length is for chunks"),
        ("min_length: 12.5", "min_length"),
        ("shard_size: 0", "shard_size must be a whole number, at least 1"),
        ("chunk_length: many", "chunk_length"),
    ],
)
def test_wrong_numbers_exit_with_one_line(tmp_path, run_recipe, config, message):
    path = tmp_path / "config.yaml"
    path.write_text(config)
    code, _, stderr = run_recipe("score", "--config", path, "--dataset_name", "rows.jsonl", "--output_dir", "scored")
    assert code == 2 and message in stderr and "Traceback" not in stderr


@pytest.mark.slow
def test_from_the_command_line(options, tmp_path):
    """A YAML file as documented, options that win over it, one line and an exit code when something is wrong."""
    config = tmp_path / "config.yaml"
    text = (ROOT / "recipes" / "configs" / "score_medical.yaml").read_text()
    assert "python recipes/score.py --config recipes/configs/score_medical.yaml" in text and "Cost" in text
    config.write_text(text)
    changed = options | {"keep_columns": "source", "dataset_split": "train[:6]"}
    arguments = ["recipes/score.py", "--config", config, *command(tmp_path / "scored", **changed)]
    good = finish(start(*arguments, cwd=tmp_path))
    assert good.returncode == 0, good.stderr
    assert "tokens/s" in good.stderr and "PerplexityLandscape(mu=" in good.stdout
    assert len(load_rows(str(tmp_path / "scored"))) > 2
    before = files(tmp_path / "scored")
    arguments[arguments.index("--chunk_length") + 1] = "16"
    bad = finish(start(*arguments, cwd=tmp_path))
    assert bad.returncode == 2
    assert bad.stderr.splitlines()[-1].startswith("score.py: error: ") and "chunk_length was 32, is 16" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert files(tmp_path / "scored") == before


def test_a_sharded_output_is_published_only_when_it_is_whole(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b", "c"]})
    output = ShardedOutput.open(tmp_path / "out", 2, {"seed": 0})
    output.write(1, rows.select([2]))
    assert output.missing == [0] and not output.published
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 shards"):
        output.publish()
    again = ShardedOutput.open(tmp_path / "out", 2, {"seed": 0})
    assert again.missing == [0]
    again.write(0, rows.select([0, 1]))
    again.publish()
    again.publish()
    assert again.published and again.read(["text"]).to_pydict() == {"text": ["a", "b", "c"]}
    assert load_dataset(str(tmp_path / "out"), split="train")["text"][:] == ["a", "b", "c"]
    shutil.rmtree(tmp_path / "out" / "data")
    assert ShardedOutput.open(tmp_path / "out", 2, {"seed": 0}).missing == [0, 1]


def test_equal_rows_have_equal_hashes(tmp_path):
    rows = Dataset.from_dict({"text": ["a", None, "é"] * 700, "n": list(range(2100))})
    rows.save_to_disk(tmp_path / "rows")
    assert hash_rows(rows) == hash_rows(Dataset.load_from_disk(tmp_path / "rows"))
    assert hash_rows(rows) == hash_rows(rows.select(range(2100)[::-1]).select(range(2100)[::-1]))
    others = [rows.select(range(2099)), rows.shuffle(seed=0), rows.rename_column("n", "m"), rows.remove_columns("n")]
    assert len({hash_rows(other) for other in [rows, *others]}) == 5


def test_shards_that_another_process_publishes_meanwhile_are_read(tmp_path, monkeypatch):
    output = ShardedOutput.open(tmp_path / "out", 2, {"seed": 0})
    for index in range(2):
        output.write(index, Dataset.from_dict({"n": [index]}))
    unfinished = output.paths
    output.publish()
    stale = [unfinished, output.paths]
    monkeypatch.setattr(ShardedOutput, "paths", property(lambda self: stale.pop(0)))
    assert output.read(["n"]).to_pydict() == {"n": [0, 1]} and not stale
