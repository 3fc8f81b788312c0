"""What probes to run for a given cost in tokens, and how sure the law will then be of the gain and of its optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ..landscape.landscape import PerplexityLandscape
from ..landscape.reach import Space
from ..landscape.scores import check_one_column
from ..law.intervals import parameter_draws
from ..law.optimum import check_same_scores
from ..law.optimum_search import free_sigma_of
from ..law.scaling_law import ScalingLaw
from ..law.solver import Solution, refit
from ..law.trust import SearchRegion, hull_of_probes
from .design import ProbeTarget, design_probes

MIN_CHUNKS = 32  # at the first rung: fewer say little of a landscape (their mean is a sixth of sigma off)
MAX_RUNGS = 5  # halvings of the tokens of a run at which it is measured
MAX_SHARE = 0.3  # of the corpus in one run: larger subsets cannot differ enough
RUNS = (6, 8, 10, 12, 16, 20, 24)  # designs that are compared
NUM_SIMULATIONS = 400


@dataclass(frozen=True)
class ExpectedPrecision:
    """What a law fitted to planned probes would know, if the law it was planned with is true.

    Attributes:
        num_tokens: the budget at which.
        gain: the true gain of the best landscape over random, nats per token.
        gain_width: width of its 95 % interval.
        detection: how often that interval would exclude 0.
        mu_width, sigma_width: how far apart 95 % of the fitted optima lie.
        regret: nats per token lost, on average, by training on the fitted optimum rather than on the true one.
    """

    num_tokens: float
    gain: float
    gain_width: float
    detection: float
    mu_width: float
    sigma_width: float
    regret: float


@dataclass(frozen=True)
class ProbePlan:
    """Probe runs for a given cost.

    Attributes:
        probes: the runs, the random one first.
        tokens_per_run: what each trains on.
        ladder: the num_tokens at which each is measured, rising.
        expected: what their law would know; None without a law to simulate with.
    """

    probes: tuple[ProbeTarget, ...]
    tokens_per_run: int
    ladder: tuple[int, ...]
    expected: ExpectedPrecision | None = None

    @property
    def total_tokens(self) -> int:
        return len(self.probes) * self.tokens_per_run


def plan_probes(
    landscape: PerplexityLandscape,
    total_tokens: float,
    *,
    num_runs: int | None = None,
    law: ScalingLaw | None = None,
    num_tokens: float | None = None,
    space: Space = "log",
    seed: int = 0,
) -> ProbePlan:
    """Choose how many probes, which, and when to measure them, for a cost of `total_tokens` training tokens in all.

    The design is [`design_probes`]'s. Measuring is cheap, so a run is measured at all its tokens, half of them, a
    quarter, and so on, up to five times or down to 32 chunks. Without a law there are 6 to 12 runs, as many as 256
    chunks each allow; with one, as many as make the interval of the gain narrowest, or nearly so (5 %) with fewer.

    Args:
        landscape: of the corpus.
        total_tokens: the cost, at most.
        num_runs: fix it.
        law: a law of earlier probes, to simulate with; the probes then spread in its space.
        num_tokens: with a law: the budget at which the gain matters.
        space: without a law: where the probes spread.
        seed: of the design and the simulation.

    Raises:
        ValueError: too few tokens for 6 runs of 128 chunks (or `num_runs` of them), or too small a corpus.
    """
    if law is not None and num_tokens is None:
        raise ValueError("planning with a law needs num_tokens: the budget at which its gain matters.")
    if num_runs is None and law is None:
        affordable = np.nan_to_num(total_tokens / (8 * MIN_CHUNKS * landscape.tokens_per_chunk))
        num_runs = int(np.clip(affordable, 6, 12))
    if num_runs is not None:
        return _plan(landscape, total_tokens, num_runs, law, num_tokens, space if law is None else law.space, seed)
    plans, problem = [], None
    for runs in RUNS:
        try:
            plans.append(_plan(landscape, total_tokens, runs, law, num_tokens, law.space, seed))
        except ValueError as error:
            problem = problem or error
    if not plans:
        raise problem
    narrowest = min(plan.expected.gain_width for plan in plans)
    return next(plan for plan in plans if plan.expected.gain_width <= 1.05 * narrowest)


def precision_by_runs(
    law: ScalingLaw,
    landscape: PerplexityLandscape,
    total_tokens: float,
    num_tokens: float,
    *,
    runs: Sequence[int] = RUNS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What different numbers of probes of one total cost would know: do six runs suffice?

    Returns:
        One dict per number of runs: `num_runs`, `tokens_per_run`, the fields of [`ExpectedPrecision`], and `problem`:
        None, or why there is no such design, the other fields then None.
    """
    rows = []
    for num_runs in runs:
        row = {"num_runs": num_runs, "tokens_per_run": None}
        row |= dict.fromkeys((*ExpectedPrecision.__dataclass_fields__, "problem"))
        try:
            plan = _plan(landscape, total_tokens, num_runs, law, num_tokens, law.space, seed)
        except ValueError as error:
            rows.append(row | {"problem": str(error)})
            continue
        rows.append(row | {"tokens_per_run": plan.tokens_per_run} | vars(plan.expected))
    return rows


def _plan(
    landscape: PerplexityLandscape,
    total_tokens: float,
    num_runs: int,
    law: ScalingLaw | None,
    num_tokens: float | None,
    space: Space,
    seed: int,
) -> ProbePlan:
    for scored in (landscape, law or landscape):
        check_one_column(scored.column, "a plan of probes")
    if not (math.isfinite(total_tokens) and total_tokens > 0) or num_runs < 1:
        raise ValueError(f"cannot plan {num_runs} runs for {total_tokens} tokens; both must be positive.")
    per_run = min(total_tokens / num_runs, MAX_SHARE * landscape.num_tokens)
    shortest = MIN_CHUNKS * landscape.tokens_per_chunk
    if per_run < 4 * shortest:
        raise ValueError(
            f"{num_runs} runs of {4 * MIN_CHUNKS} chunks, {4 * shortest:,.0f} tokens each, are the least to measure "
            f"at three num_tokens; {total_tokens:,.0f} tokens from a corpus of {landscape.num_tokens:,} (at most "
            f"{MAX_SHARE:.0%} of it in one run) give runs of {per_run:,.0f}. Spend more tokens, or run fewer probes."
        )
    rungs = min(MAX_RUNGS, 1 + int(math.log2(per_run / shortest * 1.0001)))
    ladder = tuple(int(per_run / 2**halvings) for halvings in reversed(range(rungs)))
    probes = design_probes(landscape, num_runs=num_runs, tokens_per_run=per_run, space=space, seed=seed)
    expected = None if law is None else expected_precision(law, landscape, probes, ladder, num_tokens, seed=seed)
    return ProbePlan(tuple(probes), int(per_run), ladder, expected)


def expected_precision(
    law: ScalingLaw,
    landscape: PerplexityLandscape,
    probes: Sequence[ProbeTarget],
    ladder: Sequence[float],
    num_tokens: float,
    *,
    num_simulations: int = NUM_SIMULATIONS,
    seed: int = 0,
) -> ExpectedPrecision:
    """How well a law fitted to such probes would know the gain and the optimum, by simulation.

    Many times over: the law's own losses at the probes' (mu, sigma) and rungs, plus noise of its size between and
    within runs, refitted. Intervals take Student's t for the runs left beyond the form's parameters.

    Args:
        law: taken as true.
        landscape: of the corpus.
        probes: in the law's space.
        ladder: num_tokens at which each is measured.
        num_tokens: the budget at which the gain matters.
        num_simulations, seed: of the simulation.

    Raises:
        ValueError: the form needs more runs, or more rungs, or has no landscape in it; the law cannot tell its noise;
            or the probes cover nothing that subsets of this size can reach.
    """
    terms = law.terms
    if not terms:
        raise ValueError(f"a law of form {law.form!r} has no optimum, so there is no precision to expect of it.")
    check_same_scores(law, landscape)
    if any(probe.space != law.space for probe in probes):
        raise ValueError(f"the law lives in {law.space} space; design the probes in it (space={law.space!r}).")
    spare = len(probes) - len(terms) - 1
    if spare < 1 or len(ladder) < 2:
        raise ValueError(
            f"form {law.form!r} needs {len(terms) + 2} runs measured at 2 num_tokens to know its noise, got "
            f"{len(probes)} runs at {len(ladder)}."
        )
    run_of = np.repeat(np.arange(len(probes)), len(ladder))
    mus, sigmas = np.array([(probe.mu, probe.sigma) for probe in probes]).T
    X = law.design_matrix(mus[run_of], sigmas[run_of], np.tile(np.asarray(ladder, dtype=float), len(probes)))
    noise, rng = parameter_draws(law).noise, np.random.default_rng(seed)
    disturbance = np.median(noise.between) * rng.standard_normal((num_simulations, len(probes)))[:, run_of]
    disturbance += np.median(noise.within) * rng.standard_normal((num_simulations, len(X)))
    truth = Solution(np.array([law.params["E"]]), law.theta[None], np.ones(1, bool), np.ones(1, bool))
    fits = refit(X, truth.predict(X)[0] * np.exp(disturbance), truth)

    attainable = landscape.attainable_region(num_tokens, law.space)
    region = SearchRegion.of(attainable, hull_of_probes(mus, sigmas, law.space))
    mu, sigma = region.grid(81, 25, free_sigma_of(law, landscape, num_tokens))
    at = law.design_matrix(mu, sigma, num_tokens)
    loss = truth.predict(at)[0]
    best, chosen = int(loss.argmin()), (at @ fits.theta.T).argmin(0)
    random = law.design_matrix(*landscape.moments(law.space), num_tokens)
    gains = fits.predict(random) - fits.predict(at[best])
    low, high = np.quantile(gains, [0.025, 0.975])
    half = (high - low) / 2 / 1.959964 * float(stdtrit(spare, 0.975))
    return ExpectedPrecision(
        num_tokens=num_tokens,
        gain=float(truth.predict(random)[0] - loss[best]),
        gain_width=float(2 * half),
        detection=float(np.mean(np.abs(gains) > half)),
        mu_width=float(np.ptp(np.quantile(mu[chosen], [0.025, 0.975]))),
        sigma_width=float(np.ptp(np.quantile(sigma[chosen], [0.025, 0.975]))),
        regret=float(loss[chosen].mean() - loss[best]),
    )
