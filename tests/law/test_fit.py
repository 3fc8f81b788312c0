import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from hf_ppl_select.law.comparison import compare_scaling_laws
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.forms import LAW_FORMS
from hf_ppl_select.law.points import read_law_points
from hf_ppl_select.law.solver import _polish, huber_gradient, huber_objective, refit, solve

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "data" / "law_points" / "smollm2_medquad.jsonl"
NUM_TOKENS = (8192, 16384, 32768, 65536)
ALL_FORMS = [(form, space) for form in LAW_FORMS for space in ("linear", "log")]


def make_points(form, space, rng, *, num_runs=10, noise=0.0, run_noise=0.0, num_tokens=NUM_TOKENS):
    """Random truth and points of it: `(params, rows)`."""
    m, s = rng.uniform(2.2, 3.8, num_runs), rng.uniform(0.05, 0.6, num_runs)
    mu, sigma = np.exp(m + s**2 / 2), np.exp(m) * s
    x = (mu, sigma) if space == "linear" else (m, s)
    X = LAW_FORMS[form].design_matrix(space, x[0][:, None], x[1][:, None], np.array(num_tokens))
    theta = rng.normal(0, 0.1, X.shape[-1] - 2)
    if (form, space) == ("paper", "linear"):
        theta[[1, 3]] *= 0.03  # these multiply sigma and mu
    aD, E = rng.uniform(0.1, 0.4), rng.uniform(0.3, 2.0)
    log_excess = X[..., 2:] @ theta - aD * np.log(num_tokens)
    ln_Dc = rng.uniform(-1, 0.5) - log_excess.mean()
    loss = E + np.exp(ln_Dc + log_excess)
    loss += run_noise * rng.normal(size=(num_runs, 1)) + noise * rng.normal(size=loss.shape)
    rows = [
        {"run": f"r{i}", "mu": mu[i], "sigma": sigma[i], "log_mu": m[i], "log_sigma": s[i]}
        | {"num_tokens": d, "loss": loss[i, j]}
        for i in range(num_runs)
        for j, d in enumerate(num_tokens)
    ]
    names = LAW_FORMS[form].param_names(space)
    return dict(zip(names, [E, np.exp(ln_Dc), aD, *theta], strict=True)), rows


def test_a_bend_that_runs_away_beside_the_runs_is_no_law(tmp_path):
    """Runs within 0.1 of ln(perplexity) and a steep bend: Dc is more than a number holds, and losses would be inf."""
    rows = []
    for m in (2.95, 2.975, 3.0, 3.025, 3.05):
        for D in (1e4, 2e4, 4e4):
            loss = np.exp(1.2 + 100 * (m - 3) ** 2 - 0.02 * np.log(D))
            moments = {"mu": np.exp(m), "sigma": 1.0, "log_mu": m, "log_sigma": 0.1}
            rows.append({"run": f"m {m}", "num_tokens": D, "loss": loss} | moments)
    with pytest.raises(ValueError, match=r"with a Dc of e\^.*Add probe runs further apart"):
        fit_scaling_law(rows, "log_parabola", "log")
    (row,) = compare_scaling_laws(rows, form="log_parabola", space="log")
    assert "Dc of e^" in row["problem"] and row["loo_mae"] is None
    law = fit_scaling_law(rows, column="perplexity", form="auto")
    law.save(tmp_path / "law.json")
    assert np.isfinite(type(law).load(tmp_path / "law.json").predict(3.0, 0.1, 1e4))


# Recovery and the solver


@pytest.mark.parametrize(("form", "space"), ALL_FORMS)
@pytest.mark.parametrize("huber_delta", [1e-3, None])
def test_noiseless_parameters_are_recovered(form, space, huber_delta):
    for seed in range(100):
        truth, rows = make_points(form, space, np.random.default_rng(seed))
        law = fit_scaling_law(rows, form=form, space=space, huber_delta=huber_delta)
        assert law.params == pytest.approx(truth, rel=1e-6)
        assert law.report.converged and not law.report.floor_at_bound
        assert law.report.rank == len(truth) - 1 and law.report.r2 > 1 - 1e-9


def test_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    _, rows = make_points("paper", "linear", rng, noise=0.02)
    points = read_law_points(rows)
    X = LAW_FORMS["paper"].design_matrix("linear", *points.moments("linear"), points.num_tokens)
    Q, _ = np.linalg.qr(X)
    weights = rng.integers(0, 3, (2, len(points))).astype(float)
    E, c = np.array([0.4, 0.9]), np.linalg.lstsq(Q, np.log(points.loss[:, None] - [0.4, 0.9]), rcond=None)[0].T
    for delta in (1e-3, 0.05):
        gradient, _, _ = huber_gradient(Q, points.loss, weights, E, c, delta)
        x = np.concatenate([E[:, None], c], axis=1)
        for k in range(x.shape[1]):
            step = 1e-7 * np.eye(x.shape[1])[k]
            up, down = (
                huber_objective(Q, points.loss, weights, y[:, 0], y[:, 1:], delta) for y in (x + step, x - step)
            )
            assert (up - down) / 2e-7 == pytest.approx(gradient[:, k], rel=1e-4, abs=1e-8)


def test_the_polish_finds_the_best_of_many_starts():
    """Against L-BFGS-B from many floors, on noisy data with an outlier."""
    for seed in range(1, 4):
        form, space = ALL_FORMS[2 * seed]
        _, rows = make_points(form, space, np.random.default_rng(seed), noise=0.01)
        rows[7]["loss"] += 0.5
        points = read_law_points(rows)
        X = LAW_FORMS[form].design_matrix(space, *points.moments(space), points.num_tokens)
        Q, R = np.linalg.qr(X)
        once = np.ones((1, len(points)))

        def objective(x, Q=Q, points=points, once=once):
            at = (Q, points.loss, once, x[:1], x[None, 1:], 1e-3)
            return 1e3 * huber_objective(*at)[0], 1e3 * huber_gradient(*at)[0][0]

        fits = []
        for E in points.loss.min() * np.linspace(0, 0.9, 5):
            start = np.r_[E, Q.T @ np.log(points.loss - E)]
            bounds = [(0, points.loss.min() * (1 - 1e-9))] + [(None, None)] * X.shape[1]
            options = {"maxiter": 3000, "maxfun": 9000, "ftol": 1e-14, "gtol": 1e-9}
            fits.append(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)
        found = solve(X, points.loss, once, 1e-3)
        assert found.converged[0]
        assert objective(np.r_[found.E[0], R @ found.theta[0]])[0] <= min(fits) * (1 + 1e-6)


@pytest.mark.parametrize("seed", [19, 25, 77, 202, 255, 288, 290])
def test_short_ladders_whose_floor_is_hardly_known_converge(seed):
    """Two rungs a run: along the floor the objective is nearly flat, and 200 steps were not enough."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(12):
        mu, sigma = rng.uniform(1.0, 1.9), rng.uniform(0.1, 0.6)
        for tokens in (2_048, 4_096):
            loss = 0.5 + np.exp(1.05 - 0.03 * np.log(tokens) - 0.1 * np.log(mu)) + rng.normal(0, 0.016)
            rows.append({"run": f"r{run}", "mu": mu, "sigma": sigma, "num_tokens": tokens, "loss": loss})
    law = fit_scaling_law(rows, form="no_interaction", space="linear")
    assert law.report.converged
    points = read_law_points(rows)
    mu, sigma = points.moments("linear")
    Q, R = np.linalg.qr(LAW_FORMS["no_interaction"].design_matrix("linear", mu, sigma, points.num_tokens))
    E, Dc, *theta = law.params.values()
    start = np.array([E]), (R @ [np.log(Dc), *theta])[None]
    E, c, _ = _polish(Q, points.loss[None], np.ones((1, len(points))), *start, 1e-3, max_iterations=3000)
    assert E + np.exp(Q @ c[0]) == pytest.approx(law.predict(mu, sigma, points.num_tokens), abs=1e-5)


def test_an_outlier_hardly_moves_the_huber_fit():
    truth, rows = make_points("no_interaction", "log", np.random.default_rng(3), noise=1e-4)
    rows[7]["loss"] += 1.0
    robust = fit_scaling_law(rows, form="no_interaction", space="log")
    plain = fit_scaling_law(rows, form="no_interaction", space="log", huber_delta=None)
    clean = [r["loss"] for i, r in enumerate(rows) if i != 7]

    def worst(law):
        p = read_law_points(rows)
        return np.abs(np.delete(law.predict(*p.moments("log"), p.num_tokens), 7) - clean).max()

    assert worst(robust) < 2e-3 < 0.02 < worst(plain)


def test_many_weightings_at_once_equal_one_at_a_time():
    rng = np.random.default_rng(0)
    _, rows = make_points("log_parabola", "linear", rng, noise=0.01)
    points = read_law_points(rows)
    X = LAW_FORMS["log_parabola"].design_matrix("linear", *points.moments("linear"), points.num_tokens)
    weights = np.ones((3, len(points)))
    weights[1, :4] = 0
    weights[2, 4:12] = 2
    for delta in (None, 1e-3):
        together = solve(X, points.loss, weights, delta)
        for i, w in enumerate(weights):
            rows_of = np.repeat(np.arange(len(points)), w.astype(int))
            alone = solve(X[rows_of], points.loss[rows_of], np.ones((1, len(rows_of))), delta)
            assert together.predict(X)[i] == pytest.approx(alone.predict(X)[0], abs=1e-6)


def test_many_losses_at_once_equal_one_at_a_time():
    rng = np.random.default_rng(0)
    _, rows = make_points("no_interaction", "log", rng, noise=0.01)
    points = read_law_points(rows)
    X = LAW_FORMS["no_interaction"].design_matrix("log", *points.moments("log"), points.num_tokens)
    losses = points.loss * np.exp(0.003 * rng.standard_normal((4, len(points))))
    once = np.ones((1, len(points)))
    for delta in (None, 1e-3, np.inf):
        together = solve(X, losses, np.ones(losses.shape), delta)
        for i, loss in enumerate(losses):
            assert together.predict(X)[i] == pytest.approx(solve(X, loss, once, delta).predict(X)[0], abs=1e-6)
    center = solve(X, points.loss, once, np.inf)
    near = refit(X, losses, center)  # the last ones were least squares on ln(L) too
    assert near.converged.all() and near.predict(X) == pytest.approx(together.predict(X), abs=1e-6)


def test_the_floor_stops_at_zero_and_says_so():
    _, rows = make_points("data_only", "linear", np.random.default_rng(0))
    for r in rows:
        r["loss"] = 5 - 0.2 * np.log(r["num_tokens"])  # falls faster than any power law with a floor
    law = fit_scaling_law(rows, form="data_only", space="linear")
    assert law.params["E"] == 0.0 and law.report.floor_at_bound
    assert "E is at its bound 0" in str(law)


def test_a_loss_that_rises_is_said():
    _, rows = make_points("no_interaction", "log", np.random.default_rng(0), noise=0.001)
    rising = [r | {"loss": 6 - r["loss"]} for r in rows]
    law = fit_scaling_law(rising, form="no_interaction", space="log")
    assert law.params["aD"] < 0 and "the loss does not fall with D" in str(law)
    assert "does not fall" not in str(fit_scaling_law(rows, form="no_interaction", space="log"))


# What cannot be fitted


def fit(rows, form="paper", space="linear"):
    return fit_scaling_law(rows, form=form, space=space)


def test_too_few_points():
    _, rows = make_points("paper", "linear", np.random.default_rng(0))
    with pytest.raises(ValueError, match="7 parameters and needs at least 8 law points, got 5: measure 3 more"):
        fit(rows[::8])
    with pytest.raises(ValueError, match=r"needs runs at 5 or more different \(mu, sigma\), got 2"):
        fit(rows[:8])
    with pytest.raises(ValueError, match="no law form can.*3 parameters and needs at least 4 law points, got 1"):
        fit_scaling_law(rows[:1])


def test_what_does_not_vary_is_named():
    _, rows = make_points("paper", "linear", np.random.default_rng(0))
    with pytest.raises(ValueError, match="num_tokens is the same at every law point.*two or more num_tokens"):
        fit(rows[::4], form="no_interaction")
    with pytest.raises(ValueError, match=r"ln\(sigma\) is the same at every law point"):
        fit([r | {"sigma": 5.0} for r in rows], form="no_interaction")
    with pytest.raises(ValueError, match=r"ln\(mu\), ln\(sigma\) move together.*rank 3 of 4"):
        fit([r | {"sigma": r["mu"] / 2} for r in rows], form="no_interaction")
    with pytest.raises(ValueError, match="loss is the same"):
        fit([r | {"loss": 2.0} for r in rows])


def test_a_floor_needs_three_levels():
    _, rows = make_points("data_only", "linear", np.random.default_rng(0), noise=0.01)
    two = [r for r in rows if r["num_tokens"] <= 16384]
    with pytest.raises(
        ValueError, match="2 different num_tokens cannot tell apart: evaluate each run at three or more"
    ):
        fit(two, form="data_only")
    problems = {r["form"]: r["problem"] for r in compare_scaling_laws(two)}
    assert "three or more" in problems["data_only"] and problems["log_parabola"] is None


def test_origin_is_kept():
    _, rows = make_points("data_only", "linear", np.random.default_rng(0), noise=0.01)
    law = fit_scaling_law(rows, model="me/model", model_revision="0a1b", corpus="me/corpus@2c")
    assert (law.model, law.model_revision, law.corpus) == ("me/model", "0a1b", "me/corpus@2c")


def test_bad_values_and_names():
    _, rows = make_points("paper", "linear", np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=r"law point 3 \(run 'r0', 65536 tokens\) has sigma 0, and form 'paper' takes"
    ):
        fit([r | {"sigma": 0.0} if i == 3 else r for i, r in enumerate(rows)])
    with pytest.raises(ValueError, match=r"law point 2 \(run 'r0'\) has loss nan"):
        fit([r | {"loss": float("nan")} if i == 2 else r for i, r in enumerate(rows)])
    without_log = [{name: value for name, value in r.items() if not name.startswith("log_")} for r in rows]
    with pytest.raises(ValueError, match=r"law point 0 .* has no 'log_mu', which space='log' needs"):
        fit(without_log, space="log")
    with pytest.raises(ValueError, match="no law form 'cubic'; the forms are data_only"):
        fit(rows, form="cubic")
    with pytest.raises(ValueError, match="'linear' or 'log'"):
        fit(rows, space="cubic")
    assert fit(without_log, form="auto", space="auto").space == "linear"


def test_heavy_tailed_moments_warn_in_linear_space_only():
    _, rows = make_points("no_interaction", "linear", np.random.default_rng(0), noise=0.01)
    heavy = [r | {"sigma": 3 * r["mu"]} if r["run"] == "r2" else r for r in rows]
    with pytest.warns(UserWarning, match=r"4 of 40 points are heavy-tailed, first law point 8 \(run 'r2'"):
        fit(heavy, form="no_interaction")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(heavy, form="no_interaction", space="log")
        fit(rows, form="no_interaction")


# Comparison


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured law points are not at ../shared/data/law_points")
def test_the_measured_points_give_the_published_table():
    """R² of the loss and leave-one-run-out mean absolute error, 30 points of SmolLM2-135M on MedQuAD."""
    rows = {(r["form"], r["space"]): r for r in compare_scaling_laws(MEASURED)}
    published = {
        ("data_only", "linear"): (3, 0.849, 0.0469),
        ("paper", "linear"): (7, 0.980, 0.0227),
        ("no_interaction", "linear"): (5, 0.963, 0.0324),
        ("log_parabola", "linear"): (6, 0.982, 0.0176),
        ("log_parabola", "log"): (5, 0.9795, 0.0195),
    }
    for key, (num_params, r2, loo_mae) in published.items():
        assert rows[key]["num_params"] == num_params
        assert rows[key]["r2"] == pytest.approx(r2, abs=5.1e-4 if r2 != 0.9795 else 5e-5)
        assert rows[key]["loo_mae"] == pytest.approx(loo_mae, abs=5e-5)
    chosen = fit_scaling_law(MEASURED)
    assert (chosen.form, chosen.space) == ("log_parabola", "log")


def naive_comparison(points, form, space):
    """R² and leave-one-run-out error by lstsq and a scalar search, one run at a time."""
    X = LAW_FORMS[form].design_matrix(space, *points.moments(space), points.num_tokens)

    def predictions(rows, at):
        A, loss = X[rows], points.loss[rows]

        def error(E):
            y = np.log(loss - E)
            return np.sum((y - A @ np.linalg.lstsq(A, y, rcond=None)[0]) ** 2)

        grid = np.linspace(0, loss.min() * (1 - 1e-6), 400)
        i = int(np.argmin([error(E) for E in grid]))
        bounds = (grid[max(i - 1, 0)], grid[min(i + 1, 399)])
        E = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x
        return E + np.exp(X[at] @ np.linalg.lstsq(A, np.log(loss - E), rcond=None)[0])

    everything = np.ones(len(points), dtype=bool)
    residual = predictions(everything, everything) - points.loss
    errors = [
        np.abs(predictions(points.run != run, points.run == run) - points.loss[points.run == run])
        for run in points.runs
    ]
    return 1 - np.sum(residual**2) / np.sum((points.loss - points.loss.mean()) ** 2), np.mean(np.concatenate(errors))


def test_the_largest_num_tokens_is_predicted_from_the_others():
    """Against a law fitted by hand to the smaller token counts; runs end at nearly, not exactly, equal counts."""
    _, rows = make_points("log_parabola", "log", np.random.default_rng(5), noise=0.01, num_tokens=NUM_TOKENS[:3])
    rows = [r | {"num_tokens": r["num_tokens"] + i} for i, r in enumerate(rows)]
    small, large = ([r for r in rows if (r["num_tokens"] < 30_000) == first] for first in (True, False))
    for row in compare_scaling_laws(rows, form="log_parabola"):
        law = fit_scaling_law(small, form="log_parabola", space=row["space"], huber_delta=None)
        points = read_law_points(large)
        error = law.predict(*points.moments(row["space"]), points.num_tokens) - points.loss
        assert len(points) == 10 and row["held_out_d_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert all(row["held_out_d_mae"] is not None for row in compare_scaling_laws(rows))
    lone = [r for r in rows if r["run"] == "r0" or r["num_tokens"] > 30_000]  # without the last D one run is left
    assert all(row["held_out_d_mae"] is None for row in compare_scaling_laws(lone, form="no_interaction"))


def test_comparison_matches_the_naive_computation():
    _, rows = make_points("log_parabola", "log", np.random.default_rng(5), noise=0.01, num_tokens=NUM_TOKENS[:3])
    points = read_law_points(rows)
    table = compare_scaling_laws(points)
    assert len(table) == 7  # four forms in two spaces, data_only once
    assert [r["loo_mae"] for r in table] == sorted(r["loo_mae"] for r in table)
    assert sum(r["chosen"] for r in table) == 1 and all(r["problem"] is None for r in table)
    for r in table:
        r2, loo_mae = naive_comparison(points, r["form"], r["space"])
        assert r["r2"] == pytest.approx(r2, abs=1e-5) and r["loo_mae"] == pytest.approx(loo_mae, rel=1e-3)


def test_auto_takes_the_simplest_form_that_predicts_as_well():
    rng = np.random.default_rng(1)
    _, rows = make_points("data_only", "linear", rng, noise=0.003)
    assert fit_scaling_law(rows).form == "data_only"
    truth, rows = make_points("log_parabola", "log", rng, noise=0.003)
    law = fit_scaling_law(rows, space="log")
    assert law.form == "log_parabola" and law.params["a1"] == pytest.approx(truth["a1"], rel=0.3)
    assert fit_scaling_law(rows, form="paper").form == "paper"


def test_auto_considers_only_what_can_be_fitted():
    _, rows = make_points("no_interaction", "linear", np.random.default_rng(2), num_runs=4, noise=0.01)
    table = compare_scaling_laws(rows)
    problems = {(r["form"], r["space"]): r["problem"] for r in table}
    assert "5 or more different" in problems["paper", "linear"] and problems["no_interaction", "linear"] is None
    assert next(r for r in table if r["form"] == "paper")["loo_mae"] is None
    assert fit_scaling_law(rows).form != "paper"
    one_run = rows[:4]
    with pytest.raises(ValueError, match="no law form can be fitted and compared.*run 'r0'"):
        fit_scaling_law(one_run)
    assert fit_scaling_law(one_run, form="data_only", space="linear").report.num_runs == 1


def test_auto_says_that_two_runs_give_a_law_that_cannot_select():
    _, rows = make_points("no_interaction", "linear", np.random.default_rng(2), num_runs=2, noise=0.01)
    with pytest.warns(UserWarning, match=r"no form that reads mu and sigma.*cannot select.*3 or more.*Add probe runs"):
        assert fit_scaling_law(rows).form == "data_only"
    _, more = make_points("no_interaction", "linear", np.random.default_rng(2), num_runs=8, noise=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_scaling_law(rows, form="data_only")  # asked for
        fit_scaling_law(more)
