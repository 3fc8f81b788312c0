"""Accuracy of multiple-choice answers chosen by log-likelihood per character, with a bootstrap confidence interval."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
The share of questions whose right choice has the highest log-likelihood per character, `acc_norm` in
lm-evaluation-harness: long choices do not lose for being long. The interval is the percentile bootstrap over
questions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
        The number of choices may differ between questions.
    references (`list` of `int`): for each question the index of its right choice.
    num_chars (`list` of `list` of `int`): for each question the characters of each of its choices, without the space
        that joins the choice to the prompt.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the interval. Defaults to 0.95.
    num_bytes, baseline_predictions: not used; accepted so that `evaluate.combine` can give one set of inputs to all
        modules.
Returns:
    `choice_accuracy_norm` (`float`, 0 to 1), `choice_accuracy_norm_low`, `choice_accuracy_norm_high` (its interval),
    `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/choice_accuracy_norm")
    >>> metric.compute(predictions=[[-4.0, -3.0]], references=[0], num_chars=[[8, 2]])["choice_accuracy_norm"]
    1.0
"""

_CITATION = ""


class ChoiceAccuracyNorm(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                    "num_chars": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        num_chars,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        num_bytes=None,
        baseline_predictions=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        correct = np.zeros(len(references))
        for i, (log_likelihoods, reference, chars) in enumerate(zip(predictions, references, num_chars, strict=True)):
            log_likelihoods, chars = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(chars)
            if not 0 <= reference < len(log_likelihoods):
                raise ValueError(f"Question {i}: reference {reference} is no index of {len(log_likelihoods)} choices.")
            if np.isnan(log_likelihoods).any():
                raise ValueError(f"Question {i}: a log-likelihood is NaN.")
            if len(chars) != len(log_likelihoods) or chars.min() < 1:
                raise ValueError(f"Question {i}: num_chars must hold one positive number for each choice.")
            correct[i] = (log_likelihoods / chars).argmax() == reference
        low, high = bootstrap_interval(correct, seed, num_resamples, confidence)
        return {
            "choice_accuracy_norm": float(correct.mean()),
            "choice_accuracy_norm_low": low,
            "choice_accuracy_norm_high": high,
            "n": len(correct),
        }


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
