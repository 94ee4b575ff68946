"""CIFAR-10, from its published binary version or from an archive of arrays."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Rows, Samples, Source
from tasks.partition.sources import damaged, existing, npz_array, npz_names, pixels

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
"""Bytes of one record of the binary version: the label, then the red, green and blue planes."""


class Cifar10(Source):
    """Colour photographs of 32 x 32 pixels in ten classes, in [0, 1].

    ``path`` is the folder of the binary version (``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``,
    read through memory maps) or an ``.npz`` with ``x_train`` uint8 [n, 32, 32, 3], ``y_train``, ``x_test`` and
    ``y_test``.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    name: Literal["cifar10"] = "cifar10"
    path: Path = Field(Path("data/cifar-10-batches-bin"), description="the folder or the .npz, relative to params.yaml")

    def load(self, seed: int, test_fraction: float) -> Samples:
        part = _archived if self.path.suffix == ".npz" else _binary
        x, y = part(self.path, "train")
        test_x, test_y = part(self.path, "test")
        for labels in (y, test_y):
            if labels.max() >= len(CLASSES):
                raise damaged(self.path, f"holds the label {labels.max()}; CIFAR-10 has 0..{len(CLASSES) - 1}")
        return Samples(x, y, test_x, test_y, "image", SHAPE, CLASSES, range=(0.0, 1.0))


def _binary(folder: Path, part: Literal["train", "test"]) -> tuple[Rows, np.ndarray]:
    existing(folder, "folder")
    paths = sorted(folder.glob("data_batch_*.bin" if part == "train" else "test_batch.bin"))
    if not paths:
        wanted = "data_batch_1.bin to data_batch_5.bin" if part == "train" else "test_batch.bin"
        raise Refused(f"{FIELD}.path", str(folder), f"has no {wanted}", "Unpack cifar-10-binary.tar.gz there")
    maps = [_records(path) for path in paths]
    starts = np.cumsum([0, *(len(records) for records in maps)])
    y = np.concatenate([records[:, 0] for records in maps]).astype(np.int64)

    def read(index: np.ndarray) -> np.ndarray:
        raw = np.empty((len(index), RECORD - 1), np.uint8)
        for records, start, stop in zip(maps, starts, starts[1:], strict=False):
            here = (index >= start) & (index < stop)
            raw[here] = records[index[here] - start, 1:]
        return raw.reshape(-1, *SHAPE).astype(np.float32) / 255.0

    return Rows(np.arange(len(y)), read), y


def _records(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise damaged(path, f"has {size} bytes, which is not a whole number of records of {RECORD} bytes")
    return np.memmap(path, np.uint8, "r").reshape(-1, RECORD)


def _archived(path: Path, part: Literal["train", "test"]) -> tuple[Rows, np.ndarray]:
    existing(path, "file")
    x, y = npz_array(path, f"x_{part}"), npz_array(path, f"y_{part}").reshape(-1)
    where = f"{path}: x_{part}"
    if x.shape[1:] not in ((32, 32, 3), SHAPE) or len(x) != len(y) or not len(x):
        found = f"{list(x.shape)} with {len(y)} labels, among the arrays {', '.join(npz_names(path))}"
        raise Refused(where, found, "must be [n, 32, 32, 3] or [n, 3, 32, 32] with n labels")
    return Rows(np.arange(len(x)), pixels(x, where, "first" if x.shape[1:] == SHAPE else "last")), y.astype(np.int64)
