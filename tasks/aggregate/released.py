"""The released model as others use it: a folder with its weights and a description, loaded without unpickling.

This module travels with every model in MLflow's registry, together with the code of the network.
"""

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

from tasks.artifacts import read_json, read_tree, write_tree
from tasks.models import Model, Network, build
from tasks.tree import Tree

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class Description(BaseModel):
    """What it takes to build the network again."""

    model: Model
    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    features: tuple[str, ...] | None = None
    seed: int


class Released:
    """A trained network that predicts class probabilities."""

    def __init__(self, network: Network, weights: Tree, class_names: tuple[str, ...]):
        self.network, self.weights, self.class_names = network, weights, class_names

    def predict(self, model_input: np.ndarray, params: dict | None = None, batch: int = 2048) -> np.ndarray:
        """Class probabilities float32 ``[samples, (positions,) classes]`` for samples ``[samples, *shape]``."""
        x = torch.from_numpy(np.ascontiguousarray(model_input))
        with torch.no_grad():
            outputs = [self.network.apply(self.weights, x[i : i + batch]) for i in range(0, len(x), batch)]
        return torch.cat(outputs).softmax(-1).numpy()

    def get_raw_model(self) -> torch.nn.Module:
        """The torch module with the released weights, for more than predicting."""
        self.network.module.load_state_dict(self.weights, strict=False)
        return self.network.module.eval()


def save(folder: Path, description: Description, weights: Tree) -> None:
    """Writes what :func:`load` reads."""
    write_tree(folder / WEIGHTS, weights)
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2), encoding="utf-8")


def load(folder: Path) -> Released:
    """The model that :func:`save` wrote."""
    described = Description.model_validate_json(json.dumps(read_json(folder / DESCRIPTION)))
    network = build(described.model, described.shape, described.classes, described.seed)
    return Released(network, read_tree(folder / WEIGHTS), described.class_names)


def _load_pyfunc(path: str) -> Released:
    """What MLflow calls (its loader module)."""
    return load(Path(path))
