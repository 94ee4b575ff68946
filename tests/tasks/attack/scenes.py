"""Messages of honest clients, written by hand: plain autograd, no code of the train stage in the client's loop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks import artifacts, tree
from tasks.attack.case import Case
from tasks.attack.defences import Defence, NoDefence
from tasks.models import CNN, MLP, Network, build
from tasks.partition.federation import Federation, Meta
from tasks.train.algorithms import FedAvg
from tasks.train.privacy import Mechanism, NoPrivacy
from tasks.train.transcript import Context, Recorder
from tasks.train.uplink import Chain, Codec
from tasks.tree import Tree

KIND = {3: "image", 1: "table"}


def digits() -> tuple[Tensor, Tensor]:
    """The bundled digits, in an order of their own, in [0, 1]: ``[1797, 1, 8, 8]`` and ``[1797]``."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    mixed = np.random.default_rng(0).permutation(len(y))
    return torch.tensor(x[mixed] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y[mixed])


def meta(shape: tuple[int, ...], range_: tuple[float, float] | None = (0.0, 1.0), **more) -> Meta:
    told = {"dataset": "made", "classes": 10, "class_names": tuple("0123456789"), "samples": 1, "test_samples": 1}
    return Meta(**{**told, "kind": KIND[len(shape)], "shape": shape, "range": range_, "clients": 1, **more})


def honest(
    network: Network, start: Tree, x: Tensor, y: Tensor, order: list[list[int]], *, lr: float, momentum: float = 0.0
) -> Tree:
    """The update of a client that does SGD on the rows of ``order``, as one would write it without any framework."""
    params = {name: value.clone().requires_grad_() for name, value in start.items()}
    velocity = {name: torch.zeros_like(value) for name, value in start.items()}
    for rows in order:
        outputs = network.apply(params, x[rows])
        loss = torch.nn.functional.cross_entropy(outputs, y[rows])
        slopes = torch.autograd.grad(loss, list(params.values()))
        for name, slope in zip(params, slopes, strict=True):
            velocity[name] = momentum * velocity[name] + slope
        params = {n: (v - lr * velocity[n]).detach().requires_grad_() for n, v in params.items()}
    return {name: (value - start[name]).detach() for name, value in params.items()}


@dataclass(frozen=True)
class Scene:
    """A case and the truth behind it."""

    case: Case
    x: Tensor
    y: Tensor
    order: tuple[Tensor, ...]


def scene(
    model,
    x: Tensor,
    y: Tensor,
    *,
    order: list[list[int]] | None = None,
    work: FedAvg | None = None,
    defence: Defence | None = None,
    data: Meta | None = None,
    budget: int = 600,
    seed: int = 0,
    told: bool = False,
    uplink: tuple[Codec, ...] = (),
    privacy: Mechanism | None = None,
) -> Scene:
    """An honest client with the samples ``x``, ``y`` that follows ``order``: all of them at once, unless given."""
    data, defence, privacy = data or meta(tuple(x.shape[1:])), defence or NoDefence(), privacy or NoPrivacy()
    order = order or [list(range(len(y)))]
    work = work or FedAvg(batch_size=len(order[0]), epochs=sum(map(len, order)) // len(y))
    network = build(model, data.shape, data.classes, seed)
    delta = honest(network, network.parameters, x, y, order, lr=work.lr, momentum=work.momentum)
    upload, _ = privacy.on_device({}, tree.join(delta=delta), torch.tensor(5))
    chain = Chain(uplink, upload)
    delta = tree.part(chain.decode(chain.encode(upload, chain.memory(), torch.tensor(6))[0]), "delta")
    delta = defence.protect(delta, torch.tensor(7))
    context = Context(1, 0, len(y), len(order), work.epochs, work.batch_size, work.lr, 0)
    case = Case(
        message="round-00001-client-00000",
        context=context,
        network=network,
        work=work,
        data=data,
        broadcast=tree.join(model=network.parameters) | {"lr": torch.tensor(work.lr)},
        delta=delta,
        defence=defence,
        budget=budget,
        seed=seed,
        labels=y.sort().values if told else None,
        upload=tree.join(delta=delta),
        uplink=uplink,
        privacy=privacy,
    )
    return Scene(case, x, y, tuple(torch.tensor(rows) for rows in order))


def write_run(folder: Path, model: CNN | MLP, sizes: list[int], released: Tree | None = None) -> Path:
    """The folders that the attack stage reads, of a federation of digits whose clients train on ``sizes`` samples and
    hold out one each; every client's message of round 1 is recorded. Returns the folder of the artefacts."""
    x, y = digits()
    train, test = sum(sizes) + len(sizes), 400
    data = meta((1, 8, 8), samples=train, test_samples=test, clients=len(sizes))
    place = folder / "artifacts" / "partition"
    place.mkdir(parents=True)
    artifacts.write_text(place / "meta.json", data.model_dump_json())
    owned = np.array(sizes) + 1
    arrays = {
        "x": x[:train].numpy(), "y": y[:train].numpy(), "test_x": x[-test:].numpy(), "test_y": y[-test:].numpy(),
        "indices": np.arange(train), "offsets": np.concatenate([[0], np.cumsum(owned)]), "train_sizes": owned - 1,
    }  # fmt: skip
    for name, values in arrays.items():
        np.save(place / f"{name}.npy", values)
    federation, network = Federation.open(place), build(model, (1, 8, 8), 10, 0)
    start = network.parameters
    recorder = Recorder(folder / "artifacts" / "train" / "transcript")
    recorder.template(tree.join(delta=start))
    recorder.broadcast(1, tree.join(model=start) | {"lr": torch.tensor(0.1)})
    for client, size in enumerate(sizes):
        rows = federation.train(client)
        delta = honest(network, start, x[rows], y[rows], [list(range(size))], lr=0.1)
        payload, _ = Chain((), tree.join(delta=start)).encode(tree.join(delta=delta), {}, torch.tensor(0))
        private = {"x": x[rows], "y": y[rows], "order": torch.arange(size)[None]}
        recorder.message(Context(1, client, size, 1, 1, 16, 0.1, tree.nbytes(payload)), payload, {}, private)
    recorder.close()
    (folder / "artifacts" / "aggregate").mkdir()
    artifacts.write_tree(folder / "artifacts" / "aggregate" / "model.safetensors", released or start)
    return folder / "artifacts"
