"""What a fit, its bootstrap and its interval cost, against a fit from many starts by scipy's least squares.

    python tests/bench/bench_law.py

Points are made from a paper-form law with noise. The usual way to fit such a law is a general solver from a grid of
starts; here all but the floor E is one linear solve. Prints a Markdown table of CPU times, the best of `--rounds`.
"""

import argparse
import time

import numpy as np
from scipy.optimize import least_squares

from hf_ppl_select.law.fit import fit_scaling_law

NAMES = ("E", "Dc", "a0", "a1", "b0", "b1", "aD")
TRUTH = dict(zip(NAMES, (1.5, 60.0, 0.15, -0.002, 0.05, -0.001, 0.35), strict=True))


def paper(params, mu, sigma, D):
    E, Dc, a0, a1, b0, b1, aD = params
    return E + Dc / (mu ** (a0 + a1 * sigma) * sigma ** (b0 + b1 * mu) * D**aD)


def make_rows(rng, num_runs=12):
    rows = []
    for run in range(num_runs):
        mu, share = rng.uniform(8, 60), rng.uniform(0.2, 0.8)
        sigma = mu * share
        for D in (8e3, 16e3, 32e3):
            loss = paper(TRUTH.values(), mu, sigma, D) + rng.normal(0, 0.005)
            rows.append({"run": f"r{run}", "mu": mu, "sigma": sigma, "num_tokens": D, "loss": loss})
    return rows


def many_starts(rows, rng, number=100):
    mu, sigma, D, loss = (np.array([row[name] for row in rows]) for name in ("mu", "sigma", "num_tokens", "loss"))
    best = None
    for _ in range(number):
        start = np.array([rng.uniform(0, 2), np.exp(rng.uniform(0, 6)), *rng.normal(0, 0.1, 4), rng.uniform(0, 0.6)])
        with np.errstate(all="ignore"):
            found = least_squares(
                lambda p: np.nan_to_num(paper(p, mu, sigma, D) - loss, nan=1e3, posinf=1e3, neginf=-1e3), start
            )
        best = found if best is None or found.cost < best.cost else best
    return np.sqrt(2 * best.cost / len(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = make_rows(rng)

    def fit():
        return fit_scaling_law(rows, form="paper", space="linear")

    law = fit()
    methods = {
        "scipy least_squares, 100 starts": lambda: many_starts(rows, np.random.default_rng(1)),
        "one fit": fit,
        "interval at 100 budgets, of a new fit": lambda: fit().interval(20.0, 6.0, np.geomspace(1e4, 1e6, 100)),
    }
    residual = np.sqrt(np.mean([(law.predict(r["mu"], r["sigma"], r["num_tokens"]) - r["loss"]) ** 2 for r in rows]))
    print(f"Root mean square residual: one fit {residual:.5f}, scipy {many_starts(rows, rng):.5f}\n")
    print("| method | CPU, seconds | times one fit |\n|---|---|---|")
    seconds = {name: min(timed(method) for _ in range(args.rounds)) for name, method in methods.items()}
    for name, spent in seconds.items():
        print(f"| {name} | {spent:.4f} | {spent / seconds['one fit']:.1f} |")


def timed(method):
    start = time.process_time()
    method()
    return time.process_time() - start


if __name__ == "__main__":
    main()
