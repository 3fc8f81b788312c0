"""Accuracy of multiple-choice answers chosen by log-likelihood, with a bootstrap confidence interval."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
The share of questions whose right choice has the highest log-likelihood, `acc` in lm-evaluation-harness. The interval
is the percentile bootstrap over questions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
        The number of choices may differ between questions.
    references (`list` of `int`): for each question the index of its right choice.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the interval. Defaults to 0.95.
    num_chars, num_bytes, baseline_predictions: not used; accepted so that `evaluate.combine` can give one set of
        inputs to all modules.
Returns:
    `choice_accuracy` (`float`, 0 to 1), `choice_accuracy_low`, `choice_accuracy_high` (its interval), `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/choice_accuracy")
    >>> metric.compute(predictions=[[-1.0, -2.0], [-3.0, -1.0, -2.0]], references=[0, 2])["choice_accuracy"]
    0.5
"""

_CITATION = ""


class ChoiceAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        num_chars=None,
        num_bytes=None,
        baseline_predictions=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        correct = np.zeros(len(references))
        for i, (log_likelihoods, reference) in enumerate(zip(predictions, references, strict=True)):
            log_likelihoods = np.asarray(log_likelihoods, dtype=np.float64)
            if not 0 <= reference < len(log_likelihoods):
                raise ValueError(f"Question {i}: reference {reference} is no index of {len(log_likelihoods)} choices.")
            if np.isnan(log_likelihoods).any():
                raise ValueError(f"Question {i}: a log-likelihood is NaN.")
            correct[i] = log_likelihoods.argmax() == reference
        low, high = bootstrap_interval(correct, seed, num_resamples, confidence)
        return {
            "choice_accuracy": float(correct.mean()),
            "choice_accuracy_low": low,
            "choice_accuracy_high": high,
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
