"""What a scaling law expects of a training run, at each rung of its ladder of token counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_ppl_select.law.points import MOMENTS, moment_field

if TYPE_CHECKING:
    from hf_ppl_select.law.scaling_law import ScalingLaw

logger = logging.getLogger(__name__)

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
        self._fields: tuple[str, ...] = ()
        if law is not None:
            prefix = "log_" if law.space == "log" else ""
            columns = [law.column] if isinstance(law.column, str) else law.column
            names = [(f"{prefix}{name}", column) for name in ("mu", "sigma") for column in columns]
            self._fields = tuple(moment_field(*name) for name in names)
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
        """The moments of what is trained on by `num_tokens` tokens, named as law points name them."""
        if callable(self._moments):
            row = self._moments(num_tokens)
        elif isinstance(self._moments, Mapping):
            row = self._moments
        else:
            row = min(self._moments, key=lambda point: abs(point["num_tokens"] - num_tokens))
        of_others = tuple(f"{name}_" for name in MOMENTS)
        found = {
            name: float(value)
            for name, value in row.items()
            if value is not None and (name in MOMENTS or name.startswith(of_others))
        }
        needed = {*self._fields, *(() if any(name.startswith("mu_") for name in found) else ("mu", "sigma"))}
        if missing := sorted(needed - found.keys()):
            raise ValueError(
                f"the moments at {num_tokens} tokens lack {', '.join(missing)}; they hold {', '.join(row)}."
            )
        return found

    def next_rung(self, num_tokens: int) -> int | None:
        return next((rung for rung in self.ladder if rung > num_tokens), None)

    def next_gain(self, num_tokens: int) -> float | None:
        """Nats per token from the last rung to the next one; None where there is none.

        From the rung itself: large steps go beyond one, maybe to just before the next.
        """
        rung = self.next_rung(num_tokens)
        if rung is None:
            return None
        reached = [one for one in self.ladder if one <= num_tokens]
        return self.predict(reached[-1] if reached else num_tokens) - self.predict(rung)

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
        if (gain := self.next_gain(num_tokens)) is not None:
            found["law_point_next_gain"] = gain
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

    def _place(self, num_tokens: int) -> tuple[Any, Any, int]:
        moments = self.moments(num_tokens)
        values = [moments[field] for field in self._fields]
        return (*values, num_tokens) if len(values) == 2 else (values[:2], values[2:], num_tokens)  # of two columns
