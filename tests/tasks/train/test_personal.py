"""Methods that leave each client a model of its own: what is shared, what stays home, and their limits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks import tree
from tasks.config import Refused
from tasks.partition.federation import Federation
from tasks.train.algorithms import FedAvg, FedCAC, FedPer
from tasks.train.algorithms.fedcac import overlaps
from tasks.train.algorithms.server_optimizers import Adam
from tasks.train.settings import TrainSettings
from tests.tasks.train.runs import SERVERS, SIZES, federation, run

EVERYBODY = np.arange(len(SIZES))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("clients") / "partition")


def trained(data, algorithm, rounds: int = 3, **settings):
    return run(data, TrainSettings(algorithm=algorithm, **{"cohort": len(SIZES), **settings}), rounds)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in a)


class TestFedCAC:
    def test_without_critical_parameters_everybody_has_the_model_of_fedavg(self, data):
        plain, personal = trained(data, FedAvg(lr=0.2)), trained(data, FedCAC(lr=0.2, tau=0))
        assert close(personal.model, plain.model)
        for client in EVERYBODY:
            assert same(tree.take(personal.models(EVERYBODY), int(client)), personal.model)

    def test_with_all_parameters_critical_and_nobody_alike_clients_train_alone(self):
        server = {"model/w": torch.tensor([1.0, 2.0]), "personal/w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        server |= {"run/round": torch.tensor(0), "overlap": torch.eye(2)}
        moved = update(FedCAC(tau=1, beta=0), server, torch.tensor([[0.5, -1.0], [1.0, 1.0]]))
        assert moved["personal/w"].tolist() == [[1.5, 1.0], [4.0, 5.0]]

    def test_where_everybody_is_alike_critical_parameters_are_the_plain_mean_and_others_the_weighted_one(self):
        method = FedCAC(tau=0.5)
        server = {"model/w": torch.zeros(2), "personal/w": torch.ones(2, 2), "overlap": torch.eye(2)}
        server |= {"run/round": torch.tensor(-10_000)}
        moved = update(method, server, torch.tensor([[9.0, 0.0], [1.0, 0.0]]), weights=torch.tensor([3.0, 1.0]))
        # Both have the first entry critical: the plain mean of 10 and 2; of the second the weighted mean of 1 and 1.
        assert moved["personal/w"].tolist() == [[6.0, 1.0], [6.0, 1.0]]
        assert moved["model/w"].tolist() == [8.0, 1.0]

    def test_after_beta_rounds_nobody_shares_critical_parameters(self):
        overlap = overlaps({"w": torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)})
        assert FedCAC(beta=4).alike(overlap, 5).equal(torch.eye(3))

    def test_fewer_and_fewer_are_alike(self):
        masks = torch.rand(9, 200, generator=torch.Generator().manual_seed(1)) > 0.4
        counts = [FedCAC(beta=20).alike(overlaps({"w": masks}), t).sum(1) for t in range(1, 25)]
        assert all((after <= before).all() for before, after in pairwise(counts))
        assert all((count >= 1).all() for count in counts)
        assert counts[0].sum() > counts[19].sum()

    def test_overlap_is_the_share_of_common_critical_parameters(self):
        masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
        expected = [[1, 0.5, 0, 1], [0.5, 1, 0.5, 0.5], [0, 0.5, 1, 0], [1, 0.5, 0, 1]]
        assert overlaps({"a": masks[:, :2], "b": masks[:, 2:]}).tolist() == expected

    def test_overlap_is_by_the_own_count_where_counts_differ(self):
        masks = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
        assert overlaps({"w": masks}).tolist() == [[1, 1 - 3 / 2], [1 - 3 / 8, 1]]

    @pytest.mark.parametrize("shape", [(4, 3, 5, 5), (7, 9), (11,), (1,), ()])
    @pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
    def test_each_tensor_has_its_share_of_critical_entries(self, shape, tau):
        rng = torch.Generator().manual_seed(3)
        change, weights = torch.randn(6, *shape, generator=rng), torch.randn(6, *shape, generator=rng)
        mask = FedCAC(tau=tau).critical(change, weights)
        size = int(np.prod(shape))
        assert mask.shape == change.shape
        assert mask.reshape(6, -1).sum(1).tolist() == [int(tau * size)] * 6

    def test_parameters_that_did_not_move_are_never_critical(self):
        change = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0], [0.0] * 5])
        mask = FedCAC(tau=0.9).critical(change, torch.ones(2, 5))
        assert mask.tolist() == [[False, False, False, True, True], [False] * 5]

    def test_clients_in_another_order_get_the_same_models(self):
        rng = torch.Generator().manual_seed(5)
        start, change = torch.randn(6, 20, generator=rng), torch.randn(6, 20, generator=rng)
        server = {"model/w": torch.zeros(20), "personal/w": start, "overlap": torch.eye(6)}
        server |= {"run/round": torch.tensor(3)}
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        straight = update(FedCAC(beta=9), server, change)
        turned = update(FedCAC(beta=9), server, change[order], clients=order)
        torch.testing.assert_close(turned["personal/w"], straight["personal/w"])
        assert straight["overlap"].allclose(turned["overlap"])

    def test_who_is_not_called_or_not_believed_keeps_its_model(self, data):
        few = trained(data, FedCAC(lr=0.2), cohort=3, rounds=1)
        start = tree.take(trained(data, FedCAC(lr=0.2), rounds=1, reject_above=1e-9).models(EVERYBODY), 0)
        idle = [c for c in EVERYBODY if not few.participations[c]]
        assert len(idle) == len(SIZES) - 3
        assert all(same(tree.take(few.models(EVERYBODY), int(c)), start) for c in idle)

    def test_each_client_downloads_its_own_model_and_no_other(self, data):
        plain, personal = trained(data, FedAvg(), rounds=1), trained(data, FedCAC(), rounds=1)
        assert personal.ledger.bytes_down == plain.ledger.bytes_down
        assert personal.ledger.bytes_up == plain.ledger.bytes_up

    def test_it_tells_the_overlap_of_the_pairs_that_were_in_a_round_together(self, data):
        fresh, few = (trained(data, FedCAC(lr=0.2), cohort=3, rounds=rounds) for rounds in (0, 1))
        assert fresh.diagnostics() == {}
        seen = np.flatnonzero(few.participations)
        pairs = few.server["overlap"][seen][:, seen][~torch.eye(3, dtype=torch.bool)]
        assert few.diagnostics() == {"overlap": pytest.approx(float(pairs.mean())), "overlap_max": float(pairs.max())}
        assert trained(data, FedCAC(lr=0.2), cohort=1, rounds=2).diagnostics() == {}

    def test_overlap_is_greater_within_groups_that_have_other_classes(self, tmp_path):
        grouped = twins(tmp_path, lambda data, client: data.y % 2 == client % 2)
        finished = trained(grouped, FedCAC(lr=0.1, tau=0.3, batch_size=0), rounds=6)
        overlap, parity = finished.server["overlap"], torch.arange(len(SIZES)) % 2
        together = parity[:, None] == parity[None]
        within, between = overlap[together & ~torch.eye(len(SIZES), dtype=torch.bool)], overlap[~together]
        assert within.mean() > between.mean() + 0.1

    def test_two_clients_with_the_same_data_keep_the_same_model(self, tmp_path):
        pairs = twins(tmp_path, lambda data, client: np.arange(len(data.y)) % 4 == client // 2)
        models = trained(pairs, FedCAC(lr=0.2, batch_size=0, steps=3, beta=4), rounds=6).models(EVERYBODY)
        for name, value in models.items():
            torch.testing.assert_close(value[0::2], value[1::2], rtol=1e-6, atol=1e-7)
            assert not value[0].equal(value[2]), name

    def test_a_step_of_the_server_is_refused(self):
        with pytest.raises(ValidationError, match="takes no step"):
            FedCAC(server=Adam())


def twins(folder, of_client):
    """A federation of eight clients, each with 24 of the samples ``of_client(data, client)``, over and over."""
    data = federation(folder / "partition", (24,) * len(SIZES), classes=4)
    mine = [np.resize(np.flatnonzero(of_client(data, client)), 24) for client in EVERYBODY]
    taken = np.concatenate(mine)
    for name, values in {"x": data.x[taken], "y": data.y[taken], "indices": np.arange(len(taken))}.items():
        np.save(data.path / f"{name}.npy", values)
    return Federation.open(data.path)


def update(method, server, change, weights=None, clients=None):
    """The server's next state after uploads ``change`` ``[clients, n]`` of one tensor ``w``."""
    from tasks.train.work import Uploads

    count = len(change)
    weights = torch.ones(count) if weights is None else weights
    clients = torch.arange(count) if clients is None else clients
    uploads = Uploads(clients, {}, weights.sum(), count, {"delta/w": change}, weights)
    return method.server_update(server, uploads)


class TestFedPer:
    def test_without_private_layers_it_is_fedavg_to_the_last_bit(self, data):
        assert same(trained(data, FedPer(layers=0, lr=0.2)).model, trained(data, FedAvg(lr=0.2)).model)

    def test_private_layers_do_not_travel(self, data):
        plain, personal = trained(data, FedAvg(), rounds=1), trained(data, FedPer(layers=1), rounds=1)
        head = sum(v.numel() for n, v in plain.model.items() if n.startswith(list(plain.model)[-1].rpartition(".")[0]))
        assert head == 6 * 3 + 3
        assert plain.ledger.bytes_up - personal.ledger.bytes_up == 4 * head * len(SIZES)
        assert plain.ledger.bytes_down - personal.ledger.bytes_down == 4 * head * len(SIZES)

    def test_bodies_are_shared_and_heads_are_not(self, data):
        finished = trained(data, FedPer(layers=1, lr=0.2))
        models = finished.models(EVERYBODY)
        *body, weight, bias = finished.model
        for name in body:
            assert all(torch.equal(models[name][c], finished.model[name]) for c in EVERYBODY)
        for name in (weight, bias):
            assert not torch.equal(models[name][2], models[name][3])

    @pytest.mark.parametrize("server", SERVERS, ids=lambda server: f"{server.name} {server.momentum:g}")
    def test_the_servers_optimiser_works_on_what_is_shared(self, data, server):
        finished = trained(data, FedPer(layers=1, server=server))
        *body, weight, bias = finished.model
        for part in {name.split("/")[1] for name in tree.part(finished.server, "optimizer") if "/" in name} & {
            "m",
            "v",
        }:
            assert list(tree.part(finished.server, f"optimizer/{part}")) == body
        start = trained(data, FedPer(layers=1), rounds=0).model
        assert list(start) == [*body, weight, bias]
        assert all(finished.model[name].equal(start[name]) for name in (weight, bias))
        assert not any(finished.model[name].equal(start[name]) for name in body)

    @pytest.mark.parametrize("server", SERVERS, ids=lambda server: f"{server.name} {server.momentum:g}")
    def test_without_private_layers_it_is_fedavg_with_every_optimiser_of_the_server(self, data, server):
        private, plain = (
            trained(data, method(server=server)) for method in (lambda **s: FedPer(layers=0, **s), FedAvg)
        )
        assert same(private.server, plain.server)

    def test_a_model_that_would_stay_home_as_a_whole_is_refused(self, data):
        with pytest.raises(Refused, match=r"train\.algorithm = 'fedper': would keep the whole model at home"):
            trained(data, FedPer(layers=99))
