"""The rule by which a new model becomes the champion: better than the standing one on the same data, within limits."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from tasks.config import Config

Metric = Literal["accuracy", "loss"]


class Promotion(Config):
    """When the released model takes the alias `champion` over from the one that has it.

    Both are judged on the global test set of the run, as the data are now. The first model needs to meet the limits
    alone.
    """

    metric: Metric = Field("accuracy", description="the figure on the test set in which it has to be better")
    margin: float = Field(0.0, description="by more than so much")
    at_most: dict[str, float] = Field(
        {}, description="limits of numbers of the run, such as train.epsilon: 8 or attack.messages.none.recovered: 0.5"
    )
    at_least: dict[str, float] = Field(
        {}, description="the same from below, such as aggregate.clients_worst_decile: 0.6"
    )

    def judge(self, numbers: Mapping[str, Any], standing: Mapping[str, float | None] | str | None) -> "Decision":
        """What to do with a model whose run came to ``numbers``, by dotted name as under `metrics/`.

        ``standing`` has the figures of the champion on the same test set, or says why there are none; None where there
        is no champion.
        """
        new = numbers.get(f"aggregate.{self.metric}")
        told = standing[self.metric] if isinstance(standing, Mapping) else None
        against = list(self._against(numbers, new, standing))
        if against:
            return Decision(promoted=False, reason="; ".join(against), metric=self.metric, new=new, standing=told)
        reason = "there was no champion" if standing is None else self._compared(new, told, "better than")
        return Decision(promoted=True, reason=reason, metric=self.metric, new=new, standing=told)

    def _against(
        self, numbers: Mapping[str, Any], new: float | None, standing: Mapping[str, float | None] | str | None
    ) -> Iterator[str]:
        """Every reason not to promote."""
        if new is None:
            yield f"its {self.metric} is not known"
        elif isinstance(standing, str):
            yield f"it cannot be compared with the champion, {standing}"
        elif standing is not None and standing[self.metric] is None:
            yield f"it cannot be compared with the champion, whose {self.metric} there is not finite"
        elif standing is not None:
            gain = new - standing[self.metric] if self.metric == "accuracy" else standing[self.metric] - new
            if not gain > self.margin:
                yield self._compared(new, standing[self.metric], "not better than")
        limits = [(name, limit, "above") for name, limit in self.at_most.items()]
        limits += [(name, limit, "below") for name, limit in self.at_least.items()]
        for name, limit, side in limits:
            value = numbers.get(name)
            if value is None:
                yield f"{name} is not known, and must not be {side} {limit:g}"
            elif value > limit if side == "above" else value < limit:
                yield f"{name} = {value:.4g} is {side} {limit:g}"

    def _compared(self, new: float, standing: float, how: str) -> str:
        margin = f" by more than {self.margin:g}" if self.margin else ""
        return f"its {self.metric} of {new:.4f} on the test set is {how} the champion's {standing:.4f} there{margin}"


class Decision(Config):
    """What was decided about a model, and why."""

    promoted: bool
    reason: str
    metric: Metric
    new: float | None
    """the figure of the new model"""
    standing: float | None
    """that of the champion on the same test set, None where there is none"""
    model: str = ""
    version: str = ""
    champion: str | None = None
    """the version that was the champion before"""

    @property
    def sentence(self) -> str:
        """The decision in plain words."""
        what = "is the new champion" if self.promoted else "stays a candidate"
        return f"{self.model} version {self.version} {what}: {self.reason}"
