"""Groups of runs compared: means with intervals over items and training seeds, and paired differences.

An item is a held-out text or a benchmark question. The bootstrap over items, the same for all runs, is paired. With
several seeds a group, their spread gives a second interval by Student's t (Welch's degrees of freedom for a
difference); the two widths add up in squares. With one seed nothing can be said about other seeds, and nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from comparing.run_records import Measure, Run, measures_of
from hf_ppl_select.benchmarks.estimates import mean_estimate

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; with `num_seeds` 1 it covers items only.

    `num_seeds` is the least number of runs of the groups it is of; the base model needs no seeds and does not count.
    """

    value: float
    low: float
    high: float
    num_seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def group_interval(measure: Measure, runs: Sequence[Run]) -> Interval | None:
    """The mean of a group's runs; None where one of them lacks the measure."""
    terms = _mean_terms(measure, runs)
    if terms is None:
        return None
    items = mean_estimate(terms, lambda sums: sums[0] / sums[1], 0, RESAMPLES)
    values = _values(measure, runs)
    half = _t_half_width([values])
    return _combine(items.value, items.low, items.high, half, _num_seeds(runs))


def difference(measure: Measure, ours: Sequence[Run], theirs: Sequence[Run]) -> Interval | None:
    """Mean of `ours` minus mean of `theirs`, paired over items; None where a run lacks the measure."""
    first, second = _mean_terms(measure, ours), _mean_terms(measure, theirs)
    if first is None or second is None:
        return None
    terms = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    items = mean_estimate(terms, lambda sums: sums[0] / sums[1] - sums[2] / sums[3], 0, RESAMPLES)
    half = _t_half_width([_values(measure, runs) for runs in (ours, theirs) if len(runs) > 1])
    return _combine(items.value, items.low, items.high, half, _num_seeds(ours, theirs))


def differences(groups: Mapping[str, Sequence[Run]], baseline: str) -> list[tuple[Measure, dict[str, Interval]]]:
    """Each measure that `baseline` and another group have, with the difference of every group that has it."""
    rows = []
    for measure in measures_of(groups):
        found = {
            name: difference(measure, runs, groups[baseline]) for name, runs in groups.items() if name != baseline
        }
        found = {name: one for name, one in found.items() if one is not None}
        if found:
            rows.append((measure, found))
    return rows


def verdict(measure: Measure, found: Interval) -> str:
    """What a difference says, in words."""
    if not found.excludes_zero:
        return "no difference established"
    word = "better" if (found.value < 0) == measure.lower_is_better else "worse"
    return word if found.num_seeds > 1 else f"{word} in this one run each"


def _mean_terms(measure: Measure, runs: Sequence[Run]) -> list[np.ndarray] | None:
    """Numerators averaged over runs; denominators (tokens, questions, bytes) are the same in all."""
    all_terms = [measure.terms(run) for run in runs]
    if not all_terms or any(terms is None for terms in all_terms):
        return None
    return [np.mean(same, axis=0) for same in zip(*all_terms, strict=True)]


def _values(measure: Measure, runs: Sequence[Run]) -> np.ndarray:
    """The measure of each run, float64 `[runs]`."""
    values = [[terms[0].sum() / terms[1].sum() for terms in measure.terms(run)] for run in runs]
    return np.mean(values, axis=1)


def _t_half_width(groups: Sequence[np.ndarray]) -> float:
    """Half the 95 % interval of a mean, or of a difference of means, over seeds; 0 where there is one run."""
    groups = [values for values in groups if len(values) > 1]
    variances = np.array([values.var(ddof=1) / len(values) for values in groups])
    total = variances.sum()
    if total == 0:
        return 0.0
    freedom = total**2 / sum(v**2 / (len(values) - 1) for v, values in zip(variances, groups))
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(total))


def _num_seeds(*groups: Sequence[Run]) -> int:
    return min((len(runs) for runs in groups if not runs[0].is_base), default=1)


def _combine(value: float, low: float, high: float, half: float, num_seeds: int) -> Interval:
    return Interval(value, value - np.hypot(value - low, half), value + np.hypot(high - value, half), num_seeds)
