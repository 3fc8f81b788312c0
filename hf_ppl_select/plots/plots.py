"""Plots of landscapes and scaling laws, each a PNG 1200 pixels wide. They need matplotlib: the extra `plots`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..landscape.landscape import PerplexityLandscape
from ..landscape.scores import check_one_column
from ..law.intervals import check_intervals, gain_interval, loss_interval
from ..law.optimum import Optimum
from ..law.points import LawPoints, read_law_points
from ..law.scaling_law import ScalingLaw
from ..law.solver import solve
from .canvas import (
    BLUE,
    DASHES,
    GREY,
    INK,
    LEGEND,
    LOSS,
    SEQUENTIAL,
    SKY,
    VERMILION,
    canvas,
    check_same_model,
    label_log_axis,
    round_numbers,
    short,
)
from .surface import describe_gain, plot_law_surface

__all__ = ["plot_landscape", "plot_law_surface", "plot_loss_against_tokens", "plot_predicted_against_measured"]

_TOO_FEW_RUNS = "no intervals: too few runs to tell the noise between them"


def plot_landscape(
    landscape: PerplexityLandscape,
    *,
    subset: PerplexityLandscape | None = None,
    title: str | None = None,
    path: str | os.PathLike,
) -> None:
    """Draw the distribution of a score (perplexity, say) over chunks, on a log axis.

    Above the histogram lie the moments in both spaces: mean and standard deviation of the score, and its geometric
    mean with the factor e^(standard deviation of the logarithm). Lines
    mark regimes: 10, 50 and 90 % of the corpus lie below.

    Args:
        landscape: of the corpus.
        subset: of the chunks selected from it, drawn over it.
        title: above the plot.
        path: where to write, ending in .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `path` does not end in .png, or corpus and subset are of different models or score columns.
    """
    check_one_column(landscape.column, "plot_landscape")
    if subset is not None:
        check_same_model("the corpus", landscape.model, "the subset", subset.model)
        if landscape.column != subset.column:
            raise ValueError(f"the corpus's landscape is of {landscape.column}, the subset's of {subset.column}.")
    shown = {"corpus": landscape} | ({} if subset is None else {"subset": subset})
    edges = _bin_edges(landscape, subset)
    about = "Perplexity landscape" if landscape.column == "perplexity" else f"Landscape of {landscape.column}"
    low, high = edges[0], edges[-1]
    with canvas(path, title or about, height=610 + 125 * len(shown)) as figure:
        moments, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1.15 * len(shown), 5])
        axes.set(xscale="log", xlim=(low, high), ylabel="share of chunks in each bin (%)")
        for (name, each), colour in zip(shown.items(), (BLUE, VERMILION)):
            share = 100 * _binned(each, edges) / each.num_chunks
            label = f"{name}: {_count(each.num_chunks, 'chunk')}, {short(each.num_tokens)} tokens"
            style = {"fill": True, "facecolor": SKY} if name == "corpus" else {"linewidth": 2}
            axes.stairs(share, edges, edgecolor=colour, label=label, **style)
        tallest = axes.dataLim.y1
        top = 1.22 * tallest
        axes.set_ylim(0, top)
        axes.set_yticks([tick for tick in axes.get_yticks() if tick <= tallest])  # the marks' labels lie above
        axes.grid(axis="y")
        for q, side, reach in ((0.1, "right", 0.9), (0.5, "left", 0.97), (0.9, "left", 0.9)):
            x = landscape.quantile(q)
            axes.plot([x, x], [reach * top, 0], color=INK, linewidth=0.9, linestyle=DASHES)
            offset = {"xytext": (-4 if side == "right" else 4, 0), "textcoords": "offset points"}
            text = f"{100 * q:.0f} %: {short(x, 3)}"
            axes.annotate(text, (x, reach * top), fontsize=8, color=INK, ha=side, va="center", **offset)
        outside = landscape.num_chunks - int(_binned(landscape, edges).sum())
        beyond = [f"{_count(outside, 'chunk')} beyond this axis"] if outside else []
        beyond += [f"{landscape.num_infinite:,} infinite"] if landscape.num_infinite else []
        axes.set_xlabel(f"{landscape.column} of a chunk" + (f" ({', '.join(beyond)})" if beyond else ""))
        _draw_moments(moments, shown, low, high)
        label_log_axis(axes.xaxis, low, high)
        figure.legend(loc=LEGEND, ncols=2)


def _bin_edges(corpus: PerplexityLandscape, subset: PerplexityLandscape | None) -> np.ndarray:
    """12 to 100 bins, even on a log axis, over all but a thousandth of the corpus; each several of the histogram's.

    As wide as Freedman and Diaconis's rule says; between the corpus's and the subset's width where there is a subset.
    """
    low, high = np.log(corpus.quantile([0.0005, 0.9995]))
    low, high = min(low, corpus.log_mu - 0.3), max(high, corpus.log_mu + 0.3)
    pad = 0.03 * (high - low)
    low, high = low - pad, high + pad
    shown = [corpus] if subset is None else [corpus, subset]
    widths = [2 * np.diff(np.log(each.quantile([0.25, 0.75])))[0] / each.num_chunks ** (1 / 3) for each in shown]
    width = np.clip(np.prod(widths) ** (1 / len(widths)), (high - low) / 100, (high - low) / 12)
    fine = np.log(corpus.histogram()[0])
    step = fine[1] - fine[0]
    step *= max(1, round(width / step))
    first, last = np.floor((low - fine[0]) / step), np.ceil((high - fine[0]) / step)
    return np.exp(fine[0] + step * np.arange(first, last + 1))


def _binned(landscape: PerplexityLandscape, edges: np.ndarray) -> np.ndarray:
    fine, counts = landscape.histogram()
    return np.histogram(np.sqrt(fine[:-1] * fine[1:]), edges, weights=counts)[0]


def _draw_moments(axes: Any, shown: dict[str, PerplexityLandscape], low: float, high: float) -> None:
    """One row per landscape and space: a dot at the mean, a line one standard deviation to each side, the numbers."""
    rows = []
    for (name, each), colour in zip(shown.items(), (BLUE, VERMILION)):
        (mu, sigma), (m, s) = each.moments("linear"), np.exp(each.moments("log"))
        rows.append((f"{name} mean", mu, mu - sigma, mu + sigma, f"{short(mu, 3)} ± {short(sigma, 3)}", colour, "o"))
        rows.append(("geometric mean", m, m / s, m * s, f"{short(m, 3)} ×/÷ {short(s, 3)}", colour, "D"))
    for y, (_, centre, left, right, text, colour, marker) in enumerate(rows):
        axes.plot([max(left, low), min(right, high)], [y, y], color=colour, linewidth=2.2)
        place = np.log(centre / low) / np.log(high / low)
        at, marker = (centre, marker) if place <= 1 else (high, ">")
        axes.plot(at, y, marker, color=colour, markersize=6, markeredgecolor="white", clip_on=False)
        side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
        above = {"xytext": (0, 5), "textcoords": "offset points"}
        axes.annotate(text, (at, y), fontsize=8, color=colour, ha=side, va="bottom", **above)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.6, -0.8)
    axes.tick_params(axis="both", length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def plot_predicted_against_measured(law: ScalingLaw, points: Any = None, *, path: str | os.PathLike) -> None:
    """Draw predicted against measured loss, with 95 % intervals, coloured by the number of training tokens.

    No point is predicted by a fit that saw its run: points of the law's own runs are predicted by refits without that
    run (least squares, as in `compare_scaling_laws`), unless the other runs are too few for the form. The intervals
    are the law's own.

    Args:
        law: a fitted law.
        points: what `read_law_points` takes; the law's own if not given.
        path: where to write, ending in .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `path` does not end in .png, or the points are bad or lack the moments of the law's space.
    """
    check_one_column(law.column, "plot_predicted_against_measured")
    points = law.points if points is None else read_law_points(points)
    mu, sigma = points.moments(law.space, law.column)
    predicted, held_out = _predict_held_out(law, points)
    no_intervals = check_intervals(law)
    interval = None if no_intervals else law.predict_interval(mu, sigma, points.num_tokens)
    error = np.abs(predicted - points.loss).mean()
    how = (
        "each run predicted by a fit without it"
        if held_out.all()
        else "fitted, so optimistic: too few runs to leave one out"
    )
    if held_out.any() and not held_out.all():
        how = f"{held_out.sum()} predicted without their run, {(~held_out).sum()} fitted"
    about = f"{len(points)} points of {len(points.runs)} runs, {how}; law {law.form} in {law.space} space"
    about += f"\n{_TOO_FEW_RUNS}" if no_intervals else ""
    title = f"Predicted against measured loss: mean abs. error {error:.4f} nats per token"
    with canvas(path, title, about, height=840) as figure:
        from matplotlib.colors import LogNorm

        axes = figure.subplots()
        both = np.concatenate([predicted, points.loss])
        pad = np.ptp(both) or 0.1
        low, high = (both, both) if interval is None else interval  # shown whole, unless far out
        first = max(min(both.min() - 0.06 * pad, low.min()), both.min() - 0.2 * pad)
        last = min(max(both.max() + 0.06 * pad, high.max()), both.max() + 0.2 * pad)
        few = len(points) <= 60
        axes.plot([first, last], [first, last], color=GREY, linewidth=1, label="predicted = measured")
        if interval is not None:
            width, alpha = (1.4, 0.35) if few else (0.7, 0.2)
            bars = {"colors": GREY, "linewidth": width, "alpha": alpha, "zorder": 2}
            axes.vlines(points.loss, low, high, label="95 % interval of the prediction", **bars)
        tokens = points.num_tokens
        spread = 1.0 if np.ptp(tokens) else 1.5
        norm = LogNorm(tokens.min() / spread, tokens.max() * spread)
        style = {"cmap": SEQUENTIAL, "norm": norm, "edgecolors": INK, "linewidths": 0.6 if few else 0.3, "zorder": 3}
        dots = axes.scatter(points.loss, predicted, 46 if few else 18, tokens, **style)
        axes.scatter([], [], 46, "white", edgecolors=INK, linewidths=0.8, label="law point")
        axes.set(xlim=(first, last), ylim=(first, last), xlabel=f"measured {LOSS}", ylabel=f"predicted {LOSS}")
        axes.grid()
        distinct = np.unique(tokens)
        ticks = distinct if len(distinct) <= 5 else round_numbers(tokens.min(), tokens.max(), most=6)
        bar = figure.colorbar(dots, ax=axes, label="training tokens D", aspect=30)
        bar.set_ticks(ticks, labels=[short(tick) for tick in ticks])
        bar.ax.set_yticks([], minor=True)
        bar.outline.set_visible(False)
        figure.legend(loc=LEGEND, ncols=3)


def _predict_held_out(law: ScalingLaw, points: LawPoints) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and whether each comes from a fit that has not seen the point's run."""
    X = law.design_matrix(*points.moments(law.space, law.column), points.num_tokens)
    predicted, held_out = law.params["E"] + np.exp(X @ law.theta), ~np.isin(points.run, law.runs)
    seen = [run for run in points.runs if run in law.runs]
    if seen:
        own = law.points
        fitted_to = law.design_matrix(*own.moments(law.space, law.column), own.num_tokens)
        refits = solve(fitted_to, own.loss, np.stack([own.run != run for run in seen]), huber_delta=None)
        for run, solvable, refit in zip(seen, refits.solvable, refits.predict(X)):
            if solvable:
                rows = points.run == run
                predicted[rows], held_out[rows] = refit[rows], True
    return predicted, held_out


def plot_loss_against_tokens(
    law: ScalingLaw,
    landscape: PerplexityLandscape,
    *,
    num_tokens_range: tuple[float, float],
    path: str | os.PathLike,
    **options: Any,
) -> None:
    """Draw predicted loss against the number of training tokens: of a random subset, of the optimum at each budget.

    The band around the optimum is the 95 % interval of its gain over random, the one around random that of its own
    loss (both have most of that in common); a law with no run to spare has none. Hatched: beyond the probes' D.

    Args:
        law: a fitted law.
        landscape: of the corpus to select from.
        num_tokens_range: `(smallest, largest)` budget, at most what the corpus has.
        path: where to write, ending in .png.
        options: of `law.optimum`: a bound on the general loss.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `path` does not end in .png, an impossible range, or no budget in it has an optimum.
    """
    check_one_column(law.column, "plot_loss_against_tokens")
    first, last = num_tokens_range
    if not 0 < first < last <= landscape.num_tokens:
        raise ValueError(
            f"num_tokens_range must rise from above 0 to at most {landscape.num_tokens:,}, the tokens of the corpus, "
            f"got {num_tokens_range}."
        )
    optima = _optima(law, landscape, np.geomspace(first, last, 13).clip(first, last), options)
    budgets = np.array([optimum.num_tokens for optimum in optima])
    random_at = landscape.moments(law.space)
    line = np.geomspace(first, last, 200)
    random = law.predict(*random_at, line)
    gains, bands = np.array([[optimum.gain for optimum in optima]]), None
    no_intervals = check_intervals(law)
    if no_intervals is None:
        best_at = tuple(np.array([getattr(optimum, name) for optimum in optima]) for name in ("mu", "sigma"))
        gains = np.stack([gains[0], *gain_interval(law, best_at, random_at, budgets)[:2]])
        bands = loss_interval(law, *random_at, line)
    # Between budgets it is the gain that is interpolated: it changes more slowly than the loss.
    best, *edges = (random - np.interp(np.log(line), np.log(budgets), gain, np.nan, np.nan) for gain in gains)
    end = law.optimum(landscape, float(budgets[-1]), **options)
    about = f"at {short(end.num_tokens)} tokens: optimum {end.loss:.3f}, a random subset {end.random_loss:.3f}"
    said = describe_gain(end)
    if no_intervals:
        said = f"{said.partition(chr(10))[0]}\n{_TOO_FEW_RUNS}{'; random is extrapolated' * (not end.random_trusted)}"
    title = "Predicted loss against training tokens"
    with canvas(path, title, f"{about}\n{said}", height=840) as figure:
        axes = figure.subplots()
        left, right = first * (first / last) ** 0.02, last * (last / first) ** 0.02
        axes.set(xscale="log", xlim=(left, right), xlabel="training tokens D", ylabel=LOSS)
        axes.plot(line, random, color=INK, linestyle=DASHES, label="random subset", zorder=2.2)
        axes.plot(line, best, color=VERMILION, label="optimum at each budget", zorder=2.1)
        if bands is not None:
            axes.fill_between(line, *bands, color=INK, alpha=0.16, linewidth=0, label="its 95 % interval")
            style = {"facecolor": (VERMILION, 0.25), "edgecolor": VERMILION, "linewidth": 0.8}
            axes.fill_between(line, *edges, label="95 % interval of the gain", **style)
        points = law.points
        dots = {"edgecolors": BLUE, "linewidths": 0.7, "zorder": 3, "label": "probes, measured"}
        axes.scatter(points.num_tokens, points.loss, 24 if len(points) <= 60 else 9, SKY, **dots)
        within = (points.num_tokens >= left) & (points.num_tokens <= right)
        shown = np.concatenate([random, best, points.loss[within]])
        pad = 0.08 * np.ptp(shown[~np.isnan(shown)])
        axes.set_ylim(np.nanmin(shown) - pad, np.nanmax(shown) + pad)
        smallest, largest = law.num_tokens_range
        hatched = {"facecolor": "white", "edgecolor": "#DCDCDC", "hatch": "///", "zorder": 0, "linewidth": 0}
        hatched["label"] = "beyond the probes' D"
        if last > largest:
            axes.axvspan(max(left, largest), right, **hatched)
        if first < smallest:
            axes.axvspan(left, min(smallest, right), **hatched | ({"label": None} if last > largest else {}))
        axes.grid()
        label_log_axis(axes.xaxis, left, right)
        figure.legend(loc=LEGEND, ncols=3)


def _optima(law: ScalingLaw, landscape: PerplexityLandscape, budgets: np.ndarray, options: Any) -> list[Optimum]:
    """The optimum at each budget that has one: near the whole corpus all subsets look alike, as may no probe."""
    optima = []
    for budget in budgets:
        try:
            optima.append(law.optimum(landscape, float(budget), intervals=False, **options))
        except ValueError as error:
            problem = error
    if not optima:
        raise problem
    return optima
