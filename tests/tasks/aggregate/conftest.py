"""A small published federation and the end of a training on it, written by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.artifacts import write_json, write_tree
from tasks.partition.federation import Federation

CLIENTS, CLASSES, SHAPE = 12, 3, (4,)


@pytest.fixture
def partition(tmp_path) -> Path:
    """Twelve clients of 1 to 12 samples times four, a quarter held out; labels follow the first three features."""
    folder = tmp_path / "artifacts" / "partition"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sizes = 4 * (1 + np.arange(CLIENTS))
    total = int(sizes.sum())
    arrays = {"indices": random.permutation(total), "offsets": np.concatenate([[0], np.cumsum(sizes)])}
    arrays["train_sizes"] = 3 * sizes // 4
    for prefix, samples in (("", total), ("test_", 60)):
        x = random.normal(size=(samples, *SHAPE)).astype(np.float32)
        arrays |= {f"{prefix}x": x, f"{prefix}y": x[:, :CLASSES].argmax(1)}
        arrays[f"{prefix}groups"] = (x[:, 3] > 0).astype(np.int64)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values if values.dtype == np.float32 else values.astype(np.int64))
    meta = {"dataset": "made", "kind": "table", "shape": SHAPE, "classes": CLASSES, "class_names": ["a", "b", "c"]}
    meta |= {"range": None, "samples": total, "test_samples": 60, "clients": CLIENTS}
    write_json(folder / "meta.json", meta | {"groups": {"name": "side", "values": ["left", "right"]}})
    return folder


@pytest.fixture
def federation(partition) -> Federation:
    return Federation.open(partition)


@pytest.fixture
def trained(partition) -> Path:
    """A logistic model that reads the labels off the features, and five uploads of its last round."""
    folder = partition.parent / "train"
    weights = torch.zeros(CLASSES, *SHAPE)
    weights[:, :CLASSES] = 2 * torch.eye(CLASSES)
    final = {"1.weight": weights, "1.bias": torch.zeros(CLASSES)}
    torch.manual_seed(0)
    delta = {name: 0.01 * torch.randn(5, *value.shape) for name, value in final.items()}
    uploads = {f"start/{name}": value for name, value in final.items()}
    uploads |= {f"delta/{name}": value for name, value in delta.items()}
    uploads |= {"weights": torch.tensor([3.0, 6.0, 9.0, 12.0, 0.0]), "clients": torch.arange(5)}
    write_tree(folder / "model.safetensors", final)
    write_tree(folder / "uploads.safetensors", uploads)
    return folder
