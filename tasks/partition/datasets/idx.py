"""Folders of idx files: MNIST and the many sets published in its format."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Located, Rows, Samples, Source, hold_out, numbered
from tasks.partition.sources import damaged, existing, pixels

IMAGES = re.compile(r"(?P<part>.*?)-?images[-.]idx(?P<rank>[34])-ubyte(\.gz)?")
LABELS = re.compile(r"(?P<part>.*?)-?labels[-.]idx1-ubyte(\.gz)?")


class Idx(Located):
    """A folder of images and labels in the idx format, gzipped or not: mnist, fashion_mnist, kmnist, usps and others.

    The folder holds ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz``, and the same with ``t10k-`` or
    ``test-`` in place of ``train-`` for the test set. Files that are not gzipped are memory-mapped.

    Source: the format is LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    name: Literal["idx"] = "idx"
    path: Path = Field(Path("data/mnist"), description="the folder, relative to params.yaml")
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="use these training images only, from the first up to the second, which is left out"
    )

    def shares(self, other: Source) -> bool:
        if not isinstance(other, Idx) or not super().shares(other):
            return False
        (start, end), (first, last) = (idx.rows or (0, math.inf) for idx in (self, other))
        return start < last and first < end

    def load(self, seed: int, test_fraction: float) -> Samples:
        folder = existing(self.path, "folder")
        x, y = _pair(folder, "train")
        read = pixels(x, str(folder), "none" if x.ndim == 3 else "last")
        kept = self._kept(len(y))
        y = y[kept]
        if any(_is_test(_part(path)) for path in folder.iterdir()):
            test, test_y = _pair(folder, "test")
            if test.shape[1:] != x.shape[1:]:
                raise damaged(folder, f"has training images {list(x.shape[1:])} but test images {list(test.shape[1:])}")
            test_rows = Rows(np.arange(len(test)), pixels(test, str(folder), "none" if x.ndim == 3 else "last"))
            rows = Rows(kept, read)
        else:
            train_index, test_index = hold_out(y, test_fraction, generator(seed, "test set"))
            rows, test_rows = Rows(kept[train_index], read), Rows(kept[test_index], read)
            y, test_y = y[train_index], y[test_index]
        return Samples(
            x=rows,
            y=y,
            test_x=test_rows,
            test_y=test_y,
            kind="image",
            shape=(1, *x.shape[1:]) if x.ndim == 3 else (x.shape[3], x.shape[1], x.shape[2]),
            class_names=numbered(y, test_y, str(folder)),
            range=(0.0, 1.0),
        )

    def _kept(self, images: int) -> np.ndarray:
        """The positions of the training images that are used, of so many."""
        first, end = self.rows or (0, images)
        if not first < end <= images:
            mend = "Name the first and the one after the last, counted from 0"
            raise Refused(f"{FIELD}.rows", [first, end], f"is no part of the {images} images there", mend)
        return np.arange(first, end)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file: memory-mapped, or decompressed where it ends in ``.gz``.

    The header is two zero bytes, a byte for the type (8 is uint8), a byte for the rank, and the big-endian int32 sizes.
    Raises ``Refused`` where the header and the length do not agree.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08":
                raise damaged(path, f"does not begin as an idx file of bytes does (found {magic.hex(' ')})")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise damaged(path, "ends inside its header")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">i4"))
            # One byte more than promised, so that a file that is too long is seen as well.
            promised = math.prod(shape)
            if path.suffix == ".gz":
                body = np.frombuffer(file.read(promised + 1), np.uint8)
            else:
                body = np.memmap(path, np.uint8, "r", 4 + len(sizes)) if promised else np.zeros(0, np.uint8)
    except EOFError:
        raise damaged(path, "is truncated: its compressed stream ends early") from None
    except (OSError, zlib.error, ValueError) as error:
        raise damaged(path, f"cannot be read ({error})") from None
    if len(body) != promised:
        found = f"{len(body)} bytes" if len(body) < promised else "more"
        raise damaged(path, f"its header promises {list(shape)}, which is {promised} bytes, but {found} follow")
    return body.reshape(shape)


def _part(path: Path) -> str | None:
    found = IMAGES.fullmatch(path.name)
    return found["part"].lower() if found else None


def _is_test(part: str | None) -> bool:
    return part is not None and ("t10k" in part or "test" in part)


def _pair(folder: Path, part: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, height, width] or [n, height, width, channels] and the labels int64 [n] of one part."""
    images = _only(folder, IMAGES, part)
    labels = _only(folder, LABELS, part)
    x, y = read_idx(images), read_idx(labels)
    if x.ndim not in (3, 4) or y.ndim != 1:
        wrong = images if x.ndim not in (3, 4) else labels
        raise damaged(wrong, f"has {x.ndim if wrong is images else y.ndim} dimensions, which its name does not say")
    if len(x) != len(y):
        raise damaged(labels, f"holds {len(y)} labels for the {len(x)} images of {images.name}")
    if not len(x):
        raise damaged(images, "holds no image")
    return x, y.astype(np.int64)


def _only(folder: Path, pattern: re.Pattern, part: Literal["train", "test"]) -> Path:
    found = [
        path
        for path in sorted(folder.iterdir())
        if (match := pattern.fullmatch(path.name)) and _is_test(match["part"].lower()) == (part == "test")
    ]
    if len(found) == 1:
        return found[0]
    kind = "images-idx3" if pattern is IMAGES else "labels-idx1"
    wanted = f"{'train' if part == 'train' else 't10k'}-{kind}-ubyte.gz"
    if not found:
        raise Refused(f"{FIELD}.path", str(folder), f"has no file like {wanted}", "Add it, or name another folder")
    names = ", ".join(path.name for path in found)
    raise Refused(f"{FIELD}.path", str(folder), f"has several files like {wanted}: {names}", "Keep one set a folder")
