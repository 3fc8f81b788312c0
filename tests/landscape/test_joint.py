"""The landscape of two score columns together: exact moments, bins that widen, merging in any order."""

import json

import numpy as np
import pytest
from datasets import Dataset
from two_columns import BOTH, RATIO, corpus

from hf_ppl_select import PerplexityLandscape
from hf_ppl_select.landscape.joint import MOST, JointLandscape


def both(columns):
    return np.stack([columns[name] for name in BOTH], axis=1)


@pytest.mark.parametrize("weights", ["chunks", "tokens"])
@pytest.mark.parametrize("num_chunks", [300, 100_000])
def test_moments_are_exact_whatever_the_bins(num_chunks, weights):
    columns = corpus(num_chunks)
    landscape = PerplexityLandscape.from_values(both(columns), columns["num_tokens"], column=BOTH, weights=weights)
    logs, w = np.log(both(columns)), columns["num_tokens"] if weights == "tokens" else np.ones(num_chunks)
    mean = w @ logs / w.sum()
    assert landscape.log_mu == pytest.approx(mean, abs=1e-12)
    assert landscape.log_sigma == pytest.approx(np.sqrt(w @ (logs - mean) ** 2 / w.sum()), abs=1e-12)
    assert (landscape.num_chunks, landscape.num_tokens) == (num_chunks, columns["num_tokens"].sum())
    assert len(landscape.bins) <= MOST and landscape.column == BOTH
    assert (landscape.bins_per_nat < 256) == (num_chunks > MOST)
    coarse = landscape.at_most(500)
    assert len(coarse.bins) <= 500
    assert np.array(coarse.moments()) == pytest.approx(np.array(landscape.moments()), abs=1e-12)


def test_shards_merge_in_any_order():
    columns = corpus(60_000)
    x, tokens = both(columns), columns["num_tokens"]
    whole = PerplexityLandscape.from_values(x, tokens, column=BOTH, model="tiny")
    shards = [
        PerplexityLandscape.from_values(x[rows], tokens[rows], column=BOTH)
        for rows in np.split(np.arange(60_000), [100, 20_000, 45_000])
    ]
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        merged = shards[order[0]]
        for i in order[1:]:
            merged = merged.merge(shards[i])
        assert merged.bins_per_nat == whole.bins_per_nat and np.array_equal(merged.bins, whole.bins)
        assert merged.sums == pytest.approx(whole.sums, abs=1e-9)
    assert merged.merge(whole).model == "tiny"


def test_a_dataset_a_stream_and_arrays_give_the_same_and_a_file_keeps_it(tmp_path):
    columns = corpus(500)
    columns["perplexity"][:3] = np.nan, np.inf, 5.0
    columns[RATIO][2] = np.nan
    dataset = Dataset.from_dict(columns)
    landscape = PerplexityLandscape.from_dataset(dataset, column=list(BOTH), model="tiny")
    assert (landscape.num_skipped, landscape.num_infinite, landscape.num_chunks) == (2, 1, 497)
    for other in (
        PerplexityLandscape.from_dataset(dataset.to_iterable_dataset(), column=BOTH, model="tiny"),
        PerplexityLandscape.from_values(both(columns), columns["num_tokens"], column=BOTH, model="tiny"),
    ):
        assert other.to_dict() == landscape.to_dict()
    landscape.save(tmp_path / "landscape.json")
    assert JointLandscape.load(tmp_path / "landscape.json").to_dict() == landscape.to_dict()
    assert json.loads((tmp_path / "landscape.json").read_text())["kind"] == "hf_ppl_select/joint_landscape"
    with pytest.raises(ValueError, match="not 'hf_ppl_select/landscape'"):
        PerplexityLandscape.load(tmp_path / "landscape.json")


def test_cells_without_outliers_hold_no_junk():
    columns = corpus(20_000)
    landscape = PerplexityLandscape.from_values(both(columns), columns["num_tokens"], column=BOTH)
    core = landscape.cells(outliers=False)
    clean = (~columns["is_junk"]).sum()
    assert core.mean[:, 0].max() < 6 and 0.96 * clean < core.counts.sum() <= clean


def test_what_does_not_go_together_is_refused():
    x = both(corpus(50))
    landscape = PerplexityLandscape.from_values(x, column=BOTH, model="tiny")
    swapped = PerplexityLandscape.from_values(x[:, ::-1], column=BOTH[::-1])
    with pytest.raises(
        ValueError, match=f"cannot merge a landscape of perplexity and {RATIO} with one of {RATIO} and"
    ):
        landscape.merge(swapped)
    with pytest.raises(ValueError, match="different models"):
        landscape.merge(PerplexityLandscape.from_values(x, column=BOTH, model="other"))
    with pytest.raises(ValueError, match="log space only"):
        landscape.moments("linear")
    for column in (("perplexity", "perplexity"), ("a", "b", "c"), ("a",)):
        with pytest.raises(ValueError, match="a pair of two different ones"):
            PerplexityLandscape.from_values(x, column=column)
    with pytest.raises(ValueError, match=r"must be \(num_chunks, 2\), got \(50,\)"):
        PerplexityLandscape.from_values(x[:, 0], column=BOTH)
    with pytest.raises(ValueError, match=f"row 7 has {RATIO} -1"):
        PerplexityLandscape.from_values(np.where(np.arange(100).reshape(50, 2) == 15, -1.0, x), column=BOTH)
    with pytest.raises(ValueError, match=f"no chunk has a finite perplexity and {RATIO}"):
        PerplexityLandscape.from_values([[np.nan, 1.0], [2.0, np.inf]], column=BOTH)
