"""Codecs one after another, and what a client remembers of the loss."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tasks import keys, tree
from tasks.params import ParamsRefused, build
from tasks.train.uplink import Chain, Link, check_chain
from tasks.train.uplink.clip import Clip
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.sign import Sign
from tasks.train.uplink.topk import TopK
from tasks.tree import Tree

KEY = torch.tensor(99)
LIKE = {"w": torch.zeros(7, 9), "b": torch.zeros(5)}
FEEDBACK = [
    (TopK(density=0.1),),
    (TopK(density=0.1, scope="upload"),),
    (RandomK(density=0.2),),
    (Sign(),),
    (Quantize(bits=6, error_feedback=True),),
    (TopK(density=0.2), Quantize(bits=3)),
    (TopK(density=0.5), RandomK(density=0.5), Sign()),
    (Clip(norm=1e9), RandomK(density=0.3), Quantize(bits=8, error_feedback=True)),
]


def upload(round_: int) -> Tree:
    return {name: keys.normal(keys.fold(KEY, round_ + i), tuple(v.shape)) for i, (name, v) in enumerate(LIKE.items())}


@pytest.mark.parametrize("codecs", FEEDBACK)
def test_all_that_arrived_is_all_that_was_sent_but_for_the_last_residual(codecs):
    chain, rounds = Chain(codecs, LIKE), 50
    memory, sent, arrived = chain.memory(), tree.zeros_like(LIKE), tree.zeros_like(LIKE)
    for round_ in range(rounds):
        payload, memory = chain.encode(upload(round_), memory, keys.fold(KEY, round_))
        sent, arrived = tree.add(sent, upload(round_)), tree.add(arrived, chain.decode(payload))
    first = next(i for i, codec in enumerate(codecs) if codec.feeds_back)
    # Residuals of later codecs live in the space of what the earlier ones carry, and are part of the first one's.
    missing = tree.subtract(sent, arrived)
    residual = tree.part(memory, str(first))
    for name in LIKE:
        assert torch.allclose(missing[name], residual[name], atol=1e-3)
        assert float(missing[name].abs().max()) > 1e-3


def test_feedback_at_the_sparsifier_corrects_the_quantiser_behind_it():
    constant = upload(0)

    def mean_error(codecs) -> float:
        chain = Chain(codecs, LIKE)
        memory, arrived, rounds = chain.memory(), tree.zeros_like(LIKE), 400
        for _ in range(rounds):
            payload, memory = chain.encode(constant, memory, KEY)  # one key: the quantiser's error is systematic
            arrived = tree.add(arrived, chain.decode(payload), 1 / rounds)
        return float(tree.square_distance(arrived, constant).sqrt() / tree.norm(constant))

    assert mean_error((TopK(density=0.2), Quantize(bits=2))) < 0.05
    assert mean_error((TopK(density=0.2, error_feedback=False), Quantize(bits=2))) > 0.3


def test_a_clients_memory_is_its_own():
    chain = Chain((TopK(density=0.1),), LIKE)
    values, memory = tree.stack([upload(c) for c in range(4)]), tree.stack([chain.memory()] * 4)
    disturbed = tree.map(lambda v: torch.cat([v[:1], 1e3 * v[1:]]), values)
    clients = keys.fold(KEY, torch.arange(4))
    _, quiet = vmap(chain.encode)(values, memory, clients)
    _, loud = vmap(chain.encode)(disturbed, memory, clients)
    for name, value in quiet.items():
        assert torch.equal(value[0], loud[name][0])
        assert not torch.equal(value[1], loud[name][1])


def test_without_feedback_there_is_nothing_to_remember():
    assert Chain((Clip(), TopK(error_feedback=False), Quantize()), LIKE).memory() == {}


def descend(codecs, steps: int = 4000, lr: float = 0.05) -> Tensor:
    """Stochastic gradient descent on f(x) = mean of <a, x>^2 / 2 over two a whose signs are opposite."""
    rows = torch.tensor([[1.5, -0.5], [-0.5, 1.5]])
    x, like = torch.tensor([1.0, 1.0]), {"x": torch.zeros(2)}
    chain = Chain(codecs, like)
    memory = chain.memory()
    for step in range(steps):
        a = rows[step % 2]
        payload, memory = chain.encode({"x": -lr * a * (a @ x)}, memory, keys.fold(KEY, step))
        x = x + chain.decode(payload)["x"]
    return x


def test_feedback_makes_the_sign_converge_where_it_does_not_by_itself():
    """Karimireddy et al., ICML 2019, counterexample 3: all signs are +-(1, -1), so x_1 + x_2 can never change."""
    assert float(descend((Sign(error_feedback=False),)).sum()) == pytest.approx(2.0, abs=1e-4)
    assert float(descend((Sign(),)).norm()) < 1e-3


def test_nothing_can_follow_packed_bits():
    problems = list(check_chain((TopK(), Quantize(), Clip())))
    assert len(problems) == 1
    assert problems[0].startswith("train.uplink[2].name = 'clip'")
    assert "quantize" in problems[0]
    assert not list(check_chain((Clip(), TopK(), RandomK(), Sign())))


def test_a_codec_says_that_it_remembers_where_it_has_a_memory():
    links = [method() for method in get_args(get_args(Link)[0])]
    for codec in [*links, TopK(error_feedback=False), Quantize(error_feedback=True), Sign(error_feedback=False)]:
        assert codec.remembers == bool(codec.memory({"x": torch.zeros(3, 4)})), codec


@pytest.mark.parametrize(
    ("link", "mend"),
    [
        ({"name": "topk"}, "set error_feedback: false"),
        ({"name": "randomk"}, "set error_feedback: false"),
        ({"name": "sign"}, "set error_feedback: false"),
        ({"name": "quantize", "error_feedback": True}, "set error_feedback: false"),
        ({"name": "dgc", "momentum": 0.0}, "take it out"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_belongs_to_its_round_is_not_added_to_later_uploads(link, mend):
    with pytest.raises(ParamsRefused, match=rf"train.uplink\[0\].name = '{link['name']}': adds what was .*; {mend}"):
        build({"train": {"algorithm": {"name": "one_byte"}, "uplink": [link]}})
    if mend != "take it out":
        build({"train": {"algorithm": {"name": "one_byte"}, "uplink": [link | {"error_feedback": False}]}})


def test_params_refuse_a_codec_behind_packed_bits():
    with pytest.raises(ParamsRefused, match=r"params.yaml[\s\S]*train.uplink\[1\]"):
        build({"train": {"uplink": [{"name": "sign"}, {"name": "topk"}]}})
