"""The user's own pictures."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Located, Rows, Samples, hold_out
from tasks.partition.sources import damaged, existing

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


class ImageFolder(Located):
    """Your own pictures: a folder a class (``cats/1.png``), or such folders under ``train`` and ``test``.

    Every picture is scaled to ``size`` by ``size`` pixels, in [0, 1]. Pictures are opened when they are needed.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    name: Literal["image_folder"] = "image_folder"
    path: Path = Field(description="the folder of class folders, relative to params.yaml")
    size: int = Field(32, ge=4, le=1024, description="pixels on a side")
    grayscale: bool = Field(False, description="one channel instead of three")

    def load(self, seed: int, test_fraction: float) -> Samples:
        root = existing(self.path, "folder")
        own_test = (root / "train").is_dir() and (root / "test").is_dir()
        train_root = root / "train" if own_test else root
        names = tuple(folder.name for folder in _visible(train_root) if folder.is_dir())
        if len(names) < 2:
            found = f"{len(names)} folder{'' if len(names) == 1 else 's'}"
            raise Refused(
                f"{FIELD}.path", str(train_root), f"has {found}, but every class needs one", "Add a folder a class"
            )
        paths, y = _pictures(train_root, names)
        if own_test:
            test_paths, test_y = _pictures(root / "test", names)
            rows, test_rows = (
                Rows(np.arange(len(y)), self._reader(paths)),
                Rows(np.arange(len(test_y)), self._reader(test_paths)),
            )
        else:
            train, test = hold_out(y, test_fraction, generator(seed, "test set"))
            rows, test_rows = Rows(train, self._reader(paths)), Rows(test, self._reader(paths))
            y, test_y = y[train], y[test]
        shape = (1 if self.grayscale else 3, self.size, self.size)
        return Samples(rows, y, test_rows, test_y, "image", shape, names, range=(0.0, 1.0))

    def _reader(self, paths: list[Path]):
        return lambda index: np.stack([self._picture(paths[i]) for i in index])

    def _picture(self, path: Path) -> np.ndarray:
        """One picture, float32 [channels, size, size]."""
        from PIL import Image

        try:
            with Image.open(path) as image:
                sized = image.convert("L" if self.grayscale else "RGB").resize(
                    (self.size, self.size), Image.Resampling.BILINEAR
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise damaged(path, f"is not a picture that can be opened ({error})") from None
        pixels = np.asarray(sized, np.float32) / 255.0
        return pixels[None] if self.grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _pictures(root: Path, names: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """All pictures under the class folders ``names`` and their labels int64 [n]."""
    if strangers := [path.name for path in _visible(root) if path.is_dir() and path.name not in names]:
        raise Refused(f"{FIELD}.path", str(root), f"has class folders that training lacks: {', '.join(strangers)}")
    paths, y = [], []
    for label, name in enumerate(names):
        found = [path for path in sorted((root / name).rglob("*")) if path.suffix.lower() in SUFFIXES]
        if not found:
            allowed = ", ".join(sorted(SUFFIXES))
            raise Refused(f"{FIELD}.path", str(root / name), "holds no picture", f"Pictures end in {allowed}")
        paths += found
        y += [label] * len(found)
    return paths, np.array(y, np.int64)
