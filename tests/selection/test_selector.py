import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.selection.selector import PerplexitySelector

CHUNKS = 40_000


def columns(junk=0.0, seed=0, number=CHUNKS):
    rng = np.random.default_rng(seed)
    nll = np.where(rng.random(number) < junk, rng.normal(8.1, 0.9, number), rng.normal(3.0, 0.45, number))
    return {
        "perplexity": np.exp(nll),
        "num_tokens": rng.integers(20, 512, number),
        "id": rng.permutation(number) * 7 - 1000,
    }


@pytest.mark.parametrize(("space", "target"), [("log", (2.9, 0.3)), ("linear", (22.0, 10.0)), ("log", (3.0, 0.8))])
def test_achieves_what_it_promises_over_many_seeds(space, target):
    rows = columns()
    landscape = PerplexityLandscape.from_values(rows["perplexity"], rows["num_tokens"])
    selector = PerplexitySelector.from_target(
        *target, landscape=landscape, num_tokens=0.1 * landscape.num_tokens, space=space, key_column="id"
    )
    assert (selector.expected_mu, selector.expected_sigma) == pytest.approx(target, rel=1e-6)
    off = []
    for seed in range(60):
        kept = dataclasses.replace(selector, seed=seed).keep(rows["perplexity"], rows["id"])
        x = np.log(rows["perplexity"][kept]) if space == "log" else rows["perplexity"][kept]
        off.append(
            [
                (x.mean() - selector.expected_mu) / selector.mu_std,
                (x.std() - selector.expected_sigma) / selector.sigma_std,
                (rows["num_tokens"][kept].sum() - selector.expected_num_tokens) / selector.num_tokens_std,
            ]
        )
    off = np.array(off)
    assert np.all(np.abs(off.mean(0)) < 4 / np.sqrt(60)), off.mean(0)
    assert np.all((off.std(0) > 0.7) & (off.std(0) < 1.35)), off.std(0)
    assert np.abs(off).max() < 4.5


def test_the_histogram_is_exact_enough_for_narrow_targets():
    """The spread inside bins of 0.4 % counts: a target narrower than two bins is still met in expectation."""
    rows = columns(number=200_000)
    landscape = PerplexityLandscape.from_values(rows["perplexity"])
    selector = PerplexitySelector.from_target(3.0, 0.005, landscape=landscape, num_tokens=500, space="log")
    w, nll = selector.inclusion_probability(rows["perplexity"]), np.log(rows["perplexity"])
    mean = w @ nll / w.sum()
    assert np.sqrt(w @ (nll - mean) ** 2 / w.sum()) == pytest.approx(0.005, rel=0.03)
    assert w.sum() == pytest.approx(500, rel=0.03)


def test_integer_keys_agree_in_any_batch_container_and_process(tmp_path):
    rows = columns(number=3000)
    landscape = PerplexityLandscape.from_values(rows["perplexity"], rows["num_tokens"])
    selector = PerplexitySelector.from_target(
        2.9, 0.3, landscape=landscape, num_tokens=100_000, space="log", seed=3, key_column="id"
    )
    selector.save(tmp_path / "selector.json")
    assert PerplexitySelector.load(tmp_path / "selector.json") == selector
    dataset = Dataset.from_dict(rows)
    wanted = sorted(rows["id"][selector.keep(rows["perplexity"], rows["id"])].tolist())
    assert 100 < len(wanted) < 1000
    shuffled = dataset.shuffle(seed=1)
    for kept in (
        dataset.filter(selector),
        dataset.filter(selector, batched=True, batch_size=7),
        shuffled.filter(selector, batched=True, batch_size=1000),
        dataset.with_format("numpy").filter(selector, batched=True),
        shuffled.with_format("pandas").filter(selector, batched=True),
    ):
        assert sorted(np.array(kept["id"]).tolist()) == wanted
    stream = shuffled.to_iterable_dataset(num_shards=4).filter(selector, batched=True, batch_size=11)
    assert sorted(row["id"] for row in stream) == wanted
    np.savez(tmp_path / "rows.npz", **rows)
    script = (
        "import sys, json, numpy as np; from hf_ppl_select.selection.selector import PerplexitySelector\n"
        "rows = np.load(sys.argv[2]); selector = PerplexitySelector.load(sys.argv[1])\n"
        "parts = [slice(i, i + 13) for i in range(2990, -13, -13)]\n"
        "parts = [slice(max(p.start, 0), p.stop) for p in parts]\n"
        "print(json.dumps(sorted(i for p in parts for i in "
        "rows['id'][p][selector({'perplexity': rows['perplexity'][p], 'id': rows['id'][p]})].tolist())))"
    )
    arguments = [sys.executable, "-c", script, tmp_path / "selector.json", tmp_path / "rows.npz"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted


def test_far_junk_is_never_kept_where_no_subset_could_hold_it():
    rows = columns(junk=0.1)
    landscape = PerplexityLandscape.from_values(rows["perplexity"], rows["num_tokens"])
    selector = PerplexitySelector.from_target(
        20.0, 60.0, landscape=landscape, num_tokens=0.01 * landscape.num_tokens, key_column="id"
    )
    assert selector.lambdas[2] > 0 and selector.farthest is not None  # a bowl: far rows would all be kept
    beyond = rows["perplexity"] > selector.centre + selector.farthest * selector.scale
    assert beyond.any() and not selector.inclusion_probability(rows["perplexity"])[beyond].any()
    w = selector.inclusion_probability(rows["perplexity"])
    assert (w @ rows["perplexity"]) / w.sum() == pytest.approx(20.0, rel=0.01)


def test_bad_batches():
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, key_column="id")
    with pytest.raises(ValueError, match="perplexity has 2 values, the keys are 1"):
        selector.keep([20.0, 20.0], [1])
    assert selector.keep([], []).tolist() == []
    assert selector.keep(np.array([np.nan, np.inf, -1.0, 0.0]), np.arange(4)).tolist() == [False] * 4
    with pytest.raises(ValueError, match="finite"):
        PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0, farthest=float("nan"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_rule_is_refused(tmp_path, version):
    selector = PerplexitySelector((0.0, 0.0, 0.0), 20.0, 5.0)
    selector.save(tmp_path / "selector.json")
    old = json.loads((tmp_path / "selector.json").read_text()) | {"schema_version": version}
    (tmp_path / "selector.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=f"schema version {version}"):
        PerplexitySelector.load(tmp_path / "selector.json")
