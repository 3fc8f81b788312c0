"""Two runs on the same multiple-choice questions: difference in accuracy, paired bootstrap, exact McNemar test."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
from math import comb

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Whether one run answers the same questions better than another. Questions are compared one by one, so what is hard
for both cancels: the accuracy of `predictions` minus that of `baseline_predictions`, its paired bootstrap interval,
and the exact McNemar test, which looks only at the questions that one of the two got right.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
    baseline_predictions (`list` of `list` of `float`): the same of the run to compare with.
    references (`list` of `int`): for each question the index of its right choice.
    num_chars (`list` of `list` of `int`): for each question the characters of each of its choices; needed where
        `normalized`.
    normalized (`bool`): answers are chosen by log-likelihood per character. Defaults to `False`.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the interval. Defaults to 0.95.
    num_bytes: not used; accepted so that `evaluate.combine` can give one set of inputs to all modules.
Returns:
    `paired_difference` (`float`, -1 to 1), `paired_difference_low`, `paired_difference_high` (its interval),
    `mcnemar_p` (`float`, two-sided), `only_predictions`, `only_baseline` (questions that only one run got right),
    `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/paired_comparison")
    >>> ours, theirs = [[-1.0, -2.0]] * 6, [[-2.0, -1.0]] * 6
    >>> found = metric.compute(predictions=ours, baseline_predictions=theirs, references=[0] * 6)
    >>> found["paired_difference"], found["mcnemar_p"]  # six heads in a row, or six tails: 2 / 2**6
    (1.0, 0.03125)
"""

_CITATION = ""


class PairedComparison(evaluate.Comparison):
    def _info(self):
        return evaluate.ComparisonInfo(
            module_type="comparison",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "baseline_predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        baseline_predictions,
        references,
        num_chars=None,
        normalized=False,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        num_bytes=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        if normalized and num_chars is None:
            raise ValueError("normalized=True needs num_chars.")
        if normalized and len(num_chars) != len(references):
            raise ValueError(f"num_chars has {len(num_chars)} questions, references {len(references)}.")
        lengths = num_chars if normalized else [None] * len(references)
        ours, theirs = (
            right_answers(name, rows, references, lengths)
            for name, rows in (("predictions", predictions), ("baseline_predictions", baseline_predictions))
        )
        for i, (row, other) in enumerate(zip(predictions, baseline_predictions, strict=True)):
            if len(row) != len(other):
                raise ValueError(f"Question {i}: {len(row)} choices in predictions, {len(other)} in the baseline.")
        low, high = bootstrap_interval(ours - theirs, seed, num_resamples, confidence)
        only_ours, only_theirs = int((ours > theirs).sum()), int((theirs > ours).sum())
        return {
            "paired_difference": float((ours - theirs).mean()),
            "paired_difference_low": low,
            "paired_difference_high": high,
            "mcnemar_p": mcnemar(only_ours, only_theirs),
            "only_predictions": only_ours,
            "only_baseline": only_theirs,
            "n": len(ours),
        }


def right_answers(name, rows, references, lengths):
    """1.0 where the choice with the highest log-likelihood (per character) is the right one, float64 `[questions]`."""
    right = np.zeros(len(references))
    for i, (log_likelihoods, reference, chars) in enumerate(zip(rows, references, lengths, strict=True)):
        log_likelihoods = np.asarray(log_likelihoods, dtype=np.float64)
        if not 0 <= reference < len(log_likelihoods):
            raise ValueError(f"Question {i}: reference {reference} is no index of {len(log_likelihoods)} choices.")
        if np.isnan(log_likelihoods).any():
            raise ValueError(f"Question {i}: a log-likelihood in {name} is NaN.")
        if chars is not None:
            if len(chars) != len(log_likelihoods) or min(chars) < 1:
                raise ValueError(f"Question {i}: num_chars must hold one positive number for each choice.")
            log_likelihoods = log_likelihoods / np.asarray(chars)
        right[i] = log_likelihoods.argmax() == reference
    return right


def mcnemar(only_ours, only_theirs):
    """Two-sided p of a fair coin falling so unevenly: exact, so it holds for few questions too."""
    total = only_ours + only_theirs
    tail = sum(comb(total, k) for k in range(min(only_ours, only_theirs) + 1))
    return min(1.0, 2 * tail / 2**total)


def bootstrap_interval(values, seed, num_resamples, confidence):
    """Percentile interval of the mean of `values` over resampled questions, a few million draws at a time."""
    rng = np.random.default_rng(seed)
    n, block = len(values), max(1, 2**22 // len(values))
    means = [
        values[rng.integers(n, size=(min(block, num_resamples - start), n))].mean(axis=1)
        for start in range(0, num_resamples, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
