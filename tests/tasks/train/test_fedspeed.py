"""FedSpeed: its limits, its fixed point, and the agreement of clients and server on the duals."""

import types

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tasks import tree
from tasks.models import Network
from tasks.train.algorithms import FedAvg, FedProx, FedSpeed
from tasks.train.algorithms.learning_rates import Constant
from tasks.train.settings import TrainSettings
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.topk import TopK
from tasks.train.work import ClientState, Setting, Uploads
from tasks.tree import Tree
from tests.tasks.train.runs import SIZES, run

ALL = len(SIZES)
PLAIN = {"epochs": 2, "batch_size": 4, "lr_schedule": Constant(), "weight_decay": 0.0, "clip_norm": None}


def settings(algorithm: FedAvg, **others) -> TrainSettings:
    return TrainSettings(**{"rounds": 9, "cohort": ALL, "algorithm": algorithm} | others)


def same(a: Tree, b: Tree) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_ascent_pull_and_dual_it_is_fedavg_to_the_last_bit(data):
    bare = FedSpeed(**PLAIN, rho=0, prox=0, dual_average="none")
    plain = FedAvg(epochs=2, batch_size=4, weighting="uniform")
    assert same(run(data, settings(bare), 3).model, run(data, settings(plain), 3).model)


def test_without_ascent_and_dual_it_is_fedprox(data):
    pulled = run(data, settings(FedSpeed(**PLAIN, rho=0, prox=0.7, dual_average="none")), 3).model
    prox = run(data, settings(FedProx(epochs=2, batch_size=4, weighting="uniform", mu=0.7)), 3).model
    for name in prox:
        torch.testing.assert_close(pulled[name], prox[name], rtol=1e-5, atol=1e-6)


class Uphill(FedAvg):
    """FedSAM as one would write it by hand, with autograd in place of ``torch.func``."""

    @torch.enable_grad()
    def gradient(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[Tree, Tree]:
        def slope(at: Tree) -> list[Tensor]:
            leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
            return torch.autograd.grad(network.losses(leaves, batch["x"], batch["y"]).mean(), list(leaves.values()))

        first = slope(state.params)
        length = sum(g.square().sum() for g in first).sqrt()
        at = {n: x + 0.3 * g / length for (n, x), g in zip(state.params.items(), first, strict=True)}
        return dict(zip(at, slope(at), strict=True)), {"loss": torch.tensor(0.0)}


def test_without_pull_and_dual_it_is_fedsam(data):
    ours = run(data, settings(FedSpeed(**PLAIN, rho=0.3, prox=0, dual_average="none")), 3, stack=1).model
    naive = run(data, settings(Uphill(epochs=2, batch_size=4, weighting="uniform")), 3, stack=1).model
    for name in naive:
        torch.testing.assert_close(ours[name], naive[name], rtol=1e-4, atol=1e-5)


def test_alpha_is_idle_where_nothing_is_taken_uphill(data):
    flat, steep = (run(data, settings(FedSpeed(rho=0, alpha=alpha)), 3).model for alpha in (0.0, 1.0))
    assert same(flat, steep)
    half = run(data, settings(FedSpeed(rho=0.1, alpha=0.0)), 3).model
    assert same(flat, half)


@pytest.mark.parametrize("cohort", [ALL, 3])
def test_the_first_round_adds_the_mean_change_once_more_by_the_share_that_took_part(data, cohort):
    """x_1 = x_0 + (1 + S / m) mean of the changes: with everybody there, twice the mean."""
    run_ = run(data, settings(FedSpeed(), cohort=cohort), 1)
    start, deltas = tree.part(run_.uploads, "start"), tree.part(run_.uploads, "delta")
    for name, value in run_.model.items():
        expected = start[name] + (1 + cohort / ALL) * deltas[name].mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_with_everybody_there_the_paper_and_the_code_agree(data):
    paper = run(data, settings(FedSpeed(dual_average="sampled")), 4).model
    code = run(data, settings(FedSpeed()), 4).model
    for name in code:
        torch.testing.assert_close(paper[name], code[name], rtol=1e-4, atol=1e-5)


CHAINS = {
    "bare": (),
    "sparse": (TopK(density=0.2, error_feedback=False),),
    "fed back": (TopK(density=0.2), Quantize(bits=3)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_server_has_the_mean_of_all_duals_whatever_the_wire_does(data, chain):
    """Also of those that were absent, and of one whose upload was refused: its dual must not move either."""
    poisoned = int(data.indices[data.offsets[3]])
    x = np.array(data.x)
    x[poisoned] = float("nan")
    np.save(data.path / "x.npy", x)
    trained = run(data, settings(FedSpeed(), cohort=4, uplink=CHAINS[chain]), 8)
    kept = tree.part(trained.memories["fedspeed/memory"].gather(np.arange(ALL)), "drift")
    mean = float(tree.norm(tree.map(lambda value: value.mean(0), kept)))
    assert trained.diagnostics() == {"length_of_the_mean_dual": pytest.approx(mean, rel=1e-4)}
    for name, value in tree.part(trained.server, "drift").items():
        torch.testing.assert_close(value, kept[name].mean(0), rtol=1e-4, atol=1e-6)
        assert (kept[name][3] == 0).all()


# Clients f_k(w) = (w - b_k)' A_k (w - b_k) / 2 in double precision, with full gradients.


class Quadratics:
    """Unlike quadratics of as many clients, each in two dimensions."""

    def __init__(self, clients: int, shift: float = 0.0):
        rng = np.random.default_rng(5)
        roots = torch.from_numpy(rng.normal(size=(clients, 2, 2)))
        self.hessians = roots @ roots.mT + 0.2 * torch.eye(2)
        self.hessians /= torch.linalg.matrix_norm(self.hessians, 2).max()
        self.optima = torch.from_numpy(rng.normal(size=(clients, 2))) + shift
        self.clients, self.start = clients, torch.full((2,), shift, dtype=torch.float64)

    @property
    def optimum(self) -> Tensor:
        return torch.linalg.solve(self.hessians.sum(0), (self.hessians @ self.optima[..., None]).sum(0))[:, 0]

    def slopes(self, w: Tensor) -> Tensor:
        """Every client's gradient at ``w``, ``[clients, 2]``."""
        return (self.hessians @ (w - self.optima)[..., None])[..., 0]

    def solve(self, method: FedAvg, steps: int, rounds: int, cohort: int) -> tuple[Tensor, Tensor]:
        """The server's model, and the clients' memories ``[clients, 2]``, after the rounds."""

        def losses(params: Tree, x: Tensor, y: Tensor) -> Tensor:
            gap = params["w"] - self.optima[y]  # [1, 2]
            return 0.5 * (gap[:, None] @ self.hessians[y] @ gap[..., None]).reshape(1)

        network = types.SimpleNamespace(losses=losses)
        server = method.server_init({"w": self.start}, Setting(self.clients, cohort, rounds))
        memory = method.client_memory(tree.join(model={"w": self.start}))
        memories = tree.stack([memory] * self.clients)
        batch = {"x": torch.zeros(1), "weight": torch.ones(1, dtype=torch.float64)}
        rng = np.random.default_rng(1)

        def work(shared: Tree, memory: Tree, k: Tensor) -> tuple[Tree, Tree]:
            state = method.client_init(shared, {}, memory)
            for _ in range(steps):
                state, _ = method.client_step(network, state, batch | {"y": k[None]}, torch.tensor(0))
            upload, kept = method.client_final(shared, state)
            return upload, method.client_sent(shared, kept, upload)

        together = vmap(work, in_dims=(None, 0, 0))
        for _ in range(rounds):
            chosen = torch.from_numpy(rng.choice(self.clients, cohort, replace=False))
            exchange = method.round(server, chosen)
            uploads, kept = together(next(exchange).shared, tree.take(memories, chosen), chosen)
            memories = {name: value.index_copy(0, chosen, kept[name]) for name, value in memories.items()}
            total = tree.map(lambda value: value.sum(0), uploads)
            with pytest.raises(StopIteration) as finished:
                exchange.send(Uploads(chosen, total, torch.tensor(float(cohort)), cohort))
            server = finished.value.value
        return server["model/w"], memories.get("drift/w", torch.zeros(0))


EXACT = {"lr": 0.4, "lr_schedule": Constant(), "weight_decay": 0.0, "clip_norm": None}


@pytest.mark.parametrize("steps", [1, 20, 60])
def test_without_ascent_it_reaches_the_optimum_of_unlike_clients_however_many_steps(steps):
    problem = Quadratics(8)
    rounds = 60 if steps > 1 else 600
    found, drift = problem.solve(FedSpeed(**EXACT, rho=0, prox=0.3), steps, rounds, cohort=8)
    torch.testing.assert_close(found, problem.optimum, atol=1e-5, rtol=0)
    # The duals become the clients' gradients there, and so they cancel.
    torch.testing.assert_close(-0.3 * drift, problem.slopes(problem.optimum), atol=1e-5, rtol=0)
    assert float(drift.sum(0).norm()) < 1e-4
    if steps > 1:
        plain, _ = problem.solve(FedAvg(lr=0.4, weighting="uniform"), steps, rounds, cohort=8)
        assert float((plain - problem.optimum).norm()) > 0.02


def test_a_small_cohort_converges_with_the_mean_over_all_and_not_over_the_sampled():
    problem = Quadratics(8)
    all_, _ = problem.solve(FedSpeed(**EXACT, rho=0), steps=5, rounds=600, cohort=2)
    torch.testing.assert_close(all_, problem.optimum, atol=1e-4, rtol=0)
    sampled, _ = problem.solve(FedSpeed(**EXACT, rho=0, dual_average="sampled"), steps=5, rounds=100, cohort=2)
    assert float((sampled - problem.optimum).norm()) > 1


def fed_dyn(problem: Quadratics, pull: float, steps: int, rounds: int) -> Tensor:
    """FedDyn as in Acar et al., ICLR 2021, algorithm 1, with everybody there."""
    server, state = problem.start.clone(), torch.zeros(2, dtype=torch.float64)
    slopes = torch.zeros(problem.clients, 2, dtype=torch.float64)
    for _ in range(rounds):
        w = server.expand(problem.clients, 2)
        for _ in range(steps):
            gradient = (problem.hessians @ (w - problem.optima)[..., None])[..., 0]
            w = w - 0.4 * (gradient - slopes + pull * (w - server))
        slopes = slopes - pull * (w - server)
        state = state - pull * (w - server).mean(0)
        server = w.mean(0) - state / pull
    return server


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_without_ascent_it_is_feddyn(rounds):
    problem = Quadratics(5)
    found, _ = problem.solve(FedSpeed(**EXACT, rho=0, prox=0.4), steps=6, rounds=rounds, cohort=5)
    torch.testing.assert_close(found, fed_dyn(problem, 0.4, 6, rounds), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_shift_of_the_start_and_of_every_optimum_shifts_the_answer(normalise):
    method = FedSpeed(**EXACT, rho=0.05, alpha=0.6, normalise=normalise)
    here, _ = Quadratics(6).solve(method, steps=7, rounds=9, cohort=3)
    there, _ = Quadratics(6, shift=3.0).solve(method, steps=7, rounds=9, cohort=3)
    torch.testing.assert_close(there - 3.0, here, atol=1e-6, rtol=0)


def test_a_step_is_the_papers():
    """One local step from x = 0 on f(w) = a w^2 / 2 - b w with a dual of 0, by hand."""
    a, b, rho, alpha = 2.0, 3.0, 0.1, 0.25
    network = types.SimpleNamespace(losses=lambda p, x, y: (0.5 * a * p["w"] ** 2 - b * p["w"]).sum()[None])
    method = FedSpeed(rho=rho, alpha=alpha, normalise=False, clip_norm=None)
    shared = {"model/w": torch.zeros(1), "lr": torch.tensor(0.1)}
    state = method.client_init(shared, {}, method.client_memory(shared))
    state = state._replace(params={"w": torch.ones(1)})
    batch = {"x": torch.zeros(1), "y": torch.zeros(1), "weight": torch.ones(1)}
    q, _ = method.gradient(network, state, batch, torch.tensor(0))
    first = a - b
    second = a * (1 + rho * first) - b
    assert float(q["w"]) == pytest.approx((1 - alpha) * first + alpha * second + 0.1 * 1.0, rel=1e-6)
    shorter, _ = method.model_copy(update={"clip_norm": 0.5}).gradient(network, state, batch, torch.tensor(0))
    assert float(shorter["w"]) == pytest.approx(-0.5 + 0.1, rel=1e-6)
