"""What the partition stage publishes and later stages read: memory-mapped, so that a million clients cost little."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from tasks.artifacts import Damaged, read_array, read_text
from tasks.config import Config


class Groups(Config):
    """What the numbers in ``groups.npy`` stand for."""

    name: str
    """the column that they come from, such as ``sex``"""
    values: tuple[str, ...]
    """the name of group 0, 1, ..."""


class Exchange(Config):
    """What clients and server sent each other before the training, all clients together."""

    bytes_up: int = 0
    bytes_down: int = 0
    exposed_samples: int = 0
    """samples that can be calculated exactly from what their owner sent"""


Kind = Literal["image", "table", "text"]


class Meta(Config):
    """What the samples are: the content of ``meta.json``."""

    dataset: str
    kind: Kind
    shape: tuple[int, ...]
    """of one sample; images are channels, height, width"""
    classes: int
    class_names: tuple[str, ...]
    range: tuple[float, float] | None
    """the smallest and largest value that a sample may hold, where there is such a bound"""
    samples: int
    test_samples: int
    public: int = 0
    """so many samples of the dataset's test set are the server's own: they lie behind those that are tested on"""
    clients: int
    groups: Groups | None = None
    features: tuple[str, ...] | None = None
    """the names of a table's columns after encoding"""
    synthetic: int = 0
    """so many samples at the end of ``x`` were made by a refinement: trained on, but nothing is judged on them"""
    exchange: Exchange = Exchange()


@dataclass(frozen=True)
class Federation:
    """A dataset split over clients. All arrays are memory-mapped; nothing written to them reaches the files.

    ``x`` [samples, *shape], ``y`` int64 [samples], ``test_x`` and ``test_y`` likewise; ``indices`` int64 [samples],
    ``offsets`` int64 [clients + 1] and ``train_sizes`` int64 [clients]: client c owns the samples
    ``indices[offsets[c]:offsets[c + 1]]``, of which the first ``train_sizes[c]`` train and the others validate.
    ``groups`` and ``test_groups`` are int64 [samples], or None where the dataset has no groups. ``public_x`` and
    ``public_y`` are samples that the server owns, often none.
    """

    path: Path
    meta: Meta
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    indices: np.ndarray
    offsets: np.ndarray
    train_sizes: np.ndarray
    groups: np.ndarray | None
    test_groups: np.ndarray | None
    public_x: np.ndarray
    public_y: np.ndarray

    @classmethod
    def open(cls, path: Path | str) -> "Federation":
        """The federation published in the folder ``path``.

        Raises ``Damaged`` where a file is missing or truncated, or where the files do not fit one another.
        """
        path = Path(path)
        try:
            meta = Meta.model_validate_json(read_text(path / "meta.json"))
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
            raise Damaged(path / "meta.json", f"does not describe a federation ({problem})") from None
        names = ["x", "y", "test_x", "test_y", "indices", "offsets", "train_sizes"]
        grouped = ["groups", "test_groups"]
        arrays = {name: read_array(path / f"{name}.npy") for name in names + (grouped if meta.groups else [])}
        public = {f"public_{name}": arrays[f"test_{name}"][meta.test_samples :] for name in ("x", "y")}
        arrays |= {name: array[: meta.test_samples] for name, array in arrays.items() if name.startswith("test_")}
        federation = cls(path=path, meta=meta, **{name: arrays.get(name) for name in names + grouped}, **public)
        federation._check()
        return federation

    def in_memory(self) -> "Federation":
        """The same with plain arrays in place of the mapped files, to be sent to machines that do not see them."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: np.array(v) for name, v in held.items() if isinstance(v, np.ndarray)})

    @property
    def clients(self) -> int:
        return self.meta.clients

    @property
    def sizes(self) -> np.ndarray:
        """The number of training samples of every client: int64 [clients]."""
        return self.train_sizes

    @cached_property
    def owned(self) -> np.ndarray:
        """The number of samples of every client, training and validation together: int64 [clients]."""
        return np.diff(self.offsets)

    def train(self, client: int) -> np.ndarray:
        """The positions in ``x`` of a client's training samples: int64 [train_sizes[client]]."""
        start = int(self.offsets[client])
        return np.array(self.indices[start : start + int(self.train_sizes[client])])

    def validation(self, client: int) -> np.ndarray:
        """The positions in ``x`` of a client's validation samples: int64, possibly none."""
        start, stop = int(self.offsets[client]), int(self.offsets[client + 1])
        return np.array(self.indices[start + int(self.train_sizes[client]) : stop])

    def measured(self, positions: np.ndarray) -> np.ndarray:
        """Whether the samples at ``positions`` in ``x`` were measured, not made by a refinement: bool."""
        return positions < self.meta.samples - self.meta.synthetic

    def _check(self) -> None:
        meta = self.meta
        expected = {
            "x": (meta.samples, *meta.shape),
            "y": (meta.samples,),
            "test_x": (meta.test_samples, *meta.shape),
            "test_y": (meta.test_samples,),
            "public_x": (meta.public, *meta.shape),
            "public_y": (meta.public,),
            "indices": (meta.samples,),
            "offsets": (meta.clients + 1,),
            "train_sizes": (meta.clients,),
        }
        if meta.groups:
            expected |= {"groups": (meta.samples,), "test_groups": (meta.test_samples,)}
        for name, shape in expected.items():
            array = getattr(self, name)
            kinds = ("float32", "int64") if name in ("x", "test_x", "public_x") else ("int64",)
            if array.shape != shape or array.dtype.name not in kinds:
                found = f"{array.dtype} {list(array.shape)}"
                raise self._damaged(name, f"holds {found}, but meta.json says {' or '.join(kinds)} {list(shape)}")
        if self.offsets[0] != 0 or self.offsets[-1] != meta.samples or (self.owned < 0).any():
            raise self._damaged("offsets", f"does not rise from 0 to {meta.samples}")
        if (self.train_sizes < 0).any() or (self.train_sizes > self.owned).any():
            raise self._damaged("train_sizes", "gives a client more training samples than it owns")
        seen = np.zeros(meta.samples, bool)
        inside = (self.indices >= 0) & (self.indices < meta.samples)
        seen[self.indices[inside]] = True
        if not seen.all():
            raise self._damaged("indices", f"does not name each of the {meta.samples} samples once")
        for name in ("y", "test_y"):
            labels = getattr(self, name)
            if labels.min() < 0 or labels.max() >= meta.classes:
                raise self._damaged(name, f"holds a label outside 0..{meta.classes - 1}")

    def _damaged(self, name: str, problem: str) -> Damaged:
        return Damaged(self.path / f"{name}.npy", problem)
