"""The report's picture: how far each group of runs is from the baseline, with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from comparing.run_comparison import Interval
from comparing.run_records import Measure
from hf_ppl_select.plots.canvas import BLUE, GREY, INK, LEGEND, VERMILION, canvas

_COLOURS, _MARKERS = (BLUE, VERMILION, INK, GREY), ("o", "s", "^", "D", "v", "P", "X")


def plot_differences(
    rows: Sequence[tuple[Measure, Mapping[str, Interval]]], baseline: str, about: str, path: Path
) -> None:
    """Dots with 95 % intervals, a panel per unit; a difference is established where the interval leaves the zero line.

    Args:
        rows: each measure with the differences from `baseline` by group.
        about: small print under the title.
        path: a .png file.
    """
    others = [row for row in rows if row[0].kind != "loss"]
    panels = {
        "loss, nats per token (left is better)": [row for row in rows if row[0].kind == "loss"],
        "accuracy (right is better)": [row for row in others if not row[0].lower_is_better],
        "bits per byte (left is better)": [
            row for row in rows if row[0].kind not in ("loss",) and row[0].lower_is_better
        ],
    }
    panels = {unit: members for unit, members in panels.items() if members}
    groups = list(dict.fromkeys(name for _, found in rows for name in found))
    heights = [len(members) * (0.5 + 0.5 * len(groups)) + 1.2 for members in panels.values()]
    title = f"Difference from {baseline}, with 95 % intervals"
    with canvas(path, title, textwrap.fill(about, 110), height=int(200 + 42 * sum(heights))) as figure:
        axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, (unit, members) in zip(axes, panels.items()):
            for position, (_, found) in enumerate(members):
                for index, group in enumerate(groups):
                    if group not in found:
                        continue
                    colour, marker = _COLOURS[index % 4], _MARKERS[index % 7]
                    one = found[group]
                    y = position + (index - (len(groups) - 1) / 2) * 0.6 / len(groups)
                    axis.plot([one.low, one.high], [y, y], color=colour)
                    axis.plot(one.value, y, marker, color=colour, markersize=6, linestyle="none")
            axis.axvline(0, color=GREY, linewidth=1)
            axis.set_yticks(range(len(members)), [measure.title.partition(" (")[0] for measure, _ in members])
            axis.set_ylim(len(members) - 0.5, -0.5)
            axis.grid(axis="x")
            axis.set_xlabel(unit)
        for index, group in enumerate(groups):
            colour, marker = _COLOURS[index % 4], _MARKERS[index % 7]
            axes[0].plot([], [], marker, color=colour, linestyle="-", label=group)
        figure.legend(loc=LEGEND, ncols=4)
