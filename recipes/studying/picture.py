"""The study's figure: what each arm bought against random, and how many tokens random takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ppl_select.plots.canvas import BLUE, DASHES, GREY, INK, LEGEND, VERMILION, canvas, round_numbers, short
from studying.results import Mean, Study

_SHOWN = ("random raw", "low", "middle", "high", "paper", "ratio top quarter", "n-gram top quarter")
_SHOWN += ("ifd top quarter", "law perplexity", "law ratio", "law both", "law", "oracle")
_COLOURS = {"law": VERMILION, "oracle": INK, **dict.fromkeys(("law perplexity", "law ratio", "law both"), BLUE)}
_FAR = 3  # times the next farthest: such an arm would hide all others, and is shown by an arrow and its number


def plot_study(study: Study, path: Path, corpora: Sequence[str]) -> Path:
    """Left: domain loss minus random's of every arm, with intervals, a panel per corpus. Right: random raw's loss over
    tokens, and the law's at the budget. Returns the path.
    """
    counts = [sum(arm in study.arms(corpus) for arm in _SHOWN) for corpus in corpora]
    draws = ", ".join(f"{corpus} {len(study.of(corpus))}" for corpus in corpora)
    about = f"Mean and 95 % interval over corpora drawn anew ({draws}); {study.num_tokens:,} training tokens each."
    height = int(190 + sum(30 * count + 80 for count in counts))
    with canvas(path, "What each way to choose bought, at equal tokens", about, height=height) as figure:
        axes = figure.subplots(len(counts), 2, height_ratios=counts, width_ratios=(1.45, 1), squeeze=False)
        for (left, right), corpus in zip(axes, corpora):
            _differences(study, corpus, left)
            _curve(study, corpus, right)
        axes[-1, 0].set_xlabel("domain loss minus random deduplicated, nats per token")
        axes[-1, 1].set_xlabel("training tokens")
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc=LEGEND, ncols=3)
    return path


def _differences(study: Study, corpus: str, axis: Any) -> None:
    arms = [arm for arm in _SHOWN if arm in study.arms(corpus)]
    found = {arm: study.difference(corpus, arm, "random") for arm in arms}
    reach = sorted(np.nanmax(np.abs([one.value, one.low, one.high])) for one in found.values())
    limit = reach[-2] * 1.1 if len(reach) > 2 and reach[-1] > _FAR * reach[-2] else np.inf
    for y, arm in enumerate(arms):
        one, colour = found[arm], _COLOURS.get(arm, GREY)
        if abs(one.value) > limit:
            edge = float(np.copysign(limit, one.value))
            axis.plot(edge, y, ">" if edge > 0 else "<", color=colour, markersize=6)
            side = "right" if edge > 0 else "left"
            axis.annotate(f"{one.value:+.2f}", (edge, y), (-8 if edge > 0 else 8, 0), textcoords="offset points",
                          ha=side, va="center", color=INK)  # fmt: skip
            continue
        if not np.isnan(one.low):
            axis.plot([one.low, one.high], [y, y], color=colour)
        axis.plot(one.value, y, "D" if arm == "oracle" else "o", color=colour, markersize=6)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_title(corpus, loc="left", fontsize=9, color=INK)


def _curve(study: Study, corpus: str, axis: Any) -> None:
    draws = study.of(corpus, "random raw", "law")
    if not draws:
        axis.set_axis_off()
        return
    tokens = np.mean([[rung["num_tokens"] for rung in d.arm("random raw")["rungs"]] for d in draws], axis=0)
    losses = np.array([[d.loss(rung) for rung in d.arm("random raw")["rungs"]] for d in draws])
    axis.plot(tokens, losses.mean(axis=0), "o-", color=GREY, markersize=4, label="random raw")
    for arm, marker in (("law", "o"), ("oracle", "D")):
        measured = [d.at_budget(arm, study.num_tokens) for d in draws if d.has(arm)]
        if measured:
            colour, loss = _COLOURS[arm], Mean.of(measured).value
            axis.plot(study.num_tokens, loss, marker, color=colour, markersize=6, linestyle="none", label=arm)
            axis.axhline(loss, color=colour, linewidth=0.7, linestyle=DASHES)
    axis.set_xscale("log")
    ticks = round_numbers(tokens.min() * 0.9, tokens.max() * 1.1, most=4)
    axis.xaxis.set_ticks(ticks, [short(tick) for tick in ticks])
    axis.xaxis.set_ticks([], minor=True)
    axis.set_ylabel("domain loss")
    axis.grid(axis="y")
