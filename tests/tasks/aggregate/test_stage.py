import csv
import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tasks import params as schema
from tasks.aggregate.settings import AggregateSettings
from tasks.aggregate.stage import aggregate
from tasks.artifacts import Damaged, read_json, read_tree, write_tree
from tasks.config import Refused
from tasks.tracking import Tracker
from tasks.train.privacy.central import Central


def settings(**section):
    return schema.build(
        {
            "partition": {"clients": 12},
            "model": {"name": "logistic"},
            "train": {"cohort": 5},
            "aggregate": section,
        }
    )


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_released_final_model_is_the_final_model_and_every_file_is_the_same_again(trained):
    artifacts, wanted = trained.parent, settings(personalise={"name": "finetune", "lr": 0.1})
    aggregate(wanted, artifacts, Tracker("aggregate"))
    first = hashes(artifacts / "aggregate")
    released = read_tree(artifacts / "aggregate" / "model.safetensors")
    for name, value in read_tree(trained / "model.safetensors").items():
        assert torch.equal(value, released[name])
    aggregate(wanted, artifacts, Tracker("aggregate"))
    assert hashes(artifacts / "aggregate") == first


def test_the_tables_and_the_evaluation_tell_the_same_story(trained):
    aggregate(settings(personalise={"name": "finetune"}), trained.parent, Tracker("aggregate"))
    folder = trained.parent / "aggregate"
    found = read_json(folder / "evaluation.json")
    table = pq.read_table(folder / "clients.parquet").to_pydict()
    rows = list(csv.DictReader((folder / "clients.csv").open()))
    assert [int(row["client"]) for row in rows] == table["client"] == list(range(12))
    assert [float(row["validation_loss"]) for row in rows] == table["validation_loss"]
    kept = np.array(table["validation_samples"]) >= 5
    accuracy = np.array(table["validation_accuracy"])[kept]
    assert found["per_client"]["part"] == "validation"
    assert found["per_client"]["clients"] + found["per_client"]["left_out"] == 12
    assert found["per_client"]["mean"] == pytest.approx(accuracy.mean())
    assert found["per_client"]["minimum"] == accuracy.min()
    own = np.array(table["personalised_accuracy"])[kept]
    assert found["personalised"]["mean"] == pytest.approx(own.mean())
    assert found["personalised"]["improved"] == (own > accuracy).sum()
    metrics = read_json(trained.parents[1] / "metrics" / "aggregate.json")
    assert metrics["accuracy"] == found["global"]["accuracy"]
    assert metrics["clients_worst_decile"] == found["per_client"]["worst_decile"]


def test_the_mean_of_the_uploads_leaves_out_those_of_weight_0(trained):
    aggregate(settings(merge={"name": "mean"}), trained.parent, Tracker("aggregate"))
    released = read_tree(trained.parent / "aggregate" / "model.safetensors")
    uploads = read_tree(trained / "uploads.safetensors")
    share = torch.tensor([3.0, 6.0, 9.0, 12.0]) / 30
    for name, value in released.items():
        step = torch.tensordot(share, uploads[f"delta/{name}"][:4], 1)
        torch.testing.assert_close(value, uploads[f"start/{name}"] + step)


def test_too_few_accepted_uploads_for_krum_are_refused_and_nothing_is_published(trained):
    wanted = settings(merge={"name": "krum", "byzantine": 1})
    with pytest.raises(Refused, match=r"aggregate\.merge\.byzantine = 1.*there are 4"):
        aggregate(wanted, trained.parent, Tracker("aggregate"))
    assert not (trained.parent / "aggregate").exists()


def test_a_merge_of_the_clients_own_models_reads_all_of_them_and_nothing_else(trained):
    final = read_tree(trained / "model.safetensors")
    own = {name: torch.randn(12, *value.shape) for name, value in final.items()}
    wanted = AggregateSettings.model_validate({"merge": {"name": "single"}})
    gossip = {"name": "gossip", "graph": {"name": "ring"}}
    sections = {"train": {"cohort": 12, "topology": gossip}, "aggregate": {"merge": {"name": "single"}}}
    params = schema.build({"partition": {"clients": 12}, "model": {"name": "logistic"}} | sections)
    with pytest.raises(Damaged, match=r"personal\.safetensors"):
        aggregate(params, trained.parent, Tracker("aggregate"))
    write_tree(trained / "personal.safetensors", own)
    aggregate(params, trained.parent, Tracker("aggregate"))
    for name, value in read_tree(trained.parent / "aggregate" / "model.safetensors").items():
        torch.testing.assert_close(value, own[name].mean(0))
    (problem,) = wanted.conflicts(settings().train)
    assert "leaves clients no models of their own" in problem
    (problem,) = AggregateSettings.model_validate({"merge": {"name": "median"}}).conflicts(params.train)
    assert "changes its own" in problem


def test_a_model_of_other_parameters_is_refused_as_damage(trained):
    write_tree(trained / "model.safetensors", {"1.weight": torch.zeros(2, 2)})
    with pytest.raises(Damaged, match="model in params"):
        aggregate(settings(), trained.parent, Tracker("aggregate"))


def test_a_diverged_model_is_published_with_empty_figures_instead_of_breaking_the_json(trained):
    broken = {name: torch.full_like(v, torch.nan) for name, v in read_tree(trained / "model.safetensors").items()}
    write_tree(trained / "model.safetensors", broken)
    aggregate(settings(), trained.parent, Tracker("aggregate"))
    found = json.loads((trained.parent / "aggregate" / "evaluation.json").read_text())
    assert found["global"]["loss"] is None
    assert found["per_client"]["loss"]["mean"] is None


def test_a_merge_of_single_uploads_behind_central_noise_would_void_its_epsilon_and_is_refused():
    section = AggregateSettings.model_validate({"merge": {"name": "median"}})
    train = settings().train
    assert not list(section.conflicts(train))
    private = next(kind for kind in Central.__subclasses__())
    noised = train.model_copy(update={"privacy": private()})
    (problem,) = section.conflicts(noised)
    assert "aggregate.merge.name = 'median'" in problem
    assert not list(AggregateSettings().conflicts(noised))
