import json
import math

import numpy as np
import pytest

from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.forms import LAW_FORMS, LawForm, Term
from hf_ppl_select.law.scaling_law import ScalingLaw

MU, SIGMA, M, S = 20.0, 8.0, 2.9, 0.4


def points(num_runs=10, noise=0.0, seed=0):
    """Probes all over (mu, sigma), three D each, of a law with ln(mu) and ln(sigma)."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(num_runs):
        m, s = rng.uniform(2.2, 3.8), rng.uniform(0.1, 0.6)
        mu, sigma = math.exp(m + s**2 / 2), math.exp(m) * s
        for num_tokens in (8192, 16384, 32768):
            loss = 1.2 + math.exp(2 - 0.2 * math.log(num_tokens) - 0.1 * m + 0.05 * math.log(s)) + noise * rng.normal()
            rows.append(
                {"run": f"r{run}", "mu": mu, "sigma": sigma, "log_mu": m, "log_sigma": s}
                | {"num_tokens": num_tokens, "loss": loss}
            )
    return rows


@pytest.fixture(scope="module")
def law():
    return fit_scaling_law(points(noise=0.01), form="paper", space="linear", model="some/model")


@pytest.mark.parametrize(
    ("form", "space", "names", "exponent"),
    [
        ("data_only", "linear", "E Dc aD", lambda p, mu, s: 0),
        ("no_interaction", "linear", "E Dc aD a0 b0", lambda p, mu, s: p[0] * np.log(mu) + p[1] * np.log(s)),
        (
            "paper",
            "linear",
            "E Dc aD a0 a1 b0 b1",
            lambda p, mu, s: (p[0] + p[1] * s) * np.log(mu) + (p[2] + p[3] * mu) * np.log(s),
        ),
        (
            "log_parabola",
            "linear",
            "E Dc aD a0 a1 b0",
            lambda p, mu, s: p[0] * np.log(mu) + p[1] * np.log(mu) ** 2 + p[2] * np.log(s),
        ),
        ("data_only", "log", "E Dc aD", lambda p, m, s: 0),
        ("no_interaction", "log", "E Dc aD a0 b0", lambda p, m, s: p[0] * m + p[1] * np.log(s)),
        (
            "paper",
            "log",
            "E Dc aD a0 a1 b0 b1",
            lambda p, m, s: (p[0] + p[1] * s) * m + (p[2] + p[3] * m) * np.log(s),
        ),
        ("log_parabola", "log", "E Dc aD a0 a1", lambda p, m, s: p[0] * m + p[1] * m**2),
    ],
)
def test_each_form_is_its_formula(form, space, names, exponent):
    """The prediction is E + Dc / (D^aD * exp(exponent)), written out here independently."""
    fitted = fit_scaling_law(points(), form=form, space=space)
    assert " ".join(fitted.params) == names
    mu, sigma = (MU, SIGMA) if space == "linear" else (M, S)
    E, Dc, aD, *rest = fitted.params.values()
    expected = E + Dc / (5e4**aD * np.exp(exponent(rest, mu, sigma)))
    assert fitted.predict(mu, sigma, 5e4) == pytest.approx(expected, rel=1e-12)


def test_predict_broadcasts_and_checks(law):
    loss = law.predict(np.array([[10.0], [20.0]]), 5.0, np.array([1e4, 2e4, 4e4]))
    assert loss.shape == (2, 3) and loss[1, 2] == pytest.approx(law.predict(20.0, 5.0, 4e4))
    assert isinstance(law.predict(20.0, 5.0, 4e4), float)
    for bad, name in (((0, 5, 1e4), "mu"), ((20, 0, 1e4), "sigma"), ((20, 5, -1), "num_tokens")):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            law.predict(*bad)
    with pytest.raises(ValueError, match="mu must be positive"):
        law.predict(float("nan"), 5, 1e4)


def test_a_form_without_sigma_ignores_it():
    law = fit_scaling_law(points(), form="log_parabola", space="log")
    assert law.predict(M, 0.0, 1e4) == law.predict(M, 0.5, 1e4)


def test_a_new_form_is_one_entry(monkeypatch):
    bump = LawForm(
        linear=(Term("c0", "mu", lambda mu, sigma: mu),), log=(Term("c0", "exp(m)", lambda m, s: np.exp(m)),)
    )
    monkeypatch.setitem(LAW_FORMS, "bump", bump)
    law = fit_scaling_law(points(), form="bump", space="linear")
    assert list(law.params) == ["E", "Dc", "aD", "c0"] and "*mu" in str(law)


def test_what_a_law_tells(law):
    assert law.runs == tuple(f"r{i}" for i in range(10))
    assert law.num_tokens_range == (8192, 32768)
    assert 0 < law.residual_std < 0.02
    text = str(law)
    assert text.startswith("loss = ") and "sigma*ln(mu)" in text and "30 points of 10 runs" in text
    assert "model='some/model'" in repr(law) and len(repr(law)) < 200


def test_units():
    for form in LAW_FORMS:
        for space in ("linear", "log"):
            law = fit_scaling_law(points(), form=form, space=space)
            assert list(law.units) == list(law.params)
            assert law.units["E"] == "nats/token" and law.units["aD"] == "1"
    assert fit_scaling_law(points(), form="paper", space="linear").units["a1"] == "1/perplexity"
    assert fit_scaling_law(points(), form="log_parabola", space="log").units["a1"] == "1/nat^2"


def test_units_make_the_exponent_a_pure_number():
    """Perplexity is a pure number but counted in its own unit; nll in bits for nats must leave predictions as are."""
    law = fit_scaling_law(points(), form="log_parabola", space="log")
    bits = 1 / math.log(2)
    p, powers = law.params, {"1/nat": 1, "1/nat^2": 2, "1": 0}
    scaled = {name: p[name] / bits ** powers[law.units[name]] for name in ("a0", "a1")}
    exponent = scaled["a0"] * (M * bits) + scaled["a1"] * (M * bits) ** 2
    assert p["E"] + p["Dc"] / (1e4 ** p["aD"] * math.exp(exponent)) == pytest.approx(law.predict(M, S, 1e4))


def test_laws_saved_before_there_were_origins_load(law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    document = json.loads(path.read_text())
    assert document["schema_version"] == 1 and document["units"] == law.units
    for name in ("checksum", "units", "model_revision", "corpus"):
        del document[name]
    path.write_text(json.dumps(document))
    loaded = ScalingLaw.load(path)
    assert (
        loaded.model_revision is None
        and loaded.corpus is None
        and loaded.predict(20, 5, 1e4) == law.predict(20, 5, 1e4)
    )


def test_load_refuses_what_was_changed(law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    document = json.loads(path.read_text())
    changes = {
        "lacks report": {name: value for name, value in document.items() if name != "report"},
        "lacks report.converged": document | {"report": {"r2": 1.0}},
        "params.E 'low'; it must be a finite number": document | {"params": document["params"] | {"E": "low"}},
        "Dc -1, which no fit to its points gives": document | {"params": document["params"] | {"Dc": -1}},
        "no law points": document | {"points": []},
    }
    for message, changed in changes.items():
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            ScalingLaw.load(path)


def test_save_and_load(law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    loaded = ScalingLaw.load(path)
    assert loaded.to_dict() == law.to_dict()
    assert loaded.predict(MU, SIGMA, 1e6) == law.predict(MU, SIGMA, 1e6)
    assert loaded.predict_interval(MU, SIGMA, 1e5) == law.predict_interval(MU, SIGMA, 1e5)
    assert loaded.report == law.report and loaded.model == "some/model" and len(loaded.points) == 30


def test_load_refuses_other_files(law, tmp_path):
    path = tmp_path / "law.json"
    law.save(path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99"):
        ScalingLaw.load(path)
    path.write_text(json.dumps({**document, "kind": "hf_ppl_select/landscape"}))
    with pytest.raises(ValueError, match="not 'hf_ppl_select/scaling_law'"):
        ScalingLaw.load(path)
    path.write_text(json.dumps({**document, "form": "cubic"}))
    with pytest.raises(ValueError, match="no law form 'cubic'"):
        ScalingLaw.load(path)
    path.write_text(json.dumps({**document, "params": {"E": 1.0}}))
    with pytest.raises(ValueError, match="has parameters"):
        ScalingLaw.load(path)
    path.write_text("not json")
    with pytest.raises(ValueError, match="not valid JSON"):
        ScalingLaw.load(path)


def test_predict_interval(law):
    low, high = law.predict_interval(MU, SIGMA, 2e4)
    assert low < law.predict(MU, SIGMA, 2e4) < high
    assert (low, high) == law.predict_interval(MU, SIGMA, 2e4)
    assert (low, high) != law.predict_interval(MU, SIGMA, 2e4, seed=1)
    narrow = law.predict_interval(MU, SIGMA, 2e4, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert high - low > 2 * law.residual_std  # the noise of one measurement is in it
    lows, highs = law.predict_interval(np.array([15.0, 20.0]), SIGMA, np.array([[1e4], [2e4]]))
    assert lows.shape == highs.shape == (2, 2) and (lows < highs).all()
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        law.predict_interval(MU, SIGMA, 2e4, level=95)
