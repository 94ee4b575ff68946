"""The adaptive attack on HyperFL: exact after one step on one sample, and weaker with every further step."""

from dataclasses import replace

import pytest
import torch

from tasks import models, tree
from tasks.attack.attacks import HyperLeak, Imprint
from tasks.attack.attacks.inverting_gradients import InvertingGradients
from tasks.attack.case import Case, Public, View
from tasks.attack.defences import NoDefence
from tasks.attack.guesses import NotApplicable
from tasks.models.architectures import MLP
from tasks.models.convnet import ConvNet
from tasks.models.hyper import Hyper
from tasks.train.algorithms import FedAvg, HyperFL
from tasks.train.transcript import Context
from tasks.train.uplink import Chain, TopK
from tests.tasks.attack.scenes import digits, meta, scene

MODEL = Hyper(body=ConvNet(channels=(8, 16), strides=(1, 2), hidden=32), embedding=16, hidden=32)


def message(image: int = 0, steps: int = 1, samples: int = 1, momentum: float = 0.0, start: str = "independent"):
    """An honest client's case and its samples."""
    x, y = (values[image : image + samples] for values in digits())
    work = HyperFL(lr=0.1, head_steps=0, steps=steps, momentum=momentum, start=start, batch_size=samples)
    network = models.build(MODEL, (1, 8, 8), 10, 0)
    params = network.parameters
    home = {name: params[name] for name in work.at_home(params)}
    shared = tree.join(model={n: v for n, v in params.items() if n not in home}, home=home)
    shared |= {"lr": torch.tensor(work.lr)}
    state = work.client_init(shared, {}, work.client_memory(shared))
    for _ in range(steps):
        batch = {"x": x, "y": y, "weight": torch.ones(len(y))}
        state, _ = work.client_step(network, state, batch, torch.tensor(image + 1))
    upload, _ = work.client_final(shared, state)
    context = Context(1, image, samples, steps, 1, samples, work.lr, 0)
    case = Case(
        message=f"round-00001-client-{image:05d}", context=context, network=network, work=work, data=meta((1, 8, 8)),
        broadcast=shared, delta=tree.part(upload, "delta"), defence=NoDefence(), budget=600, seed=0, upload=upload,
    )  # fmt: skip
    return case, x


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_what_is_solved_for_is_what_the_client_had():
    case, _ = message(start="identical")
    module = case.network.module
    found = HyperLeak().solved(case)
    torch.testing.assert_close(found.code.float(), module.code(module.embedding).detach(), rtol=1e-4, atol=1e-5)
    for name, value in module.generated().items():
        torch.testing.assert_close(found.network[name].float(), value.detach(), rtol=1e-4, atol=1e-5)


def thinned(case: Case, density: float) -> Case:
    """The case where only the largest entries arrive."""
    uplink = (TopK(density=density),)
    chain = Chain(uplink, case.upload)
    upload = chain.decode(chain.encode(case.upload, chain.memory(), torch.tensor(0))[0])
    return replace(case, uplink=uplink, upload=upload, delta=tree.part(upload, "delta"))


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_entries_that_did_not_arrive_say_nothing_and_make_nothing_wrong(density):
    """z is exact, and so is the gradient of whatever came with one entry of its row."""
    case, _ = message(start="identical")
    thin = thinned(case, density)
    full, found = HyperLeak().solved(case), HyperLeak().solved(thin)
    assert float((found.code - full.code).norm() / full.code.norm()) < 1e-6
    for name, slope in found.gradient.items():
        told = slope != 0
        head = f"heads.{name.replace('.', '_')}"
        heard = thin.arrived[f"{head}.bias"] | (
            thin.arrived[f"{head}.weight"] & (full.code > 1e-3 * full.code.max())
        ).any(1)
        assert torch.equal(told, heard.view(slope.shape)) and told.double().mean() > density
        rounded = 1e-5 * float(full.gradient[name].abs().max())
        torch.testing.assert_close(slope[told], full.gradient[name][told], rtol=1e-4, atol=rounded)


@pytest.mark.parametrize("image", [0, 1, 2])
def test_one_step_on_one_sample_gives_it_back(image):
    case, x = message(image)
    (guess,) = HyperLeak().run(View((case,), None))
    assert psnr(guess.x, x) > 35


def test_the_usual_attack_finds_nothing_there():
    case, x = message()
    told = replace(case, labels=digits()[1][:1], budget=150)
    (usual,) = InvertingGradients(labels="given").run(View((told,), None))
    assert psnr(usual.x, x) < 15


def test_the_more_steps_the_less_is_solved_for():
    """The relative error of the code that is read out, against the one that the client began with."""
    errors = []
    for steps in (1, 3, 15):
        case, _ = message(steps=steps, momentum=0.5, start="identical")
        truth = case.network.module.code(case.network.module.embedding).detach()
        errors.append(float((HyperLeak().solved(case).code.float() - truth).norm() / truth.norm()))
    assert errors[0] < 1e-4 < errors[1] < errors[2]


def test_other_networks_are_left_alone():
    x, y = (values[:1] for values in digits())
    (guess,) = HyperLeak().run(View((scene(MLP(), x, y, work=FedAvg(batch_size=1)).case,), None))
    assert isinstance(guess, NotApplicable) and "hypernetwork" in guess.reason


def test_a_server_cannot_put_bins_before_a_network_that_is_not_generated():
    case, _ = message()
    case = replace(case, public=Public(*(values[100:150] for values in digits())))
    (guess,) = Imprint(bins=10).run(View((case,), None, lambda sent: pytest.fail("it was asked all the same")))
    assert isinstance(guess, NotApplicable) and "no vector that it is generated from" in guess.reason
