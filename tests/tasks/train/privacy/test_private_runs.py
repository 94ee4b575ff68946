"""Mechanisms and codecs inside a run of the coordinator."""

import pytest
import torch
from pydantic import TypeAdapter

from tasks.train.privacy import accountant
from tasks.train.settings import TrainSettings
from tests.tasks.train.runs import run

QUIET = {"noise_multiplier": 0.0, "clip_norm": 1e6}


def settings(**train) -> TrainSettings:
    algorithm = {"name": "fedavg", "lr": 0.1, "batch_size": 4, "weighting": "uniform"}
    values = {"rounds": 4, "cohort": 6, "algorithm": algorithm, "transcript": {"rounds": (), "clients": 0}} | train
    return TypeAdapter(TrainSettings).validate_python(values)


@pytest.mark.parametrize("name", ["gaussian", "adaptive", "local"])
def test_a_silent_mechanism_leaves_a_run_as_it_is_to_the_bit(data, name):
    plain = run(data, settings(), 4)
    silent = run(data, settings(privacy={"name": name, **QUIET}), 4)
    for key, value in plain.model.items():
        assert torch.equal(value, silent.model[key])
    assert silent.epsilon() is None


def test_epsilon_counts_the_rounds_of_coins_and_the_messages_of_devices(data):
    coins = run(data, settings(sampling={"name": "poisson"}, privacy={"name": "gaussian"}), 5)
    assert coins.epsilon() == accountant.poisson(1.0, 6 / 8, 5, 1e-5)
    local = run(data, settings(privacy={"name": "local", "noise_multiplier": 4.0}), 5)
    assert local.epsilon() == accountant.gaussian(2.0, int(local.participations.max()), 1e-5)


def test_a_round_moves_the_model_by_no_more_than_the_clip_norm_whatever_the_codecs(data):
    private = settings(
        uplink=[{"name": "topk", "density": 0.3}, {"name": "quantize", "bits": 3}],
        privacy={"name": "gaussian", "noise_multiplier": 1e-6, "clip_norm": 0.01},
    )
    before, after = run(data, private, 4).model, run(data, private, 5).model
    step = torch.cat([(after[key] - before[key]).flatten() for key in after])
    assert 0 < float(step.norm()) <= 0.01 * (1 + 1e-4)


def test_the_bit_of_adaptive_clipping_is_a_byte_on_the_wire_and_moves_the_norm(data):
    fixed = run(data, settings(privacy={"name": "gaussian", "noise_multiplier": 0.1}), 3)
    private = settings(privacy={"name": "adaptive", "noise_multiplier": 0.1, "clip_norm": 1e-3})
    adaptive = run(data, private, 3)
    assert adaptive.ledger.bytes_up == fixed.ledger.bytes_up + adaptive.ledger.cohort
    assert adaptive.ledger.bytes_down == fixed.ledger.bytes_down + 4 * adaptive.ledger.cohort
    # No upload fits into so small a ball, so the norm grows by exp(0.2 * 0.5) a round, up to the noise on the bits.
    growth = torch.log(torch.tensor(private.privacy.clipped_at(adaptive.guard) / 1e-3))
    assert float(growth) == pytest.approx(3 * 0.1, abs=0.1)
