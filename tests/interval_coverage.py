"""How often 95 % intervals hold the truth: simulated probes of known laws, 10 runs at 3 D each, noise of 0.01 nats.

    python tests/interval_coverage.py --num_data_sets 300   # every form and space; a quarter of an hour on one core

Columns: the mean loss at new (mu, sigma) inside the probes' hull, the gain of one such over another, a newly measured
run there, the mean loss at 4 and at 30 times the longest probe's D, and the parameters.
"""

from __future__ import annotations

import argparse
import math
import warnings

import numpy as np

from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.forms import LAW_FORMS
from hf_ppl_select.law.intervals import gain_interval, loss_interval, param_intervals
from hf_ppl_select.law.points import LawPoints

NUM_TOKENS = np.array([8192.0, 16384.0, 32768.0])
NUM_RUNS, NOISE = 10, 0.01
RUN_SHARES = {"points": 0.0, "half": 0.5, "runs": 1.0}  # of the noise's variance, the part that a run's points share
NUM_DRAWS = 800
COLUMNS = ("mean", "gain", "new run", "mean at 4 D", "mean at 30 D", "params")


def random_truth(form: str, space: str, rng: np.random.Generator):
    """`(E, theta, m, s)`: a law like the measured ones, and where its probes are, in log space."""
    m, s = rng.uniform(2.3, 3.7, NUM_RUNS), rng.uniform(0.1, 0.6, NUM_RUNS)
    X = LAW_FORMS[form].design_matrix(space, *in_space(m, s, space), 16384.0)
    features = X[:, 2:] - X[:, 2:].mean(0)
    slopes = rng.normal(size=features.shape[1]) / np.maximum(features.std(0), 1e-9)
    slopes *= 0.07 / max(1e-9, (features @ slopes).std()) if len(slopes) else 1.0  # the landscape moves L by about 7 %
    aD, E = rng.uniform(0.1, 0.35), rng.uniform(0.8, 1.6)
    ln_Dc = math.log(rng.uniform(0.7, 1.3)) + aD * math.log(16384) - X[:, 2:].mean(0) @ slopes
    return E, np.array([ln_Dc, aD, *slopes]), m, s


def in_space(m: np.ndarray, s: np.ndarray, space: str) -> tuple[np.ndarray, np.ndarray]:
    return (m, s) if space == "log" else (np.exp(m + s**2 / 2), np.exp(m) * s)


def simulate(form: str, space: str, run_share: float, num_data_sets: int, seed: int = 0, *, spread: float = 0.0):
    """Coverage of each of `COLUMNS`, and the mean half-width of the interval of the mean, nats.

    Args:
        spread: standard deviation of the logarithm of each run's noise: 0 is the same noise in every run.
    """
    rng = np.random.default_rng(seed)
    names = LAW_FORMS[form].param_names(space)
    hits: dict[str, list] = {column: [] for column in COLUMNS}
    params, widths = [], []
    for number in range(num_data_sets):
        E, theta, m, s = random_truth(form, space, rng)
        mu, sigma = in_space(m, s, space)
        X = LAW_FORMS[form].design_matrix(space, mu[:, None], sigma[:, None], NUM_TOKENS)
        scale = np.exp(spread * rng.standard_normal((NUM_RUNS, 1))) * NOISE
        noise = math.sqrt(run_share) * rng.standard_normal((NUM_RUNS, 1))
        noise = scale * (noise + math.sqrt(1 - run_share) * rng.standard_normal(X.shape[:2]))
        loss = E + np.exp(X @ theta) + noise
        linear, log = in_space(m, s, "linear"), (m, s)
        columns = [np.repeat(v, 3) for v in (*linear, *log)]
        run = np.repeat([f"r{i}" for i in range(NUM_RUNS)], 3)
        scores = {"perplexity": np.stack(columns, axis=1)}
        points = LawPoints(run, np.tile(NUM_TOKENS, NUM_RUNS), loss.ravel(), np.full(loss.size, np.nan), scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = fit_scaling_law(points, form=form, space=space)

        drawn = {"num_draws": NUM_DRAWS, "seed": number}
        corners = np.array([rng.permutation(NUM_RUNS)[:3] for _ in range(8)])
        shares = rng.dirichlet(np.ones(3), 8)
        new_mu, new_sigma = (mu[corners] * shares).sum(1), (sigma[corners] * shares).sum(1)
        D = np.exp(rng.uniform(math.log(NUM_TOKENS[0]), math.log(NUM_TOKENS[-1]), 8))

        def truth(D, at=slice(None), new_mu=new_mu, new_sigma=new_sigma, E=E, theta=theta):
            return E + np.exp(LAW_FORMS[form].design_matrix(space, new_mu[at], new_sigma[at], D) @ theta)

        for column, at in (("mean", D), ("mean at 4 D", 4 * NUM_TOKENS[-1]), ("mean at 30 D", 30 * NUM_TOKENS[-1])):
            low, high = loss_interval(law, new_mu, new_sigma, at, **drawn)
            hits[column].append((low <= truth(at)) & (truth(at) <= high))
            if column == "mean":
                widths.append((high - low) / 2)
        low, high = loss_interval(law, new_mu, new_sigma, D, noise=True, **drawn)
        measured = truth(D) + NOISE * rng.standard_normal(8)
        hits["new run"].append((low <= measured) & (measured <= high))
        if len(theta) > 2:
            half = slice(0, 4), slice(4, 8)
            pairs = [(new_mu[i], new_sigma[i]) for i in half]
            low, high, _ = gain_interval(law, *pairs, D[:4], **drawn)
            gain = truth(D[:4], half[1]) - truth(D[:4], half[0])
            hits["gain"].append((low <= gain) & (gain <= high))
        true_params = dict(zip(names, (E, math.exp(theta[0]), *theta[1:]), strict=True))
        found = param_intervals(law, **drawn)
        params.append([found[name][0] <= true_params[name] <= found[name][1] for name in names])
    coverage = {column: float(np.mean(values)) if values else math.nan for column, values in hits.items()}
    coverage["params"] = dict(zip(names, np.mean(params, axis=0).round(3).tolist(), strict=True))
    return coverage, float(np.mean(widths))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--num_data_sets", type=int, default=300)
    parser.add_argument("--form", choices=list(LAW_FORMS))
    parser.add_argument("--space", choices=("linear", "log"))
    parser.add_argument("--noise", choices=list(RUN_SHARES))
    parser.add_argument("--spread", type=float, default=0.0, help="of the logarithm of each run's noise")
    options = parser.parse_args()
    print(f"{'form':15}{'space':8}{'noise of':9}{'half-width':>11}  " + "".join(f"{c:>13}" for c in COLUMNS[:-1]))
    for form in LAW_FORMS if options.form is None else [options.form]:
        for space in ("linear", "log") if options.space is None else [options.space]:
            if space == "log" and not LAW_FORMS[form].log:
                continue  # without features both spaces are the same law
            for noise in RUN_SHARES if options.noise is None else [options.noise]:
                found, width = simulate(form, space, RUN_SHARES[noise], options.num_data_sets, spread=options.spread)
                cells = "".join(f"{100 * found[column]:13.1f}" for column in COLUMNS[:-1])
                print(f"{form:15}{space:8}{noise:9}{width:11.4f}  {cells}  {found['params']}", flush=True)
