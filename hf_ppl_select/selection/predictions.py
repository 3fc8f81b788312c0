"""What a law says of a chosen subset, and of a random one beside it, as reports have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..landscape.reach import FAR_OFF

if TYPE_CHECKING:
    from ..law.optimum import Optimum
    from ..law.scaling_law import ScalingLaw

MOST_LOSS = 1e6  # nats per token: what a form gives far beyond its probes, up to infinity, is no loss


def describe_law(law: ScalingLaw) -> dict[str, Any]:
    """`Selection.law`."""
    return {name: getattr(law, name) for name in ("form", "space", "column", "model")} | {"params": dict(law.params)}


def predict_losses(
    law: ScalingLaw | None, chosen: tuple[Any, Any], corpus: tuple[Any, Any], num_tokens: float
) -> dict[str, Any]:
    """`predicted_loss` of a subset, `random_loss` of a random one, and how far the probes vouch for both.

    Args:
        law: nothing is said without one.
        chosen, corpus: (mu, sigma) of the subset and of all rows, in the law's space.
        num_tokens: of the subset.

    Returns:
        The losses, nats per token, but none of a spread of 0, which no law takes, nor above `MOST_LOSS`;
        `predicted_trusted` and `random_trusted`, whether probes cover those moments; and `extrapolation`, tokens over
        those of the longest probe.
    """
    if law is None:
        return {}
    from ..law.optimum import trusted_region

    found: dict[str, Any] = {"extrapolation": float(num_tokens / law.num_tokens_range[1])}
    for name, (mu, sigma) in {"predicted": chosen, "random": corpus}.items():
        if not np.all(np.greater(sigma, 0)):
            continue
        with np.errstate(over="ignore"):
            loss = float(law.predict(mu, sigma, num_tokens))
        if loss <= MOST_LOSS:
            found[f"{name}_loss"] = loss
        # an optimum on the edge is met from either side, to 1 % in each moment
        covered = not law.terms or trusted_region(law).contains(mu, sigma, tolerance=2 * FAR_OFF)
        found[f"{name}_trusted"] = bool(covered)
    return found


def say_gain(optimum: Optimum) -> str:
    """A line on how sure the gain at a law's optimum is."""
    interval = ""
    if optimum.gain_interval is not None:
        interval = ", 95 % interval: {:.4f} to {:.4f}".format(*optimum.gain_interval)
    return f"Gain at the law's optimum{interval}, {optimum.verdict}."
