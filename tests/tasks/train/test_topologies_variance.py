"""What averaging takes of the variance of weights, and what the correction gives back."""

import numpy as np
import pytest
import torch

from tasks import tree
from tasks.train.topologies.gossip import Gossip
from tasks.train.topologies.graphs import Complete, RandomRegular
from tasks.train.topologies.mixing import Conservative, Uniform
from tasks.train.topologies.variance import rescaled, spreads

NODES = 6


def models(seed: int = 0, nodes: int = NODES, spread: float = 0.3) -> dict:
    """Independent models of two weight tensors and a bias each, with means and variances of their own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        scale = spread * (1 + torch.rand(nodes, *[1] * len(shape), generator=generator, dtype=torch.float64))
        return scale * torch.randn(nodes, *shape, generator=generator, dtype=torch.float64) + scale

    return {"0.weight": draw(7, 5), "0.bias": draw(7), "1.weight": draw(3, 2, 3, 3)}


def links(nodes: int = NODES) -> torch.Tensor:
    """A directed graph in which nodes hear different numbers of others."""
    heard = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(1)) < 0.6
    return (heard | torch.eye(nodes).roll(1, 0).bool()).fill_diagonal_(False)


def mixed(topology: Gossip, stacked: dict, heard: torch.Tensor) -> dict:
    return topology.mixed(stacked, heard, heard, {})[0]


def naive(stacked: dict, heard: torch.Tensor, beta: float, target: str) -> dict:
    """The paper's listing for one node after the other."""
    result = tree.map(torch.clone, stacked)
    for name, value in stacked.items():
        for i in range(len(value)):
            received = [value[j] for j in range(len(value)) if heard[i, j]]
            new = beta * value[i] + (1 - beta) * sum(received) / len(received)
            if new.dim() > 1 and target != "none":
                others = sum(model.var(correction=0) for model in received) / len(received)
                own = value[i].var(correction=0)
                wanted = {"others": others, "self": own, "follow_beta": beta * own + (1 - beta) * others}[target]
                new = (new - new.mean()) * (wanted / new.var(correction=0)).sqrt() + new.mean()
            result[name][i] = new
    return result


@pytest.mark.parametrize("target", ["none", "others", "self", "follow_beta"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_mixing_is_the_naive_loop(beta, target):
    stacked, heard = models(), links()
    got = mixed(Gossip(mixing=Conservative(beta=beta), variance=target), stacked, heard)
    for name, value in naive(stacked, heard, beta, target).items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12)


def test_the_correction_sets_the_mean_of_the_received_variances_and_leaves_means_and_biases():
    stacked, heard = models(), links()
    plain = mixed(Gossip(mixing=Conservative()), stacked, heard)
    corrected = mixed(Gossip(mixing=Conservative(), variance="others"), stacked, heard)
    for name, spread in spreads(stacked).items():
        wanted = (heard.double() @ spread) / heard.sum(1)
        torch.testing.assert_close(spreads(corrected)[name], wanted, rtol=1e-6, atol=0)
        torch.testing.assert_close(corrected[name].flatten(1).mean(1), plain[name].flatten(1).mean(1))
    assert torch.equal(corrected["0.bias"], plain["0.bias"])


@pytest.mark.parametrize("target", ["others", "self", "follow_beta"])
def test_equal_models_stay_as_they_are(target):
    one = tree.take(models(), slice(1))
    same = tree.map(lambda value: value.expand(NODES, *value.shape[1:]).clone(), one)
    for name, value in mixed(Gossip(mixing=Conservative(), variance=target), same, links()).items():
        torch.testing.assert_close(value, same[name], rtol=1e-6, atol=0)


def test_the_mean_of_k_independent_tensors_has_a_kth_of_their_variance_and_the_corrected_one_all_of_it():
    k, deviation = 5, 0.2
    generator = torch.Generator().manual_seed(2)
    stacked = {"weight": deviation * torch.randn(k + 1, 100, 1000, generator=generator)}
    heard = torch.zeros(k + 1, k + 1, dtype=torch.bool)
    heard[0, 1:] = True
    for target, wanted, within in (("none", deviation**2 / k, 0.03), ("others", deviation**2, 0.01)):
        got = mixed(Gossip(mixing=Conservative(beta=0.0), variance=target), stacked, heard)
        assert float(spreads(got)["weight"][0]) == pytest.approx(wanted, rel=within)


def test_without_training_gossip_ends_at_an_nth_of_the_variance_and_corrected_gossip_keeps_it():
    """On a complete graph: s^2 (1/n + (1 - 1/n) lambda^(2t)) with lambda = w_ii - w_ij, and s^2 for ever."""
    nodes, beta = 8, 0.5
    generator = torch.Generator().manual_seed(3)
    start = {"weight": torch.randn(nodes, 100, 100, generator=generator)}
    heard = Complete().base(nodes, None)
    shrink, first = beta - (1 - beta) / (nodes - 1), float(spreads(start)["weight"].mean())
    plain = corrected = start
    for t in range(1, 101):
        plain = mixed(Gossip(mixing=Conservative(beta=beta)), plain, heard)
        corrected = mixed(Gossip(mixing=Conservative(beta=beta), variance="others"), corrected, heard)
        left = first * (1 / nodes + (1 - 1 / nodes) * shrink ** (2 * t))
        assert float(spreads(plain)["weight"].mean()) == pytest.approx(left, rel=0.05)
        assert float(spreads(corrected)["weight"].mean()) == pytest.approx(first, rel=0.01)


@pytest.mark.parametrize("target", ["none", "others", "follow_beta"])
def test_it_does_not_matter_in_which_order_the_nodes_stand(target):
    stacked, heard, order = models(), links(), torch.randperm(NODES, generator=torch.Generator().manual_seed(4))
    topology = Gossip(mixing=Conservative(), variance=target)
    there = mixed(topology, tree.take(stacked, order), heard[order][:, order])
    for name, value in tree.take(mixed(topology, stacked, heard), order).items():
        torch.testing.assert_close(there[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", ["none", "self", "others"])
def test_with_beta_1_nothing_is_mixed_and_every_bit_stays(target):
    stacked = tree.map(torch.Tensor.float, models())
    got = mixed(Gossip(mixing=Conservative(beta=1.0), variance=target), stacked, links())
    for name in stacked if target != "others" else ["0.bias"]:
        assert torch.equal(got[name], stacked[name])


def test_constant_and_tiny_tensors_are_no_division_by_zero():
    flat = torch.full((2, 3, 3), 1.5)
    assert torch.equal(rescaled(flat, torch.tensor([0.0, 1.0], dtype=torch.float64)).float(), flat)
    tiny = 1e-12 * torch.randn(2, 40, 40, dtype=torch.float64)
    wanted = torch.tensor([1e-30, 1e-20], dtype=torch.float64)
    torch.testing.assert_close(spreads({"w": rescaled(tiny, wanted)})["w"], wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("waits", [1, 2, 3])
def test_models_are_gathered_until_there_are_enough_however_few_are_sent_at_a_time(waits):
    """The asynchronous form: some nodes send in a round, and each mixes when its buffer is full."""
    rng = torch.Generator().manual_seed(5)
    heard, beta, stacked = RandomRegular(degree=4).base(NODES, np.random.default_rng(0)), 0.5, models()
    topology = Gossip(mixing=Conservative(beta=beta), variance="others", buffer=waits)
    kept = tree.map(torch.zeros_like, topology.sums(stacked, heard, heard.double()))
    buffers = [[] for _ in range(NODES)]
    ours = theirs = stacked
    for _ in range(12):
        sends = torch.rand(NODES, generator=rng) < 0.5
        shift = tree.map(lambda value: 0.1 * torch.randn(value.shape, generator=rng, dtype=value.dtype), stacked)
        ours, theirs = tree.add(ours, shift), tree.add(theirs, shift)
        ours, kept = topology.mixed(ours, heard, heard & sends, kept)
        new = tree.map(torch.clone, theirs)
        for i in range(NODES):
            buffers[i] += [tree.take(theirs, j) for j in range(NODES) if heard[i, j] and sends[j]]
            if len(buffers[i]) < 4 * waits:
                continue
            for name, value in theirs.items():
                received = torch.stack([model[name] for model in buffers[i]])
                result = beta * value[i] + (1 - beta) * received.mean(0)
                if value.dim() > 2:
                    result = rescaled(result[None], spreads({"w": received})["w"].mean()[None])[0]
                new[name][i] = result
            buffers[i] = []
        theirs = new
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)


def test_a_uniform_mean_of_unlike_numbers_of_neighbours_is_corrected_too():
    """Generic weights: the target is the mean of the received variances with the same weights."""
    stacked, heard = models(), links()
    got = mixed(Gossip(mixing=Uniform(), variance="follow_beta"), stacked, heard)
    weights = heard.double() / (heard.sum(1, keepdim=True) + 1)
    weights += torch.diag(1 - weights.sum(1))
    for name, spread in spreads(stacked).items():
        torch.testing.assert_close(spreads(got)[name], weights @ spread, rtol=1e-9, atol=0)
