"""What the attack stage rules out before anything runs."""

import pytest

from tasks.attack.attacks import Fishing, Imprint, InvertingGradients, TrapWeights
from tasks.attack.defences import Design, NoDefence, Noise, Pipeline, Protocol
from tasks.attack.settings import AttackSettings
from tasks.models.hyper import Hyper
from tasks.train.algorithms import FedAvg, HyperFL
from tasks.train.settings import TrainSettings
from tasks.train.topologies import Gossip


@pytest.mark.parametrize("defence", [Design(), Pipeline(stages=(Protocol(steps=5), Design()))], ids=lambda d: d.name)
def test_a_design_that_the_algorithm_does_not_run_on_is_refused_with_its_reason(defence):
    settings = AttackSettings(defences=(NoDefence(), defence))
    (problem,) = settings.conflicts(TrainSettings(algorithm=HyperFL()))
    assert problem.startswith("attack.defences[1]: ") and "'convnet'" in problem and "hypernetwork" in problem
    assert not [*settings.conflicts(TrainSettings(algorithm=FedAvg()))]


@pytest.mark.parametrize("defence", [Design(model=Hyper(hidden=8)), Noise(), Pipeline(stages=(Protocol(steps=5),))])
def test_what_the_algorithm_runs_on_is_not_refused(defence):
    assert not [*AttackSettings(defences=(defence,)).conflicts(TrainSettings(algorithm=HyperFL()))]


@pytest.mark.parametrize("attack", [Imprint(), TrapWeights(), Fishing()], ids=lambda attack: attack.name)
def test_a_server_that_sends_models_of_its_own_needs_a_server(attack):
    settings = AttackSettings(suite=(InvertingGradients(), attack))
    (problem,) = settings.conflicts(TrainSettings(topology=Gossip()))
    assert problem.startswith(f"attack.suite[1].name = {attack.name!r}") and "no server sends" in problem
    assert not [*settings.conflicts(TrainSettings())]
