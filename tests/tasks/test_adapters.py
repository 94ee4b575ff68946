"""Adapters: what trains and travels, what stays as it is, and what a network starts from."""

import numpy as np
import pytest
import torch

from tasks import models, tree
from tasks.artifacts import sha256, write_tree
from tasks.config import Refused
from tasks.models.adapters import Bias, Bottleneck, Full, Head, LoRA, Prompt
from tasks.models.architectures import CNN, MLP, Logistic, Transformer
from tasks.models.start import Champion, File, Pretrained
from tasks.models.vit import ViT
from tasks.partition.datasets import Digits
from tasks.train.algorithms import FedAvg
from tasks.train.settings import TrainSettings
from tests.tasks.train.runs import federation, run

SHAPE = (1, 8, 8)
KINDS = [Full(), Head(), Bias(), Bottleneck(), Bottleneck(shared=False), Prompt(tokens=3), LoRA(rank=2)]
SMALL = ViT(patch=4, width=16, heads=2, blocks=3)


def numbers(network) -> int:
    return sum(value.numel() for value in network.parameters.values())


@pytest.mark.parametrize(("d", "blocks", "classes"), [(64, 4, 10), (16, 3, 7)])
def test_what_trains_is_counted_as_the_paper_counts_it(d, blocks, classes):
    def count(adapter) -> int:
        model = ViT(patch=7, width=d, heads=2, blocks=blocks, adapter=adapter)
        return numbers(models.build(model, (1, 28, 28), classes, 0))

    head = (d + 1) * classes
    # Of a block: two norms, 3 d of the projection, d of the output, 2 d and d of the network; then patches and norm.
    biases = blocks * (2 * d + 3 * d + d + 2 * d + d) + d + d
    narrow = 2 * d * (d // 8) + d // 8 + d
    assert count(Head()) == head
    assert count(Bias()) == head + biases
    assert count(Bottleneck()) == head + narrow
    assert count(Bottleneck(shared=False)) == head + blocks * narrow
    assert count(Prompt(tokens=5)) == head + blocks * 5 * d
    assert count(LoRA(rank=3)) == head + 3 * (49 + d) + 3 * blocks * ((d + 3 * d) + (d + d) + (d + 2 * d) + (2 * d + d))
    assert count(Prompt(tokens=0)) == head


def test_the_vision_transformer_of_the_scaled_down_check_has_139018_parameters():
    assert numbers(models.build(ViT(), (1, 28, 28), 10, 0)) == 139_018


def test_patches_are_cut_as_one_would_by_hand():
    network = models.build(SMALL, SHAPE, 10, 0)
    seen = []
    network.module.embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(2, *SHAPE)
    network.module(x)
    by_hand = [x[:, :, i : i + 4, j : j + 4].reshape(2, -1) for i in (0, 4) for j in (0, 4)]
    assert torch.equal(seen[0], torch.stack(by_hand, 1))


@pytest.mark.parametrize("adapter", [Bottleneck(), Bottleneck(shared=False), LoRA()], ids=lambda a: a.name)
def test_at_the_start_the_network_is_what_it_was_and_all_that_was_added_moves_within_two_steps(adapter):
    plain = models.build(SMALL, SHAPE, 10, 0)
    fitted = models.build(SMALL.model_copy(update={"adapter": adapter}), SHAPE, 10, 0)
    x, y = torch.rand(6, *SHAPE), torch.arange(6)
    torch.testing.assert_close(fitted.apply(fitted.parameters, x), plain.apply(plain.parameters, x))
    start = params = fitted.parameters
    for _ in range(2):
        gradient = torch.func.grad(lambda p: fitted.losses(p, x, y).mean())(params)
        params = tree.add(params, gradient, -0.1)
    assert all(not params[name].equal(start[name]) for name in params)


@pytest.mark.parametrize("adapter", KINDS, ids=lambda a: a.name)
def test_only_what_trains_travels_and_the_rest_stays(tmp_path, adapter):
    data = federation(tmp_path / "partition", shape=SHAPE)
    model = SMALL.model_copy(update={"adapter": adapter})
    network = models.build(model, SHAPE, data.meta.classes, 3)
    before = tree.map(torch.clone, network.frozen)
    finished = run(data, TrainSettings(cohort=8, algorithm=FedAvg()), 1, model=model)
    assert finished.model.keys() == network.parameters.keys()
    assert finished.ledger.bytes_up == 8 * 4 * numbers(network)
    assert finished.ledger.bytes_down == 8 * 4 * (numbers(network) + 1)
    after = finished.workers.program.network.frozen
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_full_is_the_network_without_an_adapter_to_the_last_bit(tmp_path):
    data = federation(tmp_path / "partition", shape=SHAPE)
    plain, full = (run(data, TrainSettings(cohort=8), 2, model=m) for m in (CNN(), CNN(adapter=Full())))
    assert all(torch.equal(full.model[name], value) for name, value in plain.model.items())


def test_without_tokens_prompts_are_head_tuning_to_the_last_bit(tmp_path):
    data = federation(tmp_path / "partition", shape=SHAPE)
    kinds = (Head(), Prompt(tokens=0))
    head, none = (
        run(data, TrainSettings(cohort=8), 2, model=SMALL.model_copy(update={"adapter": kind})) for kind in kinds
    )
    assert all(torch.equal(none.model[name], value) for name, value in head.model.items())


def test_networks_without_the_place_for_an_adapter_are_refused():
    with pytest.raises(Refused, match=r"model\.adapter = 'bottleneck': the model has no transformer blocks"):
        models.build(MLP(adapter=Bottleneck()), SHAPE, 10, 0)
    with pytest.raises(Refused, match="no linear layer beside its head"):
        models.build(Logistic(adapter=LoRA()), SHAPE, 10, 0)


def test_prompts_are_seen_by_a_causal_network():
    network = models.build(Transformer(width=16, blocks=2, adapter=Prompt(tokens=2)), (5,), 11, 0)
    x = torch.randint(0, 11, (3, 5))
    moved = {n: v.flip(-1) if n.endswith("tokens") else v for n, v in network.parameters.items()}
    assert not torch.allclose(network.apply(network.parameters, x), network.apply(moved, x))


class TestStart:
    def test_pretraining_helps_is_done_once_and_leaves_the_head_at_zero(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.tracking.main_checkout", lambda: tmp_path)
        start = Pretrained(dataset=Digits(), epochs=3, lr=3e-3)
        model = MLP(hidden=(32,), start=start, adapter=Head())
        first = models.build(model, SHAPE, 10, 0)
        (kept,) = (tmp_path / ".fedloom" / "pretrained").iterdir()
        stamp = kept.stat().st_mtime_ns
        second = models.build(model, SHAPE, 10, 0)
        assert kept.stat().st_mtime_ns == stamp
        assert first.started == second.started and len(first.started) == 64
        assert all(torch.equal(first.frozen[name], value) for name, value in second.frozen.items())
        fresh = models.build(MLP(hidden=(32,)), SHAPE, 10, 0)
        assert not any(first.parameters[name].any() for name in ("3.weight", "3.bias"))
        assert not torch.equal(first.frozen["1.weight"], fresh.parameters["1.weight"])

    def test_other_weights_of_the_run_give_another_start(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.tracking.main_checkout", lambda: tmp_path)
        model = Logistic(start=Pretrained(examples=50, epochs=1))
        hashes = {models.build(MLP(hidden=(4,), start=model.start), SHAPE, 10, seed).started for seed in (0, 1)}
        assert len(hashes) == 2

    def test_a_file_is_loaded_but_for_the_head(self, tmp_path):
        before = models.build(MLP(hidden=(5,)), SHAPE, 10, 7).parameters
        write_tree(tmp_path / "model.safetensors", before)
        start = File(path=tmp_path / "model.safetensors", sha256=sha256(tmp_path / "model.safetensors"))
        network = models.build(MLP(hidden=(5,), start=start), SHAPE, 10, 0)
        assert torch.equal(network.parameters["1.weight"], before["1.weight"])
        assert not any(network.parameters[name].any() for name in ("3.weight", "3.bias"))

    @pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.name)
    def test_a_start_to_train_on_from_takes_the_head_and_the_adapter_too(self, tmp_path, adapter):
        model = SMALL.model_copy(update={"adapter": adapter})
        before = models.build(model, SHAPE, 10, 7)
        everything = before.parameters | before.frozen
        write_tree(tmp_path / "model.safetensors", everything)
        start = File(path=tmp_path / "model.safetensors", sha256=sha256(tmp_path / "model.safetensors"), head=True)
        after = models.build(model.model_copy(update={"start": start}), SHAPE, 10, 0)
        assert after.parameters.keys() == before.parameters.keys()
        found = after.parameters | after.frozen
        assert all(torch.equal(found[name], value) for name, value in everything.items())

    def test_a_file_with_another_content_than_was_meant_is_refused_with_its_digest(self, tmp_path):
        path = tmp_path / "model.safetensors"
        write_tree(path, models.build(MLP(hidden=(5,)), SHAPE, 10, 7).parameters)
        for meant in (None, "0" * 64):
            with pytest.raises(Refused, match=rf"model\.start\.sha256.*{sha256(path)}.*Set it to that"):
                models.build(MLP(hidden=(5,), start=File(path=path, sha256=meant)), SHAPE, 10, 0)
        with pytest.raises(Refused, match=r"model\.start\.path = 'none'.*is no file"):
            models.build(MLP(hidden=(5,), start=File(path="none")), SHAPE, 10, 0)

    def test_no_stage_alone_knows_the_champion(self):
        with pytest.raises(Refused, match=r"model\.start = 'champion': is looked up by `fedloom run`"):
            models.build(MLP(hidden=(5,), start=Champion()), SHAPE, 10, 0)

    def test_weights_of_another_network_are_refused(self, tmp_path):
        write_tree(tmp_path / "model.safetensors", {"1.weight": torch.zeros(3, 3)})
        with pytest.raises(Refused, match=r"model\.start = 'file': has no 1\.weight of shape \(5, 64\)"):
            start = File(path=tmp_path / "model.safetensors", sha256=sha256(tmp_path / "model.safetensors"))
            models.build(MLP(hidden=(5,), start=start), SHAPE, 10, 0)

    def test_data_of_another_shape_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.tracking.main_checkout", lambda: tmp_path)
        with pytest.raises(Refused, match=r"model\.start\.dataset = 'digits': has samples \(1, 8, 8\)"):
            models.build(MLP(start=Pretrained()), (1, 12, 12), 10, 0)

    def test_what_privacy_would_have_to_cover_is_refused(self):
        from tasks.params import ParamsRefused, build

        private = {"algorithm": {"name": "fedavg", "weighting": "uniform"}, "privacy": {"name": "gaussian"}}
        rows = [{"name": "idx", "rows": span} for span in ([0, 40_000], [30_000, 60_000], [40_000, 60_000])]

        def run(clients: dict, public: dict, train: dict) -> None:
            start = {"name": "pretrained", "dataset": public}
            build({"partition": {"dataset": clients}, "model": {"name": "mlp", "start": start}, "train": train})

        for clients, public in (({"name": "digits"}, {"name": "digits"}), rows[:2]):
            run(clients, public, {})
            with pytest.raises(ParamsRefused, match=r"model\.start\.dataset: .* epsilon would promise too much"):
                run(clients, public, private)
        run(rows[0], rows[2], private)
        run({"name": "wine"}, {"name": "digits"}, private)


def test_a_released_model_needs_not_what_it_was_started_from(tmp_path, monkeypatch):
    from tasks.aggregate.released import Description, load, save
    from tasks.models.start import Fresh

    monkeypatch.setattr("tasks.tracking.main_checkout", lambda: tmp_path)
    model = MLP(hidden=(8,), start=Pretrained(examples=100, epochs=1), adapter=Head())
    network = models.build(model, SHAPE, 10, 0)
    plain = model.model_copy(update={"start": Fresh()})
    described = Description(model=plain, shape=SHAPE, classes=10, class_names=tuple("0123456789"), seed=0)
    save(tmp_path / "released", described, network.parameters | network.frozen)
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    expected = network.apply(network.parameters, torch.from_numpy(x)).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(load(tmp_path / "released").predict(x)), expected)
