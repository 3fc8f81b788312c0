"""Targets and budgets: what may be asked of a corpus, and what an error says otherwise."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .attainable import AttainableRegion

Space = Literal["linear", "log"]
FAR_OFF = 0.01  # a relative error of the moments that is worth an error or a warning
_INSET = 0.02  # how far a law's optimum on the edge of reach moves inside, as a share of sigma


def check_space(space: str) -> None:
    if space not in ("linear", "log"):
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")


def check_budget(num_tokens: Any, available: int) -> None:
    if not (np.isfinite(num_tokens) and num_tokens > 0):
        raise ValueError(f"num_tokens={num_tokens} is not a budget; it must be a number above 0.")
    if num_tokens > available:
        raise ValueError(
            f"num_tokens={num_tokens:,} is more than the {available:,} tokens there are to choose from; "
            "lower num_tokens, or bring more data."
        )


def check_target(region: AttainableRegion, mu: float, sigma: float, num_tokens: float) -> None:
    if not (np.isfinite(mu) and np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"The target (mu={mu}, sigma={sigma}) needs a finite mu and a finite sigma above 0.")
    if not region.contains(mu, sigma):
        raise ValueError(out_of_reach(region, mu, sigma, num_tokens))


def out_of_reach(region: AttainableRegion, mu: float, sigma: float, num_tokens: float) -> str:
    what = "perplexity" if region.space == "linear" else "nll"
    means = f"mu reaches from {region.mu[0]:.4g} to {region.mu[-1]:.4g}"
    low, high = region.sigma_bounds(mu)
    at_mu = f"sigma from {low:.4g} to {high:.4g} at mu {mu:.4g}" if np.isfinite(low) else "so that mu is out of reach"
    return (
        f"No subset of {num_tokens:,} tokens has a {what} of mean mu {mu:.4g} and standard deviation sigma "
        f"{sigma:.4g} (space {region.space!r}): {means}, {at_mu}. Choose a target inside; fewer tokens reach further."
    )


def move_inside(region: AttainableRegion, mu: float, sigma: float) -> tuple[float, float]:
    """The point itself, or one a little inside the attainable region: at its edge w is a step function."""
    if len(region.mu) == 1:
        return float(region.mu[0]), float(region.sigma_min[0])
    # steps are shares of the spread at that end of the region: with a far tail its extent says nothing about the low
    # end
    lowest, highest = region.mu[[0, -1]] + _INSET * region.sigma_min[[0, -1]] * [1, -1]
    mu = float(np.clip(mu, *sorted((lowest, highest))))
    low, high = (float(bound) for bound in region.sigma_bounds(mu))
    low, high = (low * (1 + _INSET), high * (1 - _INSET)) if low * (1 + _INSET) < high * (1 - _INSET) else (low, high)
    return mu, float(np.clip(sigma, low, high))
