"""Perplexity-aware data scaling laws: the forms, and a fitted law.

Every form shares one skeleton (the paper's law is Liu et al., ACL 2026): the loss above its floor E is log-linear,

    L(mu, sigma, D) = E + Dc / ( D^aD * exp(p1*f1(mu, sigma) + p2*f2(mu, sigma) + ...) )
    ln(L - E)       = ln Dc - aD*ln D - p1*f1 - p2*f2 - ...

so a form is nothing but its list of features f. To add one, add an entry to [`LAW_FORMS`].
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .law_points import LawPoints, read_law_points
from .saving import load_json, save_json

if TYPE_CHECKING:
    from .landscape import PerplexityLandscape
    from .optimum import Optimum

Space = Literal["linear", "log"]
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Term:
    """One parameter and the feature of the landscape that it multiplies."""

    param: str
    label: str
    feature: Callable[[np.ndarray, np.ndarray], np.ndarray]
    needs_sigma: bool = False  # whether the feature depends on sigma, which must then be positive


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
            Term("a0", "m", lambda m, s: m),
            Term("b0", "ln(s)", lambda m, s: np.log(s), needs_sigma=True),
        ),
    ),
    "paper": LawForm(
        linear=(
            Term("a0", "ln(mu)", lambda mu, sigma: np.log(mu)),
            Term("a1", "sigma*ln(mu)", lambda mu, sigma: sigma * np.log(mu), needs_sigma=True),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
            Term("b1", "mu*ln(sigma)", lambda mu, sigma: mu * np.log(sigma), needs_sigma=True),
        ),
        log=(
            Term("a0", "m", lambda m, s: m),
            Term("a1", "s*m", lambda m, s: s * m, needs_sigma=True),
            Term("b0", "ln(s)", lambda m, s: np.log(s), needs_sigma=True),
            Term("b1", "m*ln(s)", lambda m, s: m * np.log(s), needs_sigma=True),
        ),
    ),
    "log_parabola": LawForm(
        linear=(
            Term("a0", "ln(mu)", lambda mu, sigma: np.log(mu)),
            Term("a1", "ln(mu)^2", lambda mu, sigma: np.log(mu) ** 2),
            Term("b0", "ln(sigma)", lambda mu, sigma: np.log(sigma), needs_sigma=True),
        ),
        log=(
            Term("a0", "m", lambda m, s: m),
            Term("a1", "m^2", lambda m, s: m**2),
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


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    Attributes:
        converged: the solver met its tolerance.
        floor_at_bound: E ended at 0: the points do not span enough num_tokens to see a floor, so extrapolation to many
            more tokens is optimistic.
        rank: of the design matrix; equal to its number of columns, as other fits are refused.
        condition_number: of its standardised columns. Above about 1e3 single parameters mean little; predictions may
            still do.
        num_points, num_runs: what the fit rests on.
        r2: share of the variance of the loss explained.
        residual_std: nats per token, degrees of freedom taken off.
        huber_delta: of the polish, on ln(loss); None for plain least squares on ln(L - E).
    """

    converged: bool
    floor_at_bound: bool
    rank: int
    condition_number: float
    num_points: int
    num_runs: int
    r2: float
    residual_std: float
    huber_delta: float | None


@dataclass(frozen=True, eq=False)
class ScalingLaw:
    """A fitted law. Make it with [`fit_scaling_law`] or [`ScalingLaw.load`].

    Attributes:
        form: a name in [`LAW_FORMS`].
        space: whether `mu` and `sigma` are moments of perplexity (`"linear"`) or of nll in nats (`"log"`).
        params: by name: `E` (nats), `Dc` (nats, scale), `aD` (exponent of D), and the form's own.
        report: how the fit went.
        points: what it was fitted to; the optimum is trusted within their (mu, sigma), and intervals come from
            refitting them.
        model: the model the perplexities come from, if told.
    """

    form: str
    space: Space
    params: dict[str, float]
    report: FitReport
    points: LawPoints
    model: str | None = None

    @property
    def residual_std(self) -> float:
        """Standard deviation of measured minus fitted loss, nats per token."""
        return self.report.residual_std

    @property
    def runs(self) -> tuple[str, ...]:
        return self.points.runs

    @property
    def num_tokens_range(self) -> tuple[float, float]:
        """Smallest and largest D among the points."""
        return float(self.points.num_tokens.min()), float(self.points.num_tokens.max())

    @property
    def theta(self) -> np.ndarray:
        """The coefficients of the design matrix: `(ln Dc, aD, ...)`."""
        _, Dc, *rest = (self.params[name] for name in LAW_FORMS[self.form].param_names(self.space))
        return np.array([math.log(Dc), *rest])

    def design_matrix(self, mu: Any, sigma: Any, num_tokens: Any) -> np.ndarray:
        """[`LawForm.design_matrix`] of this law, with its arguments checked.

        Raises:
            ValueError: mu or num_tokens is not positive, or sigma is not and the form needs ln(sigma).
        """
        form = LAW_FORMS[self.form]
        needs_sigma = any(term.needs_sigma for term in form.terms(self.space))
        for name, value in (("mu", mu), ("num_tokens", num_tokens), *([("sigma", sigma)] if needs_sigma else [])):
            if not np.all(np.asarray(value, dtype=float) > 0):
                raise ValueError(f"{name} must be positive, got {value}.")
        return form.design_matrix(self.space, mu, sigma, num_tokens)

    def predict(self, mu: Any, sigma: Any, num_tokens: Any) -> Any:
        """Predicted held-out loss, nats per token, after training on `num_tokens` tokens of a landscape `(mu, sigma)`.

        Numbers or arrays, which broadcast; `mu` and `sigma` are in this law's `space`.
        """
        loss = self.params["E"] + np.exp(self.design_matrix(mu, sigma, num_tokens) @ self.theta)
        return float(loss) if np.ndim(loss) == 0 else loss

    def predict_interval(
        self, mu: Any, sigma: Any, num_tokens: Any, level: float = 0.95, *, num_bootstrap: int = 200, seed: int = 0
    ) -> tuple[Any, Any]:
        """`(low, high)` between which a newly measured loss should fall.

        Refits the law to runs drawn with replacement (points of one run are correlated) and adds residual noise. These
        are percentile intervals: with about ten runs or fewer they are too narrow, covering less often than `level`.
        """
        from .fitting import bootstrap_law  # fitting makes laws, so it imports this module

        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}.")
        replicates = bootstrap_law(self, num_bootstrap, seed)
        loss = replicates.predict(self.design_matrix(mu, sigma, num_tokens))
        noise = np.random.default_rng(seed).standard_normal(len(loss)) * self.residual_std
        tail = (1 - level) / 2
        low, high = np.quantile(loss + noise.reshape(-1, *[1] * (loss.ndim - 1)), [tail, 1 - tail], axis=0)
        return (float(low), float(high)) if low.ndim == 0 else (low, high)

    def optimum(self, landscape: PerplexityLandscape, num_tokens: float, **options: Any) -> Optimum:
        """The (mu, sigma) that this law predicts to be best for a corpus and a budget. See [`find_optimum`]."""
        from .optimum import find_optimum  # the search needs a law, so it imports this module

        return find_optimum(self, landscape, num_tokens, **options)

    def to_dict(self) -> dict[str, Any]:
        head = {"form": self.form, "space": self.space, "model": self.model, "params": dict(self.params)}
        return {**head, "report": asdict(self.report), "points": self.points.to_rows()}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> ScalingLaw:
        names = law_form(d["form"], d["space"]).param_names(d["space"])
        if set(d["params"]) != set(names):
            raise ValueError(f"the law has parameters {sorted(d['params'])}, form {d['form']!r} has {sorted(names)}.")
        report, points = FitReport(**d["report"]), read_law_points(d["points"])
        return cls(d["form"], d["space"], {name: d["params"][name] for name in names}, report, points, d["model"])

    def save(self, path: str | os.PathLike) -> None:
        """Save as JSON, with the points it was fitted to."""
        save_json(path, self.to_dict(), kind="scaling_law", version=_SCHEMA_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ScalingLaw:
        return cls.from_dict(load_json(path, kind="scaling_law", version=_SCHEMA_VERSION))

    def __repr__(self) -> str:
        r = self.report
        return (
            f"ScalingLaw(form={self.form!r}, space={self.space!r}, R2={r.r2:.3f}, residual_std={r.residual_std:.4f}, "
            f"num_points={r.num_points}, num_runs={r.num_runs}, model={self.model!r})"
        )

    def __str__(self) -> str:
        form, r = LAW_FORMS[self.form], self.report
        exponent = f"{math.log(self.params['Dc']):.4g} {-self.params['aD']:+.4g}*ln(D)"
        exponent += "".join(f" {-self.params[term.param]:+.4g}*{term.label}" for term in form.terms(self.space))
        where = {
            "linear": "mu, sigma: mean and standard deviation of perplexity",
            "log": "m, s: mean and standard deviation of nll, in nats",
        }
        low, high = self.num_tokens_range
        lines = [
            f"loss = {self.params['E']:.4g} + exp({exponent})",
            f"  form {self.form} in {self.space} space ({where[self.space]};",
            "  D: training tokens; loss: nats per token)",
            f"  fitted to {r.num_points} points of {r.num_runs} runs, D from {low:,.0f} to {high:,.0f}: "
            f"R2 {r.r2:.3f}, residuals {r.residual_std:.4f} nats per token",
        ]
        if r.floor_at_bound:
            lines.append(
                "  the floor E is at its bound 0: the points show none, so the law is optimistic far beyond their D"
            )
        if not r.converged:
            lines.append("  the fit did not converge; do not rely on it")
        return "\n".join(lines)
