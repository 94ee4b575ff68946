"""What an attack was worth: its guesses against the truth. The only place where private batches are opened."""

import math
from dataclasses import dataclass
from functools import cached_property, singledispatchmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks import keys
from tasks.attack import words
from tasks.attack.case import Public
from tasks.attack.client import HonestClient
from tasks.attack.guesses import Declined, Labels, NotApplicable, Reconstruction, Suspicion
from tasks.attack.wavelets import cw_ssim
from tasks.partition.federation import Federation
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Message, Transcript
from tasks.tree import Tree

PSNR_CAP = 80.0
"""dB given to a reconstruction that is equal to the original, or as good as that."""
EXACT = 60.0
"""dB from which a reconstruction is the original for all that eyes can tell."""
MARGIN = 3.0
"""dB by which a recovered sample has to beat the average of its class: half its squared error."""
WINDOW = 7
FALSE_POSITIVE_RATES = {"tpr_at_fpr_0_001": 0.001, "tpr_at_fpr_0_01": 0.01}
"""Where the true-positive rate is read off: at 0.1 % and at 1 % false positives."""


@dataclass(frozen=True)
class Judgement:
    """The scores of a guess, the verdict in words, and what there is to see or plot.

    ``matched`` has ``original`` and ``reconstruction`` ``[pairs, *shape]`` and ``labels`` ``[pairs]`` for a
    reconstruction; ``roc`` the false- and true-positive rates for a membership attack.
    """

    scores: dict[str, float | int | None]
    verdict: str
    matched: Tree
    roc: tuple[np.ndarray, np.ndarray] | None = None


class Referee:
    """Knows the truth. Hands attackers what they may have, and judges what they come back with.

    Parameters
    ----------
    federation : the data.
    transcript : the recorded messages, or None.
    seed : of the draw of the public samples and of the candidates.
    public, candidates : most samples of each (of members, and of others); see ``AttackSettings``.

    Half of the test set belongs to the attacker. The candidates are training samples that were measured (members),
    and validation samples and the other half of the test set (others), in random order.
    """

    def __init__(self, federation: Federation, transcript: Transcript | None, seed: int, public: int, candidates: int):
        self.federation, self.transcript, self.meta = federation, transcript, federation.meta
        rng = keys.generator(seed, "attack", "public")
        test = rng.permutation(len(federation.test_y))
        self.seed = seed
        self.public = Public(*self._test(test[: -(-len(test) // 2)][:public]))
        self.x, self.y, self.members = self._draw(test[-(-len(test) // 2) :], candidates, rng)

    def labels(self, message: Message) -> Tensor:
        """The private labels behind a message, sorted: for an attacker that is assumed to know them."""
        return self._truth(message.label)["y"].sort().values

    def client(self, message: Message, train: TrainSettings) -> HonestClient:
        """The client behind a message, to answer what else it might have been sent."""
        truth = self._truth(message.label)
        samples = {name: truth[name] for name in ("x", "y", "group") if name in truth}
        return HonestClient(train, self.seed, message.context, samples, truth["order"])

    @singledispatchmethod
    def judge(self, guess: object) -> Judgement:
        """The scores and the verdict of a guess."""
        raise TypeError(f"no way to judge a {type(guess).__name__}")

    @judge.register
    def _(self, guess: NotApplicable) -> Judgement:
        return Judgement({}, words.not_applicable(guess.reason), {})

    @judge.register
    def _(self, guess: Declined) -> Judgement:
        samples = {"samples": len(self._truth(guess.case.message)["y"]), "recovered": 0, "exact": 0}
        return Judgement({"label_accuracy": 0.0} if guess.infers else samples, words.declined(guess.reason), {})

    @judge.register
    def _(self, guess: Labels) -> Judgement:
        truth = self._truth(guess.case.message)["y"]
        right = _common(guess.y, truth, self.meta.classes)
        public = torch.bincount(self.public.y, minlength=self.meta.classes).argmax()
        majority = int((truth == public).sum())
        scores = {"label_accuracy": right / len(truth), "baseline_label_accuracy": majority / len(truth)}
        return Judgement(scores, words.labels(right, len(truth)), {})

    @judge.register
    def _(self, guess: Reconstruction) -> Judgement:
        truth = self._truth(guess.case.message)
        x, y, span = truth["x"].float(), truth["y"], self._span
        rows, found = match(x, guess.x)
        original, reconstruction, labels = x[rows], guess.x[found], y[rows]
        errors = square_errors(original, reconstruction)
        average = square_errors(original, self._class_means[labels])
        nearest = self._nearest_public(original)
        # Recovered: half the error of the class average, and no public sample would have been a better guess.
        recovered = (errors <= average * 10 ** (-MARGIN / 10)) & (errors <= nearest)
        scores: dict[str, float | int | None] = {
            "samples": len(y),
            "recovered": int(recovered.sum()),
            "exact": int((psnr(errors, span) >= EXACT).sum()) if span else None,
            "mse": _mean(errors),
            "baseline_mse": _mean(square_errors(x, self._class_means[y])),
            "psnr": _mean(psnr(errors, span)) if span else None,
            "best_psnr": _finite(psnr(errors, span).max()) if span and len(errors) else None,
            "baseline_psnr": _mean(psnr(square_errors(x, self._class_means[y]), span)) if span else None,
            "ssim": _mean(ssim(original, reconstruction, span)) if span and self.meta.kind == "image" else None,
            "cw_ssim": _mean(cw_ssim(original, reconstruction)) if self.meta.kind == "image" else None,
            "label_accuracy": float((guess.y[found] == labels).float().sum()) / len(y) if guess.y is not None else None,
            "mismatch": _finite(guess.mismatch),
        }
        matched = {"original": original, "reconstruction": reconstruction, "labels": labels}
        return Judgement(scores, words.reconstruction(scores, self.meta.kind), matched)

    @judge.register
    def _(self, guess: Suspicion) -> Judgement:
        curve = roc(guess.scores.nan_to_num(nan=0.0), self.members)
        members, others = int(self.members.sum()), int((~self.members).sum())
        scores: dict[str, float | int | None] = {
            "auc": curve.auc,
            # Under the hypothesis that the scores say nothing (Mann and Whitney, 1947).
            "auc_deviation": math.sqrt((members + others + 1) / (12 * max(members * others, 1))),
            "members": members,
            "others": others,
            "balanced_accuracy": float(0.5 + (curve.tpr - curve.fpr).max() / 2),
        }
        scores |= {name: curve.at(rate) for name, rate in FALSE_POSITIVE_RATES.items()}
        return Judgement(scores, words.membership(scores), {}, (curve.fpr, curve.tpr))

    def _truth(self, label: str) -> Tree:
        message = next(message for message in self.transcript.messages if message.label == label)
        return self.transcript.private(message)

    @property
    def _span(self) -> float | None:
        """The width of the range of the data, by which errors are judged; None where there is no range."""
        return self.meta.range[1] - self.meta.range[0] if self.meta.range else None

    @cached_property
    def _class_means(self) -> Tensor:
        """The average public sample of each class, and of all where a class is missing, ``[classes, *shape]``."""
        everyone = self.public.x.float().mean(0)
        of = [self.public.x[self.public.y == c].float() for c in range(self.meta.classes)]
        return torch.stack([x.mean(0) if len(x) else everyone for x in of])

    def _nearest_public(self, x: Tensor) -> Tensor:
        """The squared error of the public sample that is nearest to each of ``x``, ``[samples]``."""
        public = self.public.x.float()
        return torch.stack([square_errors(public, sample).min() for sample in x]) if len(x) else x.new_zeros(0)

    def _test(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = np.sort(rows)
        return torch.from_numpy(self.federation.test_x[rows]), torch.from_numpy(self.federation.test_y[rows])

    def _draw(self, test: np.ndarray, most: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates and which of them are members: ``x``, ``y``, and bool ``[candidates]``."""
        data = self.federation
        place = np.arange(len(data.indices)) - np.repeat(data.offsets[:-1], data.owned)
        trained = place < np.repeat(data.train_sizes, data.owned)
        members = rng.permutation(data.indices[trained & data.measured(data.indices)])[:most]
        held_out = data.indices[~trained]
        others, border = rng.permutation(len(held_out) + len(test))[:most], len(held_out)
        inside = held_out[others[others < border]]
        test_x, test_y = self._test(test[others[others >= border] - border])
        x = torch.cat([torch.from_numpy(data.x[members]), torch.from_numpy(data.x[inside]), test_x])
        y = torch.cat([torch.from_numpy(data.y[members]), torch.from_numpy(data.y[inside]), test_y])
        member = torch.arange(len(y)) < len(members)
        mixed = torch.from_numpy(rng.permutation(len(y)))
        return x[mixed], y[mixed], member[mixed]


class Curve(NamedTuple):
    """A receiver operating characteristic: its corners, from (0, 0) to (1, 1), and the area under it."""

    fpr: np.ndarray
    tpr: np.ndarray
    auc: float

    def at(self, rate: float) -> float:
        """The greatest true-positive rate at a false-positive rate of at most ``rate``; nothing is interpolated."""
        return float(self.tpr[self.fpr <= rate].max())


def roc(scores: Tensor, members: Tensor) -> Curve:
    """The curve of ``scores`` ``[n]`` (larger: likelier a member) against the truth, bool ``[n]``. Ties count half.

    Source: Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 2006, algorithms 1 and 3.
    """
    value = scores.double().numpy()
    order = np.argsort(-value, kind="stable")
    value, hit = value[order], members.numpy()[order]
    last = np.append(value[1:] != value[:-1], True)
    tpr = np.append(0.0, np.cumsum(hit)[last] / max(hit.sum(), 1))
    fpr = np.append(0.0, np.cumsum(~hit)[last] / max((~hit).sum(), 1))
    auc = float(np.diff(fpr) @ (tpr[1:] + tpr[:-1]) / 2)
    flat = (np.diff(fpr)[:-1] == 0) & (np.diff(fpr)[1:] == 0) | (np.diff(tpr)[:-1] == 0) & (np.diff(tpr)[1:] == 0)
    corner = np.concatenate([[True], ~flat, [True]])
    return Curve(fpr[corner], tpr[corner], auc)


def match(x: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
    """Which original belongs to which guess: positions in ``x`` and in ``guesses``, ``[min of their numbers]`` each.

    The assignment with the least total squared error, so the order in which an attack gives its samples is no matter.

    Source: Kuhn, "The Hungarian method for the assignment problem", 1955, in SciPy's implementation.
    """
    from scipy.optimize import linear_sum_assignment

    flat = guesses.float().nan_to_num(nan=0.0, posinf=1e18, neginf=-1e18).flatten(1)
    cost = torch.cdist(x.float().flatten(1).double(), flat.double()).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def square_errors(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared error of each pair, ``[pairs]``."""
    return (a.double() - b.double()).square().flatten(1).mean(1)


def psnr(errors: Tensor, span: float) -> Tensor:
    """10 log10(span^2 / mse) in dB, at most :data:`PSNR_CAP`; ``errors`` are mean squared errors."""
    floor = span**2 * 10 ** (-PSNR_CAP / 10)
    return 10.0 * torch.log10(span**2 / errors.clamp(min=floor))


def ssim(a: Tensor, b: Tensor, span: float) -> Tensor:
    """The structural similarity of each pair of images ``[pairs, channels, height, width]``, at most 1; ``[pairs]``.

    The mean over channels and over the positions of a uniform window of 7 x 7 (smaller where the image is), with
    unbiased variances and the constants 0.01 and 0.03.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004,
    eq. (13); its Gaussian window of 11 x 11 would not fit small images.
    """
    side = min(WINDOW, a.shape[-1] - 1 + a.shape[-1] % 2, a.shape[-2] - 1 + a.shape[-2] % 2)
    area = side * side
    c_1, c_2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    unbiased = area / max(area - 1, 1)

    def mean(values: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(values, side, 1)

    a, b = a.double(), b.double()
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    cov = unbiased * (mean(a * b) - mean_a * mean_b)
    similar = (2 * mean_a * mean_b + c_1) * (2 * cov + c_2) / ((mean_a**2 + mean_b**2 + c_1) * (var_a + var_b + c_2))
    return similar.flatten(1).mean(1)


def _common(a: Tensor, b: Tensor, classes: int) -> int:
    """How many labels two multisets have in common."""
    return int(torch.minimum(torch.bincount(a, minlength=classes), torch.bincount(b, minlength=classes)).sum())


def _mean(values: Tensor) -> float | None:
    return _finite(values.double().mean()) if len(values) else None


def _finite(value: Tensor | float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
