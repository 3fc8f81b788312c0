"""Calibration of multiple-choice answers: Brier score and expected calibration error of the softmax over choices."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Whether a model is right as often as it is sure. A question's log-likelihoods become probabilities by a softmax over
its choices. The Brier score is their mean squared distance to the truth; the expected calibration error is the mean
gap between how sure the model is of its answers and how often they are right, over bins of like confidence.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
        The number of choices may differ between questions.
    references (`list` of `int`): for each question the index of its right choice.
    num_bins (`int`): bins of the calibration error, equally wide in confidence. Defaults to 10.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the interval. Defaults to 0.95.
    num_chars, num_bytes, baseline_predictions: not used; accepted so that `evaluate.combine` can give one set of
        inputs to all modules.
Returns:
    `choice_calibration_brier` (`float`, 0 to 2), `choice_calibration_brier_low`, `choice_calibration_brier_high` (its
    interval), `choice_calibration_ece` (`float`, 0 to 1), `choice_calibration_confidence` (`float`, the mean
    probability of the chosen answers), `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/choice_calibration")
    >>> found = metric.compute(predictions=[[-1.0, -1.0], [-2.0, -2.0]], references=[0, 1])
    >>> found["choice_calibration_brier"], found["choice_calibration_ece"]
    (0.5, 0.0)
"""

_CITATION = ""


class ChoiceCalibration(evaluate.Metric):
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
        num_bins=10,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        num_chars=None,
        num_bytes=None,
        baseline_predictions=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, not {num_bins}.")
        brier, sure, correct = np.zeros(len(references)), np.zeros(len(references)), np.zeros(len(references))
        for i, (log_likelihoods, reference) in enumerate(zip(predictions, references, strict=True)):
            log_likelihoods = np.asarray(log_likelihoods, dtype=np.float64)
            if not 0 <= reference < len(log_likelihoods):
                raise ValueError(f"Question {i}: reference {reference} is no index of {len(log_likelihoods)} choices.")
            if np.isnan(log_likelihoods).any() or not np.isfinite(log_likelihoods.max()):
                raise ValueError(f"Question {i}: a log-likelihood is NaN, or none of them is finite.")
            weights = np.exp(log_likelihoods - log_likelihoods.max())
            probabilities = weights / weights.sum()
            truth = np.arange(len(probabilities)) == reference
            brier[i] = np.square(probabilities - truth).sum()
            sure[i], correct[i] = probabilities.max(), log_likelihoods.argmax() == reference
        low, high = bootstrap_interval(brier, seed, num_resamples, confidence)
        return {
            "choice_calibration_brier": float(brier.mean()),
            "choice_calibration_brier_low": low,
            "choice_calibration_brier_high": high,
            "choice_calibration_ece": calibration_error(sure, correct, num_bins),
            "choice_calibration_confidence": float(sure.mean()),
            "n": len(brier),
        }


def calibration_error(sure, correct, num_bins):
    """Mean over questions of |share right - mean confidence| of a question's bin; bins include their upper bound."""
    bins = np.clip(np.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - sure, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(sure))


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
