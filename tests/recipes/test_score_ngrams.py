"""recipes/score_ngrams.py as a user runs it: a column for a folder, a kill, several processes, refusals."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset
from warm_processes import finish, start

import score_ngrams
from command_line import parse_options
from hf_ppl_select import NgramScorer, PerplexityLandscape
from hf_ppl_select.data.load import load_rows
from hf_ppl_select.streaming.sharded_output import ShardedOutput

TRUSTED = ["The patient has fever and a cough.", "Fever is treated with rest."]
TEXTS = ["The patient has fever.", "Accept all cookies!", "", None, "Rest and a cough."] * 5


@pytest.fixture
def options(tmp_path):
    """25 scored rows, of which some are empty, in shards of 10."""
    rows = Dataset.from_dict({"text": TEXTS, "perplexity": [20.0] * 25, "num_tokens": [7] * 25, "n": range(25)})
    ShardedOutput.open(tmp_path / "scored", 1, {}).write(0, rows)
    ShardedOutput.open(tmp_path / "scored", 1, {}).publish()
    (tmp_path / "trusted.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TRUSTED))
    named = {"dataset_name": tmp_path / "scored", "trusted": tmp_path / "trusted.jsonl", "trusted_column": "body"}
    return named | {"shard_size": 10}


def command(output_dir, **options):
    options |= {"output_dir": output_dir}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def run(output_dir, **options):
    score_ngrams.main(*parse_options(score_ngrams.make_parser(), command(output_dir, **options)))


def test_end_to_end(options, tmp_path, capsys):
    run(tmp_path / "out", **options)
    assert "10 rows have no word. Saved to" in capsys.readouterr().out
    rows = load_rows(str(tmp_path / "out"))
    assert rows.column_names == ["text", "perplexity", "num_tokens", "n", "ngram_ratio", "num_words"]
    assert rows["text"][:] == TEXTS and rows["n"][:] == list(range(25))
    expected = NgramScorer.fit(TRUSTED, TEXTS)({"text": TEXTS})
    assert rows["ngram_ratio"][:] == expected["ngram_ratio"] and rows["num_words"][:] == expected["num_words"].tolist()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data", "landscape.json", "ngrams.safetensors"}
    landscape = PerplexityLandscape.load(tmp_path / "out" / "landscape.json")
    assert (landscape.column, landscape.num_chunks, landscape.num_tokens) == ("ngram_ratio", 15, 15 * 7)
    loaded = NgramScorer.load(tmp_path / "out" / "ngrams.safetensors")
    assert loaded.settings() == NgramScorer.fit(TRUSTED, TEXTS).settings()


def test_trusted_texts_that_are_measured_on_are_refused(options, tmp_path):
    shared = "one two three four five six seven eight"
    (tmp_path / "trusted.jsonl").write_text(json.dumps({"body": f"Fever, {shared}."}) + "\n")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": f"{shared} nine"}) + "\n")
    with pytest.raises(ValueError, match="1 of the 1 texts of .* share a run of eight words"):
        run(tmp_path / "out", **options, eval_file=tmp_path / "held_out.jsonl")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": "eight seven six five four three two one"}) + "\n")
    run(tmp_path / "out", **options, eval_file=tmp_path / "held_out.jsonl")
    assert (tmp_path / "out" / "landscape.json").exists()


def test_trusted_texts_that_are_part_of_the_corpus_are_refused(tmp_path):
    whole = [" ".join(f"{row}word{i}" for i in range(12)) for row in range(6)]
    asked = [{"prompt": text, "completion": f"Answer {text[:8]}."} for text in whole]
    chats = [{"messages": [{"role": "user", "content": text}]} for text in whole]
    for name, rows in (("text", [{"text": text} for text in whole]), ("pairs", asked), ("chats", chats)):
        Dataset.from_list(rows).to_parquet(corpus := tmp_path / f"{name}.parquet")
        Dataset.from_list(rows[4:]).to_parquet(part := tmp_path / f"{name}-part.parquet")
        for trusted, number in ((corpus, 6), (part, 2)):
            with pytest.raises(ValueError, match=f"{number} of the {number} texts of {trusted} are part of {corpus}"):
                run(tmp_path / "out", dataset_name=corpus, trusted=trusted)
    (tmp_path / "other.jsonl").write_text(
        json.dumps({"text": "0word0 0word1 but other words follow them here"}) + "\n"
    )
    run(tmp_path / "out", dataset_name=tmp_path / "chats.parquet", trusted=tmp_path / "other.jsonl")


def test_trusted_texts_are_in_the_text_column_or_in_text(tmp_path):
    Dataset.from_dict({"body": TEXTS}).to_csv(corpus := tmp_path / "corpus.csv")
    for column in ("text", "body", "answer"):
        Dataset.from_dict({column: TRUSTED, "n": [0, 1]}).to_json(tmp_path / f"{column}.jsonl")
    expected = NgramScorer.fit(TRUSTED, TEXTS)({"text": TEXTS})["ngram_ratio"]
    for column, more in (("text", {}), ("body", {}), ("answer", {"trusted_column": "answer"})):
        options = {"dataset_name": corpus, "text_column": "body", "trusted": tmp_path / f"{column}.jsonl", **more}
        run(tmp_path / column, **options)
        assert load_rows(str(tmp_path / column))["ngram_ratio"][:] == expected
    for wrong, missing in (({}, "'body' or 'text'"), ({"trusted_column": "text"}, "'text'")):
        message = f"answer.jsonl has no column {missing} to score.*; its columns are answer, n.*: --trusted_column"
        with pytest.raises(KeyError, match=message):
            run(tmp_path / "out", **(options | {"trusted_column": ""} | wrong))


def test_overwrite_starts_anew(options, tmp_path, monkeypatch):
    run(tmp_path / "out", **options)
    run(tmp_path / "expected", **options, smoothing=0.3)
    with pytest.raises(ValueError, match="has other settings: smoothing was 0.1, is 0.3"):
        run(tmp_path / "out", **options, smoothing=0.3)
    with monkeypatch.context() as killed:
        killed.setattr(ShardedOutput, "fill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "out", **options, smoothing=0.3, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]  # no landscape of other rows
    run(tmp_path / "out", **options, smoothing=0.3)
    assert load_rows(str(tmp_path / "out"))[:] == load_rows(str(tmp_path / "expected"))[:]
    landscapes = [(tmp_path / name / "landscape.json").read_text() for name in ("out", "expected")]
    assert landscapes[0] == landscapes[1]


def test_what_is_scored_is_not_overwritten(options, tmp_path):
    data = tmp_path / "scored" / "data"
    for name in (tmp_path / "scored", data, next(data.glob("*.parquet"))):
        with pytest.raises(ValueError, match="scored holds the rows to read; name another folder"):
            run(tmp_path / "scored", **(options | {"dataset_name": name}), overwrite=True)
    assert load_rows(str(tmp_path / "scored")).column_names == ["text", "perplexity", "num_tokens", "n"]


def test_a_run_goes_on_and_its_own_output_is_scored_again(options, tmp_path, capsys):
    run(tmp_path / "whole", **options)
    whole = load_rows(str(tmp_path / "whole"))[:]
    shutil.copytree(tmp_path / "whole" / "data", tmp_path / "killed" / ".unfinished")  # as a kill leaves it
    shard = tmp_path / "killed" / ".unfinished" / "train-00001-of-00003.parquet"
    shard.unlink()
    capsys.readouterr()
    run(tmp_path / "killed", **options)
    assert "of which 1 are still to score" in capsys.readouterr().out
    assert load_rows(str(tmp_path / "killed"))[:] == whole
    with pytest.raises(ValueError, match="has other settings: smoothing was 0.1, is 0.3"):
        run(tmp_path / "whole", **options, smoothing=0.3)
    run(tmp_path / "again", **(options | {"dataset_name": tmp_path / "whole"}))
    assert load_rows(str(tmp_path / "again"))[:] == whole


def test_processes_share_the_shards(options, tmp_path):
    run(tmp_path / "one", **options)
    environments = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    arguments = command(tmp_path / "two", **options)
    for process in [start("recipes/score_ngrams.py", *arguments, environment=found) for found in environments]:
        assert (done := finish(process)).returncode == 0, done.stderr
    assert load_rows(str(tmp_path / "two"))[:] == load_rows(str(tmp_path / "one"))[:]


def test_what_is_wrong_is_one_line(options, tmp_path, run_recipe):
    for wrong, message in (
        ({"text_column": "body"}, f"{tmp_path / 'scored'} has no column 'body' to score"),
        ({"trusted_column": "text"}, "trusted.jsonl has no column 'text' to score"),
        ({"output_dir": tmp_path / "scored"}, "scored holds the rows to read; name another folder"),
        ({"smoothing": 1}, "smoothing must be between 0 and 1, not 1"),
        ({"trusted": tmp_path / "no.jsonl"}, "no.jsonl"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
    ):
        code, _, errors = run_recipe("score_ngrams", *command(**({"output_dir": tmp_path / "out"} | options | wrong)))
        last = errors.strip().splitlines()[-1]  # above it are the bars of what was read
        assert code == 2 and last.startswith("score_ngrams.py: error: ") and message in last
        assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_no_model_has_scored(tmp_path, run_recipe):
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "chunks.parquet")
    Dataset.from_dict({"text": TRUSTED}).to_parquet(tmp_path / "trusted.parquet")
    run(tmp_path / "out", dataset_name=tmp_path / "chunks.parquet", trusted=tmp_path / "trusted.parquet")
    rows = load_rows(str(tmp_path / "out"))
    landscape = PerplexityLandscape.load(tmp_path / "out" / "landscape.json")
    assert landscape.num_tokens == sum(rows["num_words"])
    np.testing.assert_allclose(landscape.mu, np.nanmean(np.array(rows["ngram_ratio"][:], float)))
    aim = ("--dataset_name", tmp_path / "out", "--column", "ngram_ratio", "--strategy", "high", "--num_tokens", 15)
    aim += ("--output_dir", tmp_path / "top")
    code, _, errors = run_recipe("select_subset", *aim)
    assert code == 2 and "--num_tokens_column num_words), and the budget is in words" in errors
    code, _, errors = run_recipe("select_subset", *aim, "--num_tokens_column", "num_words")
    assert code == 0, errors
    assert load_rows(str(tmp_path / "top"))["text"][:] == [TEXTS[0]] * 3  # of five words, with the full stop
