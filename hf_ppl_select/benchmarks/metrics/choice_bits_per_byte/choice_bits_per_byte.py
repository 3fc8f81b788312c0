"""Bits per byte of the right choice of multiple-choice questions, with a bootstrap confidence interval."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
How many bits the model spends on a byte of the right choices: their summed negative log-likelihood over ln 2, over
their summed UTF-8 bytes. Lower is better. It moves smoothly where accuracy is still at chance, and compares across
tokenizers. The interval is the percentile bootstrap over questions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
        The number of choices may differ between questions.
    references (`list` of `int`): for each question the index of its right choice.
    num_bytes (`list` of `list` of `int`): for each question the UTF-8 bytes of each of its choices, without the space
        that joins the choice to the prompt.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the interval. Defaults to 0.95.
    num_chars, baseline_predictions: not used; accepted so that `evaluate.combine` can give one set of inputs to all
        modules.
Returns:
    `choice_bits_per_byte` (`float`), `choice_bits_per_byte_low`, `choice_bits_per_byte_high` (its interval),
    `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/choice_bits_per_byte")
    >>> result = metric.compute(predictions=[[-2.0, -9.0]], references=[0], num_bytes=[[4, 5]])
    >>> round(result["choice_bits_per_byte"], 4)  # 2 / ln 2 / 4
    0.7213
"""

_CITATION = ""


class ChoiceBitsPerByte(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                    "num_bytes": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        num_bytes,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        num_chars=None,
        baseline_predictions=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        bits, length = np.zeros(len(references)), np.zeros(len(references))
        for i, (log_likelihoods, reference, row) in enumerate(zip(predictions, references, num_bytes, strict=True)):
            if not 0 <= reference < len(log_likelihoods):
                raise ValueError(f"Question {i}: reference {reference} is no index of {len(log_likelihoods)} choices.")
            if not np.isfinite(log_likelihoods[reference]):
                raise ValueError(f"Question {i}: the log-likelihood of the right choice is not finite.")
            if len(row) != len(log_likelihoods) or min(row) < 1:
                raise ValueError(f"Question {i}: num_bytes must hold one positive number for each choice.")
            bits[i], length[i] = -log_likelihoods[reference] / np.log(2), row[reference]
        low, high = bootstrap_interval(bits, length, seed, num_resamples, confidence)
        return {
            "choice_bits_per_byte": float(bits.sum() / length.sum()),
            "choice_bits_per_byte_low": low,
            "choice_bits_per_byte_high": high,
            "n": len(bits),
        }


def bootstrap_interval(numerator, denominator, seed, num_resamples, confidence):
    """Percentile interval of the ratio of sums over resampled questions, a few million draws at a time."""
    rng = np.random.default_rng(seed)
    n, block = len(numerator), max(1, 2**22 // len(numerator))
    ratios = []
    for start in range(0, num_resamples, block):
        rows = rng.integers(n, size=(min(block, num_resamples - start), n))
        ratios.append(numerator[rows].sum(axis=1) / denominator[rows].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
