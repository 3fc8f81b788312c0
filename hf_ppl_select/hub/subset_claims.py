"""What the card of a subset says of the law's predictions, and what it does not vouch for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..landscape.scores import as_column, extrapolated, names_of
from .tables import table

_KINDS = {
    "interior": "a minimum of the law itself",
    "boundary": "on the edge of what this corpus can give and the probes cover; the law falls further beyond it",
    "saddle": "on the edge of what this corpus can give and the probes cover; inside, the law only has a saddle",
}


def of_a_model(report: Mapping[str, Any]) -> bool:
    """Whether all scores are a model's: those of n-grams are not, and of others the name does not tell."""
    return set(names_of(as_column(report.get("column", "perplexity")))) <= {"perplexity", "perplexity_ratio", "ifd"}


def prediction_table(report: Mapping[str, Any], law: Any) -> str | None:
    """Both losses, with intervals where the law has some; None where one is not known."""
    if report.get("predicted_loss") is None or report.get("random_loss") is None:
        return None
    header = ["training on", "predicted held-out loss, nats per token"]
    rows = [["this subset", report["predicted_loss"]], ["a random subset of as many tokens", report["random_loss"]]]
    rows = [[name, f"{loss:.4f}"] for name, loss in rows]
    problem = None if law is None else law.why_no_intervals
    if law is not None and problem is None:
        header.append("95 % interval for a new measurement")
        names = ("log_mu", "log_sigma") if law.space == "log" else ("mu", "sigma")
        for row, moments in zip(rows, (report["achieved"], report["corpus"]), strict=True):
            interval = law.predict_interval(*(moments[name] for name in names), report["num_tokens"])
            row.append("{:.4f} to {:.4f}".format(*interval))
    note = f"\n\nThere are no intervals: {problem}" if problem else ""
    return table(header, rows) + note


def verdict(report: Mapping[str, Any]) -> str | None:
    """The gain over a random subset, how sure it is, and whether probes vouch for it; None where it is not known."""
    if report.get("predicted_loss") is None or report.get("random_loss") is None:
        return None
    gain = report["random_loss"] - report["predicted_loss"]
    said = f"The predicted gain over a random subset is {gain:.4f} nats per token"
    optimum = report.get("optimum") or {}
    why = extrapolated({"random_trusted": optimum.get("random_trusted"), **report})
    beyond = f" But {', and '.join(why)}: losses, and so this gain, are extrapolated." if why else ""
    if not optimum:
        return f"{said}. No optimum of the law was aimed at, so there is no interval for this gain.{beyond}"
    said += f"; at the law's optimum it is {optimum['gain']:.4f}"
    if optimum["gain_interval"] is not None:
        said += ", with a 95 % interval of {:.4f} to {:.4f}".format(*optimum["gain_interval"])
    said += ". "
    if optimum["within_noise"]:
        said += "**This gain is within the noise**: a random subset may do as well."
    else:
        said += "This gain is beyond the noise of the probe runs."
    return f"{said}{beyond} The optimum is {_KINDS[optimum['kind']]}."


def limitations(report: Mapping[str, Any], law: Any) -> str:
    """What the scores, the selection and the predictions do not vouch for, as a list."""
    what = "Perplexity" if report.get("column", "perplexity") == "perplexity" else "A score of single chunks"
    optimum = report.get("optimum") or {}
    deduplicated = (report.get("options") or {}).get("deduplicate")
    points = [
        f"{what} cannot see redundancy: duplicates and boilerplate can score like good text. "
        + ("Duplicates were removed first." if deduplicated else "Deduplicate beside this selection."),
        "Scores hold for one model and tokenizer; for another base model score and select again."
        if of_a_model(report)
        else "Scores hold for what they were computed with, such as one trusted sample and one corpus.",
    ]
    if what == "Perplexity":
        points.append(
            "Perplexity alone takes boilerplate, code tables and prose of other domains for good text: on such a "
            "corpus a law of it gained nothing over random chunks."
        )
    if "ifd" in names_of(as_column(report.get("column", "perplexity"))):
        points.append(
            "A high ifd also marks dirt, which no prompt makes likelier: in a study, answers with the highest were "
            "worse to train on than random ones, and most of them were dirt."
        )
    if report.get("projected"):
        points.append("The law's optimum is on the edge of what can be reached, or beyond; the target is inside.")
    if optimum.get("within_noise"):
        points.append("The predicted gain over a random subset is within the noise of the probe runs.")
    points += [f"The predicted losses are extrapolated: {why}." for why in extrapolated(report)]
    if law is not None and law.report.floor_at_bound:
        points.append("The probe runs show no floor of the loss, so the law is optimistic far beyond their tokens.")
    if report.get("predicted_loss") is not None and report.get("random_loss") is not None:
        points.append("Losses are predicted, not measured on this subset.")
    elif report.get("law"):
        points.append(
            "The law gives no loss for this subset, or for a random one (a spread of 0, or moments too far from its "
            "probes), so it predicts no gain."
        )
    else:
        points.append("No scaling law predicts what training on this subset gains.")
    return "\n".join(f"- {point}" for point in points)
