"""A plain PyTorch loop: one client after another, as a paper's own code would do it, without a ``DataLoader``."""

import sys
from collections.abc import Callable

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.contenders.contract import Job, Session
from tasks import models


class Plain:
    """The job's federated averaging, as straight as it can be written.

    ``order`` gives a client's batches of a round, positions within its ``samples``, from (round, client, samples).
    """

    def __init__(self, job: Job, order: Callable[[int, int, int], list[Tensor]] | None = None):
        self.job, self.order, self.taken = job, order or self._shuffled, 0
        model = TypeAdapter(models.Model).validate_python(job.model)
        self.module = models.build(model, tuple(job.shape), job.classes, job.seed).module
        self.params = {name: torch.from_numpy(value) for name, value in job.initial.items()}
        self.clients = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in job.clients()]

    def round(self, clients: np.ndarray) -> None:
        self.taken += 1
        total = {name: torch.zeros_like(value) for name, value in self.params.items()}
        samples = 0
        for client in clients:
            x, y = self.clients[client]
            self.module.load_state_dict(self.params)
            optimizer = torch.optim.SGD(self.module.parameters(), lr=self.job.lr)
            for rows in self.order(self.taken, int(client), len(y)):
                optimizer.zero_grad()
                outputs = self.module(x[rows])
                nn.functional.cross_entropy(outputs.movedim(-1, 1), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                for name, value in self.module.named_parameters():
                    total[name].add_(value, alpha=len(y))
            samples += len(y)
        self.params = {name: value / samples for name, value in total.items()}

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.params.items()}

    def _shuffled(self, _round: int, _client: int, samples: int) -> list[Tensor]:
        return list(torch.randperm(samples).split(self.job.batch))


def main() -> None:
    plain = Plain(Job(sys.argv[1]))
    session = Session({"torch": torch.__version__})
    for clients in session.rounds(plain.job.cohorts, plain.parameters):
        plain.round(clients)


if __name__ == "__main__":
    main()
