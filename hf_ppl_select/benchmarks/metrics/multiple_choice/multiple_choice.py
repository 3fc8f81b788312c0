"""Multiple-choice answers by log-likelihood: accuracies, bits per byte and calibration, with bootstrap intervals."""

# `evaluate` reads these lines to find what a module needs: one import a line, and nothing local.
import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
How well a model answers multiple-choice questions, from the log-likelihoods of their choices: the accuracy of the
likeliest choice (`acc` in lm-evaluation-harness) and of the likeliest per character (`acc_norm`), the bits spent on a
byte of the right choices, and whether the model is right as often as it is sure (Brier score and expected calibration
error of the softmax over choices). Intervals are percentile bootstraps over questions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): for each question the log-likelihood of each of its choices, in nats.
        The number of choices may differ between questions.
    references (`list` of `int`): for each question the index of its right choice.
    num_chars (`list` of `list` of `int`): for each question the characters of each of its choices, without the space
        that joins the choice to the prompt. Without them there is no `choice_accuracy_norm`.
    num_bytes (`list` of `list` of `int`): the same in UTF-8 bytes. Without them there is no `choice_bits_per_byte`.
    num_bins (`int`): bins of the calibration error, equally wide in confidence. Defaults to 10.
    seed (`int`): of the bootstrap. Defaults to 0.
    num_resamples (`int`): of the bootstrap. Defaults to 1000.
    confidence (`float`): of the intervals. Defaults to 0.95.
    baseline_predictions: not used; accepted so that `evaluate.combine` can give one set of inputs to all modules.
Returns:
    `choice_accuracy`, `choice_accuracy_norm` (`float`, 0 to 1), `choice_bits_per_byte` (`float`, lower is better),
    `choice_calibration_brier` (`float`, 0 to 2), each with its interval in `..._low` and `..._high`;
    `choice_calibration_ece` (`float`, 0 to 1), `choice_calibration_confidence` (`float`, the mean probability of the
    chosen answers), `n` (questions).
Examples:
    >>> metric = evaluate.load("hf_ppl_select/benchmarks/metrics/multiple_choice")
    >>> metric.compute(predictions=[[-1.0, -2.0], [-3.0, -1.0, -2.0]], references=[0, 2])["choice_accuracy"]
    0.5
    >>> metric.compute(predictions=[[-4.0, -3.0]], references=[0], num_chars=[[8, 2]])["choice_accuracy_norm"]
    1.0
    >>> found = metric.compute(predictions=[[-2.0, -9.0]], references=[0], num_bytes=[[4, 5]])
    >>> round(found["choice_bits_per_byte"], 4)  # 2 / ln 2 / 4
    0.7213
"""

_CITATION = ""


class MultipleChoice(evaluate.Metric):
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
        num_chars=None,
        num_bytes=None,
        num_bins=10,
        seed=0,
        num_resamples=1000,
        confidence=0.95,
        baseline_predictions=None,
    ):
        if not references:
            raise ValueError("There are no questions: predictions and references are empty.")
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, not {num_bins}.")
        rows = [np.asarray(row, dtype=np.float64) for row in predictions]
        for i, (row, reference) in enumerate(zip(rows, references, strict=True)):
            if not 0 <= reference < len(row):
                raise ValueError(f"Question {i}: reference {reference} is no index of {len(row)} choices.")
            if np.isnan(row).any() or not np.isfinite(row.max()):
                raise ValueError(f"Question {i}: a log-likelihood is NaN, or none of them is finite.")
        ones, right = np.ones(len(rows)), np.array(references)
        correct = np.array([row.argmax() for row in rows]) == right
        brier, sure = calibrate(rows, right)
        ratios = {"choice_accuracy": (correct, ones), "choice_calibration_brier": (brier, ones)}
        if num_chars is not None:
            chars = checked_lengths("num_chars", num_chars, rows)
            chosen = np.array([(row / length).argmax() for row, length in zip(rows, chars)])
            ratios["choice_accuracy_norm"] = (chosen == right, ones)
        if num_bytes is not None:
            ratios["choice_bits_per_byte"] = bits_and_bytes(rows, right, checked_lengths("num_bytes", num_bytes, rows))
        return {
            **bootstrap(ratios, seed, num_resamples, confidence),
            "choice_calibration_ece": calibration_error(sure, correct, num_bins),
            "choice_calibration_confidence": float(sure.mean()),
            "n": len(rows),
        }


def checked_lengths(name, lengths, rows):
    """An array per question, of the length of each of its choices."""
    if len(lengths) != len(rows):
        raise ValueError(f"{name} has {len(lengths)} questions, references {len(rows)}.")
    for i, (row, log_likelihoods) in enumerate(zip(lengths, rows)):
        if len(row) != len(log_likelihoods) or min(row) < 1:
            raise ValueError(f"Question {i}: {name} must hold one positive number for each choice.")
    return [np.asarray(row) for row in lengths]


def bits_and_bytes(rows, right, num_bytes):
    """What the right choices cost in bits, and their bytes: float64 `[questions]` each."""
    bits = -np.array([row[reference] for row, reference in zip(rows, right)]) / np.log(2)
    if not np.isfinite(bits).all():
        i = int(np.flatnonzero(~np.isfinite(bits))[0])
        raise ValueError(f"Question {i}: the log-likelihood of the right choice is not finite.")
    return bits, np.array([row[reference] for row, reference in zip(num_bytes, right)], dtype=np.float64)


def calibrate(rows, right):
    """Each question's Brier score, and the probability of its likeliest choice: float64 `[questions]` each."""
    brier, sure = np.zeros(len(rows)), np.zeros(len(rows))
    for i, (row, reference) in enumerate(zip(rows, right)):
        weights = np.exp(row - row.max())
        probabilities = weights / weights.sum()
        brier[i] = np.square(probabilities - (np.arange(len(row)) == reference)).sum()
        sure[i] = probabilities.max()
    return brier, sure


def calibration_error(sure, correct, num_bins):
    """Mean over questions of |share right - mean confidence| of a question's bin; bins include their upper bound."""
    bins = np.clip(np.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - sure, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(sure))


def bootstrap(ratios, seed, num_resamples, confidence):
    """Each ratio of sums over questions with its percentile interval over the same resampled questions.

    Questions are resampled a few million draws at a time.
    """
    rng = np.random.default_rng(seed)
    columns = np.array([part for ratio in ratios.values() for part in ratio], dtype=np.float64)
    n, block = columns.shape[1], max(1, 2**22 // columns.shape[1])
    sums = []
    for start in range(0, num_resamples, block):
        rows = rng.integers(n, size=(min(block, num_resamples - start), n))
        sums.append([column[rows].sum(axis=1) for column in columns])
    above, below = np.concatenate(sums, axis=1).reshape(len(ratios), 2, num_resamples).swapaxes(0, 1)
    found = {}
    for name, values, (numerator, denominator) in zip(ratios, above / below, ratios.values()):
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        found[name] = float(numerator.sum() / denominator.sum())
        found[f"{name}_low"], found[f"{name}_high"] = float(low), float(high)
    return found
