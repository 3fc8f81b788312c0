"""L = E + exp(X @ theta), one design with many weightings or losses: variable projection, then a Huber polish.

For a fixed floor E, ln(L - E) is linear in theta: one weighted least-squares solve. So the search is over E alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Floors to try, as shares of the smallest loss: the profile over E can dip twice, and falls off steeply at its end.
_FLOOR_GRID = np.concatenate([np.linspace(0, 0.95, 40), 1 - np.geomspace(0.04, 1e-6, 40)])
_START_FLOORS = np.array([0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.96])


@dataclass(frozen=True, eq=False)
class Solution:
    """B fits of one design matrix: `E` `(B,)`, `theta` `(B, p)`, and whether each had full rank and converged."""

    E: np.ndarray
    theta: np.ndarray
    solvable: np.ndarray
    converged: np.ndarray

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Loss `(B, ...)` at the rows of a design matrix `(..., p)`."""
        log_excess = np.moveaxis(X @ self.theta.T, -1, 0)
        return self.E.reshape(-1, *[1] * (log_excess.ndim - 1)) + np.exp(log_excess)


def solve(X: np.ndarray, loss: np.ndarray, weights: np.ndarray, huber_delta: float | None) -> Solution:
    """Fit L = E + exp(X @ theta), 0 <= E < min L, under many weightings of the points at once.

    Args:
        X: `(n, p)` design matrix of full rank.
        loss: measured L, `(n,)` for all fits or `(B, n)`.
        weights: `(B, n)`, how often each fit counts each point; 0 leaves it out.
        huber_delta: None stops after variable projection, which minimises Σ w·(ln(L - E) - X @ theta)². A number goes
            on to minimise Σ w·huber(ln(E + exp(X @ theta)) - ln L); `math.inf` makes that least squares.
    """
    Q, R = np.linalg.qr(X)  # orthonormal columns: normal equations lose nothing
    weights = np.asarray(weights, dtype=float)
    loss = np.broadcast_to(loss, weights.shape)
    gram = np.einsum("bn,ni,nj->bij", weights, Q, Q, optimize=True)
    solvable = np.linalg.eigvalsh(gram)[:, 0] > 1e-9 * weights.max(1)
    E, c = np.zeros(len(weights)), np.zeros((len(weights), X.shape[1]))
    converged = np.zeros(len(weights), dtype=bool)
    some = np.flatnonzero(solvable)
    if len(some):
        w, y, gram_inverse = weights[some], loss[some], np.linalg.inv(gram[some])
        E[some], c[some], converged[some] = _project(Q, y, w, gram_inverse)
        if huber_delta is not None:
            # The two objectives may be least at distant E: take a few steps from many floors, go on from the best.
            starts = np.concatenate([_ceiling(y, w)[:, None] * _START_FLOORS, E[some, None]], axis=1)
            c_starts = _linear_fits(Q, y, w, gram_inverse, starts)[1]
            num_starts = starts.shape[1]
            many_w, many_y = np.repeat(w, num_starts, axis=0), np.repeat(y, num_starts, axis=0)
            many_c = c_starts.reshape(-1, Q.shape[1])
            many_E, many_c, _ = _polish(Q, many_y, many_w, starts.ravel(), many_c, huber_delta, max_iterations=5)
            value = huber_objective(Q, many_y, many_w, many_E, many_c, huber_delta)
            best = np.arange(len(some)) * num_starts + value.reshape(-1, num_starts).argmin(1)
            found = _polish(Q, y, w, many_E[best], many_c[best], huber_delta, max_iterations=2000)
            E[some], c[some], converged[some] = found
    return Solution(E, np.linalg.solve(R, c.T).T, solvable, converged)


def refit(X: np.ndarray, loss: np.ndarray, start: Solution) -> Solution:
    """Least squares on ln(L), 0 <= E < min L, for many losses that lie near one solved problem: start there.

    Args:
        X: `(n, p)` design matrix of full rank.
        loss: `(B, n)`.
        start: one fit of the same design, whose parameters every search starts from.
    """
    Q, R = np.linalg.qr(X)
    B = len(loss)
    E, c = np.broadcast_to(start.E, B).copy(), np.broadcast_to(R @ start.theta[0], (B, X.shape[1])).copy()
    E, c, converged = _polish(Q, loss, np.ones(loss.shape), E, c, math.inf)
    return Solution(E, np.linalg.solve(R, c.T).T, np.ones(B, dtype=bool), converged)


def _ceiling(loss, weights):
    """Just below the smallest loss that counts: `(B,)`."""
    return np.where(weights > 0, loss, np.inf).min(1) * (1 - 1e-9)


def _linear_fits(Q, loss, weights, gram_inverse, E):
    """The least-squares fit at each of the floors E `(B, g)`: squared error, coefficients, residuals."""
    y = np.log(np.where(weights[:, None, :] > 0, loss[:, None, :] - E[:, :, None], 1.0))
    c = (weights[:, None, :] * y) @ Q @ gram_inverse
    r = y - c @ Q.T
    return np.einsum("bgn,bn->bg", r**2, weights), c, r


def _errors_of_one_loss(Q, loss, weights, gram_inverse, E):
    """The squared errors of [`_linear_fits`] `(B, g)` where all fits have one loss `(n,)`, and most the same floors:
    each ln(L - E) is taken once, and the sums over points are products of matrices.
    """
    errors = np.empty(E.shape)
    floors, which = np.unique(E, axis=0, return_inverse=True)
    for i, floor in enumerate(floors):
        fits = np.flatnonzero(which.ravel() == i)
        excess = loss - floor[:, None]
        y = np.log(np.where(excess > 0, excess, 1.0))  # points below the floor count in none of these
        sums = (weights[fits] @ (y[:, :, None] * Q).transpose(1, 0, 2).reshape(len(loss), -1)).reshape(
            len(fits), len(floor), -1
        )
        explained = np.einsum("bgk,bkl,bgl->bg", sums, gram_inverse[fits], sums, optimize=True)
        errors[fits] = weights[fits] @ (y**2).T - explained
    return errors


def _project(Q, loss, weights, gram_inverse):
    """Variable projection: a grid over E, then Gauss-Newton on the profile from its best point."""
    ceiling = _ceiling(loss, weights)[:, None]
    grid = ceiling * _FLOOR_GRID
    if (loss == loss[0]).all():
        best = _errors_of_one_loss(Q, loss[0], weights, gram_inverse, grid).argmin(1)
    else:
        best = _linear_fits(Q, loss, weights, gram_inverse, grid)[0].argmin(1)
    E = np.take_along_axis(grid, best[:, None], axis=1)
    error, c, r = _linear_fits(Q, loss, weights, gram_inverse, E)
    shrink = np.ones_like(E)
    used = weights[:, None, :] > 0
    for _ in range(100):
        slope = np.where(used, -1 / np.where(used, loss[:, None, :] - E[:, :, None], 1.0), 0.0)
        slope = slope - (weights[:, None, :] * slope) @ Q @ gram_inverse @ Q.T
        step = -np.einsum("bgn,bgn,bn->bg", slope, r, weights) / np.einsum("bgn,bn->bg", slope**2, weights)
        new_E = np.clip(E + shrink * step, 0, ceiling)
        new_error, new_c, new_r = _linear_fits(Q, loss, weights, gram_inverse, new_E)
        better = new_error < error
        moved = np.abs(new_E - E)
        E, error = np.where(better, new_E, E), np.where(better, new_error, error)
        c, r = np.where(better[..., None], new_c, c), np.where(better[..., None], new_r, r)
        shrink = np.where(better, np.minimum(1.0, shrink * 2), shrink / 4)
        if (moved <= 1e-13 * ceiling).all():
            break
    return E[:, 0], c[:, 0], (moved <= 1e-7 * ceiling)[:, 0]


def huber_objective(Q, loss, weights, E, c, delta):
    """Σ w·huber(ln(E + exp(Q @ c)) - ln L), shaped like `E`, `(fits,)` or `(trials, fits)`; `c` is `(..., p)`."""
    log_loss, _ = _log_predictions(Q, E, c)
    size = np.abs(log_loss - np.log(loss))
    within = np.minimum(size, delta)
    return np.einsum("...n,...n->...", within * (size - within / 2), weights)


def huber_gradient(Q, loss, weights, E, c, delta):
    """The gradient of [`huber_objective`] in (E, c), the residuals, and their Jacobian."""
    log_loss, log_excess = _log_predictions(Q, E, c)
    r = log_loss - np.log(loss)
    share = np.exp(log_excess - log_loss)
    jacobian = np.concatenate([np.exp(-log_loss)[..., None], share[..., None] * Q], axis=-1)
    return np.einsum("...n,...nk->...k", weights * np.clip(r, -delta, delta), jacobian), r, jacobian


def _log_predictions(Q, E, c):
    log_excess = c @ Q.T
    with np.errstate(divide="ignore"):  # ln 0: no floor
        return np.logaddexp(np.log(E)[..., None], log_excess), log_excess


def _polish(Q, loss, weights, E, c, delta, max_iterations=200):
    """Descend the Huber objective. Each iteration tries steps of two models and takes the best one, fit by fit.

    The models are reweighted least squares, which always descends but slowly, and Newton's on the points within delta,
    which is fast near the end; each with E free and with E held (it may sit on its bound).
    """
    ceiling = _ceiling(loss, weights)
    E, c = np.minimum(E, ceiling), c.copy()
    converged = np.zeros(len(E), dtype=bool)
    sizes = np.array([1.0, 0.3, 0.03])
    active = np.arange(len(E))
    for _ in range(max_iterations):
        w, y, Ea, ca = weights[active], loss[active], E[active], c[active]
        value = huber_objective(Q, y, w, Ea, ca, delta)
        gradient, r, jacobian = huber_gradient(Q, y, w, Ea, ca, delta)
        size = np.abs(r)
        steps = []
        curvatures = [np.minimum(1.0, delta / np.maximum(size, 1e-300))]
        if delta < math.inf:  # else they are the same
            curvatures.append((size <= delta) + 1e-6)
        for kappa in curvatures:
            hessian = np.einsum("bn,bni,bnj->bij", w * kappa, jacobian, jacobian, optimize=True)
            hessian += 1e-12 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] * np.eye(hessian.shape[1])
            steps.append(-np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
            held = -np.linalg.solve(hessian[:, 1:, 1:], gradient[:, 1:, None])[:, :, 0]
            steps.append(np.concatenate([np.zeros((len(active), 1)), held], axis=1))
        trial = np.concatenate([sizes[:, None, None] * step for step in steps])  # (steps, fits, 1 + p)
        trial_E = np.clip(Ea + trial[:, :, 0], 0, ceiling[active])
        trial_c = ca + np.clip(trial[:, :, 1:], -5, 5)
        trial_value = huber_objective(Q, y, w, trial_E, trial_c, delta)
        best, fit = trial_value.argmin(0), np.arange(len(active))
        gain = value - trial_value[best, fit]
        better = gain > 0
        E[active] = np.where(better, trial_E[best, fit], Ea)
        c[active] = np.where(better[:, None], trial_c[best, fit], ca)
        done = gain <= 1e-10 * value
        converged[active[done]] = True
        active = active[~done]
        if not len(active):
            break
    return E, c, converged
