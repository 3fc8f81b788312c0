"""The selector without state: row by row it keeps what it promises, in any batch, order, copy and process."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.selection.row_hash import uniform_numbers
from hf_ppl_select.selection.select import (
    PerplexitySelector,
    plan_selection,
)
from tests.selection.junk_corpus import CHUNK, corpus, make_law


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_dict(corpus())


@pytest.fixture(scope="module")
def law():
    return make_law()


@pytest.fixture(scope="module")
def selector(dataset):
    landscape = PerplexityLandscape.from_dataset(dataset)
    return PerplexitySelector.from_target(22.0, 10.0, landscape=landscape, num_tokens=200_000, space="linear", seed=7)


def test_selector_keeps_what_it_promises(dataset, selector):
    subset = dataset.filter(selector, batched=True)
    perplexity = np.array(subset["perplexity"])
    std = selector.num_tokens_std
    assert selector.expected_num_tokens == pytest.approx(200_000)
    assert 0 < std < 200_000 * 0.03
    assert abs(sum(subset["num_tokens"]) - 200_000) < 4 * std
    assert abs(perplexity.mean() - 22) < 4 * 10 / np.sqrt(len(perplexity))
    assert abs(perplexity.std() - 10) < 1


def test_selector_has_unbiased_tokens_over_seeds(dataset, selector):
    columns = dataset[:]
    kept = [sum(dataclasses.replace(selector, seed=seed)(columns)) * CHUNK for seed in range(40)]
    assert abs(np.mean(kept) - selector.expected_num_tokens) < 4 * selector.num_tokens_std / np.sqrt(40)
    assert 0.6 < np.std(kept) / selector.num_tokens_std < 1.5


def test_rows_batches_streams_orders_and_copies_agree(dataset, selector, tmp_path):
    selector.save(tmp_path / "selector.json")
    loaded = PerplexitySelector.load(tmp_path / "selector.json")
    assert loaded == selector == pickle.loads(pickle.dumps(selector))
    wanted = [row["text"] for row in dataset if selector(row)]
    assert wanted == dataset.filter(loaded)["text"]
    assert wanted == dataset.filter(loaded, batched=True, batch_size=17)["text"]
    assert wanted == [row["text"] for row in dataset.to_iterable_dataset(num_shards=3).filter(loaded, batched=True)]
    assert sorted(wanted) == sorted(dataset.shuffle(seed=1).filter(loaded, batched=True)["text"])
    numpy_batch = dataset.with_format("numpy")[:]
    assert sum(loaded(numpy_batch)) == len(wanted)
    assert Hasher.hash(loaded) == Hasher.hash(selector) != Hasher.hash(dataclasses.replace(selector, seed=8))


def test_decisions_are_booleans_and_unusable_perplexities_are_never_kept():
    keep_all = PerplexitySelector((100.0, 0.0, 0.0), 20.0, 5.0)
    batch = {"perplexity": [None, float("nan"), float("inf"), 0.0, -3.0, 20.0], "text": list("abcdef")}
    assert keep_all(batch) == [False] * 5 + [True]
    assert keep_all({"perplexity": None, "text": "a"}) is False
    assert keep_all({"perplexity": 20, "text": "a"}) is True
    assert keep_all({"perplexity": [], "text": []}) == []
    log_space = dataclasses.replace(keep_all, space="log", centre=3.0, scale=0.5)
    assert log_space.inclusion_probability([20.0, np.inf, 0.0]).tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_hash_is_uniform_and_fixed():
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, seed=3)
    uniform = uniform_numbers([f"text {i}" for i in range(20_000)], selector.seed)
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
    assert np.sum((counts - 1000) ** 2 / 1000) < 50  # chi-square with 19 degrees of freedom
    digest = hashlib.blake2b(b"text 0", digest_size=8, key=b"3", person=b"hf_ppl_select").digest()
    assert uniform[0] == (int.from_bytes(digest, "little") >> 11) / 2**53


def test_any_json_key_column_works():
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, key_column="key")
    keys = [7, np.int64(7), "text \ud800", [{"role": "user", "content": "hi"}], None, 2.5]
    decisions = selector({"perplexity": [20.0] * len(keys), "key": keys})
    assert decisions[0] == decisions[1]
    with pytest.raises(TypeError, match="'key' holds object"):
        selector({"perplexity": 20.0, "key": object()})


def test_missing_columns_are_named(selector):
    with pytest.raises(KeyError, match=r"no column 'text', they have \['perplexity'\]"):
        selector({"perplexity": 20.0})
    with pytest.raises(KeyError, match=r"no column 'perplexity'.*score_ppl"):
        selector({"text": ["a"]})


@pytest.mark.parametrize(
    "bad",
    [{"scale": 0.0}, {"centre": np.nan}, {"lambdas": (1.0, 2.0)}, {"space": "square"}, {"lambdas": (np.inf, 0, 0)}],
)
def test_bad_selector_settings(selector, bad):
    with pytest.raises(ValueError):
        dataclasses.replace(selector, **bad)


def test_selector_from_a_law(dataset, law):
    landscape = PerplexityLandscape.from_dataset(dataset)
    selector = PerplexitySelector.from_law(law, landscape, num_tokens=100_000, seed=2, key_column="text")
    plan = plan_selection(dataset, law=law, num_tokens=100_000)
    assert (selector.centre, selector.scale) == pytest.approx(plan.target, rel=1e-3)
    assert selector.lambdas == (*plan.maxent.levels, *plan.maxent.lambdas)  # one rule
    assert selector.space == law.space and selector.seed == 2


def test_selector_on_a_landscape_whose_tokens_vote():
    columns = corpus(ragged=True)
    perplexity, tokens = columns["perplexity"], columns["num_tokens"]
    landscape = PerplexityLandscape.from_values(perplexity, tokens, weights="tokens")
    selector = PerplexitySelector.from_target(22.0, 10.0, landscape=landscape, num_tokens=100_000)
    kept = tokens * selector.inclusion_probability(perplexity)
    assert kept.sum() == pytest.approx(100_000, rel=2e-3)
    assert (kept @ perplexity) / kept.sum() == pytest.approx(22.0, rel=2e-3)


def test_selector_errors(dataset):
    landscape = PerplexityLandscape.from_dataset(dataset)
    for options, message in (
        ({"num_tokens": 10**9}, "more than the 640,000 tokens"),
        ({"num_tokens": 0}, "above 0"),
        ({"mu": 1e6}, "mu reaches from"),
        ({"space": "both"}, "space must be"),
    ):
        arguments = {"mu": 22.0, "sigma": 10.0, "num_tokens": 100_000, **options}
        with pytest.raises(ValueError, match=message):
            PerplexitySelector.from_target(
                arguments.pop("mu"), arguments.pop("sigma"), landscape=landscape, **arguments
            )


def test_a_selector_file_of_another_kind_is_refused(law, tmp_path):
    law.save(tmp_path / "law.json")
    with pytest.raises(ValueError, match="perplexity_selector"):
        PerplexitySelector.load(tmp_path / "law.json")


def test_another_process_selects_the_same_rows(selector, tmp_path):
    selector.save(tmp_path / "selector.json")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import hashlib, numpy as np
from datasets.fingerprint import Hasher
from hf_ppl_select.selection.select import PerplexitySelector, plan_selection
rng = np.random.default_rng(0)
columns = {{"perplexity": np.exp(rng.normal(3, 0.6, 3000)), "num_tokens": rng.integers(20, 200, 3000)}}
columns["text"] = [f"chunk {{i}}" for i in range(3000)]
selector = PerplexitySelector.load({str(tmp_path / "selector.json")!r})
rows = [plan_selection(columns, target=(22.0, 9.0), num_tokens=50_000, seed=4, strategy=s).indices.tolist()
        for s in ("maxent", "greedy_dos", "regime")]
rows.append(plan_selection(columns, num_tokens=50_000, seed=4, strategy="random").indices.tolist())
print(hashlib.sha256(repr([rows, selector(columns), Hasher.hash(selector)]).encode()).hexdigest())
"""
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) == 65


def test_streams_are_filtered_lazily(selector):
    def rows():
        rng = np.random.default_rng(0)
        for i in range(100):
            yield {"perplexity": float(np.exp(rng.normal(3, 0.4))), "text": str(i)}

    kept = list(IterableDataset.from_generator(rows).filter(selector, batched=True, batch_size=8))
    assert [row["text"] for row in kept] == [row["text"] for row in rows() if selector(row)]
