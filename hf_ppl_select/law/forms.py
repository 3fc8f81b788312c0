"""The forms of perplexity-aware data scaling laws, as design matrices.

Every form shares one skeleton (the paper's law is Liu et al., ACL 2026): the loss above its floor E is log-linear,

    L(mu, sigma, D) = E + Dc / ( D^aD * exp(p1*f1(mu, sigma) + p2*f2(mu, sigma) + ...) )
    ln(L - E)       = ln Dc - aD*ln D - p1*f1 - p2*f2 - ...

so a form is nothing but its list of features f. To add one, add an entry to [`LAW_FORMS`], one `Term` per feature and
space: fitting, comparison, intervals, optimum and saving read it from there. A law of two score columns has each
form's terms once for each of them, in log space.

A law of any form, L = E + exp(h(mu, sigma) - aD*ln D), is solved for D in closed form:

    ln D = (h(mu, sigma) - ln(L - E)) / aD        and        -dL/dD = aD * (L - E) / D
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from ..landscape.scores import Column, check_log_space
from .points import LawPoints, Space


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
    """A law's features in each space. In log space mu is m, the mean of ln(score) in nats, and sigma its spread s."""

    linear: tuple[Term, ...] = ()
    log: tuple[Term, ...] = ()
    column: Column = "perplexity"  # two: mu and sigma are `(..., 2)`

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
        """`(..., p)`, so that ln(L - E) = X @ (ln Dc, aD, ...); arguments broadcast. Two columns: mu `(..., 2)`."""
        mu, sigma, D = (np.asarray(v, dtype=float) for v in (mu, sigma, num_tokens))
        if isinstance(self.column, str):
            mu, sigma, D = np.broadcast_arrays(mu, sigma, D)
        else:
            mu, sigma, D = np.broadcast_arrays(mu, sigma, D[..., None])
            D = D[..., 0]
        columns = [np.ones(D.shape), -np.log(D), *(-term.feature(mu, sigma) for term in self.terms(space))]
        return np.stack(columns, axis=-1)


# m = ln(geometric mean of the score) stands where ln(mu) stood; s and m where sigma and mu stood as plain factors. No
# form takes the logarithm of m, which is 0 or below where a score (a ratio, say) is mostly below 1.
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
            Term("a1", "sigma*ln(mu)", lambda mu, sigma: sigma * np.log(mu), True, "1/score"),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
            Term("b1", "mu*ln(sigma)", lambda mu, sigma: mu * np.log(sigma), True, "1/score"),
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


def law_form(form: str, space: str, column: Column = "perplexity") -> LawForm:
    """The form of that name, for one score column or two.

    Raises:
        ValueError: no such form or space, or two columns in linear space; the message lists what there is.
    """
    if form not in LAW_FORMS:
        raise ValueError(f"there is no law form {form!r}; the forms are {', '.join(LAW_FORMS)}, or 'auto' in a fit.")
    if space not in ("linear", "log"):
        raise ValueError(f"space must be 'linear' or 'log', got {space!r}.")
    if isinstance(column, str):
        return LAW_FORMS[form]
    check_log_space(space)
    return _of_two(LAW_FORMS[form], column)


@cache
def _of_two(form: LawForm, column: tuple[str, str]) -> LawForm:
    """A form's terms in log space for each of two columns: a0 of column x is a0_x, its m is m[x]."""

    def of_one(term: Term, c: int) -> Term:
        label = re.sub(r"\b[ms]\b", lambda found: f"{found[0]}[{column[c]}]", term.label)
        param = f"{term.param}_{column[c]}"
        return Term(param, label, lambda m, s: term.feature(m[..., c], s[..., c]), term.needs_sigma, term.unit)

    return LawForm(log=tuple(of_one(term, c) for c in (0, 1) for term in form.log), column=column)


def design_matrix(points: LawPoints, form: str, space: Space, column: Column = "perplexity") -> np.ndarray:
    """`(n, p)`, a row per law point."""
    return law_form(form, space, column).design_matrix(space, *points.moments(space, column), points.num_tokens)


class Law(Protocol):
    """What intervals, optimum and budgets ask of a fitted law; [`~hf_ppl_select.law.scaling_law.ScalingLaw`] is one.

    That class offers them as its methods, so they do not import it.
    """

    form: str
    space: Space
    column: Column
    params: dict[str, float]
    points: LawPoints
    model: str | None
    runs: tuple[str, ...]
    residual_std: float
    num_tokens_range: tuple[float, float]
    theta: np.ndarray

    @property
    def terms(self) -> tuple[Term, ...]: ...

    def design_matrix(self, mu: Any, sigma: Any, num_tokens: Any) -> np.ndarray: ...

    def predict(self, mu: Any, sigma: Any, num_tokens: Any) -> Any: ...


def tokens_for(law: Law, loss: Any, mu: Any, sigma: Any) -> Any:
    """How many training tokens of a landscape `(mu, sigma)` bring the held-out loss down to `loss`.

    Args:
        law: a fitted law.
        loss: nats per token; number or array.
        mu, sigma: moments in the law's space; numbers or arrays, which broadcast.

    Returns:
        Tokens D, a float; infinity where the law never gets there: at its floor E and below, or if its loss does not
        fall with D (aD <= 0). [`why_never`] says which.

    Raises:
        ValueError: a loss that is not a finite number, or moments that the law does not take.
    """
    loss = np.asarray(loss, dtype=float)
    if not np.isfinite(loss).all():
        raise ValueError(f"loss must be a finite number of nats per token, got {loss}.")
    height = law.design_matrix(mu, sigma, 1.0) @ law.theta
    excess, exponent = loss - law.params["E"], law.params["aD"]
    loss_, height = np.broadcast_arrays(excess, height)
    reached = (loss_ > 0) & (exponent > 0)
    with np.errstate(over="ignore"):
        tokens = np.exp((height - np.log(np.where(reached, loss_, 1.0))) / (exponent if exponent > 0 else 1.0))
    tokens = np.where(reached, tokens, np.inf)
    return float(tokens) if tokens.ndim == 0 else tokens


def why_never(law: Law, loss: float) -> str | None:
    """Why [`tokens_for`] is infinite, in words, or None."""
    if law.params["aD"] <= 0:
        return f"the law's loss does not fall with training tokens (aD = {law.params['aD']:.3g})"
    if loss <= law.params["E"]:
        return f"{loss:.4g} nats per token is at or below the law's floor E = {law.params['E']:.4g}"
    return None


def marginal_gain(law: Law, mu: Any, sigma: Any, num_tokens: Any) -> Any:
    """By how much one more training token lowers the loss: -dL/dD, nats per token (of loss) per token (of training).

    Numbers or arrays, which broadcast. Times a million it is roughly what the next million tokens buy.
    """
    X = law.design_matrix(mu, sigma, num_tokens)
    gain = law.params["aD"] * np.exp(X @ law.theta) / np.asarray(num_tokens, dtype=float)
    return float(gain) if np.ndim(gain) == 0 else gain
