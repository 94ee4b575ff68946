"""pfl-research: federated averaging on its simulated backend, in one process, as its PyTorch benchmarks are written.

The users' tensors are made once and kept, and nothing is evaluated after the first round.
"""

import importlib.metadata
import sys
from collections.abc import Iterator

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pydantic import TypeAdapter
from torch import nn

from benchmarks.contenders.contract import Job, Session
from tasks import models

ENDLESS = 10**9


class Classifier(nn.Module):
    """The job's network with the two functions that pfl looks for."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.network(x).movedim(-1, 1), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Laps(TrainingProcessCallback):
    """Goes on to the next round when the driver says so, and keeps the cohort that is next in ``waiting``."""

    def __init__(self, rounds: Iterator[np.ndarray]):
        self.rounds = rounds
        self.waiting: list[int] = []

    def advance(self) -> bool:
        """Whether there is a next round."""
        cohort = next(self.rounds, None)
        self.waiting = [] if cohort is None else cohort.tolist()[::-1]
        return cohort is not None

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        return not self.advance(), Metrics()

    def user(self) -> int:
        """The next client of the cohort."""
        return self.waiting.pop()


def main() -> None:
    job = Job(sys.argv[1])
    torch.set_num_threads(job.threads)
    model = TypeAdapter(models.Model).validate_python(job.model)
    classifier = Classifier(models.build(model, tuple(job.shape), job.classes, job.seed).module)
    classifier.network.load_state_dict({name: torch.from_numpy(value) for name, value in job.initial.items()})
    users = [PyTorchTensorDataset((torch.from_numpy(x), torch.from_numpy(y))) for x, y in job.clients()]

    def parameters() -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in classifier.network.state_dict().items()}

    session = Session({"pfl": importlib.metadata.version("pfl"), "torch": torch.__version__})
    laps = Laps(session.rounds(job.cohorts, parameters))
    data = FederatedDataset(users.__getitem__, laps.user)
    if laps.advance():
        FederatedAveraging().run(
            NNAlgorithmParams(
                central_num_iterations=ENDLESS,
                evaluation_frequency=ENDLESS,
                train_cohort_size=job.cohort,
                val_cohort_size=0,
            ),
            SimulatedBackend(data, data, [WeightByDatapoints()]),
            PyTorchModel(classifier, torch.optim.SGD, torch.optim.SGD(classifier.parameters(), lr=1.0)),
            NNTrainHyperParams(local_num_epochs=1, local_learning_rate=job.lr, local_batch_size=job.batch),
            NNEvalHyperParams(local_batch_size=None),
            [laps],
            send_metrics_to_platform=False,
        )


if __name__ == "__main__":
    main()
