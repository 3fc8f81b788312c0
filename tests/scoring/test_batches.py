"""Rows in every format of datasets and Ray Data: the same numbers, and the same kind of batch back."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_ppl_select import PerplexityScorer
from hf_ppl_select.scoring.perplexity import SCORE_COLUMNS
from tests.scoring.test_rows import CHAT, CHAT_TEMPLATE

ROWS = {
    "text": {"text": ["The patient has fever.", "x", "👩‍⚕️ é"], "id": [1, 2, 3]},
    "texts, one empty": {"text": ["The patient has fever.", None, "", "x"], "id": [1, 2, 3, 4]},
    "pairs": {"prompt": ["What is fever?", ""], "completion": [" A high temperature.", "Yes."]},
    "messages": {"messages": [CHAT, CHAT[:2], CHAT[2:]], "id": [1, 2, 3]},
    "messages of one length": {"messages": [CHAT, CHAT]},
}


@pytest.fixture
def scorer(tiny_model_dir):
    return PerplexityScorer(tiny_model_dir, chat_template=CHAT_TEMPLATE, device="cpu")


@pytest.fixture
def alone(scorer):
    """The columns, of each row by itself as a plain dict."""

    def score(rows):
        found = [scorer(dict(zip(rows, values))) for values in zip(*rows.values())]
        return {name: [one[name] for one in found] for name in SCORE_COLUMNS}

    return score


def assert_equal(found, expected):
    for name in SCORE_COLUMNS:
        values = np.array([np.nan if value is None else value for value in found[name]], float)
        np.testing.assert_allclose(values, np.array(expected[name], float), rtol=1e-6)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ["arrow", "pandas", "numpy", "torch", "python"])
@pytest.mark.parametrize("rows", ROWS)
def test_every_format_of_datasets(scorer, alone, rows, kind, batched):
    if (rows, kind, batched) == ("texts, one empty", "pandas", False) and datasets.__version__ < "5":
        pytest.skip("datasets 4 maps no rows of pandas of which one has a null: it takes the first row's types")
    dataset = Dataset.from_dict(ROWS[rows])
    found = dataset.with_format(kind).map(scorer, batched=batched).with_format(None)
    assert found.column_names == [*ROWS[rows], *SCORE_COLUMNS]
    assert_equal(found, alone(ROWS[rows]))
    assert [found.features[name].dtype for name in SCORE_COLUMNS] == ["float64", "float64", "int32", "int32"]
    for name, values in ROWS[rows].items():
        if name != "text" or None not in values or kind != "pandas":  # pandas has None as NaN
            assert found[name][:] == values
    stream = dataset.to_iterable_dataset().with_format(kind if kind != "python" else None)
    taken = list(stream.map(scorer, batched=batched).with_format(None))
    assert_equal({name: [row[name] for row in taken] for name in SCORE_COLUMNS}, alone(ROWS[rows]))


@pytest.mark.parametrize("rows", ["text", "texts, one empty", "messages"])
def test_batches_as_ray_hands_them_over(scorer, alone, rows):
    expected = alone(ROWS[rows])
    table = pa.table(ROWS[rows])
    frame = table.to_pandas()
    arrays = {name: frame[name].to_numpy() for name in frame}
    for batch, kind in ((table, pa.Table), (frame, pd.DataFrame), (arrays, dict)):
        for scorer.keep_columns in (True, False):
            found = scorer(batch)
            assert isinstance(found, kind)
            columns = found.to_pydict() if kind is pa.Table else found
            assert_equal(columns, expected)
            assert set(columns) == {*SCORE_COLUMNS, *(ROWS[rows] if kind is not dict or scorer.keep_columns else ())}
    assert scorer(scorer(table)).column_names == [*ROWS[rows], *SCORE_COLUMNS]  # again: replaced, not doubled


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["text", "messages"])
@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_every_batch_format_of_ray(scorer, alone, rows, batch_format):
    ray = pytest.importorskip("ray")
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=1, include_dashboard=False)
    try:
        scorer.keep_columns = True
        found = ray.data.from_arrow(pa.table(ROWS[rows])).map_batches(scorer, batch_format=batch_format, batch_size=2)
        taken = sorted(found.take_all(), key=lambda row: row["id"])
    finally:
        if started:
            ray.shutdown()
    assert_equal({name: [row[name] for row in taken] for name in SCORE_COLUMNS}, alone(ROWS[rows]))


@pytest.mark.parametrize(
    "empty",
    [
        {"messages": []},
        {"messages": np.array([], dtype=object)},
        {"messages": [], "id": []},
        {"text": []},
        {"prompt": [], "completion": []},
        pa.table({"messages": pa.array([], pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})))}),
        pd.DataFrame({"text": []}),
    ],
)
def test_an_empty_batch_gives_empty_columns(scorer, empty):
    found = scorer(empty)
    assert [len(found[name]) for name in SCORE_COLUMNS] == [0] * 4


def test_an_empty_conversation_is_a_row_where_that_can_be_told(scorer):
    assert scorer({"messages": [], "id": 5})["num_tokens"] == 0
    assert scorer({"messages": None})["num_tokens"] == 0
    scored = Dataset.from_dict({"messages": [[], CHAT]}).map(scorer)
    assert scored["num_tokens"][0] == 0 < scored["num_tokens"][1]


def test_one_row_that_keeps_its_columns(scorer):
    scorer.keep_columns = True
    found = scorer({"text": "fever", "id": 7})
    assert found["text"] == "fever" and found["id"] == 7 and found["num_tokens"] > 0
    assert np.isnan(scorer({"text": "", "id": 7})["perplexity"])


def test_what_is_no_batch_says_what_to_do(scorer):
    with pytest.raises(TypeError, match=r"takes a row or a batch as a dict.*not list.*batched=True"):
        scorer(["fever"])
    for format in ("arrow", "pandas"):
        with pytest.raises(KeyError, match=r"No column 'text' to score; the columns are \['answer'\]"):
            Dataset.from_dict({"answer": ["a"]}).with_format(format).map(scorer, batched=True)
        with pytest.raises(TypeError, match="Row 0 of the batch: column 'text' holds int, not a string"):
            Dataset.from_dict({"text": [1, 2]}).with_format(format).map(scorer, batched=True)
    with pytest.raises(TypeError, match="Row 0 of the batch: column 'text' holds list, not a string"):
        Dataset.from_dict({"text": [["a", "b"]]}).map(scorer)
