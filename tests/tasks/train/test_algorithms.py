"""What the methods are, against naive loops and in the limits in which one becomes another."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tasks import models, tree
from tasks.train.algorithms import FedAvg, FedPer, FedProx, FedSpeed, Scaffold
from tasks.train.algorithms.learning_rates import Constant
from tasks.train.algorithms.server_optimizers import SGD, Adagrad, Adam, Yogi
from tasks.train.settings import TrainSettings
from tasks.train.work import Setting, Uploads
from tests.tasks.train.runs import MODEL, SIZES, federation, run

ALL = len(SIZES)


def settings(algorithm, **others) -> TrainSettings:
    return TrainSettings(**{"rounds": 3, "cohort": ALL, "algorithm": algorithm} | others)


def naive_fedavg(data, algorithm: FedAvg, rounds: int, seed: int) -> dict:
    """FedAvg as one would write it by hand: a module, an optimiser of torch, one client after the other."""
    from tasks.train.engine.program import Job

    params = models.build(MODEL, data.meta.shape, data.meta.classes, seed).parameters
    for round_ in range(1, rounds + 1):
        total, weight = None, 0.0
        for client in range(data.clients):
            module = MODEL.build(data.meta.shape, data.meta.classes)
            module.load_state_dict(params)
            sgd = torch.optim.SGD(
                module.parameters(), algorithm.lr, algorithm.momentum, weight_decay=algorithm.weight_decay
            )
            samples = data.train(client)
            job = Job(algorithm, round_, 0, torch.tensor([client]).numpy(), {}, {}, {}, {})
            positions, _ = job.order(job.keys(seed), data.sizes[[client]])
            for step in positions[0]:
                rows = samples[step[step >= 0]]
                sgd.zero_grad()
                cross_entropy(module(torch.from_numpy(data.x[rows])), torch.from_numpy(data.y[rows])).backward()
                if algorithm.clip_norm:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), algorithm.clip_norm)
                sgd.step()
            w = float(len(samples)) if algorithm.weighting == "samples" else 1.0
            delta = {name: (value.detach() - params[name]) * w for name, value in module.named_parameters()}
            total, weight = delta if total is None else tree.add(total, delta), weight + w
        params = tree.add(params, total, algorithm.server.lr / weight)
    return params


@pytest.mark.parametrize("stack", [1, 3, 8])
@pytest.mark.parametrize(
    "algorithm",
    [
        FedAvg(batch_size=4, epochs=2),
        FedAvg(batch_size=0, epochs=3, weighting="uniform"),
        FedAvg(batch_size=16, momentum=0.9, weight_decay=0.01, server=SGD(lr=0.5)),
        FedAvg(batch_size=4, steps=7, weight_decay=0.01, clip_norm=0.5),
    ],
    ids=["minibatches", "full-batch", "momentum", "clipped"],
)
def test_fedavg_is_the_naive_loop(data, algorithm, stack):
    """Local steps, ragged last batches, clients of one sample and weights are exact, however clients are stacked."""
    got = run(data, settings(algorithm), rounds=3, stack=stack).model
    expected = naive_fedavg(data, algorithm, rounds=3, seed=3)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6)


def test_one_full_batch_step_weighted_by_samples_is_gradient_descent_on_all_data(data):
    algorithm = FedAvg(batch_size=0, lr=0.3)
    got = run(data, settings(algorithm), rounds=1).model
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
    params = {name: value.requires_grad_() for name, value in network.parameters.items()}
    x, y = torch.from_numpy(data.x[data.indices]), torch.from_numpy(data.y[data.indices])
    network.losses(params, x, y).mean().backward()
    for name, value in params.items():
        torch.testing.assert_close(got[name], value.detach() - 0.3 * value.grad, rtol=1e-4, atol=1e-6)


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fedprox_without_pull_is_fedavg_to_the_last_bit(data):
    plain = run(data, settings(FedAvg(epochs=3, batch_size=4)), rounds=3).model
    prox = run(data, settings(FedProx(epochs=3, batch_size=4, mu=0.0)), rounds=3).model
    assert same(plain, prox)


def test_fedprox_stays_nearer_to_the_broadcast_the_harder_it_pulls(data):
    def moved(mu: float) -> float:
        coordinator = run(data, settings(FedProx(epochs=5, batch_size=4, mu=mu, lr=0.05)), rounds=1)
        return float(tree.norm(tree.part(coordinator.uploads, "delta")))

    assert moved(0.0) > moved(1.0) > moved(10.0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (FedAvg, {}),
        (FedPer, {}),
        (FedSpeed, {"dual_average": "none", "rho": 0, "prox": 0, "clip_norm": None, "lr_schedule": Constant()}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kept_momentum_makes_many_short_rounds_of_one_client_a_long_one(tmp_path, method, options):
    alone = federation(tmp_path / "alone", sizes=(20,))
    wanted = {"lr": 0.05, "momentum": 0.9, "batch_size": 0, "epochs": 1, **options}

    def trained(rounds: int, **others):
        end = run(alone, settings(method(**wanted | others), cohort=1), rounds)
        return tree.take(end.models(np.zeros(1, int)), 0) or end.model

    whole, parts = trained(1, epochs=4), trained(4, keep_momentum=True)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)
    assert not all(torch.allclose(value, whole[name], atol=1e-4) for name, value in trained(4).items())


def test_scaffold_begins_as_fedavg_to_the_last_bit(data):
    plain = run(data, settings(FedAvg(epochs=2, batch_size=4, weighting="uniform")), rounds=1).model
    scaffold = run(data, settings(Scaffold(epochs=2, batch_size=4)), rounds=1).model
    assert same(plain, scaffold)


def test_scaffold_server_variate_is_the_mean_of_the_clients(data):
    """c = (1 / N) sum of c_k after every round, whoever took part (the invariant of algorithm 1)."""
    coordinator = run(data, settings(Scaffold(epochs=2, batch_size=4), cohort=3), rounds=5)
    memory = coordinator.memories["scaffold/memory"]
    kept = tree.part(memory.gather(np.arange(ALL)), "control")
    for name, value in tree.part(coordinator.server, "control").items():
        torch.testing.assert_close(value, kept[name].mean(0), rtol=1e-4, atol=1e-6)


def test_scaffold_with_one_client_is_fedavg(tmp_path):
    """With one client c_k = c after every round, so the correction vanishes."""
    alone = federation(tmp_path / "alone", sizes=(20,))
    plain = run(alone, settings(FedAvg(batch_size=4), cohort=1), rounds=4).model
    scaffold = run(alone, settings(Scaffold(batch_size=4), cohort=1), rounds=4).model
    for name in plain:
        torch.testing.assert_close(plain[name], scaffold[name], rtol=1e-4, atol=1e-6)


def test_scaffold_reaches_the_optimum_of_unlike_quadratics_where_fedavg_does_not():
    """Clients f_k(w) = a_k / 2 (w - b_k)^2 with many local steps: the minimum of the mean is sum a_k b_k / sum a_k."""
    import types

    a, b = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0])
    network = types.SimpleNamespace(losses=lambda p, x, y: 0.5 * a[y] * (p["w"] - b[y]).square())

    def solve(method) -> float:
        server = method.server_init({"w": torch.zeros(())}, Setting(2, 2, 100))
        memories = [None, None]
        for _ in range(100):
            rounds = method.round(server, torch.arange(2))
            request = next(rounds)
            uploads = []
            for k in range(2):
                memory = memories[k] or method.client_memory(request.shared)
                state = method.client_init(request.shared, {}, memory)
                batch = {"x": torch.zeros(1), "y": torch.tensor([k]), "weight": torch.ones(1)}
                for _ in range(20):
                    state, _ = method.client_step(network, state, batch, torch.tensor(0))
                upload, memories[k] = method.client_final(request.shared, state)
                uploads.append(upload)
            total = tree.add(*uploads)
            with pytest.raises(StopIteration) as finished:
                rounds.send(Uploads(torch.arange(2), total, torch.tensor(2.0), 2))
            server = finished.value.value
        return float(server["model/w"])

    optimum = float((a * b).sum() / a.sum())
    assert abs(solve(Scaffold(lr=0.1)) - optimum) < 1e-4
    assert abs(solve(FedAvg(lr=0.1, weighting="uniform")) - optimum) > 0.05


def closed_form(optimizer, deltas: list[float]) -> float:
    """Algorithm 2 of Reddi et al. on one number, written out."""
    x, m, v = 0.0, 0.0, optimizer.tau**2
    for d in deltas:
        m = optimizer.beta_1 * m + (1 - optimizer.beta_1) * d
        v = {
            "adagrad": lambda v, d: v + d * d,
            "adam": lambda v, d: optimizer.beta_2 * v + (1 - optimizer.beta_2) * d * d,
            "yogi": lambda v, d: v - (1 - optimizer.beta_2) * d * d * ((v > d * d) - (v < d * d)),
        }[optimizer.name](v, d)
        x += optimizer.lr * m / (v**0.5 + optimizer.tau)
    return x


@pytest.mark.parametrize("optimizer", [Adagrad(lr=0.5), Adam(lr=0.1), Yogi(lr=0.1, tau=0.1)], ids=lambda o: o.name)
def test_adaptive_server_optimisers_follow_the_paper(optimizer):
    deltas = [1.0, -0.5, 0.25, 2.0, 0.0, -3.0]
    params = {"w": torch.zeros(())}
    moments = optimizer.init(params)
    for d in deltas:
        params, moments = optimizer.apply(params, {"w": torch.tensor(d)}, moments)
    assert float(params["w"]) == pytest.approx(closed_form(optimizer, deltas), rel=1e-5)


def test_server_momentum_is_a_geometric_sum():
    optimizer, params, moments = SGD(lr=0.5, momentum=0.9), {"w": torch.zeros(())}, {}
    moments = optimizer.init(params)
    for _ in range(5):
        params, moments = optimizer.apply(params, {"w": torch.ones(())}, moments)
    assert float(params["w"]) == pytest.approx(0.5 * sum(0.9**j for i in range(5) for j in range(i + 1)), rel=1e-6)


def test_a_client_whose_update_is_no_number_is_left_out_and_counted(data):
    """Rejecting a client equals never having had it, and what it remembers stays as it was."""
    poisoned = int(data.indices[data.offsets[3]])
    healthy = run(data, settings(FedAvg(batch_size=0)), rounds=1)
    x = np.array(data.x)
    x[poisoned] = float("nan")
    np.save(data.path / "x.npy", x)
    coordinator = run(data, settings(Scaffold(batch_size=0, weighting="samples")), rounds=1)
    assert coordinator.ledger.rejected == 1
    weights = coordinator.uploads["weights"]
    assert int((weights == 0).sum()) == 1
    assert all(torch.isfinite(value).all() for value in coordinator.model.values())
    memory = coordinator.memories["scaffold/memory"]
    assert all((value == 0).all() for value in memory.gather(np.array([3])).values())
    keep = healthy.uploads["clients"] != 3
    w = healthy.uploads["weights"][keep]
    for name, delta in tree.part(healthy.uploads, "delta").items():
        mean = torch.tensordot(w, delta[keep], 1) / w.sum()
        start = healthy.uploads[f"start/{name}"]
        torch.testing.assert_close(coordinator.model[name], start + mean, rtol=1e-4, atol=1e-6)


def test_an_exploding_update_is_left_out(data):
    normal = run(data, settings(FedAvg(batch_size=0)), rounds=1)
    longest = max(
        float(tree.norm(tree.take(tree.part(normal.uploads, "delta"), i)))
        for i in range(len(normal.uploads["weights"]))
    )
    strict = run(data, settings(FedAvg(batch_size=0), reject_above=longest * 0.999), rounds=1)
    assert normal.ledger.rejected == 0
    assert strict.ledger.rejected == 1
