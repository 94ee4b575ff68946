"""Gossip: who hears whom and when, the limits in which it is another method, and what its messages are."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tasks import models, tree
from tasks.params import ParamsRefused, build
from tasks.train.algorithms import FedAvg, FedProx
from tasks.train.privacy.local import Local
from tasks.train.settings import Recording, TrainSettings
from tasks.train.topologies.gossip import Gossip
from tasks.train.topologies.graphs import (
    Complete,
    ErdosRenyi,
    Exponential,
    RandomNeighbours,
    RandomPairs,
    RandomRegular,
    Ring,
    ScaleFree,
)
from tasks.train.topologies.mixing import Conservative, Metropolis, Uniform
from tasks.train.topologies.rates import Cosine, Fixed, Linear, Truncate, Window
from tasks.train.transcript import Transcript
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.topk import TopK
from tasks.train.work import Setting, Uploads
from tests.tasks.train.runs import MODEL, SIZES, drawn, federation, run

NODES = len(SIZES)
ALL = np.arange(NODES)
STANDING = [Complete(), Ring(reach=2), Exponential(), RandomRegular(degree=4), ErdosRenyi(), ScaleFree(links=2)]


def settings(topology: Gossip, **others) -> TrainSettings:
    return TrainSettings(**{"rounds": 6, "cohort": NODES, "algorithm": FedAvg(), "topology": topology} | others)


def links_of(graph, nodes: int, round_: int = 1, rounds: int = 10) -> torch.Tensor:
    base = graph.base(nodes, np.random.default_rng(0))
    return graph.at(base, round_, rounds, np.random.default_rng(round_))


# Graphs and rates


@pytest.mark.parametrize("graph", STANDING, ids=lambda graph: graph.name)
def test_a_message_reaches_everybody_and_nobody_hears_itself(graph):
    links = links_of(graph, 21 if graph.name != "random_regular" else 20)
    assert not links.diagonal().any()
    assert (torch.linalg.matrix_power(links.double() + torch.eye(len(links)), len(links)) > 0).all()
    assert not graph.symmetric or torch.equal(links, links.T)


@pytest.mark.parametrize(("nodes", "degree"), [(20, 4), (20, 5), (50, 8), (9, 8), (12, 2)])
def test_in_a_regular_graph_all_have_as_many_neighbours_and_it_is_no_ring(nodes, degree):
    links = links_of(RandomRegular(degree=degree), nodes)
    assert (links.sum(0) == degree).all()
    assert (links.sum(1) == degree).all()
    others = RandomRegular(degree=degree).base(nodes, np.random.default_rng(1))
    assert degree == nodes - 1 or not torch.equal(links, others)


def test_the_degrees_of_a_scale_free_graph_and_of_a_random_one():
    """Barabasi and Albert: m links a newcomer, and hubs. Erdos and Renyi: n (n - 1) p / 2 edges on average."""
    nodes, m = 200, 3
    degrees = links_of(ScaleFree(links=m), nodes).sum(1)
    assert int(degrees.sum()) == 2 * (m * (m + 1) // 2 + m * (nodes - m - 1))
    assert int(degrees.min()) == m
    assert int(degrees.max()) > 5 * m
    edges = int(links_of(ErdosRenyi(chance=0.1), nodes).sum()) // 2
    low, high = binom.interval(0.9999, nodes * (nodes - 1) // 2, 0.1)
    assert low <= edges <= high


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0, 2.5, None])
@pytest.mark.parametrize("kind", [RandomNeighbours, RandomPairs])
@pytest.mark.parametrize("nodes", [15, 16])
def test_a_rate_is_the_expected_number_of_others(kind, rate, nodes):
    """Within what n rounds of coins leave to chance; at a rate of all, everybody hears everybody."""
    graph, rounds = kind(rate=Fixed(start=rate)), 200
    base, rng = graph.base(nodes, np.random.default_rng(0)), np.random.default_rng(1)
    every = torch.stack([graph.at(base, t, rounds, rng) for t in range(1, rounds + 1)])
    assert not every.diagonal(dim1=1, dim2=2).any()
    if rate is None:
        assert (every == base).all()
        return
    assert kind is RandomNeighbours or torch.equal(every, every.mT)
    mean, spread = float(every.sum((1, 2)).double().mean()), math.sqrt(max(nodes * rate, 1))
    assert mean == pytest.approx(nodes * rate, abs=5 * spread / math.sqrt(rounds) if rate % 1 or nodes % 2 else 1e-9)
    if kind is RandomNeighbours:
        heard = every.sum(2)
        assert ((heard == math.floor(rate)) | (heard == math.ceil(rate))).all()


def test_neighbours_are_drawn_among_those_of_the_base_graph():
    ring = Ring().base(12, None)
    assert not (links_of(RandomNeighbours(rate=Fixed(start=1.3), of=Ring()), 12) & ~ring).any()
    assert torch.equal(links_of(RandomNeighbours(rate=Fixed(start=None), of=Ring()), 12), ring)


def test_pairs_of_a_round_are_different_ones_and_each_comes_up_alike():
    counts = torch.zeros(6, 6)
    for t in range(3000):
        counts += RandomPairs(rate=Fixed(start=1.0)).at(Complete().base(6, None), 1, 1, np.random.default_rng(t))
    assert (counts.sum(1) == 3000).all()
    off = counts[~torch.eye(6, dtype=torch.bool)]
    assert ((off - 600).abs() < 5 * math.sqrt(3000 * 0.2 * 0.8)).all()


def rates(rate, rounds: int, most: int = 15) -> list[float]:
    return [rate.at(t / rounds, most) for t in range(1, rounds + 1)]


def test_truncated_and_window_rates_are_the_end_rate_exactly_where_they_say():
    """And an early window is as long as a late one, whatever 0.9 + 0.05 is in binary."""
    assert rates(Truncate(start=0.2), 60) == [0.2] * 59 + [15.0]
    assert rates(Truncate(start=0.2, point=0.5, end=3.0), 10) == [0.2] * 4 + [3.0] * 6
    early, late = (rates(Window(start=0.2, point=point, length=0.05), 60) for point in (0.05, 0.9))
    assert [t for t, rate in enumerate(early, 1) if rate == 15] == [3, 4, 5]
    assert [t for t, rate in enumerate(late, 1) if rate == 15] == [54, 55, 56]
    assert {*early, *late} == {0.2, 15.0}
    for rounds in range(20, 400, 20):
        first = rates(Window(point=0.05), rounds)
        assert all(rates(Window(point=p / 20), rounds).count(15) == first.count(15) for p in range(1, 19))


def test_linear_and_cosine_rates_go_from_one_level_to_the_other():
    assert rates(Linear(start=1.0, end=5.0), 4) == [2, 3, 4, 5]
    cosine = rates(Cosine(start=2.0, end=0.0), 4)
    assert cosine == pytest.approx([1 + math.cos(math.pi * p) for p in (0.25, 0.5, 0.75, 1)])
    assert rates(Fixed(start=None), 1) == [15.0]


# Mixing


@pytest.mark.parametrize("nodes", [9, 10])
@pytest.mark.parametrize("rate", [0.2, 1.0, 3.4, None])
def test_rows_sum_to_one_and_of_symmetric_mixing_columns_too(nodes, rate):
    for graph in (RandomNeighbours(rate=Fixed(start=rate)), RandomPairs(rate=Fixed(start=rate)), *STANDING):
        links = links_of(graph, nodes if graph.name != "random_regular" else 10)
        for mixing in (Uniform(), Conservative(beta=0.3), *([Metropolis()] if graph.symmetric else [])):
            weights = mixing.weights(links)
            own = 1 - weights.sum(1)
            assert (weights >= 0).all()
            assert (own > -1e-12).all()
            assert torch.equal(weights > 0, links)
            heard = links.any(1)
            expected = 0.3 if mixing.name == "conservative" else None
            assert expected is None or torch.allclose(own[heard], torch.full_like(own[heard], expected))
            columns = (weights + torch.diag(own)).sum(0)
            pairs = graph.name == "random_pairs" and (rate or 2) <= 1
            if mixing.name == "metropolis" or (mixing.name == "uniform" and pairs):
                torch.testing.assert_close(columns, torch.ones_like(columns))


class Clients:
    """Clients without an engine: f_k(w) = (w - b_k)' A (w - b_k) / 2, trained by ``steps`` of gradient descent."""

    def __init__(self, count: int, steps: int, lr: float = 0.1):
        draw = torch.Generator().manual_seed(0)
        root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
        self.curvature = root @ root.T / 4
        self.optima = torch.randn(count, 4, generator=draw, dtype=torch.float64)
        self.steps, self.lr = steps, lr

    def train(self, w: torch.Tensor) -> torch.Tensor:
        for _ in range(self.steps):
            w = w - self.lr * (w - self.optima) @ self.curvature
        return w

    def round(self, topology: Gossip, state: dict) -> dict:
        count = len(self.optima)
        play = topology.round(FedAvg(), state, torch.arange(count))
        start = tree.part(next(play).kept, "model")["w"]
        uploads = {"delta/w": self.train(start) - start}
        with pytest.raises(StopIteration) as finished:
            play.send(Uploads(torch.arange(count), {}, torch.tensor(1.0), count, uploads, torch.ones(count)))
        return finished.value.value


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("rate", [0.0, 0.2, 2.3, None])
def test_quadratic_clients_of_one_curvature_merge_to_what_a_server_would_have(rate, steps):
    """With doubly stochastic mixing the mean of the nodes is the iterate of parallel gradient descent, to 1e-8."""
    clients, count = Clients(8, steps), 8
    topology = Gossip(graph=RandomPairs(rate=Fixed(start=rate)), mixing=Metropolis())
    zero = {"w": torch.zeros(4, dtype=torch.float64)}
    state = topology.init(FedAvg(), zero, Setting(count, count, 20, seed=1))
    server = zero["w"]
    for _ in range(20):
        state = clients.round(topology, state)
        server = clients.train(server.expand(count, 4)).mean(0)
        torch.testing.assert_close(topology.model(state)["w"], server, rtol=1e-8, atol=1e-10)
    apart = topology.diagnostics(FedAvg(), state)["consensus_distance"]
    assert (apart < 1e-20) == (rate is None)


@pytest.mark.parametrize("mixing", [Uniform(), Conservative()], ids=lambda mixing: mixing.name)
def test_mixing_without_training_leads_to_agreement(mixing):
    for graph in (*STANDING, RandomNeighbours(rate=Fixed(start=1.5)), RandomPairs(rate=Fixed(start=0.8))):
        topology, count = Gossip(graph=graph, mixing=mixing), 10
        state = topology.init(FedAvg(), {"w": torch.zeros(4)}, Setting(count, count, 200))
        state["nodes/w"] = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
        before = topology.diagnostics(FedAvg(), state)["consensus_distance"]
        for _ in range(200):
            state = Clients(count, 0).round(topology, state)
        assert topology.diagnostics(FedAvg(), state)["consensus_distance"] < 1e-3 * before


# Limits, on the engine


def test_all_to_all_is_fedavg_with_all_clients_and_every_node_has_the_merged_model(data):
    algorithm = FedAvg(batch_size=4, weighting="uniform")
    plain = run(data, TrainSettings(cohort=NODES, algorithm=algorithm), rounds=3)
    for graph in (Complete(), RandomNeighbours(rate=Fixed(start=None)), RandomPairs(rate=Fixed(start=None))):
        gossip = run(data, settings(Gossip(graph=graph), algorithm=algorithm), rounds=3)
        nodes = gossip.models(ALL)
        for name, value in plain.model.items():
            torch.testing.assert_close(gossip.model[name], value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(nodes[name], value.expand_as(nodes[name]), rtol=1e-5, atol=1e-6)


def test_one_full_step_and_all_to_all_is_gradient_descent_on_the_mean_of_the_clients_losses(data):
    got = run(data, settings(Gossip(graph=Complete()), algorithm=FedAvg(batch_size=0, lr=0.3)), rounds=2).model
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
    params = {name: value.requires_grad_() for name, value in network.parameters.items()}
    for _ in range(2):
        own = [(torch.from_numpy(data.x[data.train(c)]), torch.from_numpy(data.y[data.train(c)])) for c in ALL]
        loss = torch.stack([network.losses(params, x, y).mean() for x, y in own]).mean()
        slopes = torch.autograd.grad(loss, list(params.values()))
        params = {n: (v - 0.3 * g).detach().requires_grad_() for (n, v), g in zip(params.items(), slopes, strict=True)}
    for name, value in params.items():
        torch.testing.assert_close(got[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_at_a_rate_of_0_everybody_trains_alone_and_the_merge_is_one_shot_averaging(data):
    lone = Gossip(graph=RandomNeighbours(rate=Fixed(start=0.0)))
    algorithm = FedAvg(batch_size=0, lr=0.2, momentum=0.9, keep_momentum=True)
    got = run(data, settings(lone, algorithm=algorithm), rounds=4)
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
    nodes = []
    for client in ALL:
        params = {name: value.requires_grad_() for name, value in network.parameters.items()}
        sgd = torch.optim.SGD(list(params.values()), 0.2, 0.9)
        for _ in range(4):
            sgd.zero_grad()
            samples = data.train(client)
            network.losses(
                params, torch.from_numpy(data.x[samples]), torch.from_numpy(data.y[samples])
            ).mean().backward()
            sgd.step()
        nodes.append({name: value.detach() for name, value in params.items()})
    for name, value in tree.stack(nodes).items():
        torch.testing.assert_close(got.models(ALL)[name], value, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(got.model[name], value.mean(0), rtol=1e-3, atol=1e-5)
    assert got.ledger.bytes_up == got.ledger.bytes_down == 0


def test_a_look_at_the_merged_model_leaves_every_bit_of_the_nodes(data):
    train = settings(Gossip(graph=Ring(), variance="others", start="own"))
    looked, plain = (run(data, train, rounds=0) for _ in range(2))
    for coordinator in (looked, plain):
        for _ in range(3):
            coordinator.round(ALL)
            if coordinator is looked:
                state = {name: value.clone() for name, value in looked.server.items()}
                looked.diagnostics()
                assert all(v.isfinite().all() for v in looked.model.values())
                looked.models(ALL)
                assert all(torch.equal(looked.server[name], value) for name, value in state.items())
    assert all(torch.equal(looked.server[name], value) for name, value in plain.server.items())


def test_nodes_start_from_one_model_or_each_from_its_own(data):
    same, own = (run(data, settings(Gossip(graph=Ring(), start=start)), 0) for start in ("shared", "own"))
    assert same.diagnostics()["consensus_distance"] == 0
    assert abs(own.diagnostics()["cosine"]) < 0.4
    for node in ALL:
        assert all(
            torch.equal(own.models(ALL)[name][node], value) for name, value in drawn(data, MODEL, int(node)).items()
        )


def test_fedprox_without_pull_is_fedavg_here_too(data):
    topology = Gossip(graph=Ring())
    plain, prox = (run(data, settings(topology, algorithm=a), 3) for a in (FedAvg(epochs=2), FedProx(epochs=2, mu=0.0)))
    assert all(torch.equal(plain.models(ALL)[name], value) for name, value in prox.models(ALL).items())


# Messages


def test_bytes_are_those_of_the_links_each_way(data):
    size = tree.nbytes(run(data, settings(Gossip()), 0).model)
    for graph, sent in (
        (Complete(), NODES * (NODES - 1)),
        (Ring(reach=2), 4 * NODES),
        (RandomRegular(degree=3), 3 * NODES),
    ):
        ledger = run(data, settings(Gossip(graph=graph)), 1).ledger
        assert (ledger.bytes_up, ledger.bytes_down) == (sent * size, sent * size)
    some = run(data, settings(Gossip(graph=Ring()), cohort=3), 2)
    assert (some.ledger.bytes_up, some.ledger.bytes_down) == (6 * size, 6 * size)


@pytest.mark.parametrize(
    "graph", [RandomRegular(degree=4), RandomNeighbours(rate=Fixed(start=1.5))], ids=lambda graph: graph.name
)
@pytest.mark.parametrize("start", ["shared", "own"])
def test_a_codec_that_loses_nothing_changes_nothing(data, graph, start):
    topology = Gossip(graph=graph, variance="others", start=start)
    plain = run(data, settings(topology), 4)
    whole = run(data, settings(topology, uplink=(TopK(density=1.0, error_feedback=False),)), 4)
    for name, value in plain.models(ALL).items():
        torch.testing.assert_close(whole.models(ALL)[name], value, rtol=1e-4, atol=1e-6)


def test_links_that_stand_carry_ever_smaller_differences_and_those_that_change_all_that_has_changed(data):
    """Without training a coarse codec keeps nodes apart only where a message cannot count from the one before."""
    for graph, agree in ((RandomRegular(degree=4), True), (RandomNeighbours(rate=Fixed(start=4.0)), False)):
        train = settings(Gossip(graph=graph, start="own"), algorithm=FedAvg(lr=1e-9), uplink=(Quantize(bits=5),))
        before, after = (run(data, train, rounds).diagnostics()["consensus_distance"] for rounds in (0, 40))
        assert (after < 1e-6 * before) == agree
        assert after < 0.1 * before


def test_what_a_neighbour_reads_off_the_wire_is_what_the_node_goes_on_from(tmp_path):
    """A neighbour adds each message to its copy of the sender; here a node's model is its copy, as nobody is heard."""
    data = federation(tmp_path / "partition")
    uplink = (Quantize(bits=4),)
    topology = Gossip(graph=Ring(), mixing=Conservative(beta=1.0), start="own")
    train = settings(topology, uplink=uplink, transcript=Recording(clients=NODES))
    done = run(data, train, 3, recorded=(1, 2, 3))
    messages = Transcript.open(tmp_path / "transcript").messages
    assert len(messages) == 3 * NODES
    copies = tree.stack(drawn(data, MODEL, int(node)) for node in ALL)
    for message in messages:
        node, model = message.context.client, message.model()
        upload = tree.part(message.upload(uplink), "delta")
        for name in copies:
            difference = model[name] + upload[name] - copies[name][node]
            copies[name][node] += difference
            # The wire carries multiples of a scale: 4 bits have 15 levels.
            assert len(torch.unique((difference / difference.abs().max()).round(decimals=3))) <= 15
    for name, value in done.models(ALL).items():
        torch.testing.assert_close(copies[name], value, rtol=1e-4, atol=1e-6)


def test_a_message_that_nobody_hears_is_not_in_the_transcript(data, tmp_path):
    """Sent by so many in a round as have somebody who hears them, whoever is looked at first."""
    topology = Gossip(graph=RandomNeighbours(rate=Fixed(start=0.3)))
    train = settings(topology, transcript=Recording(clients=NODES))
    rounds = range(1, 7)
    run(data, train, 6, recorded=tuple(rounds))
    told = {(m.context.round, m.context.client) for m in Transcript.open(tmp_path / "transcript").messages}
    heard = zip(rounds, topology.drawn(NODES, 3, 6), strict=True)
    assert told == {(t, int(node)) for t, links in heard for node in links.any(0).nonzero()}
    assert len(told) < 6 * NODES / 2


@pytest.mark.parametrize("codec", [Quantize(bits=6), TopK(density=0.2)], ids=lambda codec: codec.name)
def test_compressed_gossip_learns_what_gossip_learns(data, codec):
    def loss(uplink) -> float:
        train = settings(Gossip(graph=RandomRegular(degree=4)), algorithm=FedAvg(epochs=2), uplink=uplink)
        done = run(data, train, 30)
        network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
        return float(
            models.score(network, done.model, torch.from_numpy(data.test_x), torch.from_numpy(data.test_y))[0].mean()
        )

    untrained, plain, compressed = math.log(3), loss(()), loss((codec,))
    assert plain < 0.5 * untrained
    assert compressed - plain < 0.1 * (untrained - plain)


def test_a_node_that_cannot_be_believed_is_heard_by_nobody_and_stays_where_it_was(data):
    x = np.array(data.x)
    x[int(data.indices[data.offsets[3]])] = float("nan")
    np.save(data.path / "x.npy", x)
    topology = Gossip(graph=RandomNeighbours(rate=Fixed(start=None)), start="own")
    done = run(data, settings(topology, algorithm=FedAvg(batch_size=0)), 1)
    assert done.ledger.rejected == 1
    nodes, uploads = done.models(ALL), tree.part(done.uploads, "delta")
    order = torch.argsort(done.uploads["clients"])
    for name, value in nodes.items():
        sent = torch.stack([drawn(data, MODEL, int(node))[name] for node in ALL]) + uploads[name][order]
        torch.testing.assert_close(value[0], sent[[0, 1, 2, 4, 5, 6, 7]].mean(0), rtol=1e-4, atol=1e-6)
        # It hears the others, and mixes them into the model that it had.
        torch.testing.assert_close(value[3], sent.mean(0), rtol=1e-4, atol=1e-6)


def test_local_privacy_is_promised_for_every_message_and_central_is_refused(data):
    private = settings(Gossip(graph=Ring()), algorithm=FedAvg(weighting="uniform"), privacy=Local(noise_multiplier=8.0))
    done = run(data, private, 3)
    twice = run(data, private, 6)
    assert 0 < done.epsilon() < twice.epsilon()
    assert done.diagnostics()["consensus_distance"] > 1.0


def test_an_interrupted_run_goes_on_to_the_same_bits(data, tmp_path):
    """The nodes, what they gathered, the copies that neighbours hold and the momentum that stays home."""
    train = settings(
        Gossip(graph=RandomRegular(degree=4), variance="others", buffer=2, start="own"),
        cohort=5,
        algorithm=FedAvg(momentum=0.9, keep_momentum=True),
        uplink=(TopK(density=0.3),),
    )
    whole = run(data, train, 6)
    half = run(data, train, 3)
    half.flush()
    rest = run(data, train, 0, folder=half.memory_folder)
    rest.restore({name: value.clone() for name, value in half.state().items()})
    for _ in range(3):
        rest.round(rest.select())
    assert all(torch.equal(rest.server[name], value) for name, value in whole.server.items())
    assert {"nodes", "public", "heard"} <= {name.split("/")[0] for name in whole.server}


# Refusals


REFUSED = [
    ({"algorithm": {"name": "scaffold"}}, "train.algorithm.name = 'scaffold': its server does more than average"),
    ({"algorithm": {"name": "fedcac"}}, "train.algorithm.name = 'fedcac'"),
    ({"algorithm": {"name": "fedavg", "server": {"name": "adam"}}}, "train.algorithm.server.name = 'adam'"),
    ({"algorithm": {"name": "fedavg", "server": {"name": "sgd", "lr": 0.5}}}, "train.algorithm.server.name = 'sgd'"),
    ({"privacy": {"name": "gaussian"}}, "train.privacy.name = 'gaussian': with train.topology"),
    ({"privacy": {"name": "local"}, "topology": {"variance": "others"}}, "train.topology.variance = 'others'"),
    ({"topology": {"graph": {"name": "random_regular", "degree": 20}}}, "train.topology.graph.degree = 20"),
    ({"topology": {"graph": {"name": "scale_free", "links": 20}}}, "train.topology.graph.links = 20"),
    ({"topology": {"graph": {"name": "exponential"}, "mixing": {"name": "metropolis"}}}, "train.topology.mixing.name"),
    ({"topology": {"graph": {"name": "random_pairs"}, "buffer": 2}}, "train.topology.buffer = 2"),
    ({"topology": {"graph": {"name": "random_pairs"}}, "cohort": 5}, "train.cohort = 5: the links of 'random_pairs'"),
    ({"topology": {"graph": {"name": "random_pairs"}}, "uplink": [{"name": "topk"}]}, "train.uplink[0].error_feedback"),
    ({"uplink": [{"name": "dgc"}]}, "train.uplink[0].name = 'dgc': adds up"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_makes_no_sense_without_a_server_is_refused_with_a_reason(changes, said):
    topology = {"name": "gossip"} | changes.get("topology", {})
    train = {"cohort": 16, "algorithm": {"name": "fedavg", "weighting": "uniform"}} | changes | {"topology": topology}
    with pytest.raises(ParamsRefused) as refused:
        build({"partition": {"clients": 16}, "train": train})
    assert any(problem.startswith(said) for problem in refused.value.problems), refused.value.problems


def test_what_does_is_not():
    for graph in ({"name": "ring"}, {"name": "random_pairs"}, {"name": "random_regular", "degree": 3}):
        topology = {"name": "gossip", "graph": graph, "mixing": {"name": "metropolis"}}
        build({"partition": {"clients": 16}, "train": {"cohort": 16, "topology": topology}})
