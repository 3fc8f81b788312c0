"""The forms of perplexity-aware data scaling laws, as design matrices.

Every form shares one skeleton (the paper's law is Liu et al., ACL 2026): the loss above its floor E is log-linear,

    L(mu, sigma, D) = E + Dc / ( D^aD * exp(p1*f1(mu, sigma) + p2*f2(mu, sigma) + ...) )
    ln(L - E)       = ln Dc - aD*ln D - p1*f1 - p2*f2 - ...

so a form is nothing but its list of features f. To add one, add an entry to [`LAW_FORMS`], one `Term` per feature and
space: fitting, comparison, intervals, optimum and saving read it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Space = Literal["linear", "log"]


@dataclass(frozen=True)
class Term:
    """One parameter and the feature of the landscape that it multiplies."""

    param: str
    label: str
    feature: Callable[[np.ndarray, np.ndarray], np.ndarray]
    needs_sigma: bool = False  # whether the feature depends on sigma, which must then be positive
    unit: str = "1"  # of the parameter: what makes it times the feature a pure number


@dataclass(frozen=True)
class LawForm:
    """A law's features in each space. In log space mu is m, the mean nll in nats, and sigma is s, its spread."""

    linear: tuple[Term, ...] = ()
    log: tuple[Term, ...] = ()

    def terms(self, space: Space) -> tuple[Term, ...]:
        return self.linear if space == "linear" else self.log

    def param_names(self, space: Space) -> tuple[str, ...]:
        """`("E", "Dc", "aD", ...)`: the floor, then one per column of the design matrix."""
        return ("E", "Dc", "aD", *(term.param for term in self.terms(space)))

    def units(self, space: Space) -> dict[str, str]:
        """The unit of each parameter, `"1"` for pure numbers. Dc is the excess loss where every factor is 1."""
        own = {term.param: term.unit for term in self.terms(space)}
        return {"E": "nats/token", "Dc": "nats/token * tokens^aD", "aD": "1", **own}

    def design_matrix(self, space: Space, mu: Any, sigma: Any, num_tokens: Any) -> np.ndarray:
        """`(..., p)`, so that ln(L - E) = X @ (ln Dc, aD, ...); arguments broadcast."""
        mu, sigma, num_tokens = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (mu, sigma, num_tokens)))
        columns = [np.ones(mu.shape), -np.log(num_tokens), *(-term.feature(mu, sigma) for term in self.terms(space))]
        return np.stack(columns, axis=-1)


# m = ln(geometric mean perplexity) stands where ln(mu) stood; s and m stand where sigma and mu stood as plain factors.
LAW_FORMS: dict[str, LawForm] = {
    "data_only": LawForm(),
    "no_interaction": LawForm(
        linear=(
            Term("a0", "ln(mu)", lambda mu, sigma: np.log(mu)),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
        ),
        log=(
            Term("a0", "m", lambda m, s: m, unit="1/nat"),
            Term("b0", "ln(s)", lambda m, s: np.log(s), needs_sigma=True),
        ),
    ),
    "paper": LawForm(
        linear=(
            Term("a0", "ln(mu)", lambda mu, sigma: np.log(mu)),
            Term("a1", "sigma*ln(mu)", lambda mu, sigma: sigma * np.log(mu), True, "1/perplexity"),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
            Term("b1", "mu*ln(sigma)", lambda mu, sigma: mu * np.log(sigma), True, "1/perplexity"),
        ),
        log=(
            Term("a0", "m", lambda m, s: m, unit="1/nat"),
            Term("a1", "s*m", lambda m, s: s * m, True, "1/nat^2"),
            Term("b0", "ln(s)", lambda m, s: np.log(s), needs_sigma=True),
            Term("b1", "m*ln(s)", lambda m, s: m * np.log(s), True, "1/nat"),
        ),
    ),
    "log_parabola": LawForm(
        linear=(
            Term("a0", "ln(mu)", lambda mu, sigma: np.log(mu)),
            Term("a1", "ln(mu)^2", lambda mu, sigma: np.log(mu) ** 2),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
        ),
        log=(
            Term("a0", "m", lambda m, s: m, unit="1/nat"),
            Term("a1", "m^2", lambda m, s: m**2, unit="1/nat^2"),
        ),
    ),
}


def law_form(form: str, space: str) -> LawForm:
    """The form of that name; an error that lists the names otherwise."""
    if form not in LAW_FORMS:
        raise ValueError(f"there is no law form {form!r}; the forms are {', '.join(LAW_FORMS)}, or 'auto' in a fit.")
    if space not in ("linear", "log"):
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")
    return LAW_FORMS[form]
