"""Many at once, and much of it: processes on one cache and one folder, threads, memory over long streams.

Each in a small size; marked long in that of a busy day. LOAD=10 makes those ten times as large.
"""

import gc
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset
from faults.kinds import scored
from warm_processes import finish, start

from hf_ppl_select import NgramScorer, PerplexityLandscape, PerplexityScorer, PerplexitySelector, chunk_documents
from hf_ppl_select.scoring.ngrams.counts import NgramCounts
from hf_ppl_select.streaming.parquet_files import selector_mask

LOAD = int(os.environ.get("LOAD", 1))
SENTENCES = [
    "The patient presented with fever, cough and shortness of breath.",
    "Hypertension is treated with diuretics, ACE inhibitors or calcium channel blockers.",
    "Is 5 mg enough? No: 10 mg, é 👩‍⚕️.",
]


def sizes(small, large):
    return pytest.mark.parametrize("size", [small, pytest.param(large * LOAD, marks=pytest.mark.long)])


def megabytes():
    gc.collect()
    pa.default_memory_pool().release_unused()
    return psutil.Process().memory_info().rss / 2**20


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": SENTENCES[i % 3] * (1 + i % 4) + str(i)} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, pytest.param(8, marks=pytest.mark.long)])
def test_processes_that_score_into_one_cache_agree(size, corpus, tiny_model_dir, tmp_path):
    results = [tmp_path / f"{number}.json" for number in range(size)]
    running = [start("tests/load_run.py", corpus, tiny_model_dir, result) for result in results]
    for done in map(finish, running):
        assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(result.read_text()) for result in results]
    assert all(one == found[0] for one in found)  # down to the file that is read: one map was enough, or the last won
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    expected = PerplexityScorer(tiny_model_dir, device="cpu")({"text": [row["text"] for row in rows]})
    assert found[0]["text"] == [row["text"] for row in rows]
    assert found[0]["num_tokens"] == expected["num_tokens"].tolist()
    np.testing.assert_allclose(found[0]["perplexity"], expected["perplexity"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, pytest.param(8, marks=pytest.mark.long)])
def test_copies_of_one_command_on_one_folder_end_as_one(size, corpus, tiny_model_dir, tmp_path):
    """Each writes what is missing, and whoever has the last shard publishes; all exit 0."""
    named = {"dataset_name": corpus, "model_name_or_path": tiny_model_dir, "chunk_length": 16, "shard_size": 3}

    def options(folder):
        return [part for name, value in (named | {"output_dir": folder}).items() for part in (f"--{name}", value)]

    running = [start("recipes/score.py", *options(tmp_path / "together")) for _ in range(size)]
    alone = start("recipes/score.py", *options(tmp_path / "alone"))  # with as many threads: the same last digits
    for done in map(finish, [*running, alone]):
        assert done.returncode == 0, done.stderr[-3000:]
    folders = [tmp_path / name for name in ("alone", "together")]
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    pictures = [one.pop("landscape.png", None) for one in files]
    assert files[0] == files[1] and (pictures[0] is None) == (pictures[1] is None)
    assert not (tmp_path / "together" / ".unfinished").exists()


def test_four_processes_of_one_map(corpus, tiny_model_dir):
    rows = Dataset.from_list([json.loads(line) for line in corpus.read_text().splitlines()])
    scorer = PerplexityScorer(tiny_model_dir, device="cpu")
    expected = scorer(rows[:])
    found = rows.map(scorer, batched=True, batch_size=3, num_proc=4)
    np.testing.assert_allclose(found["perplexity"][:], expected["perplexity"], rtol=1e-6)
    assert found["num_tokens"][:] == expected["num_tokens"].tolist()


@sizes(50, 1000)
def test_selectors_in_threads_decide_as_they_do_alone(size):
    landscape = PerplexityLandscape.from_dataset(scored())
    selector = PerplexitySelector.from_target(22.0, 6.0, landscape=landscape, num_tokens=4000)
    rows = {name: list(values) for name, values in scored(seed=1).items()}

    def decide(seed):
        return replace(selector, seed=seed)(rows)

    alone = [decide(seed) for seed in range(size)]
    assert len({tuple(kept) for kept in alone}) == size  # each is another one
    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(decide, range(size))) == alone


@sizes(150, 2000)
def test_memory_stays_flat_over_batches_of_the_scorer(size, tiny_model_dir):
    scorer, rng = PerplexityScorer(tiny_model_dir, device="cpu", max_batch_tokens=256), random.Random(0)

    def score(number):
        for _ in range(number):
            texts = ["".join(rng.choices(SENTENCES, k=rng.randrange(4))) for _ in range(4)]
            assert len(scorer({"text": texts})["perplexity"]) == 4

    score(50)
    before = megabytes()
    score(size)
    grown = megabytes() - before
    print(f"{size:,} batches: {grown:+.1f} MB")
    assert grown < 40


def generated(num_rows, batch_size=50_000):
    """Batches of a stream that is nowhere as a whole."""
    rng = np.random.default_rng(0)
    for start_ in range(0, num_rows, batch_size):
        number = min(batch_size, num_rows - start_)
        yield {
            "text": [f"fever {i} and cough {i % 97}" for i in range(start_, start_ + number)],
            "perplexity": np.exp(rng.normal(3, 0.4, number)),
            "num_tokens": rng.integers(20, 60, number),
        }


@sizes(100_000, 500_000)
def test_memory_stays_flat_over_a_stream(size):
    landscape = PerplexityLandscape.from_dataset(scored())
    selector = PerplexitySelector.from_target(22.0, 6.0, landscape=landscape, num_tokens=landscape.num_tokens / 3)
    counts, kept, before = NgramCounts(), 0, None
    for number, batch in enumerate(generated(size)):
        counts.update(batch["text"])
        mask = selector_mask(selector, pa.RecordBatch.from_pydict(batch))
        kept += int(mask.sum())
        if number == 0:
            assert mask.tolist() == selector({name: list(values) for name, values in batch.items()})
            before = megabytes()
    grown = megabytes() - before
    print(f"{size:,} rows: {grown:+.1f} MB, {kept / size:.4f} kept")
    assert grown < 60
    assert counts.num_ngrams == 9 * size  # five words and four pairs each
    assert kept / size == pytest.approx(1 / 3, abs=0.03)


@sizes(20_000, 100_000)
def test_memory_stays_flat_over_a_filtered_stream_of_datasets(size):
    landscape = PerplexityLandscape.from_dataset(scored())
    selector = PerplexitySelector.from_target(22.0, 6.0, landscape=landscape, num_tokens=landscape.num_tokens / 3)
    scorer = NgramScorer.fit(["fever and cough"], ["rest 1", "tea 2"], num_buckets=1 << 12)

    def rows():
        for batch in generated(size, 1000):
            for text, perplexity, num_tokens in zip(*batch.values()):
                yield {"text": text, "perplexity": float(perplexity), "num_tokens": int(num_tokens)}

    stream = IterableDataset.from_generator(rows).filter(selector, batched=True).map(scorer, batched=True)
    kept, before = 0, None
    for number, row in enumerate(stream):
        kept += row["ngram_ratio"] > 0
        if number == 1000:
            before = megabytes()
    grown = megabytes() - before
    print(f"{size:,} rows: {grown:+.1f} MB")
    assert grown < 60 and kept / size == pytest.approx(1 / 3, abs=0.03)


@sizes(500, 5000)
def test_documents_of_very_unequal_length(size, tiny_tokenizer, tiny_model_dir):
    """From one character to a million: put together, chunks are the documents; all is scored, in little memory."""
    rng, longest = random.Random(0), 1_000_000 if size > 1000 else 100_000
    num_long = max(1, size // 20_000)
    lengths = [longest] * num_long + [int(rng.paretovariate(1.2)) for _ in range(size - num_long)]
    rng.shuffle(lengths)
    letters = "".join(SENTENCES) * (longest // sum(map(len, SENTENCES)) + 1)
    documents = Dataset.from_generator(lambda: ({"text": letters[:length]} for length in lengths))
    datasets.disable_progress_bars()
    before = megabytes()
    chunks = documents.map(
        chunk_documents,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tiny_tokenizer, "max_length": 256, "separator": ""},
    )
    after_chunks = megabytes() - before
    scorer = PerplexityScorer(tiny_model_dir, device="cpu", max_batch_tokens=4096)
    found = chunks.map(scorer, batched=True, batch_size=256)
    grown = megabytes() - before
    datasets.enable_progress_bars()
    num_tokens = np.array(found["num_tokens"][:])
    print(f"{size:,} documents, {sum(lengths):,} characters, {num_tokens.sum():,} tokens, {len(found):,} chunks")
    print(f"{after_chunks:+.0f} MB after chunks, {grown:+.0f} MB after scores")
    position = 0
    for text in chunks["text"]:
        position += len(text)
    assert position == sum(map(len, (letters[:length] for length in lengths)))
    assert (num_tokens > 0).all() and num_tokens.max() <= 300
    assert np.isfinite(np.array(found["perplexity"][:])).all()
    assert grown < 500
