"""A fitted perplexity-aware data scaling law: its parameters, predictions, and saved form."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.saving import load_json, save_json
from ..data.schema import Anything, Flag, Names, Number, Text, check, maybe
from ..landscape.joint import JointLandscape
from ..landscape.landscape import PerplexityLandscape
from ..landscape.reach import log_name
from ..landscape.scores import Column, as_column, in_words, names_of
from .comparison import compare_scaling_laws
from .forms import LawForm, Space, Term, law_form, marginal_gain, tokens_for
from .intervals import check_intervals, gain_interval, loss_interval, param_intervals
from .optimum import Optimum, find_optimum
from .points import LawPoints, read_law_points

_SCHEMA_VERSION = 1


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


_COUNT = Number(0, 1e9, whole=True)
_SCHEMA = {
    "form": Text(),
    "space": Text(("linear", "log")),
    "column?": (Text(), [Text()]),
    "model?": maybe(Text()),
    "model_revision?": maybe(Text()),
    "corpus?": maybe(Text()),
    "params": Names(Number(-1e100, 1e100)),
    "units?": Names(Text()),
    "report": {
        "converged": Flag(),
        "floor_at_bound": Flag(),
        "rank": _COUNT,
        "condition_number": Number(0),
        "num_points": _COUNT,
        "num_runs": _COUNT,
        "r2": Number(-1e9, 1),
        "residual_std": Number(0, 1e9),
        "huber_delta": maybe(Number(0)),
    },
    "points": [Names(Anything())],  # whose reader names the row
}


@dataclass(frozen=True, eq=False)
class ScalingLaw:
    """A fitted law. Make it with [`fit_scaling_law`] or [`ScalingLaw.load`].

    Attributes:
        form: a name in `LAW_FORMS`.
        space: whether `mu` and `sigma` are moments of the score (`"linear"`) or of its logarithm in nats (`"log"`).
        params: by name: `E` (the floor), `Dc` (scale), `aD` (exponent of D), and the form's own; see `units`.
        report: how the fit went.
        points: what it was fitted to; the optimum is trusted within their (mu, sigma), and intervals come from
            refitting them.
        model: the model the scores come from, if told.
        model_revision: its commit, or the hash of a local folder's weights, if told.
        corpus: which corpus the probes were drawn from (an id, a fingerprint), if told.
        column: the score column that it is about; landscapes of another one are refused. Of two, `(first, second)`,
            each `mu` and `sigma` is a pair `(..., 2)` in that order, and parameters are named `a0_first` and so on.
    """

    form: str
    space: Space
    params: dict[str, float]
    report: FitReport
    points: LawPoints
    model: str | None = None
    model_revision: str | None = None
    corpus: str | None = None
    column: Column = "perplexity"

    @property
    def _form(self) -> LawForm:
        return law_form(self.form, self.space, self.column)

    @property
    def terms(self) -> tuple[Term, ...]:
        """Its features of the landscape, each with its parameter."""
        return self._form.terms(self.space)

    @property
    def units(self) -> dict[str, str]:
        """The unit of each parameter; the loss is in nats per token, D in tokens."""
        units = self._form.units(self.space)
        return {name: unit.replace("score", in_words(self.column)) for name, unit in units.items()}

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
        _, Dc, *rest = (self.params[name] for name in self._form.param_names(self.space))
        return np.array([math.log(Dc), *rest])

    def design_matrix(self, mu: Any, sigma: Any, num_tokens: Any) -> np.ndarray:
        """[`LawForm.design_matrix`] of this law, with its arguments checked.

        Raises:
            ValueError: num_tokens is not positive, mu is not where it is a mean of scores or of perplexity's nll, or
                sigma is not and the form needs ln(sigma); or of two columns they are not `(..., 2)`.
        """
        names, shapes = names_of(self.column), (np.shape(mu), np.shape(sigma))
        if len(names) == 2 and not all(shape[-1:] == (2,) for shape in shapes):
            raise ValueError(f"mu and sigma of {in_words(self.column)} are (..., 2), got {shapes[0]} and {shapes[1]}.")
        positive = [("num_tokens", num_tokens)]
        if self.space == "linear" or names == ("perplexity",):
            positive.append(("mu", mu))
        elif "perplexity" in names:
            positive.append(("mu of perplexity", np.asarray(mu)[..., names.index("perplexity")]))
        if any(term.needs_sigma for term in self.terms):
            positive.append(("sigma", sigma))
        for name, value in positive:
            if not np.all(np.asarray(value, dtype=float) > 0):
                raise ValueError(f"{name} must be positive, got {value}.")
        return self._form.design_matrix(self.space, mu, sigma, num_tokens)

    def predict(self, mu: Any, sigma: Any, num_tokens: Any) -> Any:
        """Predicted held-out loss, nats per token, after training on `num_tokens` tokens of a landscape `(mu, sigma)`.

        Numbers or arrays, which broadcast; `mu` and `sigma` are in this law's `space`. Of two columns they are
        `(..., 2)` and num_tokens `(...)`, and so is what is returned.
        """
        loss = self.params["E"] + np.exp(self.design_matrix(mu, sigma, num_tokens) @ self.theta)
        return float(loss) if np.ndim(loss) == 0 else loss

    def interval(
        self, mu: Any, sigma: Any, num_tokens: Any, *, level: float = 0.95, noise: bool = False, seed: int = 0
    ) -> tuple[Any, Any]:
        """`(low, high)` of the loss there: of its mean, or with `noise` of one new run. See [`loss_interval`]."""
        low, high = loss_interval(self, mu, sigma, num_tokens, level=level, noise=noise, seed=seed)
        return (float(low), float(high)) if low.ndim == 0 else (low, high)

    def predict_interval(
        self, mu: Any, sigma: Any, num_tokens: Any, level: float = 0.95, *, seed: int = 0
    ) -> tuple[Any, Any]:
        """`(low, high)` between which the loss of a new run should fall: [`interval`] with `noise`."""
        return self.interval(mu, sigma, num_tokens, level=level, noise=True, seed=seed)

    def gain_interval(
        self, better: tuple[Any, Any], worse: tuple[Any, Any], num_tokens: Any, *, level: float = 0.95, seed: int = 0
    ) -> tuple[Any, Any, Any]:
        """`(low, high, probability_positive)` of L(worse) - L(better); both `(mu, sigma)`. See [`law.intervals`]."""
        found = gain_interval(self, better, worse, num_tokens, level=level, seed=seed)
        return tuple(map(float, found)) if found[0].ndim == 0 else found

    @property
    def why_no_intervals(self) -> str | None:
        """Why this law can have no intervals and what to add, or None."""
        return check_intervals(self)

    def param_intervals(self, *, level: float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """`{name: (low, high)}` of each parameter. See [`law.intervals`]."""
        return param_intervals(self, level=level, seed=seed)

    def held_out_errors(self) -> dict[str, Any]:
        """How well this form predicts what it was not fitted to: its row of [`compare_scaling_laws`]."""
        return compare_scaling_laws(self.points, form=self.form, space=self.space, column=self.column)[0]

    def optimum(self, landscape: PerplexityLandscape | JointLandscape, num_tokens: float, **options: Any) -> Optimum:
        """The (mu, sigma) that this law predicts to be best for a corpus and a budget. See [`find_optimum`]."""
        return find_optimum(self, landscape, num_tokens, **options)

    def to_dict(self) -> dict[str, Any]:
        origin = {"model": self.model, "model_revision": self.model_revision, "corpus": self.corpus}
        head = {"form": self.form, "space": self.space, "column": self.column, **origin, "params": dict(self.params)}
        return {**head, "units": self.units, "report": asdict(self.report), "points": self.points.to_rows()}

    @classmethod
    def from_dict(cls, d: dict[str, Any], where: str = "the law") -> ScalingLaw:
        """The reverse of [`to_dict`]; laws saved before `column`, `model_revision`, `corpus`, `units` are read too.

        Raises:
            ValueError: naming `where` and the part that is missing, or is not what this form needs.
        """
        check(d, _SCHEMA, where)
        column = as_column(d.get("column", "perplexity"))
        names = law_form(d["form"], d["space"], column).param_names(d["space"])
        if set(d["params"]) != set(names):
            raise ValueError(f"{where} has parameters {sorted(d['params'])}, form {d['form']!r} has {sorted(names)}.")
        points = read_law_points(d["points"])
        if not 0 <= d["params"]["E"] < points.loss.min() or d["params"]["Dc"] <= 0:
            E, Dc = d["params"]["E"], d["params"]["Dc"]
            raise ValueError(f"{where} has E {E!r} and Dc {Dc!r}, which no fit to its points gives; it was changed.")
        params = {name: d["params"][name] for name in names}
        origin = (d.get("model_revision"), d.get("corpus"), column)
        return cls(d["form"], d["space"], params, FitReport(**d["report"]), points, d.get("model"), *origin)

    def save(self, path: str | os.PathLike) -> None:
        """Save as JSON, with the points it was fitted to."""
        save_json(path, self.to_dict(), kind="scaling_law", version=_SCHEMA_VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ScalingLaw:
        return load_json(path, kind="scaling_law", version=_SCHEMA_VERSION, read=cls.from_dict)

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> Path:
        """Save `law.json` and a card that says what the law is worth. See [`save_law`]."""
        from ..hub.law_folder import save_law  # here, as the Hub's client takes long to load

        return save_law(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Share the law as a model repository; the URL. See [`push_law_to_hub`]."""
        from ..hub.law_folder import push_law_to_hub

        return push_law_to_hub(self, repo_id, **options)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **options: Any) -> ScalingLaw:
        """Load a law from a folder or from the Hub. See [`find_law`]."""
        from ..hub.law_folder import find_law

        return cls.load(find_law(name, **options))

    def __repr__(self) -> str:
        r = self.report
        return (
            f"ScalingLaw(form={self.form!r}, space={self.space!r}, R2={r.r2:.3f}, residual_std={r.residual_std:.4f}, "
            f"num_points={r.num_points}, num_runs={r.num_runs}, model={self.model!r})"
        )

    def __str__(self) -> str:
        r, logs = self.report, map(log_name, names_of(self.column))
        exponent = f"{math.log(self.params['Dc']):.4g} {-self.params['aD']:+.4g}*ln(D)"
        exponent += "".join(f" {-self.params[term.param]:+.4g}*{term.label}" for term in self.terms)
        where = {
            "linear": f"mu, sigma: mean and standard deviation of {self.column}",
            "log": f"m, s: mean and standard deviation of {' and of '.join(logs)}, in nats",
        }
        low, high = self.num_tokens_range
        lines = [
            f"loss = {self.params['E']:.4g} + exp({exponent})",
            f"  form {self.form} in {self.space} space ({where[self.space]};",
            "  D: training tokens; loss: nats per token)",
            f"  fitted to {r.num_points} points of {r.num_runs} runs, D from {low:,.0f} to {high:,.0f}: "
            f"R2 {r.r2:.3f}, residuals {r.residual_std:.4f} nats per token",
        ]
        if not self.terms:
            lines.append("  it reads nothing of the landscape: to it the best subset is a random one, with no gain")
        if r.floor_at_bound:
            lines.append(
                "  the floor E is at its bound 0: the points show none, so the law is optimistic far beyond their D"
            )
        if self.params["aD"] <= 0:
            lines.append("  aD is not positive: over these points the loss does not fall with D")
        if not r.converged:
            lines.append("  the fit did not converge; do not rely on it")
        return "\n".join(lines)

    def tokens_for(self, loss: Any, mu: Any, sigma: Any) -> Any:
        """Training tokens of a landscape that bring the loss down to `loss`; infinity if none do.

        See [`~hf_ppl_select.law.forms.tokens_for`].
        """
        return tokens_for(self, loss, mu, sigma)

    def marginal_gain(self, mu: Any, sigma: Any, num_tokens: Any) -> Any:
        """-dL/dD: how far one more training token lowers the loss. See [`~hf_ppl_select.law.forms.marginal_gain`]."""
        return marginal_gain(self, mu, sigma, num_tokens)
