"""Just One Byte: the estimate is the gradient, a number is a byte, and all machines stay the same."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks import keys, models, tree
from tasks.train.algorithms.one_byte import OneByte, direction
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Chain
from tasks.train.uplink.log_byte import LogByte
from tasks.train.work import ClientState
from tests.tasks.train.runs import MODEL, SIZES, federation, run

MACHINES = len(SIZES)
BYTES = (LogByte(),)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("machines") / "partition")


def trained(data, rounds: int = 3, uplink=BYTES, cohort: int = MACHINES, **settings):
    method = OneByte(batch_size=8, **settings)
    return run(data, TrainSettings(algorithm=method, uplink=uplink, cohort=cohort), rounds)


class Linear(OneByte):
    """The loss g . w, whose slope along z is g . z for every eps."""

    def loss(self, network, state, batch, key):
        return tree.dot(batch["g"], state.params)


def slopes(method: OneByte, g: dict, w: dict, seeds: torch.Tensor) -> torch.Tensor:
    """What machines with these seeds send of the linear loss, float64 ``[machines, directions]``."""

    def one(seed):
        state = ClientState(w, w, {"slopes": torch.zeros(method.directions, dtype=torch.float64)}, {}, {"seed": seed},
                            {}, torch.tensor(0.0))  # fmt: skip
        for _ in range(method.directions):
            state, _ = method.client_step(None, state, {"g": g}, seed)
        return method.client_final({}, state)[0]["slopes"]

    return torch.func.vmap(one)(seeds)


def test_of_a_linear_loss_the_slope_is_exact_whatever_eps():
    g = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    seeds = torch.arange(5)
    for eps in (1e-3, 0.5):
        found = slopes(Linear(eps=eps, directions=3), g, tree.zeros_like(g), seeds)
        for seed in seeds:
            for j in range(3):
                z = direction(keys.fold(seed, j), g)
                torch.testing.assert_close(found[seed, j], tree.dot(g, z), rtol=1e-10, atol=1e-10)


def test_the_estimate_is_the_gradient_in_the_mean_and_as_noisy_as_the_paper_says():
    g = {"w": torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)}
    d, count = 5, 100_000
    found = slopes(Linear(), g, tree.zeros_like(g), torch.arange(count))[:, 0]
    z = torch.func.vmap(lambda seed: direction(keys.fold(seed, 0), g)["w"])(torch.arange(count))
    estimates = found[:, None] * z
    error = estimates.std(0) / math.sqrt(count)
    assert ((estimates.mean(0) - g["w"]).abs() < 5 * error).all()
    expected = (d + 2) * g["w"].square().sum()
    assert estimates.square().sum(1).mean() == pytest.approx(float(expected), rel=0.03)


def test_on_a_smooth_loss_it_is_the_directional_derivative(data):
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 1)
    params = tree.map(torch.Tensor.double, network.parameters)
    network.module.double()
    batch = {"x": torch.from_numpy(data.x[:9]).double(), "y": torch.from_numpy(data.y[:9]), "weight": torch.ones(9)}
    batch["weight"] = batch["weight"].double()
    method = OneByte(eps=1e-5)
    empty = {"slopes": torch.zeros(1, dtype=torch.float64)}
    start = ClientState(params, params, empty, {}, {"seed": torch.tensor(7)}, {}, torch.tensor(0.0))
    state, _ = method.client_step(network, start, batch, torch.tensor(0))
    z = direction(keys.fold(torch.tensor(7), 0), params)
    objective = lambda p: method.loss(network, start._replace(params=p), batch, torch.tensor(0))  # noqa: E731
    _, slope = torch.func.jvp(objective, (params,), (tree.map(torch.Tensor.double, z),))
    torch.testing.assert_close(state.optimizer["slopes"][0], slope, rtol=1e-6, atol=1e-8)


class TestLogByte:
    def coded(self, *numbers: float) -> tuple[torch.Tensor, torch.Tensor]:
        like = {"x": torch.tensor(numbers, dtype=torch.float64)}
        payload, _ = Chain([LogByte()], like).encode(like, {}, torch.tensor(0))
        return payload["body/x"], Chain([LogByte()], like).decode(payload)["x"]

    def test_the_error_is_within_bounds_over_the_range(self):
        x = torch.exp(torch.linspace(-7.8, 7.8, 4001, dtype=torch.float64))
        _, read = self.coded(*x.tolist())
        assert ((read / x - 1).abs() <= LogByte().error + 1e-12).all()
        assert LogByte().error == pytest.approx(0.0645, abs=1e-4)

    def test_it_is_one_byte_odd_and_idempotent(self):
        code, read = self.coded(0.3, -0.3, 5.0, -1e-3)
        assert code.dtype == torch.uint8 and code.shape == (4,)
        assert read[0] == -read[1]
        assert self.coded(*read.tolist())[1].equal(read)

    def test_zero_stays_zero_and_the_rest_saturates(self):
        _, read = self.coded(0.0, 1e9, -1e9, 1e-9, math.nan, math.inf)
        top = math.exp(63 / 8)
        assert read.tolist() == pytest.approx([0, top, -top, 1 / top, 0, 0])


def test_bytes_do_not_depend_on_the_model(data):
    finished = trained(data, rounds=1, directions=5)
    assert finished.ledger.bytes_up == MACHINES * 5
    assert finished.ledger.bytes_down == MACHINES * (MACHINES - 1) * 5
    assert trained(data, rounds=1, directions=5, uplink=()).ledger.bytes_up == 4 * MACHINES * 5


def test_every_message_is_downloaded_once_by_everybody_else(data):
    """Also by who was away for some rounds, who then has more to read."""
    rounds, cohort = 6, 3
    down, train = 0, TrainSettings(algorithm=OneByte(batch_size=8), uplink=(LogByte(),), cohort=cohort)
    for until in range(1, rounds + 1):
        finished = run(data, train, until)
        down += finished.ledger.bytes_down
    had = finished.server["messages/had"]
    away = finished.server["messages/sent"] - had
    own = torch.from_numpy(finished.participations)
    assert int(finished.server["messages/sent"]) == rounds * cohort
    assert down == int((rounds * cohort - away[own > 0] - own[own > 0]).sum())


def test_a_machine_that_replays_the_numbers_has_the_same_model_to_the_last_bit(data, tmp_path):
    """From the recorded messages alone, joined late at the start or after round 2."""
    method = OneByte(batch_size=8, directions=2)
    train = TrainSettings(algorithm=method, uplink=(LogByte(),), cohort=MACHINES)
    train = train.model_copy(update={"transcript": train.transcript.model_copy(update={"clients": MACHINES})})
    finished = run(data, train, 4, recorded=(1, 2, 3, 4))
    at_2 = run(data, train, 2, recorded=(1, 2))
    from tasks.train.transcript import Transcript

    finished = run(data, train, 4, recorded=(1, 2, 3, 4))
    heard = Transcript.open(Path(data.path.parent / "transcript")).messages
    server = at_2.server
    for round_ in (3, 4):
        messages = sorted((m for m in heard if m.context.round == round_), key=lambda m: -m.context.client)
        numbers = torch.stack([m.upload(train.uplink)["slopes"] for m in messages])
        clients = torch.tensor([m.context.client for m in messages])
        server = method.server_update(server, uploads(clients, numbers))
    for name, value in finished.model.items():
        assert torch.equal(server[f"model/{name}"], value)


def uploads(clients, numbers):
    from tasks.train.work import Uploads

    weights = torch.ones(len(clients))
    return Uploads(clients, {}, weights.sum(), len(clients), {"slopes": numbers}, weights)


def test_one_machine_with_many_directions_is_as_good_as_many_with_one():
    """The step is a mean over all numbers, whoever sent them; only their seeds differ."""
    g = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    server = {"model/w": torch.zeros(2), "seed": torch.tensor(5), "run/round": torch.tensor(0)}
    server |= {"run/rounds": torch.tensor(9), "messages/sent": torch.tensor(0), "messages/had": torch.zeros(4).long()}
    method = Linear(lr=0.1, directions=4)
    seed = method.seeds(server, torch.tensor([2]))
    found = slopes(method, g, tree.zeros_like(g), seed)
    moved = method.server_update(server, uploads(torch.tensor([2]), found.float()))
    expected = -0.1 * torch.stack([found[0, j] * direction(keys.fold(seed[0], j), g)["w"] for j in range(4)]).mean(0)
    torch.testing.assert_close(moved["model/w"], expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", [{"clip_norm": 1.0}, {"keep_momentum": True}])
def test_what_it_would_ignore_is_refused(field):
    with pytest.raises(ValidationError, match=next(iter(field))):
        OneByte(**field)


def test_with_more_machines_the_step_is_less_noisy():
    """The variance of a mean over 8 independent estimates is an eighth."""
    g = {"w": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)}
    count = 4000
    found = slopes(Linear(), g, tree.zeros_like(g), torch.arange(8 * count))[:, 0]
    z = torch.func.vmap(lambda seed: direction(keys.fold(seed, 0), g)["w"])(torch.arange(8 * count))
    estimates = found[:, None] * z
    alone, together = estimates.var(0).sum(), estimates.reshape(count, 8, 3).mean(1).var(0).sum()
    assert float(alone / together) == pytest.approx(8, rel=0.1)


def test_what_a_message_says_of_the_model_is_the_step_that_it_causes(data):
    """One machine's numbers and the public directions give its share of the step away: an estimate of its gradient."""
    train = TrainSettings(algorithm=OneByte(batch_size=8, directions=3), cohort=1)
    before, after = (run(data, train, rounds) for rounds in (1, 2))
    method, server = train.algorithm, before.server
    client = torch.from_numpy(np.flatnonzero(after.participations - before.participations))
    request = method.request(server, client)
    shared = request.known | {"seed": request.kept["seed"][0]}
    moved = tree.subtract(after.model, before.model)
    numbers = slopes_behind(method, server, client, moved)
    for name, value in method.change({"slopes": numbers}, shared).items():
        torch.testing.assert_close(value / 3, moved[name], rtol=1e-3, atol=1e-6)


def slopes_behind(method: OneByte, server: dict, client: torch.Tensor, moved: dict) -> torch.Tensor:
    """The numbers that explain a step, by least squares along the directions."""
    (seed,) = method.seeds(server, client)
    along = torch.stack([tree.vector(direction(keys.fold(seed, j), moved)) for j in range(method.directions)])
    found = torch.linalg.lstsq(along.T.double(), tree.vector(moved).double()[:, None]).solution[:, 0]
    return (found * method.directions / -method.lr).float()
