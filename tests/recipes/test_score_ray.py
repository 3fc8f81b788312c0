"""recipes/score_ray.py on a local Ray of two workers, one of which is killed half-way."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value

import score_ray
from hf_ppl_select import PerplexityLandscape, PerplexityScorer
from hf_ppl_select.data.load import load_rows
from tests.scoring.test_scorer_model import other_weights

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
TEXTS = [f"a sentence about number {i} " * (1 + i % 7) for i in range(239)] + [""]


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


@pytest.fixture
def arguments(tmp_path, tiny_model_dir):
    (tmp_path / "chunks").mkdir()
    for part in range(4):
        rows = {"id": range(part * 60, part * 60 + 60), "text": TEXTS[part * 60 : part * 60 + 60]}
        pq.write_table(pa.table(rows), tmp_path / "chunks" / f"train-{part:05d}.parquet", row_group_size=5)
    return score_ray.RayScoreArguments(
        dataset_name=str(tmp_path / "chunks"),
        model_name_or_path=str(tiny_model_dir),
        output_dir=str(tmp_path / "scored"),
        num_actors=2,
        batch_size=4,
        files_per_shard=2,
    )


def busy_actors() -> list[int]:
    """The processes that score a batch: Ray writes what they do into their titles."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    titles = {p.pid: "".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid in ours & set(titles) if "MapWorker" in titles[pid] and "submit" in titles[pid]]


def test_two_workers_of_which_one_is_killed(cluster, arguments, monkeypatch):
    killed = []

    def kill_one():
        while not killed and not time.sleep(0.02):
            for process in busy_actors()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    arguments = replace(arguments, files_per_shard=4)  # one shard: each starts its actors anew, which takes seconds
    watcher = threading.Thread(target=kill_one, daemon=True)
    watcher.start()
    score_ray.main(arguments)
    assert killed

    rows = load_rows(arguments.output_dir).sort("id")  # Ray may hand on batches in another order
    assert rows["id"][:] == list(range(240)) and rows["text"][:] == TEXTS
    expected = Dataset.from_dict({"text": TEXTS}).map(PerplexityScorer(arguments.model_name_or_path), batched=True)
    assert rows["nll_sum"][:] == pytest.approx(expected["nll_sum"][:], rel=1e-5)
    assert rows["num_tokens"][:] == expected["num_tokens"][:]
    landscape = PerplexityLandscape.load(f"{arguments.output_dir}/landscape.json")
    assert landscape.num_chunks == 239 and landscape.num_skipped == 1
    assert landscape.mu == pytest.approx(PerplexityLandscape.from_dataset(expected).mu, rel=1e-5)

    monkeypatch.setattr(ray.data, "read_parquet", lambda *args, **kwargs: pytest.fail("a shard is scored again"))
    score_ray.main(arguments)  # done: nothing is left to do


def test_after_a_failure_it_goes_on_with_the_missing_shards(cluster, arguments, monkeypatch):
    arguments = replace(arguments, num_actors=1)
    read, asked = ray.data.read_parquet, []

    def second_fails(paths, **options):
        asked.append(paths)
        if len(asked) == 2:
            raise OSError("the network is down")
        return read(paths, **options)

    monkeypatch.setattr(ray.data, "read_parquet", second_fails)
    with pytest.raises(OSError, match="network"):
        score_ray.main(arguments)
    with pytest.raises(FileNotFoundError):
        load_rows(arguments.output_dir)  # nobody takes a part for the whole
    score_ray.main(arguments)
    assert asked[2] == asked[1] and len(asked) == 3
    assert sorted(load_rows(arguments.output_dir)["id"][:]) == list(range(240))


def test_with_a_reference(cluster, arguments, tiny_model, tiny_tokenizer, tmp_path):
    other_weights(tiny_model, 3).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    arguments = replace(arguments, num_actors=1, files_per_shard=4, batch_size=240, reference=str(tmp_path / "other"))
    score_ray.main(arguments)
    rows = load_rows(arguments.output_dir).sort("id")
    expected = PerplexityScorer(arguments.model_name_or_path, reference=arguments.reference)({"text": TEXTS})
    for name in ("reference_nll_sum", "perplexity_ratio"):
        assert rows[name][:239] == pytest.approx(expected[name][:239], rel=1e-4)
    landscape = PerplexityLandscape.load(f"{arguments.output_dir}/landscape_perplexity_ratio.json")
    assert landscape.column == "perplexity_ratio" and landscape.num_chunks == 239


def test_other_settings_are_refused_or_replace_what_is_there(cluster, arguments):
    arguments = replace(arguments, num_actors=1, files_per_shard=4, batch_size=240)
    score_ray.main(arguments)
    other = replace(arguments, max_length=8)
    with pytest.raises(ValueError, match="max_length"):
        score_ray.main(other)
    with pytest.raises(ValueError, match="holds the rows to read"):
        score_ray.main(replace(other, output_dir=arguments.dataset_name, overwrite=True))
    before = load_rows(arguments.output_dir).sort("id")["perplexity"][:]
    stale = Path(arguments.output_dir, "landscape_perplexity_ratio.json")
    stale.touch()
    score_ray.main(replace(other, overwrite=True))
    assert not stale.exists()
    rows = load_rows(arguments.output_dir).sort("id")
    expected = PerplexityScorer(arguments.model_name_or_path, max_length=8)({"text": TEXTS})
    assert rows["perplexity"][:239] == pytest.approx(expected["perplexity"][:239], rel=1e-4) != before[:239]


def test_columns_keep_their_types_and_a_shard_may_have_no_rows(cluster, arguments, tmp_path):
    kinds = Features({"id": Value("int64"), "text": Value("string"), "note": Value("string")})
    ids = [2**60 + 1, None, 2**60 + 3, None, 2**60 + 5]
    rows = {"id": ids, "text": ["a fever", "", "a cough", "rest", "tea"], "note": [None, None, None, "x", "y"]}
    rows = Dataset.from_dict(rows, kinds)
    for path in tmp_path.glob("chunks/*"):
        path.unlink()
    for part, (start, end) in enumerate([(0, 0), (0, 0), (0, 3), (3, 5)]):
        table = rows.with_format("arrow")[:].slice(start, end - start).cast(kinds.arrow_schema)
        pq.write_table(table, tmp_path / "chunks" / f"train-{part:05d}.parquet")
    score_ray.main(replace(arguments, num_actors=1, batch_size=2))
    found = load_rows(arguments.output_dir).sort("text")
    assert found.select_columns(rows.column_names).to_list() == rows.sort("text").to_list()
    assert {name: found.features[name] for name in kinds} == kinds
    assert found["num_tokens"][0] == 0 and found["perplexity"][0] is None and None not in found["perplexity"][1:]


def test_a_column_of_text_that_is_not_there_is_told_before_ray_starts(arguments, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray is started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(KeyError, match="no column 'body', it has id, text; name the column with the text by text_co"):
        score_ray.main(replace(arguments, text_column="body"))
