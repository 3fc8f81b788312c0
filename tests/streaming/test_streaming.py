"""Selections from parquet files in two passes, by the recipe and by Ray: the same rows as in memory."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from hf_ppl_select.data.load import load_rows
from hf_ppl_select.data.saving import load_json
from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.selection.report import load_report
from hf_ppl_select.selection.select import plan_selection
from hf_ppl_select.selection.selector import PerplexitySelector
from hf_ppl_select.streaming.parquet_files import ParquetFiles, selector_mask
from hf_ppl_select.streaming.select import check_streamable, select_stream
from hf_ppl_select.streaming.sharded_output import ShardedOutput
from tests.selection.junk_corpus import make_law

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "select_subset.py"


def corpus(num_chunks=30_000):
    rng = np.random.default_rng(0)
    perplexity = np.exp(rng.normal(3.0, 0.5, num_chunks)).tolist()
    perplexity[5], perplexity[6], perplexity[7] = None, float("inf"), 1e6
    return Dataset.from_dict(
        {
            "text": [f"chunk {i} 中" for i in range(num_chunks)],
            "perplexity": perplexity,
            "num_tokens": rng.integers(20, 200, num_chunks),
        }
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder of five files of unlike length, one of them empty, and the same rows in memory."""
    folder, rows = tmp_path_factory.mktemp("scored"), corpus()
    (folder / "data").mkdir()
    cuts = [0, 9_000, 9_000, 10_000, 22_000, 30_000]
    for index, (start, stop) in enumerate(zip(cuts, cuts[1:])):
        rows.select(range(start, stop)).to_parquet(folder / "data" / f"train-{index:05d}-of-00005.parquet")
    rows.select(range(3)).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder, rows


def texts(folder, split="train"):
    return [t for p in sorted(Path(folder, "data").glob(f"{split}-*")) for t in pq.read_table(p)["text"].to_pylist()]


def test_first_pass_is_the_landscape_of_all_rows(scored):
    folder, rows = scored
    landscape, dropped = ParquetFiles.find(str(folder)).landscape("tiny")
    whole = PerplexityLandscape.from_dataset(rows, model="tiny")
    assert landscape.num_chunks == whole.num_chunks and landscape.num_tokens == whole.num_tokens
    assert landscape.mu == pytest.approx(whole.mu, rel=1e-12) and landscape.log_sigma == pytest.approx(whole.log_sigma)
    assert dropped == {"no_score": 1, "infinite_score": 1}
    guarded = ParquetFiles.find(str(folder), min_score=10, max_score=100)
    landscape, dropped = guarded.landscape()
    values = np.array(rows["perplexity"], dtype=float)
    inside = (values >= 10) & (values <= 100)
    assert landscape.num_chunks == inside.sum()
    assert dropped["above_max_score"] == int((np.isfinite(values) & (values > 100)).sum())


def test_a_streamed_subset_is_what_filter_gives_and_keeps_its_promise(scored, tmp_path):
    folder, rows = scored
    out = tmp_path / "subset"
    files = ParquetFiles.find(str(folder), min_score=12.0, max_score=1000.0)
    selection = select_stream(files, out, num_tokens=300_000, target=(20.0, 6.0), seed=3, license="mit")
    selector = PerplexitySelector.load(out / "selector.json")
    assert texts(out) == rows.filter(selector, batched=True)["text"], "guards are the selector's"
    written = [path.name for path in sorted((out / "data").glob("*.parquet"))]
    assert written == [f"train-0000{index}-of-00005.parquet" for index in (0, 2, 3, 4)]  # of the empty file, nothing
    subset = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert subset.features == rows.features and len(subset) == selection.kept.num_chunks
    assert abs(sum(subset["num_tokens"]) - selector.expected_num_tokens) < 4 * selector.num_tokens_std
    assert max(map(abs, selection.deviations.values())) < 4
    assert np.mean(subset["perplexity"]) == pytest.approx(20.0, abs=0.5) and min(subset["perplexity"]) >= 12
    unguarded = dataclasses.replace(selector, min_score=None)
    assert min(rows.filter(unguarded, batched=True)["perplexity"]) < 12
    report = load_json(out / "selection.json", kind="selection", version=3)
    assert report["num_tokens"] == sum(subset["num_tokens"]) and report["dropped"]["above_max_score"] == 1
    card = (out / "README.md").read_text()
    assert "PerplexitySelector.load" in card and "None" not in card and "license: mit" in card
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "data",
        "landscape.json",
        "selection.json",
        "selector.json",
    ]


def test_killed_in_between_it_goes_on_and_ends_the_same(scored, tmp_path, monkeypatch):
    folder, _ = scored
    files, options = ParquetFiles.find(str(folder)), {"num_tokens": 200_000, "target": (20.0, 6.0)}
    select_stream(files, tmp_path / "whole", **options)
    calls, keep = [], ParquetFiles.keep

    def killed(self, selector, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return keep(self, selector, batch)

    monkeypatch.setattr(ParquetFiles, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        select_stream(files, tmp_path / "cut", **options)
    names = sorted(path.name for path in (tmp_path / "cut" / ".unfinished").iterdir())
    assert names[:2] == ["manifest.json", "train-00000-of-00005.parquet"] and not (tmp_path / "cut" / "data").exists()
    monkeypatch.setattr(ParquetFiles, "keep", keep)
    stamp = (tmp_path / "cut" / ".unfinished" / "train-00000-of-00005.parquet").stat().st_mtime_ns
    select_stream(files, tmp_path / "cut", **options)
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")
    assert (tmp_path / "cut" / "data" / "train-00000-of-00005.parquet").stat().st_mtime_ns == stamp
    select_stream(files, tmp_path / "cut", **options)  # done already
    with pytest.raises(ValueError, match="other settings: selector was"):
        select_stream(files, tmp_path / "cut", **options | {"seed": 1})
    select_stream(files, tmp_path / "cut", **options | {"seed": 1}, overwrite=True)
    assert texts(tmp_path / "cut") != texts(tmp_path / "whole")


def test_files_anywhere_fsspec_reaches(scored):
    folder, _ = scored
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "data") + "/", "/bucket/scored/data/", recursive=True)
    here, there = ParquetFiles.find(str(folder)), ParquetFiles.find("memory://bucket/scored")
    assert len(there.paths) == len(here.paths) == 5
    assert there.landscape()[0].to_dict() == here.landscape()[0].to_dict()
    test = ParquetFiles.find("memory://bucket/scored", "test")
    assert len(test.paths) == 1 and test.landscape()[0].num_chunks == 3
    memory.rm("/bucket", recursive=True)


def test_a_selector_decides_about_arrow_as_about_rows(scored):
    _, rows = scored
    selector = PerplexitySelector((0.0, 0.0, -0.3), 20.0, 6.0, seed=1)
    table = rows.with_format("arrow")[:5000]
    wanted = [selector(row) for row in rows.select(range(5000))]
    assert selector_mask(selector, table).tolist() == wanted and 500 < sum(wanted) < 4500
    assert selector_mask(selector, table.slice(0, 0)).tolist() == []
    by_id = dataclasses.replace(selector, key_column="id")
    for ids in ([7 + 2**60 * (i % 7) + i for i in range(5000)], [None if i % 9 == 0 else i for i in range(5000)]):
        of_ids = selector_mask(by_id, table.append_column("id", pa.array(ids)))
        batch = {"perplexity": table["perplexity"].to_pylist(), "id": ids}
        assert (
            of_ids.tolist()
            == by_id(batch)
            == [
                m
                for b in table.append_column("id", pa.array(ids)).to_batches(max_chunksize=99)
                for m in selector_mask(by_id, b)
            ]
        )
    with pytest.raises(KeyError, match="no column 'text'"):
        selector_mask(selector, table.drop_columns("text"))


@pytest.mark.parametrize(
    ("column", "key", "missing", "advice"),
    [
        ("perplexity", "text", "perplexity", "score it with recipes/score.py first"),
        ("ngram_ratio", "text", "ngram_ratio", "score it with recipes/score_ngrams.py first"),
        ("quality", "text", "quality", "name one of these"),
        ("quality", "id", "id", "the selector draws by it; make one with a key_column .* that is there"),
    ],
)
def test_a_missing_column_is_told_by_what_makes_it(column, key, missing, advice):
    selector = PerplexitySelector((0.0, 0.0, -0.3), 20.0, 6.0, column=column, key_column=key)
    batch = pa.table({name: [1.0] for name in ("quality", "text") if name != missing})
    with pytest.raises(KeyError, match=f"no column '{missing}', it has .*; {advice}"):
        selector_mask(selector, batch)


def test_output_tables_are_gathered(scored, tmp_path, monkeypatch):
    folder, _ = scored
    files = ParquetFiles.find(str(folder))
    selector = PerplexitySelector((30.0, 0.0, 0.0), 20.0, 5.0)  # keeps all that have a perplexity
    output = ShardedOutput.open(tmp_path / "all", 5, {})
    files.write_selected(selector, output)
    assert [pq.ParquetFile(path).metadata.num_row_groups for path in output.paths] == [1, 0, 1, 1, 1]
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in output.paths) == 30_000 - 2
    monkeypatch.setattr("hf_ppl_select.streaming.parquet_files._WRITE_BYTES", 100_000)
    output = ShardedOutput.open(tmp_path / "small", 5, {})
    files.write_selected(selector, output)
    assert pq.ParquetFile(output.paths[0]).metadata.num_row_groups >= 3


def test_bad_places(scored, tmp_path):
    folder, rows = scored
    target = {"num_tokens": 1000, "target": (20.0, 6.0)}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ParquetFiles.find(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no .parquet file"):
        ParquetFiles.find(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no parquet file of split 'dev'"):
        ParquetFiles.find(str(folder), "dev")
    with pytest.raises(ValueError, match="leave nothing between"):
        ParquetFiles.find(str(folder), min_score=3, max_score=2)
    rows.select(range(9)).remove_columns("perplexity").to_parquet(tmp_path / "unscored.parquet")
    with pytest.raises(KeyError, match="unscored.parquet has no column 'perplexity', it has text, num_tokens"):
        select_stream(ParquetFiles.find(str(tmp_path / "unscored.parquet")), tmp_path / "out", **target)
    rows.select(range(9)).remove_columns("text").to_parquet(tmp_path / "keyless.parquet")
    with pytest.raises(KeyError, match="keyless.parquet has no column 'text'"):
        select_stream(ParquetFiles.find(str(tmp_path / "keyless.parquet")), tmp_path / "out", **target)
    rows.select([5, 6]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no row of 1 parquet files has a finite perplexity"):
        select_stream(ParquetFiles.find(str(tmp_path / "none.parquet")), tmp_path / "out", **target)
    files = ParquetFiles.find(str(folder))
    with pytest.raises(ValueError, match="more than the"):
        select_stream(files, tmp_path / "out", num_tokens=10**9, target=(20.0, 6.0))
    with pytest.raises(ValueError, match="a law or a target"):
        select_stream(files, tmp_path / "out", num_tokens=1000)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.tex"):
        select_stream(files, tmp_path / "mine", **target)
    rows.select(range(3)).save_to_disk(tmp_path / "torn")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="torn.parquet cannot be read as parquet"):
        select_stream(ParquetFiles.find(str(tmp_path / "torn.parquet")), tmp_path / "out", **target)


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (["corpus-train.parquet", "corpus-validation.parquet"], "train", [0]),
        (["corpus-train.parquet", "corpus-validation.parquet"], "validation", [1]),
        (["train_0.parquet", "valid_0.parquet"], "train", [0]),
        (["training/a.parquet", "dev/a.parquet"], "train", [0]),
        (["data/test-00000-of-00001.parquet"], "train", None),
        (["a/eval.parquet"], "train", None),
        (["trained.parquet", "contest.parquet"], "train", [0, 1]),
        (["0_000000.parquet", "1_000000.parquet"], "train", [0, 1]),
    ],
)
def test_files_of_a_split_are_those_that_datasets_takes(tmp_path, names, split, wanted):
    folder = tmp_path / "train-eval"  # whose own name says nothing
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"name": [name]}), folder / name)
    load = {"path": str(folder), "split": split, "cache_dir": str(tmp_path / "cache")}
    if wanted is None:
        with pytest.raises(FileNotFoundError, match="no parquet file of split 'train'.* it has files of test"):
            ParquetFiles.find(str(folder), split)
        with pytest.raises(ValueError, match="train"):
            load_dataset(**load)
        return
    assert list(ParquetFiles.find(str(folder), split).paths) == sorted(str(folder / names[i]) for i in wanted)
    assert sorted(load_dataset(**load)["name"]) == sorted(names[i] for i in wanted)


def test_the_card_of_a_law_s_stream_says_what_that_of_a_subset_in_memory_says(scored, tmp_path):
    folder, rows = scored
    law, files = make_law(), ParquetFiles.find(str(folder), max_score=1000.0)
    selection = select_stream(files, tmp_path / "out", law=law, num_tokens=200_000)
    plan = plan_selection(rows, law=law, num_tokens=200_000, max_score=1000.0)
    ours, theirs = selection.report(), plan.report()
    assert ours["optimum"]["gain"] == pytest.approx(theirs["optimum"]["gain"], rel=1e-3)
    same = ("projected", "predicted_trusted", "random_trusted")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert ours["extrapolation"] == pytest.approx(theirs["extrapolation"], rel=0.05)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "at the law's optimum it is" in card and "No optimum of the law was aimed at" not in card
    assert "Gain at the law's optimum" in str(selection)
    assert load_report(tmp_path / "out" / "selection.json") == ours


def test_rows_without_tokens_are_in_no_subset(tmp_path):
    rows = corpus(4000).to_dict()
    rows["num_tokens"][::4] = [0] * 1000
    rows["perplexity"][5:8] = [20.0] * 3
    Dataset.from_dict(rows).to_parquet(tmp_path / "scored.parquet")
    files = ParquetFiles.find(str(tmp_path / "scored.parquet"), min_score=12.0)
    selection = select_stream(files, tmp_path / "out", num_tokens=60_000, target=(20.0, 6.0), key_column="perplexity")
    kept = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert min(kept["num_tokens"].to_pylist()) > 0 and selection.kept.num_chunks == len(kept)
    assert selection.dropped["no_score"] == 1000
    inside = np.array(rows["perplexity"]) >= 12
    assert selection.dropped["below_min_score"] == np.count_nonzero(~inside & (np.array(rows["num_tokens"]) > 0))
    assert "by `perplexity` and a hash of `perplexity`" in (tmp_path / "out" / "README.md").read_text()


def test_errors_name_the_row_of_the_file_also_with_guards(tmp_path):
    Dataset.from_dict({"text": "abcd", "perplexity": [2.0, 2.0, 30.0, 0.5], "num_tokens": [9] * 4}).to_parquet(
        tmp_path / "scored.parquet"
    )
    for guards in ({}, {"min_score": 10}):
        with pytest.raises(ValueError, match="^row 3 has perplexity 0.5"):
            ParquetFiles.find(str(tmp_path / "scored.parquet"), **guards).landscape()


def test_rows_with_one_key_are_noticed(scored, tmp_path):
    _, rows = scored
    same = rows.select(range(2000)).remove_columns("text").add_column("text", ["same"] * 2000)
    same.to_parquet(tmp_path / "same.parquet")
    files = ParquetFiles.find(str(tmp_path / "same.parquet"))
    with pytest.warns(UserWarning, match="values of 'text' distinct"):
        select_stream(files, tmp_path / "out", num_tokens=60_000, target=(20.0, 6.0), seed=2)


@pytest.mark.parametrize(
    "option",
    [
        {"strategy": "greedy_dos"},
        {"group_by": "source"},
        {"deduplicate": "exact"},
        {"replay": 0.1},
        {"order": "shuffled"},
        {"dataset_split": "train[:9]"},
        {"dataset_config": "de"},
        {"min_group_tokens": 100},
        {"group_num_tokens": {"a": 100}},
        {"replay_dataset": "general"},
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name}=.*cannot be streamed: "):
        check_streamable({"strategy": "maxent", "replay": 0.0, **option})
    check_streamable({"strategy": "maxent", "dataset_split": "train"})


def test_the_recipe_streams(scored, tmp_path):
    folder, rows = scored
    options = [
        "--streaming",
        "--dataset_name",
        folder,
        "--target_mu",
        20,
        "--target_sigma",
        6,
        "--num_tokens",
        300_000,
    ]
    options += ["--max_score", 1000, "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, str(RECIPE), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Promised 300,000 tokens with a standard deviation of" in done.stdout and "Saved to" in done.stdout
    selector = PerplexitySelector.load(tmp_path / "out" / "selector.json")
    below = rows.filter(lambda row: row["perplexity"] is None or row["perplexity"] <= 1000)
    assert texts(tmp_path / "out") == below.filter(selector, batched=True, batch_size=77)["text"]


# ---------------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.slow
def test_rays_workers_processes_batches_and_orders_keep_the_same_rows(scored, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    folder, rows = scored
    landscape = PerplexityLandscape.from_dataset(rows.select(range(8, 30_000)))
    selector = PerplexitySelector.from_target(20.0, 6.0, landscape=landscape, num_tokens=300_000, seed=5)
    selector.save(tmp_path / "selector.json")
    wanted = rows.filter(selector, batched=True)["text"]
    assert 2000 < len(wanted) < 4000
    assert sorted(wanted) == sorted(rows.shuffle(seed=1).filter(selector, batched=True, batch_size=17)["text"])
    code = (
        "import sys, json; from datasets import load_dataset; from hf_ppl_select import PerplexitySelector\n"
        "files = sorted(__import__('glob').glob(sys.argv[1] + '/data/train-*'), reverse=True)\n"
        "rows = load_dataset('parquet', data_files=files, split='train', streaming=True)\n"
        "selector = PerplexitySelector.load(sys.argv[2])\n"
        "print(json.dumps([row['text'] for row in rows.filter(selector, batched=True, batch_size=333)]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "selector.json")]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(json.loads(other.stdout)) == sorted(wanted)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "recipes")]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for batch_size in (4096, 100):
            out = tmp_path / f"ray-{batch_size}"
            arguments = ["--dataset_name", folder, "--selector", tmp_path / "selector.json", "--output_dir", out]
            monkeypatch.setattr(sys, "argv", ["select_ray.py", *map(str, arguments), "--batch_size", str(batch_size)])
            runpy.run_path(str(ROOT / "recipes" / "select_ray.py"), run_name="__main__")
            found = [t for path in out.glob("data/*.parquet") for t in pq.read_table(path)["text"].to_pylist()]
            assert sorted(found) == sorted(load_rows(str(out))["text"][:]) == sorted(wanted)
            assert sorted(load_dataset(str(out), split="train")["text"][:]) == sorted(wanted)
            assert [path.name for path in out.iterdir()] == ["data"]
    finally:
        ray.shutdown()
