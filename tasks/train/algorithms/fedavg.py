"""Federated averaging: the base of every method that trains locally and combines on a server."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.config import Config
from tasks.gradients import grad_and_value
from tasks.models import Network
from tasks.train.algorithms.learning_rates import Constant, LearningRate
from tasks.train.algorithms.server_optimizers import SGD, ServerOptimizer
from tasks.train.uplink.clip import clip
from tasks.train.work import Batches, ClientState, Exchange, Setting, Uploads, weighted_mean
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.partition.federation import Meta


class FedAvg(Config):
    """Each client runs SGD from the broadcast model; the server moves along the mean of their changes.

    client k:  w_k = x - lr * sum of the gradients along its local steps
    server:    x  <- x + server_lr * sum_k p_k (w_k - x)

    With one local step on all samples and p_k the share of the samples, a round is one step of gradient descent on the
    whole cohort's data (FedSGD).

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1.
    """

    name: Literal["fedavg"] = "fedavg"
    lr: float = Field(0.1, gt=0, description="local learning rate (eta)")
    lr_schedule: LearningRate = Field(Constant(), description="how the local rate changes over the rounds")
    epochs: int = Field(1, ge=1, description="passes of a client over its data (E)")
    steps: int | None = Field(None, ge=1, description="local steps a round, in place of `epochs` (K)")
    batch_size: int = Field(16, ge=0, description="samples a local step (B); 0 for all of the client's at once")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of the local SGD; starts at 0 in each round")
    keep_momentum: bool = Field(False, description="start from the client's last momentum instead, which stays home")
    weight_decay: float = Field(0.0, ge=0, description="L2 pull of the local SGD towards 0")
    clip_norm: float | None = Field(None, gt=0, description="greatest Euclidean norm of a local gradient; null: any")
    weighting: Literal["samples", "uniform"] = Field("samples", description="weight of a client in the mean (p_k)")
    server: ServerOptimizer = Field(SGD(), description="the server's optimiser")

    single_uploads: ClassVar[bool] = False
    """Whether the server reads every upload by itself, which noise on their sum does not cover."""

    one_round_uploads: ClassVar[bool] = False
    """Whether an entry of an upload means something in its own round alone, so that none can be added to a later one.
    """

    def conflicts(self, model: str) -> Iterator[str]:
        """What rules the method out with the model of that name, each problem with its path in `params.yaml`."""
        yield from ()

    def check(self, data: "Meta") -> None:
        """Raises ``Refused`` where the method makes no sense with the samples that clients have."""

    # Client: three small hooks, and the fold over batches made of them.

    def loss(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> Tensor:
        """What a client minimises, a scalar; differentiated with respect to ``state.params``."""
        return weighted_mean(network.losses(state.params, batch["x"], batch["y"]), batch["weight"])

    def slope(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[Tree, Tree]:
        """The gradient of :meth:`loss`, and the metrics of the step."""

        def objective(params: Tree) -> Tensor:
            return self.loss(network, state._replace(params=params), batch, key)

        gradient, loss = grad_and_value(objective)(state.params)
        return gradient, {"loss": loss}

    def gradient(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[Tree, Tree]:
        """The direction of a local step's descent, and the metrics of the step."""
        gradient, metrics = self.slope(network, state, batch, key)
        return (clip(gradient, self.clip_norm) if self.clip_norm else gradient), metrics

    def optimizer(self, gradient: Tree, state: ClientState) -> tuple[Tree, Tree]:
        """The local optimiser: the step to subtract at rate ``lr``, and its moments."""
        if self.weight_decay:
            gradient = tree.add(gradient, state.params, self.weight_decay)
        if not self.momentum:
            return gradient, {}
        moments = tree.add(gradient, state.optimizer, self.momentum)
        return moments, moments

    @property
    def accumulates(self) -> bool:
        """Whether what is uploaded is also added up over the rounds beside the model, and so must have no momentum."""
        return False

    @property
    def idle_steps(self) -> int:
        """The first local steps, which change nothing of what is sent."""
        return 0

    @property
    def remembers_momentum(self) -> bool:
        return self.keep_momentum and self.momentum > 0

    @property
    def batches(self) -> Batches:
        return Batches(self.epochs, self.batch_size, self.steps)

    def client_memory(self, shared: Tree) -> Tree:
        return tree.join(momentum=tree.zeros_like(tree.part(shared, "model"))) if self.remembers_momentum else {}

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState:
        model = tree.part(shared, "model")
        moments = tree.zeros_like(model) if self.momentum else {}
        if self.remembers_momentum:
            moments = tree.part(memory, "momentum")
        steps = torch.zeros_like(shared["lr"])
        return ClientState(model, model, moments, shared, own, memory, steps)

    def client_step(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[ClientState, Tree]:
        gradient, metrics = self.gradient(network, state, batch, key)
        step, moments = self.optimizer(gradient, state)
        params = tree.add(state.params, step, -state.shared["lr"])
        return state._replace(params=params, optimizer=moments, steps=state.steps + 1), metrics

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        kept = tree.join(momentum=state.optimizer) if self.remembers_momentum else {}
        return tree.join(delta=tree.subtract(state.params, state.start)), state.memory | kept

    def change(self, upload: Tree, shared: Tree) -> Tree:
        """How one client's upload would change the model that it was sent, as whoever reads the message can tell."""
        return tree.part(upload, "delta")

    def client_sent(self, shared: Tree, memory: Tree, arrived: Tree) -> Tree:
        return memory

    def weights(self, samples: Tensor) -> Tensor:
        """Each client's weight in the mean, from its number of samples ``[clients]``."""
        return samples.float() if self.weighting == "samples" else torch.ones(len(samples))

    # Server.

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        """The server's whole state as one tree, with the model under ``model/``."""
        run = {
            "round": torch.tensor(0),
            "rounds": torch.tensor(setting.rounds),
            "clients": torch.tensor(setting.clients),
        }
        return tree.join(model=params, optimizer=self.server.init(params), run=run)

    def broadcast(self, server: Tree, clients: Tensor) -> tuple[Tree, Tree]:
        """``(shared, own)``: what every one of ``clients`` downloads, and, stacked, what each gets for itself."""
        factor = self.lr_schedule.factor(int(server["run/round"]), int(server["run/rounds"]))
        return tree.join(model=tree.part(server, "model")) | {"lr": torch.tensor(self.lr * factor)}, {}

    def request(self, server: Tree, clients: Tensor) -> Exchange:
        """What ``clients`` are asked to do in a round of one exchange."""
        return Exchange(self, *self.broadcast(server, clients))

    def round(self, server: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]:
        """A round: yields requests to the clients, receives their uploads, returns the server's next state."""
        uploads = yield self.request(server, clients)
        return self.server_update(server, uploads)

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree:
        """The own models of ``clients``, stacked, where a method ends with such; ``memory`` is what they remember."""
        return {}

    def diagnostics(self, server: Tree) -> dict[str, float]:
        """What a method has to tell of its state beside how good the model is, by name, at every evaluation."""
        return {}

    @property
    def asynchronous(self) -> bool:
        """Whether the server may take any weighted sum of changes, whatever their age: as long as it is this one's."""
        kind = type(self)
        return kind.round is FedAvg.round and kind.server_update is FedAvg.server_update

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        delta = tree.part(uploads.mean(), "delta")
        params, moments = self.server.apply(tree.part(server, "model"), delta, tree.part(server, "optimizer"))
        run = tree.part(server, "run")
        return tree.join(model=params, optimizer=moments, run=run | {"round": run["round"] + 1})
