"""The study's figure: what each arm bought against random, and how many tokens random takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_ppl_select.plots.canvas import BLUE, GREY, INK, LEGEND, VERMILION, canvas, label_log_axis
from studying.results import Mean, Study

_SHOWN = ("random raw", "low", "middle", "high", "paper", "ratio top quarter", "n-gram top quarter", "law perplexity")
_SHOWN += ("law ratio", "law both", "law", "oracle")


def plot_study(study: Study, path: Path) -> Path:
    """Left: domain loss minus random's of every arm, with intervals, a panel per corpus. Right: random raw's loss over
    tokens, and the law's at the budget. Returns the path.
    """
    counts = [sum(arm in study.arms(corpus) for arm in _SHOWN) for corpus in study.corpora]
    draws = ", ".join(f"{corpus} {len(study.of(corpus))}" for corpus in study.corpora)
    about = f"Mean and 95 % interval over corpora drawn anew ({draws}); {study.num_tokens:,} training tokens each."
    height = int(190 + sum(34 * count + 70 for count in counts))
    with canvas(path, "What each way to choose bought, at equal tokens", about, height=height) as figure:
        axes = figure.subplots(len(counts), 2, height_ratios=counts, width_ratios=(1.45, 1), squeeze=False)
        for (left, right), corpus in zip(axes, study.corpora):
            _differences(study, corpus, left)
            _curve(study, corpus, right)
        axes[-1, 0].set_xlabel("domain loss minus random deduplicated, nats per token")
        axes[-1, 1].set_xlabel("training tokens")
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc=LEGEND, ncols=3)
    return path


def _differences(study: Study, corpus: str, axis) -> None:
    arms = [arm for arm in _SHOWN if arm in study.arms(corpus)]
    for y, arm in enumerate(arms):
        found = study.difference(corpus, arm, "random")
        colour = VERMILION if arm == "law" else INK if arm == "oracle" else BLUE if arm.startswith("law") else GREY
        if not np.isnan(found.low):
            axis.plot([found.low, found.high], [y, y], color=colour)
        axis.plot(found.value, y, "D" if arm == "oracle" else "o", color=colour, markersize=6)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_title(corpus, loc="left", fontsize=9, color=INK)


def _curve(study: Study, corpus: str, axis) -> None:
    draws = study.of(corpus, "random raw", "law")
    if not draws:
        axis.set_axis_off()
        return
    tokens = np.mean([[rung["num_tokens"] for rung in d.arm("random raw")["rungs"]] for d in draws], axis=0)
    losses = np.array([[d.loss(rung) for rung in d.arm("random raw")["rungs"]] for d in draws])
    axis.plot(tokens, losses.mean(axis=0), "o-", color=GREY, markersize=4, label="random raw")
    for arm, colour, marker in (("law", VERMILION, "o"), ("oracle", INK, "D")):
        if study.of(corpus, arm):
            found = Mean.of(d.at_budget(arm, study.num_tokens) for d in draws if d.has(arm))
            axis.plot(study.num_tokens, found.value, marker, color=colour, markersize=6, linestyle="none", label=arm)
            axis.axhline(found.value, color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
    axis.set_xscale("log")
    label_log_axis(axis.xaxis, tokens.min() * 0.9, tokens.max() * 1.1)
    axis.set_ylabel("domain loss")
    axis.grid(axis="y")
