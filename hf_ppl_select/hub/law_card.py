"""The model card of a scaling law: a pure function from the law to Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelCardData

from ..landscape.reach import log_name
from ..landscape.scores import digits, names_of
from .tables import public_name, table

_TEMPLATE = Path(__file__).with_name("law_card_template.md")
_TAGS = ["scaling-laws", "perplexity", "data-selection", "continual-pre-training", "hf_ppl_select"]


def law_card(law: Any, *, license: str | None = None, name: str | None = None) -> str:
    """Build the card of a law: its formula, fit, out-of-sample error, intervals and limits, and no gain without one.

    Args:
        law: a fitted [`ScalingLaw`].
        license: Hub identifier of the licence under which the law is shared.
        name: `"user/name"` or `"name"`: the title, and where the code loads it from.

    Returns:
        Markdown with a YAML block.
    """
    model = public_name(law.model)
    hub_id = model if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and model == law.model else None
    problem = law.why_no_intervals
    data = ModelCardData(base_model=hub_id, library_name="hf_ppl_select", license=license, tags=_TAGS)
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=(name or "Perplexity-aware data scaling law").rpartition("/")[2],
        summary=_summary(law, model),
        law=str(law),
        fit=_fit_table(law),
        fit_note="Errors are in nats per token. A run left out is predicted by the same form fitted to the other runs "
        "by least squares; the largest token count is predicted from the smaller ones. `law.json` here holds every "
        "law point and the whole fit report.",
        params=_params_table(law, problem),
        params_note=problem
        or "E, Dc and aD lean on each other where the points span few token counts: judge the law by its predictions.",
        predictions=_predictions_table(law, problem),
        predictions_note="At the (mu, sigma) of probes the law was fitted to. The mean is over many runs; a new run "
        "adds the noise of one training run and one measurement."
        + ("" if problem else " Intervals hold for the law's form, if that is right, and allow for few, noisy runs."),
        code=_code(law, name, problem),
        limits=_limits(law, model, problem),
    )
    return str(card).rstrip() + "\n"


def _summary(law: Any, model: str | None) -> str:
    of = f"`{model}`" if model else "a language model that was not recorded"
    if model and law.model_revision:
        of += f" (revision `{law.model_revision}`)"
    if isinstance(law.column, str):
        moments = "the mean mu and the standard deviation sigma"
        what = f"perplexities under it have {moments}"
        if law.space == "log":
            what = "nll under it, nats per token, has the mean m and the standard deviation s"
        if law.column != "perplexity":
            moments = "logarithms of the mean m and the standard deviation s" if law.space == "log" else moments
            what = f"score `{law.column}` has {moments}"
    else:
        what = "scores `{}` and `{}` have logarithms of means m and standard deviations s".format(*law.column)
    corpus = f" The probes were drawn from the corpus `{public_name(law.corpus)}`." if law.corpus else ""
    return (
        f"A scaling law that predicts the held-out loss of {of} after training on D tokens of chunks whose "
        f"{what}.{corpus}"
    )


def _fit_table(law: Any) -> str:
    report = law.report
    row = law.held_out_errors()
    low, high = law.num_tokens_range
    moments = []
    for column in names_of(law.column):
        names = ("mu", "sigma")
        if law.space == "log":
            names = (f"m (mean {log_name(column)}, nats)", "s (its standard deviation)")
        both = zip(names, law.points.moments(law.space, column))
        moments += [[name, f"{values.min():.4g} to {values.max():.4g}"] for name, values in both]
    rows = [
        ["law points, runs", f"{report.num_points}, {report.num_runs}"],
        ["training tokens D", f"{low:,.0f} to {high:,.0f}"],
        *moments,
        ["R², in sample", f"{report.r2:.4f}"],
        ["standard deviation of residuals", f"{report.residual_std:.4f}"],
    ]
    if row["problem"]:
        rows.append(["mean absolute error, a run left out", f"not known: {row['problem']}"])
    else:
        rows.append(["mean absolute error, a run left out", f"{row['loo_mae']:.4f} ± {row['loo_se']:.4f}"])
        if row["held_out_d_mae"] is not None:
            rows.append(["mean absolute error, largest D left out", f"{row['held_out_d_mae']:.4f}"])
    rows.append(["condition number of the design", f"{report.condition_number:.3g}"])
    rows.append(["converged; floor at its bound 0", f"{_yes(report.converged)}; {_yes(report.floor_at_bound)}"])
    return table(["", "value"], rows)


def _params_table(law: Any, problem: str | None) -> str:
    intervals = {} if problem else law.param_intervals()
    rows = []
    for name, value in law.params.items():
        interval = "{:.4g} to {:.4g}".format(*intervals[name]) if intervals else "not known"
        rows.append([f"`{name}`", f"{value:.6g}", interval, law.units[name]])
    return table(["parameter", "value", "95 % interval", "unit"], rows)


def _predictions_table(law: Any, problem: str | None) -> str:
    mu, sigma = law.points.moments(law.space, law.column)
    num_tokens = law.points.num_tokens
    order = np.flatnonzero(num_tokens == num_tokens.max())
    order = order[np.argsort(mu[order] if mu.ndim == 1 else mu[order, 0], kind="stable")]
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
    rows = []
    for i in chosen:
        cells = [f"{law.points.run[i]}", digits(mu[i]), digits(sigma[i]), f"{num_tokens[i]:,.0f}"]
        cells += [f"{law.points.loss[i]:.4f}", f"{law.predict(mu[i], sigma[i], num_tokens[i]):.4f}"]
        for noise in (False, True):
            interval = None if problem else law.interval(mu[i], sigma[i], num_tokens[i], noise=noise)
            cells.append("{:.4f} to {:.4f}".format(*interval) if interval else "not known")
        rows.append(cells)
    names = ["mu", "sigma"] if law.space == "linear" else ["m", "s"]
    return table(
        ["probe", *names, "D", "measured", "predicted", "95 % interval of the mean", "95 % interval of a new run"],
        rows,
    )


def _code(law: Any, name: str | None, problem: str | None) -> str:
    mu, sigma = law.points.moments(law.space, law.column)
    at = ", ".join(_argument(np.median(moment, axis=0)) for moment in (mu, sigma))
    at += f", {law.num_tokens_range[1]:.0f}"
    return "\n".join(
        [
            "from hf_ppl_select import ScalingLaw",
            "",
            f'law = ScalingLaw.from_pretrained("{name or "."}")',
            f"law.predict({at})  # nats per token",
            *([] if problem else [f"law.interval({at})  # of the mean; noise=True: of a new run"]),
            "law.optimum(landscape, num_tokens=...)  # of your corpus, scored with the same model",
        ]
    )


def _limits(law: Any, model: str | None, problem: str | None) -> str:
    low, high = law.num_tokens_range
    points = [
        f"It holds for {f'`{model}`' if model else 'the model its scores come from'} and its tokenizer, for the "
        "held-out text its losses were measured on, and for training as its probes were trained. For another model or "
        "domain measure probes anew.",
        f"It was fitted to {low:,.0f} to {high:,.0f} training tokens. Beyond that it extrapolates, and its intervals "
        "then rest on the form being right: at four times the tokens they held 11 of 16 losses in a study of ours.",
        "It interpolates between its probes' (mu, sigma). Outside them it is a guess.",
        "Perplexity cannot see redundancy: duplicates and boilerplate can score like good text.",
        "A difference between two predictions needs its own interval (`law.gain_interval`): a gain smaller than the "
        "noise of runs may be none.",
    ]
    if law.report.floor_at_bound:
        points.append("Its points show no floor of the loss (E = 0), so it is optimistic far beyond their tokens.")
    if not law.report.converged:
        points.append("**The fit did not converge: do not rely on it.**")
    mu, sigma = law.points.moments(law.space, law.column)
    if law.space == "linear" and np.any(sigma > mu):
        points.append(f"Some probes have sigma > mu: their moments of {law.column} rest on a few junk chunks.")
    if problem:
        points.append("Its runs are too few for intervals.")
    return "\n".join(f"- {point}" for point in points)


def _argument(moment: np.ndarray) -> str:
    """A moment in code; of two columns a pair."""
    return f"{moment:.4g}" if moment.ndim == 0 else f"({', '.join(f'{x:.4g}' for x in moment)})"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
