"""What a network starts from: fresh weights, those of a file or of a registered model, or a training on public data."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tasks import keys
from tasks.artifacts import read_tree, sha256, write_tree
from tasks.config import Config, Refused, one_of
from tasks.partition.datasets import Dataset
from tasks.partition.datasets.bundled import Digits
from tasks.partition.samples import Source
from tasks.tree import Tree

FIELD = "params.yaml: model.start"


class Beginning(Config):
    """The base of all starts."""

    @property
    def whole(self) -> bool:
        """Whether the weights are those of the whole network, its last layer and what an adapter adds included."""
        return False

    def reads(self, dataset: Source) -> bool:
        """Whether a sample that the weights follow from may be one of ``dataset``."""
        return False

    def weights(self, module: nn.Module, recipe: str, shape: tuple[int, ...]) -> Tree:
        """What ``module``, made by ``recipe`` for samples of ``shape``, starts with in place of what it has."""
        raise NotImplementedError


class Fresh(Beginning):
    """Weights drawn from the run's seed."""

    name: Literal["fresh"] = "fresh"

    def weights(self, module: nn.Module, recipe: str, shape: tuple[int, ...]) -> Tree:
        return {}


class File(Beginning):
    """The weights of a safetensors file, such as a copy of `artifacts/aggregate/model.safetensors` of another run.

    The file is named by its content too: a run is refused, and told the digest, where `sha256` is another. So DVC,
    which watches the parameters, trains again exactly when the weights are others.
    """

    name: Literal["file"] = "file"
    path: Path = Field(description="the file, relative to the folder of params.yaml")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="the SHA-256 of the file, in hexadecimal")
    head: bool = Field(
        False, description="take the last linear layer and the adapter too: to train on, not to learn other classes"
    )

    @property
    def whole(self) -> bool:
        return self.head

    def weights(self, module: nn.Module, recipe: str, shape: tuple[int, ...]) -> Tree:
        self.check()
        return read_tree(self.place)

    @property
    def place(self) -> Path:
        """Where the file is, also for a run in a worktree."""
        from tasks.tracking import main_checkout

        return main_checkout() / self.path

    def check(self) -> None:
        """Raises ``Refused`` where the file is not the one that was meant."""
        if not self.place.is_file():
            raise Refused(f"{FIELD}.path", str(self.path), "is no file", "Put the file there, or name another")
        found = sha256(self.place)
        if found != self.sha256:
            mend = "Set it to that, if this is the file that you mean"
            raise Refused(f"{FIELD}.sha256", self.sha256, f"{self.path} has {found}", mend)


class Champion(Beginning):
    """The whole weights of the model that holds the alias `champion` in MLflow's registry: training goes on from them.

    `fedloom run` looks it up and writes it into the run's own parameters as a `file` with its digest, so that the run
    can be repeated, and so that training runs again exactly when the champion is another one. A champion that came of
    the same data and the same training parameters is no news: such a run starts from what the champion started from,
    and finds everything done.
    """

    name: Literal["champion"] = "champion"
    model: str | None = Field(None, description="its registered name; null for the one that the run registers")
    optional: bool = Field(True, description="start from fresh weights where there is no champion yet")

    def weights(self, module: nn.Module, recipe: str, shape: tuple[int, ...]) -> Tree:
        mend = "Use `fedloom run`, or a `file` with its digest"
        raise Refused(FIELD, self.name, "is looked up by `fedloom run`, and by no stage that runs without it", mend)


class Pretrained(Beginning):
    """Weights from a training on public data, all of it in one place, with Adam.

    Done once: the result is kept under `.fedloom/pretrained` in the main checkout, by a hash of all that it follows
    from. Its test samples and those of the federation play no part in it; that its training samples are none of the
    federation's is up to you. Where differential privacy is promised, data that may have some in common are refused.
    """

    name: Literal["pretrained"] = "pretrained"
    dataset: Dataset = Field(Digits(), description="public data; samples of the same shape as the federation's")
    examples: int | None = Field(None, ge=1, description="use this many of its training samples, drawn at random")
    epochs: int = Field(3, ge=1, description="passes over them")
    batch_size: int = Field(64, ge=1, description="samples a step")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    seed: int = Field(0, ge=0, description="seed of order and choice; the weights are drawn from the run's")

    def reads(self, dataset: Source) -> bool:
        return self.dataset.shares(dataset)

    def weights(self, module: nn.Module, recipe: str, shape: tuple[int, ...]) -> Tree:
        from tasks.tracking import main_checkout

        start = {name: value.detach() for name, value in module.state_dict().items()}
        digest = hashlib.sha256(json.dumps([recipe, self.model_dump(mode="json"), torch.__version__]).encode())
        for value in start.values():
            digest.update(value.numpy().tobytes())
        kept = main_checkout() / ".fedloom" / "pretrained" / f"{digest.hexdigest()[:16]}.safetensors"
        if not kept.exists():
            write_tree(kept, self.train(module, shape))
        return read_tree(kept)

    def train(self, module: nn.Module, shape: tuple[int, ...]) -> Tree:
        """The weights of ``module`` after training a head of its own size on the public data."""
        samples = self.dataset.load(self.seed, 0.2)
        if samples.shape != shape:
            where, mend = f"{FIELD}.dataset", "Use data of the same shape"
            raise Refused(where, self.dataset.name, f"has samples {samples.shape}, the federation {shape}", mend)
        rng = keys.generator(self.seed, "pretraining")
        chosen = rng.permutation(len(samples.y))[: self.examples]
        x, y = torch.from_numpy(samples.x.read(samples.x.index[chosen])), torch.from_numpy(samples.y[chosen])
        outputs = module(x[:1]).shape[1]
        if int(y.max()) >= outputs:
            mend = "Use data with at most as many"
            raise Refused(f"{FIELD}.dataset", self.dataset.name, f"has more classes than the {outputs} here", mend)
        optimizer = torch.optim.Adam(module.parameters(), self.lr)
        print(f"model: pretrains on {len(y)} samples of {self.dataset.name}; kept for later runs")
        for _ in range(self.epochs):
            order = torch.from_numpy(rng.permutation(len(y)).astype(np.int64))
            for rows in order.split(self.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
                optimizer.step()
        return {name: value.detach() for name, value in module.state_dict().items()}


Start = one_of(Fresh, File, Champion, Pretrained)


def load(start: Start, module: nn.Module, recipe: str, shape: tuple[int, ...], head: str | None) -> str | None:
    """Puts the weights of ``start`` into ``module``, and zeros into its layer ``head``, which is for other classes.

    A head that is drawn at random reads features that it knows nothing of: where these have much in common, as after
    a shift of the inputs, their common part drowns the classes, and tens of rounds go by at chance. Zeros as in
    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.2.

    Returns the SHA-256 of what was loaded, None where nothing was.
    """
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    found = start.weights(module, recipe, shape)
    if not found:
        return None
    new = {name for name in before if head and name.rpartition(".")[0] == head}
    for name, value in before.items():
        if name not in new and (name not in found or found[name].shape != value.shape):
            allowed = f"has no {name} of shape {tuple(value.shape)}"
            raise Refused(FIELD, start.name, allowed, "Use the same model for both")
    kept = {name: torch.zeros_like(value) if name in new else found[name] for name, value in before.items()}
    # What are no parameters are constants of the network, which a released model leaves out.
    module.load_state_dict(kept, strict=False)
    digest = hashlib.sha256()
    for name in sorted(set(before) - new):
        digest.update(found[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
