import json

import numpy as np
import pytest
from datasets import Dataset

from hf_ppl_select import compare_scaling_laws, fit_scaling_law
from hf_ppl_select.law.points import append_law_points, read_law_points

ROW = {"run": "low", "mu": 12.0, "sigma": 2.0, "log_mu": 2.4, "log_sigma": 0.2, "num_tokens": 8192, "loss": 2.5}


def row(**changes):
    return {name: value for name, value in {**ROW, **changes}.items() if value != "absent"}


def test_a_list_a_dataset_and_a_file_read_alike(tmp_path):
    rows = [row(), row(run="high", general_loss=3.5)]
    path = tmp_path / "points.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    dataset = Dataset.from_list([{**rows[0], "general_loss": None}, rows[1]])
    for source in (rows, dataset, path, str(path), read_law_points(rows)):
        points = read_law_points(source)
        assert len(points) == 2 and points.runs == ("low", "high")
        assert points.loss.dtype == float and points.moments("linear")[0].tolist() == [12.0, 12.0]
        assert np.isnan(points.general_loss[0]) and points.general_loss[1] == 3.5
        assert points.to_rows() == rows


def test_moments_by_space():
    points = read_law_points([row()])
    assert [m.tolist() for m in points.moments("linear")] == [[12.0], [2.0]]
    assert [m.tolist() for m in points.moments("log")] == [[2.4], [0.2]]
    assert points.has_space("log")
    with pytest.raises(ValueError, match="'linear' or 'log'"):
        points.moments("cubic")


def test_log_space_without_its_moments_names_row_and_field():
    points = read_law_points([row(), row(run="high", log_sigma="absent")])
    assert not points.has_space("log")
    with pytest.raises(ValueError, match=r"law point 1 \(run 'high', 8192 tokens\) has no 'log_sigma'"):
        points.moments("log")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": float("nan")}, r"law point 1 \(run 'low'\) has loss nan"),
        ({"loss": -1.0}, r"law point 1 \(run 'low'\) has loss -1; it must be more than 0"),
        ({"loss": float("inf")}, "has loss inf"),
        ({"loss": "2.5"}, "has loss '2.5', which is not a number"),
        ({"loss": True}, "has loss True, which is not a number"),
        ({"loss": None}, "has no 'loss'; it has run, mu"),
        ({"mu": 0}, "has mu 0; it must be more than 0"),
        ({"sigma": -0.5}, "has sigma -0.5; it must be 0 or more"),
        ({"sigma": "absent"}, "has no 'sigma'"),
        ({"num_tokens": 0}, "has num_tokens 0"),
        ({"log_mu": float("nan")}, "has log_mu nan"),
        ({"run": ""}, "law point 1 has no 'run'"),
    ],
)
def test_bad_rows_name_row_and_field(changes, message):
    with pytest.raises(ValueError, match=message):
        read_law_points([row(num_tokens=1), row(**changes)])


def test_bad_tables():
    with pytest.raises(ValueError, match="there are no law points"):
        read_law_points([])
    with pytest.raises(ValueError, match="law points 0 and 2 are both run 'low' at 8192 tokens"):
        read_law_points([row(), row(run="high"), row(loss=2.4)])
    with pytest.raises(ValueError, match="is a float, not a dict"):
        read_law_points([1.0])
    with pytest.raises(TypeError, match="list of dicts, a Dataset or a .jsonl path"):
        read_law_points(3)
    with pytest.raises(FileNotFoundError):
        read_law_points("no/such/points.jsonl")


def test_append_makes_replaces_and_keeps_order_and_extra_fields(tmp_path):
    path = tmp_path / "deep" / "points.jsonl"
    append_law_points(path, [row(num_tokens=1, note="kept"), row(num_tokens=2)])
    append_law_points(path, [row(num_tokens=3)])
    before = path.read_text()
    append_law_points(path, [])
    assert path.read_text() == before
    append_law_points(path, [row(num_tokens=2, loss=9.0), row(num_tokens=4)])
    points = read_law_points(path)
    assert points.num_tokens.tolist() == [1, 2, 3, 4]
    assert points.loss.tolist() == [2.5, 9.0, 2.5, 2.5]
    assert json.loads(path.read_text().splitlines()[0])["note"] == "kept"
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path, cut):
    path = tmp_path / "points.jsonl"
    append_law_points(path, [row(num_tokens=1), row(num_tokens=2)])
    path.write_text(path.read_text() + json.dumps(row(num_tokens=3))[:cut])
    with pytest.warns(UserWarning, match="cut off"):
        assert len(read_law_points(path)) == 2
    with pytest.warns(UserWarning, match="cut off"):
        append_law_points(path, [row(num_tokens=3)])
    assert read_law_points(path).num_tokens.tolist() == [1, 2, 3]


def test_a_last_line_without_newline_is_not_glued_to(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text(json.dumps(row(num_tokens=1)))
    append_law_points(path, [row(num_tokens=2)])
    assert read_law_points(path).num_tokens.tolist() == [1, 2]


def test_a_broken_line_inside_is_an_error(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text(json.dumps(row()) + "\n{broken\n" + json.dumps(row(num_tokens=2)) + "\n")
    with pytest.raises(ValueError, match="line 2 of .* is not JSON"):
        read_law_points(path)


def test_append_refuses_bad_rows_and_leaves_the_file(tmp_path):
    path = tmp_path / "points.jsonl"
    append_law_points(path, [row()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="new law point 1 .* has loss nan"):
        append_law_points(path, [row(num_tokens=2), row(num_tokens=3, loss=float("nan"))])
    assert path.read_bytes() == before


def test_take():
    rows = [{"run": f"r{i}", "mu": 10 + i, "sigma": 3, "num_tokens": 100, "loss": 2} for i in range(4)]
    points = read_law_points(rows)
    assert points.take(points.moments("linear")[0] > 11).runs == ("r2", "r3")
    assert points.take([0]).moments("linear")[0].tolist() == [10]


def test_more_runs_than_a_hundred_are_left_out_some_at_a_time():
    """The error of a hundredth of the runs left out, against laws fitted one by one to the others."""
    rng = np.random.default_rng(0)
    rows = []
    for run in range(104):
        mu, sigma = rng.uniform(10, 40), rng.uniform(2, 9)
        for num_tokens in (1e4, 2e4, 4e4):
            loss = 1.5 + 8 / (mu**0.1 * sigma**0.05 * num_tokens**0.2) * np.exp(rng.normal(0, 0.01))
            rows.append({"run": f"{run:03d}", "mu": mu, "sigma": sigma, "num_tokens": num_tokens, "loss": loss})
    (found,) = compare_scaling_laws(rows, form="no_interaction", space="linear", column="perplexity")
    errors = np.empty(len(rows))
    for fold in range(100):
        out = np.array([int(row["run"]) % 100 == fold for row in rows])
        law = fit_scaling_law(
            [row for row, left in zip(rows, out) if not left], "no_interaction", "linear", huber_delta=None
        )
        for i in np.flatnonzero(out):
            row = rows[i]
            errors[i] = abs(law.predict(row["mu"], row["sigma"], row["num_tokens"]) - row["loss"])
    assert found["loo_mae"] == pytest.approx(errors.mean(), rel=1e-6)
    by_run = errors.reshape(104, 3).mean(1)
    assert found["loo_se"] == pytest.approx(by_run.std(ddof=1) / np.sqrt(104), rel=1e-6)
