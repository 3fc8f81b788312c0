import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from callback_trainers import DOMAIN, GENERAL, MOMENTS, law_trainer, make_trainer, read_rows, rows_with

from hf_ppl_select import fit_scaling_law
from hf_ppl_select.scoring.perplexity import evaluate_perplexity
from trainer_callbacks import ScalingLawCallback
from trainer_callbacks.law_forecast import LawForecast


def test_law_points_at_the_rungs(tiny_model, tiny_tokenizer, tmp_path, caplog):
    table = tmp_path / "points.jsonl"
    law = SimpleNamespace(
        space="log",
        column="perplexity",
        predict=lambda mu, sigma, num_tokens: mu + sigma + num_tokens / 1000,
        predict_interval=lambda mu, sigma, num_tokens: (2.5, 7.5),
        num_tokens_range=(100, 500),
    )
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    trainer.add_callback(
        ScalingLawCallback(
            trainer,
            table,
            "seed-0",
            DOMAIN,
            ladder=[500, 100, 120, 10_000],
            moments=MOMENTS,
            law=law,
            general_texts=GENERAL,
        )
    )
    trainer.train()
    rows = read_rows(table)
    assert [row["num_tokens"] for row in rows] == [128, 512]  # two rungs in one step make one point
    for row in rows:
        assert list(row) == ["run", *MOMENTS, "num_tokens", "loss", "general_loss", "checksum"]
        assert {name: row[name] for name in MOMENTS} == MOMENTS and row["run"] == "seed-0"
    assert "lies outside" not in caplog.text
    logged = rows_with(trainer, "law_point_loss")
    assert sorted(logged) == [1, 4]
    for step, row in zip((1, 4), rows, strict=True):
        assert logged[step]["law_point_loss"] == row["loss"]
        assert logged[step]["law_point_predicted_loss"] == pytest.approx(3.4 + row["num_tokens"] / 1000)
        assert logged[step]["law_point_predicted_low"] == 2.5 and logged[step]["law_point_predicted_high"] == 7.5
        assert logged[step]["law_point_residual"] == row["loss"] - logged[step]["law_point_predicted_loss"]
    by_hand = evaluate_perplexity(tiny_model, tiny_tokenizer, DOMAIN).nll_per_token
    assert rows[-1]["loss"] == pytest.approx(by_hand, rel=1e-6)


def law_through(losses, spread=0.01):
    """A real law, fitted to runs that lie around these losses by num_tokens."""
    rng = np.random.default_rng(0)
    return fit_scaling_law(
        [
            {"run": f"run {i}", "mu": 22.0, "sigma": 10.0, "num_tokens": num_tokens, "loss": loss * shift}
            for i, shift in enumerate(1 + spread * rng.standard_normal(8))
            for num_tokens, loss in losses.items()
        ],
        form="data_only",
        space="linear",
    )


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_the_prediction_and_its_interval(kind, tiny_model, tiny_tokenizer, tmp_path, caplog):
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def run(law=None):
        tiny_model.load_state_dict(start)
        options = {"include_num_input_tokens_seen": "non_padding", "max_steps": 6}
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path, **options)
        options = {"ladder": [90, 190, 290, 400], "moments": MOMENTS, "law": law}
        trainer.add_callback(ScalingLawCallback(trainer, tmp_path / "points.jsonl", "r", DOMAIN, **options))
        caplog.clear()
        trainer.train()
        return {row["law_point_num_tokens"]: row for row in rows_with(trainer, "law_point_loss").values()}

    measured = {num_tokens: row["law_point_loss"] for num_tokens, row in run().items()}
    assert len(measured) == 4
    law = law_through(measured)
    for num_tokens, row in run(law).items():
        low, high = law.predict_interval(22.0, 10.0, num_tokens)
        assert row["law_point_predicted_loss"] == pytest.approx(law.predict(22.0, 10.0, num_tokens), rel=1e-9)
        assert row["law_point_predicted_low"] == pytest.approx(low, rel=1e-9)
        assert row["law_point_predicted_high"] == pytest.approx(high, rel=1e-9)
    first, *_, last = sorted(measured)
    run(with_interval(law, {num_tokens: (loss - 0.1, loss + 0.1) for num_tokens, loss in measured.items()}))
    assert "lies outside" not in caplog.text
    run(
        with_interval(
            law, {num_tokens: (loss - 0.1, loss + 0.1 * (num_tokens - last)) for num_tokens, loss in measured.items()}
        )
    )
    assert caplog.text.count("lies outside") == 3 and f"r at {last} tokens" not in caplog.text
    assert (
        f"r at {first} tokens: the loss of {measured[first]:.4f} lies outside {measured[first] - 0.1:.4f}"
        in caplog.text
    )
    assert f"fitted to runs of {first} to {last} tokens" in caplog.text


def with_interval(law, intervals):
    """The law, with these intervals by num_tokens."""
    known = {"space": law.space, "column": law.column, "predict": law.predict}
    known["num_tokens_range"] = law.num_tokens_range
    return SimpleNamespace(
        **known, predict_interval=lambda mu, sigma, num_tokens: intervals.get(num_tokens, (0.0, 9.0))
    )


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_stops_at_the_first_rung_from_where_the_next_gain_is_too_small(
    kind, tiny_model, tiny_tokenizer, tmp_path, caplog
):
    table, ladder = tmp_path / "points.jsonl", [10, 20, 40, 50, 80]
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    law = law_through({num_tokens: 2.0 + 3.0 / num_tokens for num_tokens in (10, 20, 40, 80)})
    gains = {a: law.predict(22.0, 10.0, a) - law.predict(22.0, 10.0, b) for a, b in itertools.pairwise(ladder)}
    assert gains[10] > gains[20] > gains[40] and gains[50] > gains[40]

    def run(threshold, **options):
        tiny_model.load_state_dict(start)
        saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8}
        trainer = make_trainer(kind, tiny_model, tiny_tokenizer, tmp_path, **saving)
        law_options = {"ladder": ladder, "moments": MOMENTS, "law": law, "stop_when_gain_below": threshold}
        law_options |= {"tokens_per_step": 10}
        trainer.add_callback(ScalingLawCallback(trainer, table, "r", DOMAIN, **law_options))
        trainer.train(**options)
        return trainer

    trainer = run((gains[20] + gains[40]) / 2)
    assert trainer.state.global_step == 4  # at 40 tokens, and not before
    assert [row["num_tokens"] for row in read_rows(table)] == [10, 20, 40]
    logged = [row["law_point_next_gain"] for row in rows_with(trainer, "law_point_loss").values()]
    assert logged == pytest.approx([gains[10], gains[20], gains[40]], rel=1e-9)
    assert (tmp_path / "checkpoint-4").is_dir() and "r stops after 40 tokens" in caplog.text
    stopped = read_rows(table)

    resumed = run((gains[20] + gains[40]) / 2, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4 and read_rows(table) == stopped
    again = run((gains[20] + gains[40]) / 2, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 5 and "stops again after one more" in caplog.text
    free = run(gains[40] * 0.99)
    assert free.state.global_step == 8 and "law_point_next_gain" not in rows_with(free, "law_point_loss")[8]


def test_a_step_that_ends_just_before_a_rung_is_judged_from_the_rung_it_went_beyond():
    law = law_through({rung: 2.0 + 3.0 / rung for rung in (10, 20, 40)})
    forecast = LawForecast(MOMENTS, [10, 20, 40], law)
    losses = {rung: law.predict(MOMENTS["mu"], MOMENTS["sigma"], rung) for rung in (10, 20, 40)}
    for num_tokens in (10, 15, 19):
        assert forecast.next_gain(num_tokens) == pytest.approx(losses[10] - losses[20])
    assert forecast.next_gain(39) == pytest.approx(losses[20] - losses[40])
    assert forecast.next_gain(9) > 0 and forecast.next_gain(40) is None


def test_a_law_of_too_few_runs_predicts_without_an_interval(tiny_model, tiny_tokenizer, tmp_path, caplog):
    def no_interval(mu, sigma, num_tokens):
        raise ValueError("intervals need more runs")

    law = SimpleNamespace(
        space="linear", column="perplexity", predict=lambda mu, sigma, num_tokens: 3.0, predict_interval=no_interval
    )
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, max_steps=1)
    options = {"ladder": [100], "moments": MOMENTS, "law": law}
    trainer.add_callback(ScalingLawCallback(trainer, tmp_path / "points.jsonl", "r", DOMAIN, **options))
    trainer.train()
    (row,) = rows_with(trainer, "law_point_loss").values()
    assert row["law_point_predicted_loss"] == 3.0 and "law_point_predicted_low" not in row
    assert "without an interval: intervals need more runs" in caplog.text


@pytest.mark.parametrize("num_runs", [3, 4])
def test_of_a_fitted_law_it_asks_the_law(num_runs, caplog):
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"r{i}",
            "mu": 10.0 + i,
            "sigma": 3.0 + 4 * rng.random(),
            "num_tokens": d,
            "loss": 2 + d**-0.2 + 0.01 * i,
        }
        for i in range(num_runs)
        for d in (1000, 2000, 4000)
    ]
    forecast = LawForecast(MOMENTS, [1000], fit_scaling_law(rows, form="no_interaction", space="linear"))
    assert forecast.has_interval == (num_runs == 4)
    assert ("law_point_predicted_low" in forecast.compare(1000, 2.3)) == (num_runs == 4)
    said = "come without an interval: intervals of form 'no_interaction' need 4 or more runs"
    assert (said in caplog.text) == (num_runs == 3)


def test_of_a_law_of_two_columns_it_takes_the_moments_of_both():
    rng = np.random.default_rng(0)
    rows = [
        {"run": f"run {i}", "num_tokens": D, "loss": 2 + 3 * np.exp(0.1 * m - 0.3 * n) / D**0.2}
        | {"mu": 20.0, "sigma": 9.0, "log_mu": m, "log_sigma": s}
        | {"mu_own": 1.2, "sigma_own": 0.3, "log_mu_own": n, "log_sigma_own": t}
        for i, (m, s, n, t) in enumerate(rng.uniform([2, 0.3, -0.2, 0.1], [4, 0.6, 0.5, 0.4], (9, 4)))
        for D in (1000, 2000, 4000)
    ]
    law = fit_scaling_law(rows, "no_interaction", column=("perplexity", "own"))
    forecast = LawForecast(rows[4], [1000, 2000], law)
    place = [rows[4][name] for name in ("log_mu", "log_mu_own", "log_sigma", "log_sigma_own")]
    assert forecast.predict(2000) == law.predict(place[:2], place[2:], 2000)
    assert forecast.interval(2000) == law.predict_interval(place[:2], place[2:], 2000)
    with pytest.raises(ValueError, match="lack log_mu_own, log_sigma_own"):
        LawForecast({name: rows[4][name] for name in ("mu", "sigma", "log_mu", "log_sigma")}, [1000], law)


def test_the_table_is_looked_at_before_the_training(tiny_model, tiny_tokenizer, tmp_path, caplog):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, max_steps=1)
    table = tmp_path / "points.jsonl"
    options = {"ladder": [100], "moments": MOMENTS}
    table.write_text("no table\n{}\n")
    with pytest.raises(ValueError, match="line 1 of .* is not JSON"):
        ScalingLawCallback(trainer, table, "r", DOMAIN, **options)
    with pytest.raises(FileExistsError):
        ScalingLawCallback(trainer, table / "points.jsonl", "r", DOMAIN, **options)
    table.write_text('{"run": "r", "mu": 22, "sigma": 10, "num_tokens": 7, "loss": 3}\n')
    trainer.add_callback(ScalingLawCallback(trainer, table, "r", DOMAIN, **options))
    trainer.train()
    assert "holds 1 points of run 'r' already" in caplog.text and len(read_rows(table)) == 2


def test_law_points_are_not_doubled_on_resume(tiny_model, tiny_tokenizer, tmp_path):
    table = tmp_path / "points.jsonl"
    start = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    prefixes = [{"num_tokens": 128 * i, "mu": 20.0 + i, "sigma": 5.0} for i in range(1, 5)]

    def run(**options):
        tiny_model.load_state_dict(start)
        trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, save_strategy="steps", save_steps=2)
        trainer.add_callback(
            ScalingLawCallback(trainer, table, "run", DOMAIN, ladder=[128, 256, 384, 512], moments=prefixes)
        )
        trainer.train(**options)

    run()
    unbroken = read_rows(table)
    assert [row["mu"] for row in unbroken] == [21.0, 22.0, 23.0, 24.0] and "log_mu" not in unbroken[0]
    run(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = read_rows(table)
    assert [(row["run"], row["num_tokens"]) for row in resumed] == [("run", 128 * i) for i in range(1, 5)]
    for row, expected in zip(resumed, unbroken, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_diverged_run_ends_without_a_law_point(tiny_model, tiny_tokenizer, tmp_path):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    table = tmp_path / "points.jsonl"
    options = {"ladder": [7, 14], "moments": lambda num_tokens: MOMENTS, "tokens_per_step": 7}
    trainer.add_callback(ScalingLawCallback(trainer, table, "r", DOMAIN, **options))
    tiny_model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        trainer.train()
    assert trainer.state.global_step == 1 and not table.exists()


def test_the_end_of_the_ladder(tiny_model, tiny_tokenizer, tmp_path, caplog):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path, max_steps=2)
    options = {"ladder": [7, 20, 21], "moments": lambda num_tokens: MOMENTS, "tokens_per_step": 7}
    trainer.add_callback(ScalingLawCallback(trainer, tmp_path / "points.jsonl", "r", DOMAIN, **options))
    trainer.train()
    assert [row["num_tokens"] for row in read_rows(tmp_path / "points.jsonl")] == [7, 14]
    assert "r ended after 14 tokens: no law points at [21]" in caplog.text


def test_bad_law_options(tiny_model, tiny_tokenizer, tmp_path):
    trainer = law_trainer(tiny_model, tiny_tokenizer, tmp_path)
    options = {"ladder": [100], "moments": MOMENTS}
    with pytest.raises(ValueError, match="ladder must hold token counts"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"ladder": [0, 100]})
    with pytest.raises(ValueError, match="lack sigma; they hold mu"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"moments": {"mu": 3.0}})
    with pytest.raises(ValueError, match="lack log_mu, log_sigma"):
        law = SimpleNamespace(space="log", column="perplexity")
        moments = {"mu": 3.0, "sigma": 1.0}
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options | {"moments": moments}, law=law)
    with pytest.raises(ValueError, match="no token to score"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", [], **options)
    for stop, law, message in (
        (0.1, None, "needs a law"),
        (0.0, law_through({10: 3.0, 20: 2.5, 40: 2.2}), "more than 0 nats"),
    ):
        with pytest.raises(ValueError, match=message):
            ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options, law=law, stop_when_gain_below=stop)
    with pytest.raises(ValueError, match="the run has no name"):
        ScalingLawCallback(trainer, tmp_path / "p", "", DOMAIN, **options)
    trainer.args.include_num_input_tokens_seen = "no"
    with pytest.raises(ValueError, match="does not count the tokens"):
        ScalingLawCallback(trainer, tmp_path / "p", "r", DOMAIN, **options)
