"""Where a scaling law's loss is least, among the landscapes that a corpus can give and the probes vouch for.

Laws often have no minimum of their own: for the paper's form in linear space, with mu, sigma > 1, one needs a1 < 0, b1
< 0 and ln(mu)*ln(sigma) > 4 where the gradient vanishes (necessary, and sufficient when a1*sigma = b1*mu); otherwise
that point is a saddle and the loss falls towards an edge. So the search is always inside the attainable region (what
subsets of this corpus of this size can reach) intersected with the trusted region (the hull of the probes), and says
what it found. With a second law, of the general loss, it can also keep to where forgetting is bounded.

A law of two score columns is searched over tilts of the corpus instead, which are what selections keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..landscape.joint import JointLandscape
from ..landscape.landscape import PerplexityLandscape
from ..landscape.scores import Column, Moment, in_words
from .forms import Law, tokens_for, why_never
from .intervals import check_intervals
from .optimum_intervals import finite, gain_intervals, place_intervals, places
from .optimum_search import ForgettingBound, Kind, free_sigma_of, search, search_tilts
from .points import read_law_points
from .trust import TRUSTED_MARGIN, SearchRegion, TrustedRegion, trusted_region

__all__ = ["TRUSTED_MARGIN", "Optimum", "TrustedRegion", "find_optimum", "general_points", "trusted_region"]

_CELLS = 2000  # of two columns, on which tilts are tried

Interval = tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Optimum:
    """The best landscape for a corpus and a budget, by a law.

    Intervals are of 95 %; None if not asked for, or if the law has no run to spare to tell the noise by.

    Attributes:
        mu, sigma: its moments, in `space`; of two columns pairs, and so are `random_mu`, `random_sigma` and the
            intervals of mu and sigma.
        space: `"linear"` (of the score) or `"log"` (of its logarithm, nats).
        column: the score column, or both.
        num_tokens: the budget D.
        loss: predicted held-out loss, nats per token.
        kind: `"interior"`: a minimum of the law itself; `"boundary"`: on the edge of what is attainable, trusted and
            allowed, the law falls further beyond it; `"saddle"`: on the edge too, and the law's stationary point
            inside is a saddle (not told of two columns).
        random_mu, random_sigma, random_loss: the same for a random subset, which has the corpus's moments.
        gain: `random_loss - loss`, nats per token.
        gain_interval: `(low, high)` of the gain at this (mu, sigma).
        within_noise: the gain is not established: `measured_gain_interval` holds 0 or is not known, or the gain is
            below the law's residuals.
        extrapolation: `num_tokens` over the largest D among the law's points.
        loss_interval: `(low, high)` of the predicted loss, without the noise of a measurement.
        measured_gain_interval: `(low, high)` of the gain that one newly measured run of each would show: wider by the
            noise of both runs, of which what the form gets wrong is a part that more probes do not average away.
        gain_probability: that the law's gain is above 0.
        random_trusted: whether the probes cover a random subset's moments. If not, `random_loss` and every gain over
            it are extrapolated, and no interval accounts for that: see `verdict`. True for a law without features.
        mu_interval, sigma_interval: where the best mu and sigma move when the law's parameters do; of two columns
            looked for among some thousand tilts, and None for a sigma that the law leaves free.
        random_tokens: training tokens that a random subset would need for this loss; None: no number of them.
        random_tokens_interval: `(low, high)` of it; None for a bound without end.
        random_never: why no number of them will do, in words, or None.
        general_loss, random_general_loss: predicted by the law of the general loss, if one was given.
        max_general_loss: the bound on it, if one was given.
    """

    mu: Moment
    sigma: Moment
    space: Literal["linear", "log"]
    column: Column
    num_tokens: float
    loss: float
    kind: Kind
    random_mu: Moment
    random_sigma: Moment
    random_loss: float
    gain: float
    gain_interval: tuple[float, float] | None
    within_noise: bool
    extrapolation: float
    loss_interval: tuple[float, float] | None = None
    measured_gain_interval: tuple[float, float] | None = None
    gain_probability: float | None = None
    random_trusted: bool = True
    mu_interval: Interval | None = None
    sigma_interval: Interval | None = None
    random_tokens: float | None = None
    random_tokens_interval: tuple[float | None, float | None] | None = None
    random_never: str | None = None
    general_loss: float | None = None
    random_general_loss: float | None = None
    max_general_loss: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the gain is established, in words that never claim more than the probes cover."""
        if not self.random_trusted:
            return "not established: a random subset lies beyond the probes, so its loss is extrapolated"
        if self.within_noise:
            return "within the noise: one run of each need not show it"
        return "beyond the noise: one run of each should show it"

    def __str__(self) -> str:
        if isinstance(self.column, str):
            where = f" {self._place()}"
        else:
            where = "".join(f"\n  {name}: {self._place(name)}" for name in self.column)
        lines = [
            f"best landscape ({self.kind}):{where}",
            f"predicted loss at {self.num_tokens:,.0f} tokens: {self.loss:.4f}{_between(self.loss_interval, '.4f')}; "
            f"random {self.random_loss:.4f}{'' if self.random_trusted else ', extrapolated'}",
        ]
        gain = f"{'' if self.random_trusted else 'extrapolated '}gain {self.gain:.4f} nats per token"
        gain += _between(self.gain_interval, ".4f")
        if self.gain_probability is not None:
            gain += f", above 0 with probability {percent(self.gain_probability)}"
        between = _between(self.measured_gain_interval, ".4f")
        lines += [gain, f"gain measured by one run of each{between}: {self.verdict}" if between else self.verdict]
        if self.gain > 0 and self.random_trusted and self.random_tokens is None:
            lines.append(f"a random subset never gets to this loss: {self.random_never}")
        elif self.gain > 0 and self.random_trusted:
            text = f"a random subset needs {self.random_tokens:,.0f} tokens for this loss, "
            text += f"{self.random_tokens / self.num_tokens:.3g} times as many"
            if self.random_tokens_interval is not None:
                low, high = (f"{x / self.num_tokens:.3g}" if x else "no end" for x in self.random_tokens_interval)
                text += f" ({low} to {high})"
            lines.append(text)
        if self.general_loss is not None:
            text = f"predicted general loss: {self.general_loss:.4f}, random {self.random_general_loss:.4f}"
            bound = self.max_general_loss
            lines.append(text + ("" if bound is None else f"; at most {bound:.4f} was allowed"))
        if self.extrapolation > 4:
            lines.append(f"that is {self.extrapolation:,.0f} times the tokens of the longest probe: an extrapolation")
        return "\n".join(lines)

    def _place(self, name: str | None = None) -> str:
        """The moments in words, of one of two columns if it is named."""

        def of(pair: Any) -> Any:
            return pair if name is None or pair is None else pair[self.column.index(name)]

        mu, sigma = ("mu", "sigma") if self.space == "linear" else ("m", "s")
        return (
            f"{mu} {of(self.mu):.4g}{_between(of(self.mu_interval), '.4g')}, "
            f"{sigma} {of(self.sigma):.4g}{_between(of(self.sigma_interval), '.4g')}; "
            f"a random subset: {of(self.random_mu):.4g}, {of(self.random_sigma):.4g}"
        )


def general_points(points: Any) -> list[dict[str, Any]]:
    """The law points that measured the general loss, with it as their `loss`: fit a law of the general loss to them.

    ```python
    general_law = fit_scaling_law(general_points("points.jsonl"), space=law.space)
    law.optimum(landscape, num_tokens, general_law=general_law, max_general_loss=base_general_loss + 0.02)
    ```

    The general loss rises with training, so aD comes out negative: that is what forgetting looks like.

    Raises:
        ValueError: bad points, or none has a general loss.
    """
    rows = read_law_points(points).to_rows()
    measured = [row | {"loss": row["general_loss"]} for row in rows if "general_loss" in row]
    if not measured:
        raise ValueError(
            f"none of the {len(rows)} law points has a 'general_loss'; measure it beside the loss (fit_law.py "
            "--general_eval_file, or ScalingLawCallback(general_texts=...))."
        )
    return measured


def find_optimum(
    law: Law,
    landscape: PerplexityLandscape | JointLandscape,
    num_tokens: float,
    *,
    general_law: Law | None = None,
    max_general_loss: float | None = None,
    intervals: bool = True,
    seed: int = 0,
) -> Optimum:
    """The attainable and trusted (mu, sigma) with the least predicted loss.

    A law without sigma (log_parabola in log space) leaves it free. It is then as near as can be to that of the
    plainest subset with such a mean, which only leans to one side, and at most that of the corpus's bulk: no second
    clump of chunks at the other end, and no junk of the tails.
    A law without features (data_only) has nothing to choose: its optimum is a random subset.

    A law of two columns is searched over tilts of the corpus without outliers, where each column's moments are in the
    hull of the probes' and their leverage together is at most a probe's. What it leaves free is as in the corpus.

    Args:
        law: a fitted law.
        landscape: of the corpus to select from, in the law's column or columns.
        num_tokens: the budget.
        general_law: a law of the general loss in the same space, fitted to [`general_points`]; its prediction at the
            optimum is reported.
        max_general_loss: the forgetting that is allowed: predicted general loss, nats per token, at most. A base
            model's own plus some epsilon, say.
        intervals: False leaves them out, which is quick; `within_noise` then only compares with the residuals.
        seed: of the plausible parameters behind the intervals, and of where a search over tilts starts.

    Raises:
        ValueError: the landscape is of another model or score column, the corpus is smaller than the budget, the
            probes cover nothing that subsets of this size can reach, or nothing there keeps the general loss below
            its bound.
    """
    for each in (law, *([] if general_law is None else [general_law])):
        check_same_scores(each, landscape)
    bound = _bound(law, general_law, max_general_loss, num_tokens)
    landscape.check_size(num_tokens)
    random = landscape.moments(law.space)
    laws = (law,) if bound is None else (law, bound.law)
    candidates, free_sigma = None, None
    if not law.terms:
        (mu, sigma), kind = random, "interior"
        if bound is not None and bound.excess(*random) > 0:
            raise ValueError(
                f"a law of form {law.form!r} has nothing to choose, and a random subset's general loss is predicted "
                f"to be {bound.law.predict(*random, num_tokens):.4f}, above {bound.max_loss:.4f}."
            )
    elif isinstance(law.column, str):
        region = SearchRegion.of(landscape.attainable_region(num_tokens, law.space), *map(trusted_region, laws))
        free_sigma = free_sigma_of(law, landscape, num_tokens)
        mu, sigma, kind = search(law, region, free_sigma, bound)
    else:
        coarse = landscape.at_most(_CELLS)
        core = coarse.cells(law.space, outliers=False)
        core = core if core.tokens.sum() > num_tokens else coarse.cells(law.space)
        mu, sigma, kind, candidates = search_tilts(law, core, num_tokens, [*map(trusted_region, laws)], bound, seed)
        mu, sigma = tuple(mu.tolist()), tuple(sigma.tolist())

    with np.errstate(over="ignore"):  # random may lie absurdly far from the probes
        loss, random_loss = map(finite, law.predict([mu, random[0]], [sigma, random[1]], num_tokens))
    gain = random_loss - loss
    random_tokens = tokens_for(law, loss, *random)
    known: dict[str, Any] = {"gain_interval": None}
    if intervals and check_intervals(law) is None:
        known = gain_intervals(law, (mu, sigma), random, num_tokens, seed)
        if law.terms:
            candidates = candidates or places(region, free_sigma, bound)
            known |= place_intervals(law, candidates, (mu, sigma), seed)
    unsure = intervals and (known["gain_interval"] is None or known["measured_gain_interval"][0] <= 0)
    return Optimum(
        mu=mu,
        sigma=sigma,
        space=law.space,
        column=law.column,
        num_tokens=num_tokens,
        loss=loss,
        kind=kind,
        random_mu=random[0],
        random_sigma=random[1],
        random_loss=random_loss,
        gain=gain,
        within_noise=bool(unsure or gain <= 0 or gain < law.residual_std),
        extrapolation=float(num_tokens / law.num_tokens_range[1]),
        random_trusted=not law.terms or trusted_region(law).contains(*random),
        random_tokens=random_tokens if np.isfinite(random_tokens) else None,
        random_never=None if np.isfinite(random_tokens) else why_never(law, loss) or "the number has no end",
        general_loss=None if general_law is None else float(general_law.predict(mu, sigma, num_tokens)),
        random_general_loss=None if general_law is None else float(general_law.predict(*random, num_tokens)),
        max_general_loss=max_general_loss,
        **known,
    )


def check_same_scores(law: Law, landscape: PerplexityLandscape | JointLandscape) -> None:
    """ValueError if the landscape is of other score columns (or in another order), or of another model's scores."""
    if law.column != landscape.column:
        raise ValueError(
            f"the law is about {in_words(law.column)}, the landscape is of {in_words(landscape.column)}; they do not "
            f"mix. Take the landscape of column {law.column!r}, or fit a law to the moments of {landscape.column!r}."
        )
    if law.model and landscape.model and law.model != landscape.model:
        raise ValueError(
            f"the law was fitted to scores of {law.model}, the landscape is of {landscape.model}; they do not "
            "compare. Score the corpus with the law's model, or fit a law to probes of this one."
        )


def _bound(
    law: Law, general_law: Law | None, max_general_loss: float | None, num_tokens: float
) -> ForgettingBound | None:
    if general_law is not None and general_law.space != law.space:
        raise ValueError(
            f"the law lives in {law.space} space, the law of the general loss in {general_law.space} space; fit both "
            f"in one: fit_scaling_law(general_points(points), space={law.space!r})."
        )
    if max_general_loss is None:
        return None
    if general_law is None:
        raise ValueError(
            "max_general_loss needs general_law=: fit_scaling_law(general_points(points), space=law.space)."
        )
    if not (np.isfinite(max_general_loss) and max_general_loss > 0):
        raise ValueError(f"max_general_loss must be a loss above 0, in nats per token, got {max_general_loss}.")
    return ForgettingBound(general_law, float(max_general_loss), num_tokens)


def percent(p: float) -> str:
    """A probability to read, which intervals from 2,000 draws do not tell beyond one in a thousand."""
    return "over 99.9 %" if p > 0.999 else "under 0.1 %" if p < 0.001 else f"{100 * p:.3g} %"


def _between(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"
