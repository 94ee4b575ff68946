"""HyperFL: what travels, what stays, in which phase what moves, and the two limits."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, vjp

from tasks import models, tree
from tasks.config import Refused
from tasks.models.architectures import CNN, MLP
from tasks.models.hyper import Hyper, HyperNetwork
from tasks.params import build
from tasks.train.algorithms import FedAvg, HyperFL
from tasks.train.schedules import FedCompass
from tasks.train.settings import TrainSettings
from tasks.train.work import ClientState
from tests.tasks.train.runs import SERVERS, SIZES, federation, run

MODEL = Hyper(body=MLP(hidden=(6,)), embedding=5, hidden=7)
EVERYBODY = np.arange(len(SIZES))
GENERATED = 4 * 6 + 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("clients") / "partition")


def trained(data, rounds: int = 2, cohort: int = len(SIZES), model=MODEL, **settings):
    method = HyperFL(**{"steps": 4, "head_steps": 2, "lr": 0.05} | settings)
    return run(data, TrainSettings(algorithm=method, cohort=cohort), rounds, model=model)


def test_the_two_stage_product_is_the_gradient():
    """(d theta / d varphi)^T (dL / d theta), as the paper computes it, against autograd through the whole network."""
    torch.manual_seed(0)
    module = HyperNetwork(CNN(width=3, hidden=8).build((1, 8, 8), 4), 5, 6).double()
    params = {name: value.detach() for name, value in module.named_parameters()}
    x, y = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    loss = torch.nn.functional.cross_entropy

    whole = torch.func.grad(lambda p: loss(functional_call(module, p, (x,)), y))(params)

    class Generate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self):
            return self.inner.generated()

    generate = Generate()
    theta, back = vjp(lambda p: functional_call(generate, {f"inner.{n}": v for n, v in p.items()}, ()), params)
    head = {name.removeprefix("classifier."): v for name, v in params.items() if name.startswith("classifier.")}

    def on_theta(theta):
        features = functional_call(module.body[0], theta, (x,))
        return loss(functional_call(module.classifier, head, (features,)), y)

    (through,) = back(torch.func.grad(on_theta)(theta))
    for name, value in through.items():
        if not name.startswith("classifier."):
            torch.testing.assert_close(value, whole[name], rtol=1e-9, atol=1e-12)


def test_the_network_starts_as_large_as_it_would_without_a_hypernetwork():
    torch.manual_seed(1)
    body = CNN(width=8, hidden=32).build((1, 8, 8), 10)
    plain = {name: value.std() for name, value in body.named_parameters()}
    generated = HyperNetwork(body, 16, 32).generated()
    assert generated.keys() == {name for name in plain if not name.startswith(f"{len(body) - 1}.")}
    assert all(1 / 3 < value.std() / plain[name] < 3 for name, value in generated.items())


def test_the_hypernetwork_travels_and_nothing_else(data):
    finished = trained(data, rounds=1)
    numbers = 7 * (5 + 1) + (7 + 1) * GENERATED
    assert finished.ledger.bytes_up == 4 * numbers * len(SIZES)
    assert finished.ledger.bytes_down == 4 * (numbers + 1) * len(SIZES), "and down the learning rate"
    delta = tree.part(finished.uploads, "delta")
    assert {name.split(".")[0] for name in delta} == {"hidden", "heads"}


def test_who_is_not_called_keeps_vector_and_classifier_to_the_last_bit(data):
    before, after = trained(data, rounds=1, cohort=3), trained(data, rounds=2, cohort=3)
    idle = np.flatnonzero(before.participations == after.participations)
    assert len(idle)
    for name in ("embedding", "classifier.weight", "classifier.bias"):
        assert before.models(idle)[name].equal(after.models(idle)[name])
    assert not before.models(EVERYBODY)["embedding"].equal(after.models(EVERYBODY)["embedding"])


def state_of(method: HyperFL, network) -> ClientState:
    params = network.parameters
    home = {name: params[name] for name in method.at_home(params)}
    shared = tree.join(model={n: v for n, v in params.items() if n not in home}, home=home)
    shared |= {"lr": torch.tensor(method.lr)}
    return method.client_init(shared, {}, method.client_memory(shared))


def test_first_the_classifier_moves_and_then_all_but_it(data):
    method = HyperFL(lr=0.05, head_steps=2, steps=2)
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 1)
    state = state_of(method, network)
    batch = {"x": torch.from_numpy(data.x[:9]), "y": torch.from_numpy(data.y[:9]), "weight": torch.ones(9)}
    for step in range(4):
        before = state.params
        state, _ = method.client_step(network, state, batch, torch.tensor(step))
        moved = {name for name, value in state.params.items() if not value.equal(before[name])}
        classifier = {"classifier.weight", "classifier.bias"}
        assert moved <= classifier if step < 2 else moved.isdisjoint(classifier)
        assert "embedding" in moved or step < 2


def test_with_constant_heads_it_is_fedavg_on_what_they_generate(data):
    """W_k = 0 and a step too small to move them: theta = b_k, whose gradient is the network's own."""
    method = HyperFL(lr=0.1, head_steps=0, steps=3, momentum=0.0, weight_decay=0.0, batch_size=0)
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 1)
    state = state_of(method, network)
    torch.manual_seed(3)
    drawn = {n: 0.3 * torch.randn_like(v) for n, v in state.params.items() if n.startswith("heads.")}
    state = state._replace(params=state.params | drawn)
    still = {
        name: torch.zeros_like(v) for name, v in state.params.items() if name.endswith("weight") and "heads" in name
    }
    body = MLP(hidden=(6,)).build(data.meta.shape, data.meta.classes)
    x, y = torch.from_numpy(data.x[:9]), torch.from_numpy(data.y[:9])
    batch = {"x": x, "y": y, "weight": torch.ones(9)}
    biases = {name: f"heads.{name.replace('.', '_')}.bias" for name, _ in list(body.named_parameters())[:2]}
    plain = {name: state.params[bias].view(dict(body.named_parameters())[name].shape) for name, bias in biases.items()}
    last = {"3.weight": state.params["classifier.weight"], "3.bias": state.params["classifier.bias"]}
    for step in range(3):
        state = state._replace(params=state.params | still)
        state, _ = method.client_step(network, state, batch, torch.tensor(step))
        loss = lambda p: torch.nn.functional.cross_entropy(functional_call(body, p | last, (x,)), y)  # noqa: E731
        plain = tree.add(plain, torch.func.grad(loss)(plain), -0.1)
    for name, bias in biases.items():
        torch.testing.assert_close(state.params[bias].view_as(plain[name]), plain[name], rtol=1e-5, atol=1e-6)


def test_one_step_on_the_hypernetwork_gives_the_generated_network_away():
    """z = (dL/dW)^T (dL/db) / |dL/db|^2, so theta = W z + b and its gradient are the server's to read."""
    torch.manual_seed(2)
    method = HyperFL(lr=0.1, head_steps=0, steps=1, momentum=0.0, weight_decay=0.0, clip=1e9)
    network = models.build(Hyper(body=CNN(width=4, hidden=8), embedding=5, hidden=6), (1, 8, 8), 10, 1)
    state = state_of(method, network)
    batch = {"x": torch.rand(1, 1, 8, 8), "y": torch.tensor([3]), "weight": torch.ones(1)}
    new, _ = method.client_step(network, state, batch, torch.tensor(0))
    module = network.module
    code = module.code(module.embedding)
    for name, theta in module.generated().items():
        head = f"heads.{name.replace('.', '_')}"
        d_w, d_b = ((new.params[f"{head}.{part}"] - state.params[f"{head}.{part}"]) for part in ("weight", "bias"))
        if float(d_b.abs().max()) == 0:
            continue
        seen = (d_w.T @ d_b) / d_b.square().sum()
        torch.testing.assert_close(seen, code.detach(), rtol=1e-3, atol=1e-4)
        rebuilt = (state.params[f"{head}.weight"] @ seen + state.params[f"{head}.bias"]).view_as(theta)
        torch.testing.assert_close(rebuilt, theta.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: f"{server.name} {server.momentum:g}")
def test_the_server_takes_any_step_on_the_hypernetwork_and_none_on_what_stays_home(data, server):
    start, finished = trained(data, rounds=0).model, trained(data, server=server).model
    moved = {name for name, value in finished.items() if not value.equal(start[name])}
    assert moved == {name for name in start if name.startswith(("hidden", "heads"))}


def test_under_fedcompass_clients_must_come_to_the_hypernetwork():
    def build_with(least: int):
        schedule = {"name": "fedcompass", "max_steps": 9, "min_steps": least}
        algorithm = {"name": "hyperfl", "head_steps": 3}
        train = {"schedule": schedule, "algorithm": algorithm, "cohort": 20}
        return build({"partition": {"clients": 20}, "model": {"name": "hyper"}, "train": train})

    build_with(4)
    with pytest.raises(Refused, match=r"train\.schedule\.min_steps = 3: must be above 3 with .* 'hyperfl'"):
        build_with(3)


def test_a_client_that_stops_after_its_idle_steps_sends_zeros(data):
    method = HyperFL(head_steps=3, steps=1, lr=0.05)
    for stopped, nothing in ((method.idle_steps, True), (method.idle_steps + 1, False)):
        train = TrainSettings(algorithm=method, cohort=len(SIZES), schedule=FedCompass(max_steps=stopped, min_steps=1))
        sent = tree.part(run(data, train, 1, model=MODEL).uploads, "delta")
        assert all(bool((value == 0).all()) for value in sent.values()) == nothing


def test_clients_may_draw_their_vectors(data):
    same, own = (trained(data, rounds=1, lr=1e-6, start=start) for start in ("identical", "independent"))
    alike, apart = (finished.models(EVERYBODY)["embedding"] for finished in (same, own))
    assert (alike - alike[0]).abs().max() < 1e-3
    assert torch.pdist(apart).min() > 0.1
    later = trained(data, rounds=2, lr=1e-6, start="independent").models(EVERYBODY)["embedding"]
    assert (later - apart).abs().max() < 1e-3, "drawn once"


def test_another_network_is_refused():
    with pytest.raises(Refused, match=r"train\.algorithm\.name = 'hyperfl': .* use it with model\.name: hyper"):
        build({"train": {"algorithm": {"name": "hyperfl"}}})


def test_with_equal_clients_the_server_takes_the_mean(data):
    """Which is FedAvg's server on the hypernetwork: the same uploads give the same step."""
    finished = trained(data, rounds=1)
    uploads, weights = tree.part(finished.uploads, "delta"), finished.uploads["weights"]
    start = tree.part(finished.uploads, "start")
    for name, value in uploads.items():
        mean = torch.tensordot(weights / weights.sum(), value, 1)
        torch.testing.assert_close(finished.model[name], start[name] + mean, rtol=1e-5, atol=1e-6)
    assert isinstance(finished.train.algorithm, FedAvg)
