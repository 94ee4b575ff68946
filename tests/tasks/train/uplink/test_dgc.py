"""Deep gradient compression: what it is with everything sent, what it never loses, and what it forgets on purpose."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tasks import keys, tree
from tasks.params import ParamsRefused, build
from tasks.train.algorithms import FedAvg
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Chain
from tasks.train.uplink.codec import Codec
from tasks.train.uplink.dgc import DeepGradientCompression as DGC
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.topk import TopK
from tasks.tree import Tree
from tests.tasks.train.runs import SIZES, run

SHAPES = {"delta/first": (6, 9), "delta/bias": (6,), "delta/second": (40, 6), "delta/deep": (3, 2, 2, 2)}
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SPARSE = [name for name, shape in SHAPES.items() if len(shape) > 1]
STEPS = 30


def gradient(step: int) -> Tree:
    key = keys.fold(torch.tensor(11), step)
    return {name: keys.normal(keys.fold(key, i), shape) for i, (name, shape) in enumerate(SHAPES.items())}


class Sender:
    """One client with one codec, and all that it has sent."""

    def __init__(self, codec: Codec, like: Tree = LIKE):
        self.codec, self.like, self.memory, self.sent = codec, like, {}, tree.zeros_like(like)

    def send(self, upload: Tree, round_: int = 10**6) -> Tree:
        chain = Chain((self.codec.at(round_),), self.like)
        payload, self.memory = chain.encode(upload, self.memory or chain.memory(), torch.tensor(0))
        arrived = chain.decode(payload)
        self.sent = tree.add(self.sent, arrived)
        return arrived

    def kept(self, what: str) -> Tree:
        return tree.part(self.memory, f"0/{what}")


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_everything_sent_and_no_masking_it_is_momentum_sgd(nesterov):
    """On a quadratic with noise, 50 steps, against ``torch.optim.SGD``."""
    codec = DGC(density=1.0, momentum=0.9, nesterov=nesterov, momentum_masking=False, warmup_rounds=0)
    start = gradient(1000)
    ours, sender = start, Sender(codec)
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.05, momentum=0.9, nesterov=nesterov)
    for step in range(50):
        noise = gradient(step)
        ours = tree.add(ours, sender.send(tree.map(lambda w, n: -0.05 * (w + n), ours, noise)))
        for name, value in theirs.items():
            value.grad = (value + noise[name]).detach()
        sgd.step()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_with_everything_sent_masking_takes_the_momentum_away():
    """Each sparse tensor then arrives as it is; a bias, which is sent whole, keeps its momentum."""
    sender, plain = Sender(DGC(density=1.0, warmup_rounds=0)), torch.zeros(SHAPES["delta/bias"])
    for step in range(10):
        g = gradient(step)
        arrived, plain = sender.send(g), 0.9 * plain + g["delta/bias"]
        for name in SPARSE:
            assert torch.equal(arrived[name], g[name])
        torch.testing.assert_close(arrived["delta/bias"], plain)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nothing_is_lost_it_only_waits(momentum, nesterov):
    """Without masking: all that was sent and what still waits is what momentum would have sent in all."""
    sender = Sender(DGC(density=0.05, momentum=momentum, nesterov=nesterov, momentum_masking=False, warmup_rounds=0))
    velocity, due = tree.zeros_like(LIKE), tree.zeros_like(LIKE)
    for step in range(STEPS):
        g = gradient(step)
        sender.send(g)
        if nesterov:
            velocity = tree.map(lambda u, g: momentum * (u + g), velocity, g)
            due = tree.map(lambda d, u, g: d + u + g, due, velocity, g)
        else:
            velocity = tree.map(lambda u, g: momentum * u + g, velocity, g)
            due = tree.add(due, velocity)
    for name in SPARSE:
        torch.testing.assert_close(sender.sent[name] + sender.kept("waiting")[name], due[name], rtol=1e-4, atol=1e-4)
        assert float(sender.kept("waiting")[name].abs().max()) > 0.1


def test_an_entry_that_waits_gathers_the_momentum_it_is_owed():
    """A small constant gradient beside a large one: v = g sum of (1 - m^i) / (1 - m), until it is sent in one go."""
    like, m, small = {"w": torch.zeros(1, 2)}, 0.9, 0.01
    sender = Sender(DGC(density=0.5, momentum=m, momentum_masking=False, warmup_rounds=0), like)
    for step in range(1, 13):
        sender.send({"w": torch.tensor([[100.0, small]])})
        expected = small * sum((1 - m**i) / (1 - m) for i in range(1, step + 1))
        assert float(sender.kept("waiting")["w"][0, 1]) == pytest.approx(expected, rel=1e-5)
    dense = small * sum((1 - m**i) / (1 - m) for i in range(1, 14))
    arrived = sender.send({"w": torch.tensor([[-1e5, small]])})  # the large one was sent before, so it leads again
    assert float(arrived["w"][0, 1]) == 0.0
    owed = float(sender.kept("waiting")["w"][0, 1])
    assert owed == pytest.approx(dense, rel=1e-5)
    # The large one stands still now, so its entry is 0 where nothing has been added, and the other one's turn has come.
    still = {"w": torch.tensor([[-0.9 * float(sender.kept("velocity")["w"][0, 0]), small]])}
    arrived = sender.send(still)
    total = small * sum((1 - m**i) / (1 - m) for i in range(1, 15))
    assert float(arrived["w"][0, 1]) == pytest.approx(total, rel=1e-5)
    assert float(sender.kept("waiting")["w"][0, 1]) == 0.0


@pytest.mark.parametrize("density", [0.001, 0.02, 0.3])
def test_what_was_sent_is_forgotten_and_nothing_else(density):
    codec = DGC(density=density, warmup_rounds=0)
    sender = Sender(codec)
    for step in range(STEPS):
        before = sender.memory
        g = gradient(step)
        arrived = sender.send(g)
        for name in SPARSE:
            mask = arrived[name] != 0
            entries = math.prod(SHAPES[name])
            assert int(mask.sum()) == max(1, math.ceil(density * entries))
            assert not (sender.kept("velocity")[name] * mask).any()
            assert not (sender.kept("waiting")[name] * mask).any()
            velocity = 0.9 * before[f"0/velocity/{name}"] + g[name] if before else g[name]
            waiting = velocity + before[f"0/waiting/{name}"] if before else velocity
            assert torch.equal(sender.kept("velocity")[name][~mask], velocity[~mask])
            assert torch.equal(sender.kept("waiting")[name][~mask], waiting[~mask])
            # The largest of each tensor by itself, and they arrive as they are.
            assert torch.equal(arrived[name][mask], waiting[mask])
            assert float(waiting[mask].abs().min()) >= float(waiting[~mask].abs().max())


def test_bytes_are_a_value_and_an_index_for_every_entry_and_four_for_a_bias():
    codec = DGC(density=0.02, warmup_rounds=0)
    chain = Chain((codec,), LIKE)
    payload, _ = chain.encode(gradient(0), chain.memory(), torch.tensor(0))
    entries = sum(max(1, math.ceil(0.02 * math.prod(SHAPES[name]))) for name in SPARSE)
    assert tree.nbytes(payload) == 4 * math.prod(SHAPES["delta/bias"]) + entries * (4 + 1)


def test_products_that_round_up_by_a_hair_send_no_entry_too_many():
    assert [DGC(density=0.07).kept(100), DGC(density=0.001).kept(1000), DGC(density=0.001).kept(1001)] == [7, 1, 2]
    assert DGC(density=1e-6).kept(10) == 1


def test_the_density_falls_through_the_warm_up():
    codec = DGC(density=0.001, warmup=(0.25, 0.0625, 0.015625, 0.004), warmup_rounds=8)
    densities = [codec.at(round_).density for round_ in range(1, 12)]
    assert densities == [0.25, 0.25, 0.0625, 0.0625, 0.015625, 0.015625, 0.004, 0.004, 0.001, 0.001, 0.001]
    assert DGC(warmup_rounds=0).at(1).density == 0.001
    sender, counts = Sender(codec), []
    for round_ in (1, 3, 9):
        counts.append(int((sender.send(gradient(round_), round_)["delta/second"] != 0).sum()))
    assert counts == [60, 15, 1]


@pytest.mark.parametrize("codec", [DGC(density=0.1, warmup_rounds=8), TopK(density=0.1, warmup_rounds=9)])
def test_the_density_of_the_warm_up_never_rises_and_never_is_below_the_final_one(codec):
    densities = [codec.at(round_).density for round_ in range(1, 15)]
    assert densities[:3] == [0.25, 0.25, 0.1 if codec.warmup_rounds == 8 else 0.25]
    assert all(before >= after for before, after in pairwise(densities))
    assert min(densities) == densities[-1] == 0.1


def test_stacked_clients_send_what_each_would_alone_to_the_bit():
    chain = Chain((DGC(density=0.05),), LIKE)
    memory = [chain.memory()] * 3
    for step in range(4):
        uploads = [gradient(100 * c + step) for c in range(3)]
        payload, left = vmap(chain.encode)(tree.stack(uploads), tree.stack(memory), torch.arange(3))
        alone = [chain.encode(uploads[c], memory[c], torch.tensor(c)) for c in range(3)]
        for c, (sent, kept) in enumerate(alone):
            assert all(torch.equal(payload[name][c], value) for name, value in sent.items())
            assert all(torch.equal(left[name][c], value) for name, value in kept.items())
        memory = [kept for _, kept in alone]


def settings(**others) -> TrainSettings:
    algorithm = FedAvg(steps=1, batch_size=4, weighting="uniform")
    return TrainSettings(**{"rounds": 9, "cohort": len(SIZES), "algorithm": algorithm} | others)


def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_to_the_bit(data):
    """Velocity and what waits belong to the checkpoint, also of clients that were absent."""
    train = settings(cohort=3, uplink=(DGC(density=0.1, warmup_rounds=3, warmup=(0.5, 0.25)),))
    whole = run(data, train, 7).model
    halfway = run(data, train, 4)
    state = tree.map(Tensor.clone, halfway.state())
    halfway.flush()
    halfway.restore(state)
    steps = train.schedule.run(halfway)
    for _ in range(3):
        next(steps)
    assert all(torch.equal(halfway.model[name], value) for name, value in whole.items())


def test_an_absent_client_neither_forgets_nor_decays(data):
    train = settings(cohort=3, uplink=(DGC(density=0.1, warmup_rounds=0),))
    before, after = run(data, train, 4), run(data, train, 5)
    present = set(after.uploads["clients"].tolist())
    everybody = torch.arange(len(SIZES)).numpy()
    old, new = (each.memories["fedavg/residual"].gather(everybody) for each in (before, after))
    for client in range(len(SIZES)):
        same = all(torch.equal(old[name][client], new[name][client]) for name in old)
        assert same == (client not in present)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"momentum": 0.9}, "train.algorithm.momentum = 0.9"),
        ({"server": {"name": "sgd", "momentum": 0.9}}, "that of train.algorithm.server, 0.9"),
        ({"server": {"name": "adam"}}, "that of train.algorithm.server, 0.9"),
        ({"weight_decay": 1e-4}, "train.algorithm.weight_decay = 0.0001"),
        ({"name": "scaffold"}, "adds up beside the model too; set its own momentum = 0.9 to 0"),
        ({"name": "fedspeed", "weight_decay": 0.0}, "adds up beside the model too; set its own momentum = 0.9 to 0"),
        (
            {"name": "fedspeed", "weight_decay": 0.0, "dual_average": "sampled"},
            "adds up beside the model too; set its own momentum = 0.9 to 0",
        ),
    ],
)
def test_a_second_momentum_or_what_would_gather_it_is_refused(algorithm, said):
    train = {"algorithm": {"name": "fedavg", **algorithm}}
    with pytest.raises(ParamsRefused, match="dgc") as refused:
        build({"train": train | {"uplink": [{"name": "dgc"}]}})
    assert said in str(refused.value)
    # Without momentum of its own it is gradient dropping, which is a codec like any other.
    build({"train": train | {"uplink": [{"name": "dgc", "momentum": 0.0}]}})


def test_with_fedspeed_that_keeps_no_duals_momentum_is_no_worse_than_with_fedavg():
    algorithm = {"name": "fedspeed", "weight_decay": 0.0, "dual_average": "none"}
    build({"train": {"algorithm": algorithm, "uplink": [{"name": "dgc"}]}})


def test_chains_that_cannot_work_are_refused():
    for uplink, said in (
        ([{"name": "topk"}, {"name": "dgc"}], "cannot follow 'topk'"),
        ([{"name": "dgc"}, {"name": "quantize", "error_feedback": True}], "cannot remember an error"),
    ):
        with pytest.raises(ParamsRefused, match=said):
            build({"train": {"uplink": uplink}})
    build({"train": {"uplink": [{"name": "clip"}, {"name": "dgc"}, {"name": "quantize"}]}})


def test_what_a_quantiser_behind_it_loses_is_not_fed_back():
    """The entries that were sent are forgotten whole, however they arrived; the others wait as they are."""
    chain = Chain((DGC(density=0.1, warmup_rounds=0), Quantize(bits=2)), LIKE)
    payload, left = chain.encode(gradient(0), chain.memory(), torch.tensor(3))
    for name in SPARSE:
        sent = torch.zeros(LIKE[name].numel(), dtype=torch.bool)
        sent[payload[f"0/{name}"].long()] = True
        waiting = left[f"0/waiting/{name}"].reshape(-1)
        assert not waiting[sent].any()
        assert torch.equal(waiting[~sent], gradient(0)[name].reshape(-1)[~sent])
