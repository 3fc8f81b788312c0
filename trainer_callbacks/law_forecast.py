"""What a scaling law expects of a training run, at each rung of its ladder of token counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_ppl_select.law.scaling_law import ScalingLaw

logger = logging.getLogger(__name__)

MOMENTS = ("mu", "sigma", "log_mu", "log_sigma")
Moments = Mapping[str, float]


class LawForecast:
    """The moments of what is trained on, and what a law (if there is one) predicts from them.

    Args:
        moments: as in [`ScalingLawCallback`].
        ladder: token counts, ascending.
        law: None for the moments alone.

    Raises:
        ValueError: at some rung the moments lack a field, or the law cannot predict there.
    """

    def __init__(
        self,
        moments: Moments | Sequence[Moments] | Callable[[int], Moments],
        ladder: Sequence[int],
        law: ScalingLaw | None,
    ) -> None:
        self._moments, self.ladder, self.law = moments, ladder, law
        for rung in ladder:
            self.moments(rung)
            if law is not None:
                self.predict(rung)
        self.has_interval = law is not None
        if law is not None:
            try:
                self.interval(ladder[0])
            except ValueError as error:
                self.has_interval = False
                logger.warning("the law's predictions come without an interval: %s", error)

    def moments(self, num_tokens: int) -> dict[str, float]:
        """The known ones of `mu, sigma, log_mu, log_sigma` of what is trained on by `num_tokens` tokens."""
        if callable(self._moments):
            row = self._moments(num_tokens)
        elif isinstance(self._moments, Mapping):
            row = self._moments
        else:
            row = min(self._moments, key=lambda point: abs(point["num_tokens"] - num_tokens))
        found = {name: float(row[name]) for name in MOMENTS if row.get(name) is not None}
        needed = {"mu", "sigma"}
        if self.law is not None and self.law.space == "log":
            needed |= {"log_mu", "log_sigma"}
        if missing := sorted(needed - found.keys()):
            raise ValueError(
                f"the moments at {num_tokens} tokens lack {', '.join(missing)}; they hold {', '.join(row)}."
            )
        return found

    def next_rung(self, num_tokens: int) -> int | None:
        return next((rung for rung in self.ladder if rung > num_tokens), None)

    def predict(self, num_tokens: int) -> float:
        """Nats per token."""
        return float(self.law.predict(*self._place(num_tokens)))

    def interval(self, num_tokens: int) -> tuple[float, float]:
        """Between these a newly measured loss should lie 95 times in 100."""
        low, high = self.law.predict_interval(*self._place(num_tokens))
        return float(low), float(high)

    def compare(self, num_tokens: int, loss: float) -> dict[str, float]:
        """What is logged beside a measured loss; nothing without a law."""
        if self.law is None:
            return {}
        predicted = self.predict(num_tokens)
        found = {"law_point_predicted_loss": predicted, "law_point_residual": loss - predicted}
        if self.has_interval:
            found["law_point_predicted_low"], found["law_point_predicted_high"] = self.interval(num_tokens)
        if (rung := self.next_rung(num_tokens)) is not None:
            found["law_point_next_gain"] = predicted - self.predict(rung)
        return found

    def warn_if_outside(self, run: str, metrics: Mapping[str, float]) -> None:
        """Warn if the measured loss of a logged law point has left the law's interval."""
        if not self.has_interval:
            return
        low, high = metrics["law_point_predicted_low"], metrics["law_point_predicted_high"]
        if low <= metrics["law_point_loss"] <= high:
            return
        least, most = self.law.num_tokens_range
        logger.warning(
            "%s at %d tokens: the loss of %.4f lies outside %.4f to %.4f, where the law expects a new run 95 times in "
            "100. It may not hold here: it was fitted to runs of %d to %d tokens, with their model, learning rate and "
            "held-out texts.", run, metrics["law_point_num_tokens"], metrics["law_point_loss"], low, high, least, most
        )  # fmt: skip

    def _place(self, num_tokens: int) -> tuple[float, float, int]:
        moments, prefix = self.moments(num_tokens), "log_" if self.law.space == "log" else ""
        return moments[f"{prefix}mu"], moments[f"{prefix}sigma"], num_tokens
