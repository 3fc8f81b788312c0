"""Plots: a PNG 1200 pixels wide, nothing half-written, no label on top of another, with few points and with many."""

import math
import struct
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_ppl_select.landscape.landscape import PerplexityLandscape
from hf_ppl_select.law.comparison import compare_scaling_laws
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.plots.canvas import WIDTH, round_numbers, short
from hf_ppl_select.plots.plots import (
    _predict_held_out,
    plot_landscape,
    plot_law_surface,
    plot_loss_against_tokens,
    plot_predicted_against_measured,
)


def make_points(num_runs, budgets, seed=0):
    """Points of a log-parabola law with a little noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(num_runs):
        m, s = rng.uniform(2.3, 3.9), rng.uniform(0.1, 0.6)
        mu = math.exp(m + s**2 / 2)
        sigma = mu * math.sqrt(math.expm1(s**2))
        for D in budgets:
            loss = 0.9 + 1.8 * (D / 8192) ** -0.25 * math.exp(0.2 * (m - 3.3) ** 2) + rng.normal(0, 0.01)
            row = {"run": f"r{run}", "mu": mu, "sigma": sigma, "log_mu": m, "log_sigma": s}
            rows.append({**row, "num_tokens": D, "loss": loss})
    return rows


@pytest.fixture(scope="module")
def corpus():
    """Good text, some boilerplate of low perplexity, and a tail of junk."""
    rng = np.random.default_rng(0)
    parts = rng.normal(3.03, 0.44, 6000), rng.normal(2.25, 0.16, 800), rng.normal(8.1, 0.55, 900)
    return PerplexityLandscape.from_values(np.exp(np.concatenate(parts)), np.full(7700, 128))


@pytest.fixture(scope="module")
def clean():
    perplexity = np.exp(np.random.default_rng(1).normal(3.0, 0.45, 8000))
    return PerplexityLandscape.from_values(perplexity, np.full(8000, 128))


LAWS = {
    "log": lambda: fit_scaling_law(make_points(10, [8192, 16384, 32768]), "log_parabola", "log"),
    "linear": lambda: fit_scaling_law(make_points(10, [8192, 16384, 32768]), "paper", "linear"),
    "5 points": lambda: fit_scaling_law(make_points(2, [8192, 16384, 32768])[:5], "data_only", "linear"),
    "500 points": lambda: fit_scaling_law(
        make_points(100, [2**n for n in range(13, 18)]), "log_parabola", "linear", huber_delta=None
    ),
}


@pytest.fixture(scope="module", params=LAWS)
def law(request):
    return LAWS[request.param]()


@pytest.fixture
def texts(monkeypatch):
    """Where each text was drawn, in pixels, last time; a text and its box."""
    drawn = {}
    draw = Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            drawn[id(self)] = self.get_text(), self.get_window_extent(renderer)
        return draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    return drawn


def check_png(path, texts):
    """1200 pixels wide, alone in its folder, every text inside and none over another."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    assert width == WIDTH == 1200 and 600 < height < 1000
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    boxes = list(texts.values())
    assert len(boxes) > 10
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} is cut off"
        for other, other_box in boxes[:i]:
            apart = (
                box.x0 >= other_box.x1 or other_box.x0 >= box.x1 or box.y0 >= other_box.y1 or other_box.y0 >= box.y1
            )
            assert apart, f"{text!r} lies on {other!r}"


@pytest.mark.filterwarnings("error")
class TestEachPlotReads:
    @pytest.mark.parametrize("num_chunks", [1, 5, 500])
    def test_landscape_alone(self, tmp_path, texts, num_chunks):
        perplexity = np.exp(np.random.default_rng(2).normal(3, 0.4, num_chunks))
        plot_landscape(PerplexityLandscape.from_values(perplexity), path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)

    def test_landscape_with_junk_and_subset(self, tmp_path, texts, corpus):
        subset = PerplexityLandscape.from_values(np.linspace(20, 35, 300), np.full(300, 128))
        plot_landscape(corpus, subset=subset, title="A corpus with junk", path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)
        drawn = [text for text, _ in texts.values()]
        assert "A corpus with junk" in drawn
        assert f"{short(corpus.mu, 3)} ± {short(corpus.sigma, 3)}" in drawn
        assert f"{short(math.exp(corpus.log_mu), 3)} ×/÷ {short(math.exp(corpus.log_sigma), 3)}" in drawn
        assert f"90 %: {short(corpus.quantile(0.9), 3)}" in drawn
        assert "subset: 300 chunks, 38.4k tokens" in drawn

    def test_landscape_whose_mean_lies_off_the_axis(self, tmp_path, texts):
        perplexity = [*np.exp(np.random.default_rng(3).normal(3, 0.4, 3000)), 1e9, math.inf]
        plot_landscape(PerplexityLandscape.from_values(perplexity), path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)
        assert "perplexity of a chunk (1 chunk beyond this axis, 1 infinite)" in [text for text, _ in texts.values()]

    def test_surface(self, tmp_path, texts, law, clean):
        optimum = law.optimum(clean, 200_000)
        plot_law_surface(law, clean, optimum, num_tokens=200_000, path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)
        assert f"optimum ({optimum.kind})" in [text for text, _ in texts.values()]

    @pytest.mark.parametrize("name", ["log", "linear"])
    def test_surface_of_a_corpus_with_junk(self, tmp_path, texts, corpus, name):
        law = LAWS[name]()
        plot_law_surface(law, corpus, law.optimum(corpus, 100_000), path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)

    @pytest.mark.parametrize("share", [0.97, 1.0])
    def test_surface_of_nearly_all_the_corpus(self, tmp_path, texts, clean, share):
        law = LAWS["linear"]()
        optimum = law.optimum(clean, share * clean.num_tokens, intervals=False)
        plot_law_surface(law, clean, optimum, path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)

    def test_predicted_against_measured(self, tmp_path, texts, law):
        plot_predicted_against_measured(law, path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)

    def test_loss_against_tokens(self, tmp_path, texts, law, clean):
        plot_loss_against_tokens(law, clean, num_tokens_range=(8192, 400_000), path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)

    @pytest.mark.parametrize("budgets", [(100_000, 900_000), (1_000, 5_000), (10_000, 20_000)])
    def test_loss_beyond_and_within_the_probes(self, tmp_path, texts, clean, budgets):
        plot_loss_against_tokens(LAWS["log"](), clean, num_tokens_range=budgets, path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)


class TestHeldOutPredictions:
    @pytest.mark.parametrize("form, space", [("log_parabola", "log"), ("paper", "linear")])
    def test_are_those_of_the_comparison(self, form, space):
        law = fit_scaling_law(make_points(10, [8192, 16384, 32768]), form, space)
        predicted, held_out = _predict_held_out(law, law.points)
        (row,) = compare_scaling_laws(law.points, form=form, space=space)
        assert held_out.all()
        assert np.abs(predicted - law.points.loss).mean() == pytest.approx(row["loo_mae"], rel=1e-9)

    def test_of_new_runs_come_from_the_law_itself(self, tmp_path, texts):
        law, new = LAWS["log"](), make_points(4, [8192, 65536], seed=9)
        for row in new:
            row["run"] = f"new {row['run']}"
        plot_predicted_against_measured(law, new, path=tmp_path / "a.png")
        predicted = law.predict(
            [r["log_mu"] for r in new], [r["log_sigma"] for r in new], [r["num_tokens"] for r in new]
        )
        error = np.abs(predicted - [r["loss"] for r in new]).mean()
        drawn = [text for text, _ in texts.values()]
        assert f"Predicted against measured loss: mean abs. error {error:.4f} nats per token" in drawn

    def test_say_when_there_are_too_few_runs(self, tmp_path, texts):
        law = fit_scaling_law(make_points(3, [8192, 16384, 32768]), "no_interaction", "linear")
        plot_predicted_against_measured(law, path=tmp_path / "a.png")
        assert any("too few runs to leave one out" in text for text, _ in texts.values())
        assert any("no intervals: too few runs" in text for text, _ in texts.values())

    @pytest.mark.filterwarnings("error")
    def test_without_intervals_loss_against_tokens_says_so(self, tmp_path, texts, clean):
        law = fit_scaling_law(make_points(3, [8192, 16384, 32768]), "no_interaction", "linear")
        plot_loss_against_tokens(law, clean, num_tokens_range=(8192, 100_000), path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)
        assert any("no intervals: too few runs" in text for text, _ in texts.values())
        assert not any("its 95 % interval" in text for text, _ in texts.values())

    def test_of_the_measured_points(self, tmp_path, texts, shared_data):
        law = fit_scaling_law(shared_data / "law_points" / "smollm2_medquad.jsonl", "log_parabola", "log")
        plot_predicted_against_measured(law, path=tmp_path / "a.png")
        check_png(tmp_path / "a.png", texts)
        assert any(text.endswith("mean abs. error 0.0195 nats per token") for text, _ in texts.values())


class TestNothingGoesWrongSilently:
    def test_a_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch, clean):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")

        def half(self, file, **_):
            with open(file, "wb") as out:
                out.write(b"half a picture")
            raise OSError("disk full")

        monkeypatch.setattr(Figure, "savefig", half)
        with pytest.raises(OSError, match="disk full"):
            plot_landscape(clean, path=path)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def test_a_failure_while_drawing_writes_nothing(self, tmp_path, monkeypatch, clean):
        def fail(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr("hf_ppl_select.plots.plots._draw_moments", fail)
        with pytest.raises(RuntimeError, match="broken"):
            plot_landscape(clean, path=tmp_path / "deep" / "a.png")
        assert not list(tmp_path.iterdir())

    def test_folders_are_made(self, tmp_path, clean):
        plot_landscape(clean, path=str(tmp_path / "deep" / "er" / "a.png"))
        assert (tmp_path / "deep" / "er" / "a.png").stat().st_size > 10_000

    def test_only_png(self, tmp_path, clean):
        with pytest.raises(ValueError, match=r"must end in \.png, got .*a\.pdf"):
            plot_landscape(clean, path=tmp_path / "a.pdf")
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib(self, tmp_path, monkeypatch, clean):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install hf-ppl-select\[plots\]"):
            plot_landscape(clean, path=tmp_path / "a.png")

    def test_other_models_do_not_mix(self, tmp_path, clean):
        a, b = (PerplexityLandscape.from_values([10.0, 20.0, 30.0], model=model) for model in ("model-a", "model-b"))
        with pytest.raises(ValueError, match="model-a, the subset by model-b"):
            plot_landscape(a, subset=b, path=tmp_path / "a.png")
        law = fit_scaling_law(make_points(10, [8192, 16384]), "log_parabola", "log", model="model-a")
        optimum = law.optimum(clean, 100_000, intervals=False)
        with pytest.raises(ValueError, match="model-a, the corpus by model-b"):
            plot_law_surface(law, b, optimum, path=tmp_path / "a.png")

    def test_an_optimum_of_another_budget_or_space(self, tmp_path, clean):
        log, linear = LAWS["log"](), LAWS["linear"]()
        optimum = log.optimum(clean, 100_000, intervals=False)
        with pytest.raises(ValueError, match="the optimum is for 100k tokens in log space, the plot for 200k"):
            plot_law_surface(log, clean, optimum, num_tokens=200_000, path=tmp_path / "a.png")
        with pytest.raises(ValueError, match="in linear space; pass law.optimum"):
            plot_law_surface(linear, clean, optimum, path=tmp_path / "a.png")

    @pytest.mark.parametrize("budgets", [(0, 1000), (2000, 1000), (1000, 1e9), (1000, math.nan)])
    def test_an_impossible_range(self, tmp_path, clean, budgets):
        with pytest.raises(ValueError, match="num_tokens_range must rise from above 0 to at most 1,024,000"):
            plot_loss_against_tokens(LAWS["log"](), clean, num_tokens_range=budgets, path=tmp_path / "a.png")

    def test_a_corpus_that_no_probe_covers(self, tmp_path):
        far = PerplexityLandscape.from_values(np.linspace(900, 1000, 100), np.full(100, 128))
        with pytest.raises(ValueError, match="no moments that the probes cover"):
            plot_loss_against_tokens(LAWS["log"](), far, num_tokens_range=(1000, 9000), path=tmp_path / "a.png")


def test_users_style_is_neither_used_nor_changed(tmp_path, clean):
    from matplotlib import image

    with matplotlib.rc_context({"figure.facecolor": "black", "savefig.dpi": 30, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        plot_landscape(clean, path=tmp_path / "a.png")
        assert dict(matplotlib.rcParams) == before
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[1] == WIDTH
    assert (pixels[0, 0, :3] == 1).all() and pixels[:, :, :3].mean() > 0.85


def test_pyplot_is_not_imported_nor_matplotlib_before_a_plot(tmp_path):
    script = f"""
import sys
from hf_ppl_select.plots.plots import plot_landscape
from hf_ppl_select.landscape.landscape import PerplexityLandscape
assert "matplotlib" not in sys.modules and "torch" not in sys.modules
plot_landscape(PerplexityLandscape.from_values([10.0, 20.0, 30.0]), path={str(tmp_path / "a.png")!r})
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "low, high", [(5, 90), (3.2, 21_000), (1e3, 1e12), (21, 23), (0.9, 1.1), (19.5, 20.4), (8192, 32768)]
)
def test_log_axes_get_a_few_round_numbers(low, high):
    ticks = round_numbers(low, high)
    assert 3 <= len(ticks) <= 9
    assert (ticks >= low).all() and (ticks <= high).all() and (np.diff(ticks) > 0).all()
    labels = [short(tick) for tick in ticks]
    assert len(set(labels)) == len(labels) and all(len(label) <= 6 for label in labels)


def test_short_numbers():
    numbers = [0.25, 1.5, 21.95, 8192, 16384, 500_000, 50e6, 2.5e9, 1e12]
    assert [short(x) for x in numbers] == ["0.25", "1.5", "21.95", "8,192", "16.4k", "500k", "50M", "2.5B", "1T"]
    assert short(21.954, 3) == "22" and short(2354.3, 3) == "2,354"
