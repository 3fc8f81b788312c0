"""What all plots share: a light figure of a known size, colours that colour-blind readers can tell apart, log axes
with legible ticks, and a PNG that is never half-written. No pyplot: nothing global changes, and no display is needed.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..data.saving import written_aside

WIDTH, DPI = 1200, 150  # pixels, pixels per inch

# From Okabe and Ito's palette; each pair that meets in a plot also differs in lightness or shape.
BLUE, SKY, VERMILION, INK, GREY = "#0072B2", "#A9D3EE", "#D55E00", "#222222", "#6B6B6B"
SEQUENTIAL = "viridis"

DASHES = (0, (4, 3))
LEGEND = "outside lower center"  # of the figure, so never over data
LOSS = "held-out loss (nats per token)"

_STYLE = {
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "xtick.minor.visible": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "butt",
}


@contextmanager
def canvas(path: str | os.PathLike, title: str, about: str = "", *, height: int) -> Iterator[Any]:
    """A matplotlib `Figure` of 1200 x `height` pixels to draw on; once the block is through, it is saved to `path`.

    `about` is small print under the title; each of its lines has to fit the width.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install hf-ppl-select[plots]") from error
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"plots are saved as PNG, so path must end in .png, got {str(path)!r}.")
    title, about = textwrap.wrap(title, 76), about.splitlines()
    with style.context(["default", _STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout="constrained")
        under_title = 14 + 34 * len(title)  # pixels from the top
        head = under_title + 27 * len(about) + 6
        figure.text(0.012, 1 - 14 / height, "\n".join(title), va="top", fontsize=12, fontweight="bold", color=INK)
        figure.text(0.012, 1 - under_title / height, "\n".join(about), va="top", linespacing=1.4, color=GREY)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, rect=(0, 0, 1, 1 - head / height))
        yield figure
        with written_aside(path) as aside:
            figure.savefig(aside, format="png")


def check_same_model(what: str, model: str | None, other: str, other_model: str | None) -> None:
    """Raise unless one model gave both perplexities, as far as is told."""
    if model and other_model and model != other_model:
        raise ValueError(
            f"{what} was scored by {model}, {other} by {other_model}; their perplexities do not compare. "
            "Score both with one model."
        )


def short(value: float, digits: int = 4) -> str:
    """A number to read at a glance: 0.25, 21.95, 8,192, 16.4k, 50M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def round_numbers(low: float, high: float, most: int = 9) -> np.ndarray:
    """From 3 to `most` round numbers between two positive ones, as evenly spread on a log axis as can be."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        from matplotlib.ticker import MaxNLocator

        ticks = MaxNLocator(6).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
    return ticks[:: -(-len(ticks) // most)]


def label_log_axis(axis: Any, low: float, high: float, label: Callable[[float], str] = short) -> None:
    """Round numbers in plain figures on a log axis (`axes.xaxis` or `axes.yaxis`) that shows `low` to `high`."""
    ticks = round_numbers(low, high)
    axis.set_ticks(ticks, [label(tick) for tick in ticks])
    axis.set_ticks([], minor=True)
