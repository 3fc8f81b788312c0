"""Fitting scaling laws to law points.

For a fixed floor E a law is linear (see `scaling_law`), so the only search is over E in [0, min L): variable
projection. A Huber polish on ln(loss) then makes it robust.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..landscape.scores import Column, as_column
from .comparison import (
    choose_form,
    compare_scaling_laws,
    fit_problem,
    only_without_features,
    scale_problem,
    standardised,
)
from .forms import design_matrix, law_form
from .points import read_law_points
from .scaling_law import FitReport, ScalingLaw
from .solver import solve

HUBER_DELTA = 1e-3  # on ln(loss): far below probe noise, so the polish is close to least absolute deviations


def fit_scaling_law(
    points: Any,
    form: str = "auto",
    space: str = "auto",
    model: str | None = None,
    *,
    column: Column = "perplexity",
    model_revision: str | None = None,
    corpus: str | None = None,
    huber_delta: float | None = HUBER_DELTA,
) -> ScalingLaw:
    """Fit a perplexity-aware scaling law to law points.

    Args:
        points: what [`read_law_points`] takes: rows `run, mu, sigma, num_tokens, loss` and, for log space, `log_mu,
            log_sigma`.
        form: a name in `LAW_FORMS`, or `"auto"`: of all forms that can be fitted, those whose leave-one-run-out error
            is within one standard error of the smallest, and of these the one with fewest parameters.
        space: `"linear"` (moments of the score), `"log"` (of its logarithm) or `"auto"`, chosen along with the form.
        column: the score column the law is about, or `"auto"`: of all that the points hold, chosen along too. Two,
            `(first, second)`: a law of both, in log space, with the form's terms for each.
        model: the model the scores come from; the law then refuses landscapes of other models.
        model_revision, corpus: commit of that model, and which corpus the probes were drawn from; kept with the law.
        huber_delta: where the Huber loss of the polish turns from square to linear, on residuals of ln(loss); None for
            no polish: least squares on ln(L - E).

    Returns:
        [`ScalingLaw`]; its `report` says how the fit went.

    Raises:
        ValueError: bad points, too few points or runs for the form, or points that do not vary enough, which also a
            Dc of over a hundred digits tells; the message says in what.

    Warns:
        UserWarning: `form="auto"` has no form to take that reads mu and sigma; the moments of the score are
            heavy-tailed (sigma > mu), so a linear-space law rests on a few chunks; the fit did not converge.
    """
    points, column = read_law_points(points), as_column(column)
    if "auto" in (form, space, column):
        rows = compare_scaling_laws(points, form=form, space=space, column=column)
        row = choose_form(rows)
        if form == "auto" and (blind := only_without_features(rows)):
            warnings.warn(blind, stacklevel=2)
        form, space, column = row["form"], row["space"], row["column"]
    if problem := fit_problem(points, form, space, column):
        raise ValueError(problem)
    X = design_matrix(points, form, space, column)
    own = law_form(form, space, column)
    mu, sigma = points.moments(space, column)
    heavy = np.flatnonzero(sigma > mu)
    if space == "linear" and len(heavy) and own.linear:
        warnings.warn(
            f"{len(heavy)} of {len(points)} points are heavy-tailed, first {points.name(heavy[0])} with sigma "
            f"{sigma[heavy[0]]:.4g} > mu {mu[heavy[0]]:.4g}: their moments of {column} rest on a few "
            "junk chunks. Use space='log'.",
            stacklevel=2,
        )
    solution = solve(X, points.loss, np.ones((1, len(points))), huber_delta)
    E, theta = float(solution.E[0]), solution.theta[0]
    if problem := scale_problem(theta, form):
        raise ValueError(problem)
    values = [E, np.exp(theta[0]), *theta[1:]]
    residual = points.loss - solution.predict(X)[0]
    report = FitReport(
        converged=bool(solution.converged[0]),
        floor_at_bound=E == 0.0,
        rank=X.shape[1],
        condition_number=float(np.linalg.cond(standardised(X[:, 1:]))),
        num_points=len(points),
        num_runs=len(points.runs),
        r2=float(1 - residual @ residual / np.sum((points.loss - points.loss.mean()) ** 2)),
        residual_std=float(np.sqrt(residual @ residual / (len(points) - len(values)))),
        huber_delta=huber_delta,
    )
    if not report.converged:
        warnings.warn(f"the fit of form {form!r} in {space} space did not converge.", stacklevel=2)
    params = dict(zip(own.param_names(space), map(float, values), strict=True))
    return ScalingLaw(form, space, params, report, points, model, model_revision, corpus, column)
