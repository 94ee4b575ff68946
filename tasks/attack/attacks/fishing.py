"""Fishing: a last layer that lets one sample's gradient through, and an ordinary inversion of what is left."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from tasks import tree
from tasks.attack import label_leak, layers
from tasks.attack.attacks.attack import Family, Tampering
from tasks.attack.case import Ask, Case
from tasks.attack.guesses import Guess, Reconstruction
from tasks.attack.matching import align
from tasks.tree import Tree


class Fishing(Tampering):
    """Sends a last layer for which all samples but those of one class are hopeless, and inverts what still has a slope.

    class c:    W = 0 but for W_c = weight, b = bias but for b_c
    feature f:  W = 0 but for W_c = cut u, b = 0 but for b_c = -cut v;   g(v) - g(infinity) is of the samples with f > v

    Of the gradient by all layers but the last, 1/B times that of the samples of class c is left, up to exp(-bias). The
    class is the one with the fewest samples in the recorded message. If several share it, the sum of the features
    f = u . features is cut at a value v that one sample alone exceeds, whatever its class, found by bisection, a round
    each; that needs one local step. What is left is inverted as by ``inverting_gradients``.

    Source: Wen et al., "Fishing for User Data in Large-Batch Federated Learning via Gradient Magnification", ICML 2022,
    sections 3.1 and 3.2. There f is a single feature, which in a network without global pooling sees a part of the
    image alone.
    """

    name: Literal["fishing"] = "fishing"
    family: ClassVar[Family] = "analytics"
    assumes: ClassVar[str] = (
        "a server that may change the weights and ask several times, the number of samples and of local steps, and "
        "samples of the same distribution"
    )
    weight: float = Field(0.5, gt=0, description="weights of the target class")
    bias: float = Field(1000.0, ge=0, description="bias of the other classes")
    cut: float = Field(300.0, gt=0, description="how steep the cut is, over the deviation of what is cut")
    queries: int = Field(12, ge=0, description="most bisections, a round each; 0 takes all samples of the class")
    lr: float = Field(0.1, gt=0, description="first step of the inversion, in units of the data's range")
    tv: float = Field(1e-3, ge=0, description="weight of the total variation in the inversion")
    restarts: int = Field(4, ge=1, description="random starts of the inversion; they share the budget")

    def obstacle(self, case: Case) -> str | None:
        found = label_leak.labels(case)
        return super().obstacle(case) or (found if isinstance(found, str) else None)

    def strike(self, case: Case, ask: Ask) -> Guess:
        present = torch.bincount(label_leak.labels(case), minlength=case.data.classes)
        target = int(torch.where(present > 0, present, present.max() + 1).argmin())
        hooked = ask(self.tamper(case, target))
        if turned := self.turned_down(hooked):
            return turned
        held = pulling(hooked, target)
        apart = held != 1 and self.queries and case.public and case.context.steps == 1
        if apart and (single := self._single(case, ask, target, held)):
            return self._invert(case, *single, 1, target)
        left = layers.last(hooked, hooked.delta).without(hooked.delta)
        return self._invert(case, hooked, left, held, target)

    def tamper(self, case: Case, target: int = 0) -> Case:
        layer = layers.last(case, case.model)
        weight, bias = torch.zeros_like(layer.weight), torch.full_like(layer.bias, self.bias)
        weight[target], bias[target] = self.weight, layer.bias[target]
        return case.sending(layer.put(case.model, weight, bias))

    def _cut(self, case: Case, target: int, unit: float, value: float) -> Case:
        """The case in which all of the target class get through, and none but those whose features sum up to more than
        ``value`` units; these push where the others pull."""
        layer = layers.last(case, case.model)
        weight, bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
        weight[target], bias[target] = self.cut / unit, -self.cut * value
        return case.sending(layer.put(case.model, weight, bias))

    def _single(self, case: Case, ask: Ask, target: int, held: int) -> tuple[Case, Tree] | None:
        """What one sample alone adds to the update, and a case whose simulation has the same direction; None if no cut
        within the number of queries has one sample beyond it."""
        sums = layers.features(case, case.public.x).sum(1)
        unit = float(sums.std().clamp(min=1e-12))
        low, top = float(sums.median() / unit), float(sums.max() / unit)
        high = 2 * top - low
        # Beyond every sample nobody pushes: that much is to be taken off, and a simulation on it always has a slope.
        closed = ask(self._cut(case, target, unit, high + abs(top) + 10))
        for _ in range(self.queries):
            value = (low + high) / 2
            answered = ask(self._cut(case, target, unit, value))
            if answered.declined or closed.declined:
                return None
            beyond = held - pulling(answered, target)
            if beyond == 1:
                layer = layers.last(case, closed.delta)
                return closed, layer.without(tree.subtract(closed.delta, answered.delta))
            low, high = (value, high) if beyond > 1 else (low, value)
        return None

    def _invert(self, case: Case, sent: Case, delta: Tree, samples: int, target: int) -> Guess:
        """Samples of the ``target`` class whose update on the model in ``sent`` has the direction of ``delta``."""
        if not samples:
            return Reconstruction(case, torch.zeros(0, *case.data.shape), None, 0)
        context = replace(sent.context, samples=samples, steps=sent.context.epochs, batch_size=0)
        alone = replace(sent, context=context, delta=delta)
        y = torch.full((self.restarts, samples), target)
        start = case.noise(y.numel(), self.name).reshape(*y.shape, *case.data.shape)
        found, y = align(alone, start, y, alone.order, self.lr, self.tv)
        return Reconstruction(sent, found.unknowns, y, found.evaluations, found.value)


def pulling(case: Case, target: int) -> int:
    """How many samples are of the ``target`` class, less how many the model takes for it: read off the gradient of its
    bias, which is the mean of p_c - [y = c], where every p_c is either 0 or 1."""
    return round(-float(layers.last(case, case.gradient).bias[target]) * case.context.samples)
