"""FedJAX: its ``for_each_client`` on the jit backend and its ``tree_mean``, on networks written in plain JAX.

FedJAX 0.0.17 calls ``jax.tree_map``, which newer versions of JAX have under ``jax.tree_util`` only; it is put back
before FedJAX is imported. Batches keep their true size, so that no padding is computed: these jobs have so few sizes
that compiling each costs nothing in steady state.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders.contract import Job, Session

jax.tree_map = jax.tree_util.tree_map

import fedjax  # noqa: E402

Params = dict[str, jax.Array]


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """``tasks.models``' MLP, with its names: layers 1, 3, 5, ... of a sequence."""
    x, layers = x.reshape(len(x), -1), sorted({int(name.split(".")[0]) for name in params})
    for layer in layers:
        x = x @ params[f"{layer}.weight"] + params[f"{layer}.bias"]
        x = x if layer == layers[-1] else jax.nn.relu(x)
    return x


def cnn(params: Params, x: jax.Array) -> jax.Array:
    """``tasks.models``' CNN: layers 0 and 3 are convolutions, 7 is linear. ``x`` [batch, height, width, channels]."""
    for layer in (0, 3):
        kernel, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = _pooled(jax.nn.relu(x + bias))
    return x.reshape(len(x), -1) @ params["7.weight"] + params["7.bias"]


def _pooled(x: jax.Array) -> jax.Array:
    """The largest of two by two. On a CPU XLA differentiates this several times faster than ``reduce_window``."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


NETWORKS: dict[str, Callable[[Params, jax.Array], jax.Array]] = {"mlp": mlp, "cnn": cnn}


class Layout:
    """The way of arrays from PyTorch's layouts to JAX's and back."""

    def __init__(self, job: Job):
        self.flat: tuple[int, ...] = ()
        if job.model["name"] == "cnn":
            _, height, width = job.shape
            self.flat = (2 * job.model["width"], height // 4, width // 4)

    def samples(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 3, 1).copy() if self.flat else x

    def to_jax(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:
            return value.transpose(2, 3, 1, 0)
        if value.ndim == 2 and self.flat:
            value = value.reshape(len(value), *self.flat).transpose(0, 2, 3, 1).reshape(len(value), -1)
        return value.T if value.ndim == 2 else value

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:
            return value.transpose(3, 2, 0, 1)
        if value.ndim == 2 and self.flat:
            channels, height, width = self.flat
            value = value.T.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            return value.reshape(len(value), -1)
        return value.T if value.ndim == 2 else value


def federated_averaging(apply: Callable[[Params, jax.Array], jax.Array], lr: float) -> Callable[..., Any]:
    """A round's local training, for every client."""

    def loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        logs = jax.nn.log_softmax(apply(params, batch["x"]))
        return -jnp.take_along_axis(logs, batch["y"][:, None], 1).mean()

    def client_init(shared: Params, _: Any) -> dict[str, Params]:
        return {"params": shared}

    def client_step(state: dict[str, Params], batch: dict[str, jax.Array]) -> dict[str, Params]:
        gradient = jax.grad(loss)(state["params"], batch)
        return {"params": jax.tree_util.tree_map(lambda p, g: p - lr * g, state["params"], gradient)}

    def client_final(_: Params, state: dict[str, Params]) -> Params:
        return state["params"]

    return fedjax.for_each_client(client_init, client_step, client_final)


def main() -> None:
    job = Job(sys.argv[1])
    fedjax.set_for_each_client_backend("jit")
    layout = Layout(job)
    server = {"model": {name: jnp.asarray(layout.to_jax(value)) for name, value in job.initial.items()}}
    clients = [
        fedjax.ClientDataset({"x": layout.samples(x), "y": y.astype(np.int32)}).batch(batch_size=job.batch)
        for x, y in job.clients()
    ]
    sizes = job.array("train_sizes").tolist()
    train = federated_averaging(NETWORKS[job.model["name"]], job.lr)
    versions = {name: importlib.metadata.version(name) for name in ("fedjax", "jax")}

    def parameters() -> dict[str, np.ndarray]:
        return {name: layout.to_torch(np.asarray(value)) for name, value in server["model"].items()}

    for cohort in Session(versions).rounds(job.cohorts, parameters, lambda: jax.block_until_ready(server)):
        batches = [(client, clients[client], {}) for client in cohort.tolist()]
        trained = train(server["model"], batches)
        server["model"] = fedjax.tree_util.tree_mean((model, sizes[client]) for client, model in trained)


if __name__ == "__main__":
    main()
