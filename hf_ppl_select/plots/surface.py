"""A scaling law's predicted loss as a map over (mu, sigma), with what is attainable and what is trusted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..landscape.landscape import AttainableRegion, PerplexityLandscape
from ..landscape.reach import log_name
from ..landscape.scores import check_one_column
from ..law.optimum import Optimum, TrustedRegion, percent, trusted_region
from ..law.scaling_law import ScalingLaw
from .canvas import (
    DASHES,
    INK,
    LEGEND,
    LOSS,
    SEQUENTIAL,
    VERMILION,
    canvas,
    check_same_model,
    label_log_axis,
    round_numbers,
    short,
)


def plot_law_surface(
    law: ScalingLaw,
    landscape: PerplexityLandscape,
    optimum: Optimum,
    *,
    num_tokens: float | None = None,
    path: str | os.PathLike,
) -> None:
    """Draw the predicted loss over (mu, sigma), blank where no subset can lie, pale where no probe vouches for it.

    Args:
        law: a fitted law; the axes are in its space.
        landscape: of the corpus to select from.
        optimum: what `law.optimum(landscape, num_tokens)` returned.
        num_tokens: the budget; that of `optimum` if not given.
        path: where to write, ending in .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `path` does not end in .png, or optimum, law, landscape and budget do not belong together.
    """
    check_one_column(law.column, "plot_law_surface")
    num_tokens = optimum.num_tokens if num_tokens is None else num_tokens
    if optimum.space != law.space or optimum.num_tokens != num_tokens:
        raise ValueError(
            f"the optimum is for {short(optimum.num_tokens)} tokens in {optimum.space} space, the plot for "
            f"{short(num_tokens)} in {law.space} space; pass law.optimum(landscape, num_tokens)."
        )
    check_same_model("the law's points", law.model, "the corpus", landscape.model)
    attainable, trusted = landscape.attainable_region(num_tokens, law.space), trusted_region(law)
    random, best = (optimum.random_mu, optimum.random_sigma), (optimum.mu, optimum.sigma)
    (left, bottom), (right, top), log_axes = _window(np.stack([random, best]), trusted, attainable)
    spacing = np.geomspace if log_axes else np.linspace
    mu, sigma = np.meshgrid(spacing(left, right, 241), spacing(bottom or 1e-3 * top, top, 241))
    with np.errstate(over="ignore"):
        loss = np.broadcast_to(law.predict(mu, sigma, num_tokens), mu.shape)
    vouched = loss[attainable.contains(mu, sigma) & trusted.contains(mu, sigma)]
    low, high = np.quantile([*vouched, optimum.loss], [0, 0.99])
    if high - low < 1e-4:  # a law without features
        low, high = low - 0.01, high + 0.01

    title = f"Predicted loss after training on {short(num_tokens)} tokens"
    with canvas(path, title, describe_optimum(optimum), height=940) as figure:
        from matplotlib.patches import PathPatch, Polygon
        from matplotlib.path import Path
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        scale = "log" if log_axes else "linear"
        axes.set(xscale=scale, yscale=scale, xlim=(left, right), ylim=(bottom, top))
        levels = MaxNLocator(20, steps=[1, 2, 5, 10]).tick_values(low, high)
        loss = np.clip(loss, levels[0] - 1, levels[-1] + 1)
        outline = _outline(attainable, left, right, bottom)
        inside = Polygon(outline, visible=False)
        axes.add_patch(inside)
        filled = axes.contourf(mu, sigma, loss, levels, cmap=SEQUENTIAL, extend="both")
        lines = axes.contour(mu, sigma, loss, levels, colors="white", linewidths=0.5)
        # Pale outside the hull: a frame around the window with the hull as its hole (run round the other way).
        hull = np.concatenate([trusted.vertices, trusted.vertices[:1]])
        (a, c), (b, d) = hull.min(0), hull.max(0)
        a, b, c, d = min(a, left), max(b, right), min(c, bottom), max(d, top)
        if log_axes:
            a, b, c, d = a / 2, 2 * b, c / 2, 2 * d
        else:
            a, b, c, d = 2 * a - b, 2 * b - a, 2 * c - d, 2 * d - c
        frame = [(a, c), (a, d), (b, d), (b, c), (a, c)]
        codes = [Path.MOVETO, *[Path.LINETO] * 4, Path.MOVETO, *[Path.LINETO] * (len(hull) - 1)]
        pale = PathPatch(Path([*frame, *hull], codes), facecolor="white", alpha=0.6, linewidth=0, zorder=2)
        axes.add_patch(pale)
        for artist in (filled, lines, pale):
            artist.set_clip_path(inside)
        axes.plot(*outline.T, color=INK, linewidth=1.3, label="attainable by subsets of this size")
        axes.plot(*hull.T, color=INK, linewidth=1.3, linestyle=DASHES, label="trusted: hull of the probes")
        size = 26 if len(law.points) <= 60 else 9
        probes = law.points.moments(law.space, law.column)
        axes.scatter(*probes, size, "white", edgecolors=INK, linewidths=0.8, zorder=3, label="probe")
        marks = {"edgecolors": "white", "linewidths": 1.0, "zorder": 4, "clip_on": False}
        axes.scatter(*random, 80, INK, marker="s", label="random subset", **marks)
        _draw_plausible(axes, optimum)
        axes.scatter(*best, 260, VERMILION, marker="*", label=f"optimum ({optimum.kind})", **marks)
        _label_moments(axes, law, log_axes)
        bar = figure.colorbar(filled, ax=axes, label=f"predicted {LOSS}", aspect=30)
        ticks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high)
        bar.set_ticks(ticks[(ticks >= levels[0]) & (ticks <= levels[-1])])
        bar.outline.set_visible(False)
        figure.legend(loc=LEGEND, ncols=3)


def _draw_plausible(axes: Any, optimum: Optimum) -> None:
    """A cross through the optimum: where it lies for 95 % of plausible laws."""
    if optimum.mu_interval is None:
        return
    line = {"color": VERMILION, "linewidth": 2.0, "zorder": 3.5, "solid_capstyle": "butt"}
    axes.plot(optimum.mu_interval, [optimum.sigma] * 2, label="95 % interval of the optimum", **line)
    axes.plot([optimum.mu] * 2, optimum.sigma_interval, **line)


def describe_optimum(optimum: Optimum) -> str:
    """Three lines: where it is, what it gains, and whether that is more than noise; a bound on forgetting, too."""
    mu, sigma = ("μ", "σ") if optimum.space == "linear" else ("m", "s")
    where = f"optimum ({optimum.kind}) at {mu} = {short(optimum.mu, 3)}, {sigma} = {short(optimum.sigma, 3)}"
    return f"{where}: loss {optimum.loss:.3f}, a random subset {optimum.random_loss:.3f}\n{describe_gain(optimum)}"


def describe_gain(optimum: Optimum) -> str:
    """Two lines: the gain with its interval, and whether that is more than noise."""
    gain = f"gain over random {_signed(optimum.gain)} nats per token"
    if optimum.gain_interval is not None:
        low, high = map(_signed, optimum.gain_interval)
        gain += f" (95 % interval {low} to {high}; above 0: {percent(optimum.gain_probability)})"
    return f"{gain}\n{optimum.verdict}{describe_bound(optimum)}"


def describe_bound(optimum: Optimum) -> str:
    """The general loss that was allowed, if it was bounded."""
    if optimum.max_general_loss is None:
        return ""
    return f"; general loss at most {optimum.max_general_loss:.3f}"


def _signed(x: float) -> str:
    return f"{x:.3f}".replace("-", "−") if abs(x) < 1000 else short(x)


def _window(
    marks: np.ndarray, trusted: TrustedRegion, attainable: AttainableRegion
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Lower and upper corner of what to show, and whether on log axes.

    That is the marks, where attainable and trusted boxes meet, and of the rest of both what is near.
    """
    hull = trusted.vertices.min(0), trusted.vertices.max(0)
    reach = np.array([attainable.mu[[0, -1]], [attainable.sigma_min.min(), attainable.sigma_max.max()]]).T
    low = np.minimum(np.maximum(hull[0], reach[0]), marks.min(0))
    high = np.maximum(np.minimum(hull[1], reach[1]), marks.max(0))
    far_low, far_high = np.minimum(hull[0], reach[0]), np.maximum(hull[1], reach[1])
    log_axes = attainable.space == "linear" and bool((high / np.maximum(low, 1e-3) > 30).any())
    if log_axes:
        least = np.minimum(0.1, 1e-2 * high)
        low, high, far_low, far_high = (np.log(np.maximum(x, least)) for x in (low, high, far_low, far_high))
    extent = high - low
    low = low - np.clip(low - far_low + 0.04 * extent, 0.08 * extent, 0.5 * extent)
    high = high + np.clip(far_high - high + 0.04 * extent, 0.08 * extent, 0.5 * extent)
    if log_axes:
        return np.exp(low), np.exp(high), True
    positive = attainable.space == "linear" or attainable.column == "perplexity"
    return np.maximum(low, [1e-2 * high[0] if positive else -np.inf, 0.0]), high, False


def _outline(attainable: AttainableRegion, left: float, right: float, bottom: float) -> np.ndarray:
    """The region as a closed polygon `(n, 2)`, cut off a little outside the window."""
    beyond = 0.1 * (right - left)
    first, last = max(attainable.mu[0], left - beyond), min(attainable.mu[-1], right + beyond)
    mu = np.linspace(first, last, 1001)
    if first > 0:  # the window may have log axes
        mu = np.concatenate([mu, np.geomspace(first, last, 1001)])
    mu = np.unique(mu.clip(first, last))
    low, high = (np.maximum(sigma, 0.5 * bottom) for sigma in attainable.sigma_bounds(mu))
    around = np.concatenate([np.stack([mu, high], 1), np.stack([mu, low], 1)[::-1]])
    return np.concatenate([around, around[:1]])


def _label_moments(axes: Any, law: Any, log_axes: bool) -> None:
    if law.space == "linear":
        axes.set(xlabel=f"μ: mean {law.column}", ylabel=f"σ: standard deviation of {law.column}")
        if log_axes:
            label_log_axis(axes.xaxis, *axes.get_xlim())
            label_log_axis(axes.yaxis, *axes.get_ylim())
        return
    what, unit = log_name(law.column), "nats per token" if law.column == "perplexity" else "nats"
    axes.set(xlabel=f"m: mean {what} ({unit})", ylabel=f"s: standard deviation of {what} ({unit})")
    ticks = round_numbers(*np.exp(axes.get_xlim()))
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.log(ticks), [short(tick) for tick in ticks])
    above.set_xlabel(f"geometric mean {law.column}")
