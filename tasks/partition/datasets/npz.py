"""The user's own arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.encoding import Standard
from tasks.partition.samples import FIELD, Located, Rows, Samples, coded, hold_out
from tasks.partition.sources import existing, npz_array, npz_names, pixels


class Npz(Located):
    """Your own arrays in one ``.npz``: samples ``x``, labels ``y``, and optionally ``test_x`` and ``test_y``.

    Two dimensions are a table and are standardised; three are grey images and four are colour images, uint8 in 0..255
    or floats in [0, 1]. An archive written by ``numpy.savez`` (uncompressed) is memory-mapped. Arrays of Python objects
    are refused: they would have to be unpickled.
    """

    name: Literal["npz"] = "npz"
    path: Path = Field(description="the archive, relative to params.yaml")
    x: str = Field("x", description="the array of training samples")
    y: str = Field("y", description="the array of training labels")
    test_x: str = Field("test_x", description="the array of test samples; without it a test set is split off")
    test_y: str = Field("test_y", description="the array of test labels")
    channels: Literal["auto", "first", "last"] = Field("auto", description="where the channels of colour images are")
    keep: tuple[str, ...] = Field((), description="arrays with one value a sample, by which to split or group")
    group: str | None = Field(None, description="one of `keep`, to publish as groups")

    def load(self, seed: int, test_fraction: float) -> Samples:
        path = existing(self.path, "file")
        if self.group is not None and self.group not in self.keep:
            raise Refused(f"{FIELD}.group", self.group, "must be one of `keep`", f"keep holds {list(self.keep)}")
        x, labels = self._array("x"), self._array("y").reshape(-1)
        if x.ndim not in (2, 3, 4) or not len(x) or len(labels) != len(x):
            found = f"{list(x.shape)} with {len(labels)} labels"
            raise Refused(f"{path}: {self.x}", found, "must be [n, features], [n, h, w] or [n, h, w, c] with n labels")
        columns = {name: npz_array(path, name).reshape(-1) for name in self.keep}
        for name, values in columns.items():
            if len(values) != len(x):
                raise Refused(f"{path}: {name}", len(values), f"must hold one value for each of the {len(x)} samples")
        own_test = self.test_x in npz_names(path)
        if own_test and self.group is not None:
            mend = "Leave test_x out, and a test set is split off with its groups"
            raise Refused(f"{FIELD}.group", self.group, "groups of a separate test set are not in the archive", mend)
        test_x, test_labels = (
            (self._array("test_x"), self._array("test_y").reshape(-1)) if own_test else (x[:0], labels[:0])
        )
        if test_x.shape[1:] != x.shape[1:] or len(test_x) != len(test_labels) or (own_test and not len(test_x)):
            found = f"{list(test_x.shape)} with {len(test_labels)} labels"
            raise Refused(
                f"{path}: {self.test_x}", found, f"must be [m, {', '.join(map(str, x.shape[1:]))}] with m labels"
            )
        codes, class_names = coded(np.concatenate([labels, test_labels]), f"{path}: {self.y}")
        y, test_y = codes[: len(labels)], codes[len(labels) :]
        train = np.arange(len(x))
        test = np.arange(len(test_x))
        if not own_test:
            train, test = hold_out(y, test_fraction, generator(seed, "test set"))
            test_x, test_y = x, y
        read, test_read, shape = self._readers(x, test_x, train)
        return Samples(
            x=Rows(train, read),
            y=y[train],
            test_x=Rows(test, test_read),
            test_y=test_y[test],
            kind="table" if x.ndim == 2 else "image",
            shape=shape,
            class_names=class_names,
            range=None if x.ndim == 2 else (0.0, 1.0),
            columns={name: values[train] for name, values in columns.items()},
            test_columns={} if own_test else {name: values[test] for name, values in columns.items()},
            group=self.group,
        )

    def _array(self, field: Literal["x", "y", "test_x", "test_y"]) -> np.ndarray:
        return npz_array(self.path, getattr(self, field))

    def _readers(
        self, x: np.ndarray, test_x: np.ndarray, train: np.ndarray
    ) -> tuple[Callable, Callable, tuple[int, ...]]:
        """Readers of the training and the test array, and the shape of one sample."""
        where = f"{self.path}: {self.x}"
        if x.ndim == 2:
            if x.dtype.kind not in "fiub":
                raise Refused(where, str(x.dtype), "a table must hold numbers")
            standard = Standard.fit(x, train, where)
            return standard.reader(x), standard.reader(test_x), x.shape[1:]
        if x.ndim == 3:
            layout, shape = "none", (1, *x.shape[1:])
        else:
            layout = self.channels
            if layout == "auto":
                layout = "last" if x.shape[3] in (1, 3, 4) else "first"
            shape = x.shape[1:] if layout == "first" else (x.shape[3], x.shape[1], x.shape[2])
        return pixels(x, where, layout), pixels(test_x, f"{self.path}: {self.test_x}", layout), tuple(shape)
