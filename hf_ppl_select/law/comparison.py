"""Law forms compared out of sample, and whether law points let a form be fitted at all.

Leaving a run out is a weight of 0, and `solver` takes many weightings at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..landscape.scores import Column, as_column, names_of
from .forms import LAW_FORMS, Space, design_matrix, law_form
from .points import LawPoints, moment_field, read_law_points
from .solver import solve

_LARGEST_LN_DC = 230.0  # Dc then has a hundred digits
MOST_FITS = 100  # of one form, to tell its error on runs left out


def compare_scaling_laws(
    points: Any, *, form: str = "auto", space: str = "auto", column: Column = "auto"
) -> list[dict[str, Any]]:
    """Fit every form in every space and score column the points allow, leaving out runs, and the largest num_tokens.

    All forms are fitted by plain variable projection (least squares on ln(L - E), E >= 0), which leaving a run out
    cannot tip from one vertex to another as it can a Huber fit. Errors are in nats per token, averaged over points.

    Args:
        points: what [`read_law_points`] takes.
        form, space, column: compare only this form, space or score column; or a pair of columns, `(first, second)`,
            whose laws are of both together, in log space.

    Returns:
        One dict per form, space and column, smallest leave-one-run-out error first: `form`, `space`, `column`,
        `num_params` (with E), `r2` (in sample, of the loss), `loo_mae`, `loo_se` (its standard error, over runs; of
        more than 100 runs, a hundredth of them is left out at a time),
        `held_out_d_mae` (of the points at the largest num_tokens, predicted from the others; None where those are too
        few), `aicc` (on residuals of ln(loss)), `E`, `chosen` (what `form="auto"` takes of a column),
        and `problem`: None, or why a form could not be compared, its numbers then None.
    """
    points, column = read_law_points(points), as_column(column)
    spaces = ("linear", "log") if isinstance(column, str) else ("log",)
    rows = []
    for of in points.scores if column == "auto" else [column]:
        for name in LAW_FORMS if form == "auto" else [form]:
            for where in spaces if space == "auto" else [space]:
                again = not law_form(name, where, of).terms(where) and len(rows)  # no features: always the same law
                absent = where == "log" and len(spaces) > 1 and space == "auto" and not points.has_space("log", of)
                if not (again and "auto" in (space, column)) and not absent:
                    rows.append(_compare_one(points, name, where, of))
    rows.sort(key=lambda row: (row["problem"] is not None, row["loo_mae"] or 0.0, row["num_params"]))
    for of in {row["column"] for row in rows}:
        own = [row for row in rows if row["column"] == of or row["form"] == "data_only"]
        if any(row["problem"] is None for row in own):
            choose_form(own)["chosen"] = True
    return rows


def choose_form(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the rows of [`compare_scaling_laws`], the one with fewest parameters within one standard error of the best.

    Raises:
        ValueError: none could be fitted.
    """
    fitted = [row for row in rows if row["problem"] is None]
    if not fitted:
        simplest = min(rows, key=lambda row: row["num_params"])
        raise ValueError(f"no law form can be fitted and compared on these points: {simplest['problem']}")
    best = min(fitted, key=lambda row: row["loo_mae"])
    close = [row for row in fitted if row["loo_mae"] <= best["loo_mae"] + best["loo_se"]]
    return min(close, key=lambda row: (row["num_params"], row["loo_mae"]))


def only_without_features(rows: list[dict[str, Any]]) -> str | None:
    """What it means if only forms that read nothing of the landscape could be fitted, or None."""
    reads = [row for row in rows if law_form(row["form"], row["space"], row["column"]).terms(row["space"])]
    if not reads or any(row["problem"] is None for row in reads):
        return None
    nearest = min(reads, key=lambda row: row["num_params"])
    return (
        "These points allow no form that reads mu and sigma, so the law predicts the same for every subset and cannot "
        f"select: {nearest['problem']}"
    )


def _compare_one(points: LawPoints, form: str, space: Space, column: Column) -> dict[str, Any]:
    form_params, n = law_form(form, space, column).param_names(space), len(points)
    row = {"form": form, "space": space, "column": column, "num_params": len(form_params), "chosen": False}
    row |= dict.fromkeys(("r2", "loo_mae", "loo_se", "held_out_d_mae", "aicc", "E"))
    row["problem"] = fit_problem(points, form, space, column)
    if row["problem"]:
        return row
    X = design_matrix(points, form, space, column)
    run = np.unique(points.run, return_inverse=True)[1]
    fold = run % min(len(points.runs), MOST_FITS)  # runs that are left out together: one, up to 100 runs
    left_out = fold == np.arange(fold.max() + 1)[:, None]
    solution = solve(X, points.loss, np.concatenate([np.ones((1, n)), ~left_out]), huber_delta=None)
    if not solution.solvable.all():
        name = str(points.run[left_out[np.argmin(solution.solvable[1:])]][0])
        row["problem"] = f"without run {name!r} form {form!r} cannot be fitted, so its error cannot be told; add runs."
        return row
    if problem := scale_problem(solution.theta[0], form):
        row["problem"] = problem
        return row
    predicted = solution.predict(X)
    error = np.abs(predicted[1 + fold, np.arange(n)] - points.loss)
    by_run = np.bincount(run, error) / np.bincount(run)
    residual, log_residual = predicted[0] - points.loss, np.log(predicted[0] / points.loss)
    k = len(form_params) + 1  # and the noise
    return row | {
        "r2": float(1 - residual @ residual / np.sum((points.loss - points.loss.mean()) ** 2)),
        "loo_mae": float(error.mean()),
        "loo_se": float(by_run.std(ddof=1) / np.sqrt(len(by_run))),
        "held_out_d_mae": _held_out_d_error(points, form, space, column),
        "aicc": float(n * np.log(log_residual @ log_residual / n) + 2 * k * n / (n - k - 1)) if n > k + 1 else None,
        "E": float(solution.E[0]),
    }


def _held_out_d_error(points: LawPoints, form: str, space: Space, column: Column) -> float | None:
    """Mean absolute error at the largest num_tokens of a law fitted to the others; None where it cannot be."""
    last = points.num_tokens > points.num_tokens.max() / np.sqrt(2)  # chunks are whole: runs end near one count
    if last.all() or _problem(points.take(~last), form, space, column):
        return None
    X = design_matrix(points, form, space, column)
    predicted = solve(X, points.loss, ~last[None], huber_delta=None).predict(X)[0]
    return float(np.abs(predicted - points.loss)[last].mean())


def fit_problem(points: LawPoints, form: str, space: Space, column: Column) -> str | None:
    """Why a form cannot be fitted to these points and what to add, or None."""
    return _problem(points, form, space, column) or _floor_problem(points, form, space, column)


def scale_problem(theta: np.ndarray, form: str) -> str | None:
    """Why a fit whose coefficients are `(ln Dc, aD, ...)` is no law to keep, or None."""
    if abs(theta[0]) <= _LARGEST_LN_DC:
        return None
    return (
        f"form {form!r} fits with a Dc of e^{theta[0]:.0f}: the runs' (mu, sigma) lie so close together that how the "
        "loss bends between them runs away beside them. Add probe runs further apart, or use a form with fewer "
        "parameters."
    )


def _problem(points: LawPoints, form: str, space: Space, column: Column) -> str | None:
    """Why features and slope cannot be told from these points, or None."""
    terms = law_form(form, space, column).terms(space)
    try:
        sigmas = {name: points.moments(space, name)[1] for name in names_of(column)}
    except ValueError as error:  # some points lack them
        return str(error)
    for name, sigma in sigmas.items():
        zero = np.flatnonzero(sigma <= 0)
        if len(zero) and any(term.needs_sigma for term in terms):
            field = moment_field("sigma" if space == "linear" else "log_sigma", name)
            return f"{points.name(zero[0])} has {field} 0, and form {form!r} takes its logarithm; leave the point out."
    num_params, n = len(terms) + 3, len(points)
    if n <= num_params:
        return (
            f"form {form!r} has {num_params} parameters and needs at least {num_params + 1} law points, got {n}: "
            f"measure {num_params + 1 - n} more, or use a form with fewer parameters."
        )
    if len(points.runs) <= len(terms):
        return (
            f"form {form!r} needs runs at {len(terms) + 1} or more different (mu, sigma), got {len(points.runs)}: "
            "points of one run hardly differ in them. Add probe runs, or use a form with fewer parameters."
        )
    if np.ptp(points.loss) == 0:
        return "loss is the same at every law point, so there is nothing to fit; measure it after training, held out."
    labels = ["num_tokens", *(term.label for term in terms)]
    columns = design_matrix(points, form, space, column)[:, 1:]
    for label, values in zip(labels, columns.T, strict=True):
        if np.ptp(values) <= 1e-6 * max(1.0, np.abs(values).max()):
            runs, tokens = "add probe runs where it differs", "evaluate each run at two or more num_tokens"
            more = tokens if label == "num_tokens" else runs
            return f"{label} is the same at every law point, so its parameter cannot be fitted: {more}."
    _, singular, directions = np.linalg.svd(standardised(columns), full_matrices=False)
    if singular[-1] <= 1e-7 * singular[0]:
        tied = [label for label, share in zip(labels, directions[-1], strict=True) if abs(share) > 0.1]
        rank = 1 + int((singular > 1e-7 * singular[0]).sum())
        return (
            f"{', '.join(tied)} move together over the law points, so their parameters cannot be told apart (rank "
            f"{rank} of {len(labels) + 1}): add probe runs that vary one and not the others."
        )
    return None


def _floor_problem(points: LawPoints, form: str, space: Space, column: Column) -> str | None:
    """Why E cannot be told from the slope, or None. With features of the landscape, two num_tokens may do."""
    levels = len(np.unique(points.num_tokens))
    if levels >= 3 or law_form(form, space, column).terms(space):
        return None
    return (
        f"form {form!r} has a floor, a scale and a slope, which {levels} different num_tokens cannot tell apart: "
        "evaluate each run at three or more."
    )


def standardised(columns: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and standard deviation 1."""
    return (columns - columns.mean(0)) / columns.std(0)
