"""Refinements in the stage: encoders are the same for everybody, and what was sent before the training is counted."""

import json

import numpy as np
import pytest
import torch

from tasks import models, params
from tasks.aggregate.evaluation import on_clients
from tasks.artifacts import read_json, read_lines, read_tree
from tasks.config import Refused
from tasks.keys import generator
from tasks.models.architectures import Logistic
from tasks.partition.index import indexed
from tasks.partition.refine import PCA, Negative, Partitioned, RandomFeatures, Wire
from tasks.partition.stage import partition
from tasks.report.run import Run
from tasks.report.stage import made
from tasks.tracking import Tracker
from tasks.train.stage import train

FILL = [{"name": "pca", "components": 12}, {"name": "ggeur", "n_target": 20, "around": "prototypes", "min_count": 1}]
SECTION = {"clients": 8, "split": {"name": "dirichlet", "alpha": 0.2}, "limit": 400, "validation_fraction": 0.2}


def images(n: int = 200, side: int = 4, channels: int = 2) -> Partitioned:
    rng = np.random.default_rng(0)
    x = rng.random((n, channels, side, side), np.float32) * np.linspace(0.2, 1, side, dtype=np.float32)
    index = indexed(rng.integers(0, 5, n), 5, 0.25, generator(0, "order"))
    return Partitioned(x, rng.integers(0, 3, n), x[:20] + 0.1, index, "image", 3, range=(0.0, 1.0))


def encoded(method, data: Partitioned, folder) -> Partitioned:
    wire = Wire(folder / "exchange", data.clients)
    refined = method.refine(data, 3, wire)
    assert wire.total.bytes_up == wire.total.bytes_down == 0
    return refined


def test_all_components_turn_and_scale_and_the_variance_is_one(tmp_path):
    data = images()
    refined = encoded(PCA(components=32), data, tmp_path)
    flat = np.concatenate([data.x, data.test_x]).reshape(220, -1).astype(np.float64)
    z = np.concatenate([refined.x, refined.test_x]).astype(np.float64)
    before, after = (np.linalg.norm(each[:, None] - each, axis=2) for each in (flat, z))
    ratio = after[before > 0] / before[before > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    trained = refined.x[data.index.indices[data.trains]]
    assert np.abs(trained.mean(0)).max() < 1e-5 and trained.astype(np.float64).var() == pytest.approx(1, abs=1e-5)


def test_components_are_the_singular_vectors_of_the_training_samples(tmp_path):
    data = images()
    refined = encoded(PCA(components=5, pool=2), data, tmp_path)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(data.x), 2).flatten(1).double().numpy()
    rows = data.index.indices[data.trains]
    centred = pooled - pooled[rows].mean(0)
    v = np.linalg.svd(centred[rows], full_matrices=False)[2][:5].T
    wanted = centred @ v / (centred[rows] @ v).std()
    np.testing.assert_allclose(refined.x * np.sign((refined.x * wanted).sum(0)), wanted, atol=1e-4)


def test_what_validates_and_tests_does_not_shape_the_encoder(tmp_path):
    data = images()
    x = data.x.copy()
    rows = data.index.indices[data.trains]
    x[data.index.indices[~data.trains]] = 9.0
    other = Partitioned(x, data.y, data.test_x * 50, data.index, "image", 3)
    first, second = encoded(PCA(components=5), data, tmp_path), encoded(PCA(components=5), other, tmp_path)
    assert np.array_equal(first.x[rows], second.x[rows])
    assert not np.allclose(first.test_x, second.test_x)


def test_random_features_know_the_kernel_and_no_data(tmp_path):
    data = images()
    method = RandomFeatures(components=20_000, width=2.0)
    z = encoded(method, data, tmp_path).x[:30].astype(np.float64)
    flat = data.x[:30].reshape(30, -1)
    kernel = np.exp(-np.square(flat[:, None] - flat).sum(2) / (2 * 2.0**2))
    assert np.abs(z @ z.T - kernel).max() < 0.05
    few = Partitioned(data.x[:7], data.y[:7], data.test_x, indexed(np.arange(7) % 2, 2, 0, generator(0)), "image", 3)
    small = RandomFeatures(components=10)
    assert np.allclose(encoded(small, few, tmp_path).x, encoded(small, data, tmp_path).x[:7])


def test_two_negatives_are_the_image_and_noise_has_its_part(tmp_path):
    data = images()
    once = encoded(Negative(noise=0.0), data, tmp_path)
    np.testing.assert_allclose(once.x, 1 - data.x, atol=1e-6)
    np.testing.assert_allclose(encoded(Negative(noise=0.0), once, tmp_path).test_x, data.test_x, atol=1e-6)
    noise = encoded(Negative(noise=0.3), data, tmp_path).x - 0.7 * (1 - data.x)
    assert noise.min() >= -1e-6 and noise.max() <= 0.3 + 1e-6
    # Uniform in [0, 0.3]: the mean of 6400 draws has a standard error of 0.3 / sqrt(12 * 6400).
    assert noise.mean() == pytest.approx(0.15, abs=5 * 0.3 / (12 * noise.size) ** 0.5)


def test_what_does_not_fit_is_refused_by_its_field(tmp_path, run):
    with pytest.raises(Refused, match=r"refine: pca.components = 33: a sample has 32 values"):
        encoded(PCA(components=33), images(), tmp_path)
    with pytest.raises(Refused, match=r"refine: pca.pool = 3: must divide the sides"):
        encoded(PCA(pool=3), images(), tmp_path)
    with pytest.raises(Refused, match=r"refine: ggeur.name = 'ggeur': works on table data, not image. Put an encoder"):
        run(SECTION | {"refine": [{"name": "ggeur"}]})
    assert not (tmp_path / "run" / "artifacts" / "partition").exists()


@pytest.mark.parametrize(
    ("refine", "model", "problem"),
    [
        (FILL[1:], "cnn", r"partition.refine\[0\].name = 'ggeur': works on table data, not image; put an encoder"),
        (FILL[::-1], "logistic", r"partition.refine\[0\].name = 'ggeur': works on table data"),
        (FILL, "cnn", r"model.name = 'cnn': dataset 'digits' has image data, refined to table data; use logistic"),
        (FILL, "logistic", None),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_before_anything_runs(refine, model, problem):
    document = {"partition": {"refine": refine}, "model": {"name": model}}
    if problem is None:
        params.build(document)
    else:
        with pytest.raises(Refused, match=problem):
            params.build(document)


def test_clients_train_on_new_samples_and_are_judged_on_measured_ones(run):
    plain = run(SECTION | {"refine": FILL[:1]}, folder="a")
    filled = run(SECTION | {"refine": FILL}, folder="b")
    measured = filled.meta.samples - filled.meta.synthetic
    assert filled.meta.synthetic > 0 and measured == plain.meta.samples == 400
    assert np.array_equal(filled.x[:measured], plain.x) and np.array_equal(filled.test_x, plain.test_x)
    for client in range(8):
        assert np.array_equal(filled.validation(client), plain.validation(client))
        mine = filled.train(client)
        assert np.array_equal(mine[mine < measured], plain.train(client))
        assert np.bincount(filled.y[mine], minlength=10).min() >= 20
    card = read_json(filled.path / "card.json")
    assert card["synthetic_samples"] == filled.meta.synthetic
    assert card["total_variation"] < card["before_refinement"]["total_variation"]
    assert card["before_refinement"]["samples"] == 400


def test_nothing_to_fill_publishes_the_same_arrays(run):
    table = {"dataset": {"name": "breast_cancer"}, "clients": 6}
    plain = run(table, folder="a")
    same = run(table | {"refine": [{"name": "ggeur", "n_target": 1}]}, folder="b")
    for path in plain.path.glob("*.npy"):
        assert path.read_bytes() == (same.path / path.name).read_bytes(), path.name
    assert same.meta.model_copy(update={"exchange": plain.meta.exchange}) == plain.meta


def test_the_same_parameters_publish_the_same_bytes(run):
    first, second = (run(SECTION | {"refine": FILL}, folder=name).path for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert any(path.parts[0] == "exchange" for path in files)
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_what_is_kept_is_what_was_counted(run, tmp_path):
    federation = run(SECTION | {"refine": FILL})
    (index,) = read_json(federation.path / "exchange" / "index.json")
    folder, exchange = federation.path / "exchange" / index["folder"], federation.meta.exchange
    files = [folder / f"client-{client:05d}.safetensors" for client in range(8)]
    sizes = [sum(value.numel() * value.element_size() for value in read_tree(file).values()) for file in files]
    assert sizes == index["clients"]["bytes_up"] and exchange.bytes_up == sum(sizes)
    metrics = json.loads((tmp_path / "run" / "metrics" / "partition.json").read_text())
    assert metrics["exchange_bytes_down"] == exchange.bytes_down == sum(index["clients"]["bytes_down"])
    # A single sample of a class is the mean that was sent of it.
    alone = exposed = 0
    for client, file in enumerate(files):
        message, mine = read_tree(file), federation.train(client)
        mine = mine[mine < federation.meta.samples - federation.meta.synthetic]
        counts = np.bincount(federation.y[mine], minlength=10)
        assert np.array_equal(message["count"].numpy(), counts)
        exposed += counts[(counts == 1) | (counts == 2)].sum()
        for mean, c in zip(message["mean"].numpy(), np.flatnonzero(counts), strict=True):
            if counts[c] == 1:
                alone += 1
                assert np.array_equal(mean, federation.x[mine[federation.y[mine] == c]][0])
    assert alone == index["of_one_sample"] > 0
    assert exposed == exchange.exposed_samples == metrics["exchange_exposed_samples"]


def test_the_price_of_the_run_begins_with_the_exchange(tmp_path):
    document = {
        "partition": SECTION | {"refine": FILL},
        "model": {"name": "logistic"},
        "train": {"rounds": 2, "cohort": 4, "engine": {"workers": 0}},
    }
    settings, artifacts = params.build(document), tmp_path / "artifacts"
    partition(settings, artifacts, Tracker("partition"))
    train(settings, artifacts, Tracker("train"))
    sent = read_json(artifacts / "partition" / "meta.json")["exchange"]
    rows = read_lines(artifacts / "train" / "history.jsonl")
    for way in ("up", "down"):
        assert rows[0][f"total_bytes_{way}"] == sent[f"bytes_{way}"] + rows[0][f"bytes_{way}"]
        total = sent[f"bytes_{way}"] + sum(row[f"bytes_{way}"] for row in rows)
        assert (
            rows[-1][f"total_bytes_{way}"] == total == read_json(artifacts / "train" / "summary.json")[f"bytes_{way}"]
        )
    page = made(Run(settings, artifacts))
    assert sent["exposed_samples"] > 1 and f"{sent['exposed_samples']} training samples can be calculated" in page
    assert "of these up, before the training" in page


def test_a_promise_of_privacy_does_not_stand_beside_open_statistics():
    private = {"sampling": {"name": "poisson"}, "privacy": {"name": "gaussian"}}
    algorithm = {"name": "fedavg", "weighting": "uniform"}
    for refine, allowed in ((FILL, False), (FILL[:1], False), ([{"name": "random_features"}], True)):
        document = {
            "partition": SECTION | {"clients": 20, "refine": refine},
            "model": {"name": "logistic"},
            "train": {"cohort": 10, "algorithm": algorithm, **private},
        }
        if allowed:
            params.build(document)
        else:
            with pytest.raises(Refused, match=r"partition.refine\[0\].name = 'pca': .*epsilon"):
                params.build(document)


def test_a_model_is_scored_on_measured_samples_alone(run):
    federation = run(SECTION | {"refine": FILL})
    network = models.build(Logistic(), federation.meta.shape, federation.meta.classes, 0)
    scores = on_clients(network, network.parameters, federation, np.arange(8))
    made = [(~federation.measured(federation.train(client))).sum() for client in range(8)]
    assert sum(made) == federation.meta.synthetic > 0
    assert np.array_equal(scores.train.samples, federation.sizes - made)
    assert scores.all.samples.sum() == 400
