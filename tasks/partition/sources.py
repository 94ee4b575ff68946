"""Reading what lies on the user's disk: clear refusals, memory maps where the format allows, chunks elsewhere."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.config import Refused
from tasks.partition.samples import FIELD


def existing(path: Path, what: Literal["file", "folder"], field: str = "path") -> Path:
    """``path`` itself, once it is known to be there."""
    if path.is_file() if what == "file" else path.is_dir():
        return path
    problem = f"is not a {what}" if path.exists() else "does not exist"
    mend = f"Put the {what} there, or name another; docs/data.md says what each dataset expects"
    raise Refused(f"{FIELD}.{field}", str(path), problem, mend)


def damaged(path: Path, problem: str) -> Refused:
    """The refusal of a data file that is truncated or not what its name says."""
    return Refused(str(path), None, problem, "Get the file again, or check that it is the one you meant")


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, f"is not a complete .npz archive ({error})") from None


def npz_array(path: Path, name: str) -> np.ndarray:
    """One array of an ``.npz`` archive: memory-mapped if it is stored uncompressed (``np.savez``), else decompressed.

    Raises ``Refused`` where the key is missing, the archive is damaged, or the array holds Python objects.
    """
    names = npz_names(path)
    if name not in names:
        raise Refused(str(path), None, f"has no array {name!r}", f"It holds: {', '.join(names) or 'nothing'}")
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(file)
                if dtype.hasobject:
                    mend = (
                        "Save plain numbers or text: `np.savez(path, x=x, y=y)` with arrays that are not dtype=object"
                    )
                    raise Refused(f"{path}: {name}", None, "holds pickled Python objects, which are never opened", mend)
                start = file.tell()
            if entry.compress_type == zipfile.ZIP_STORED and np.prod(shape) > 0:
                order = "F" if fortran else "C"
                return np.memmap(path, dtype, "r", _start(path, entry) + start, shape, order)
            with archive.open(entry) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                # Reading past the end makes zipfile compare the checksum.
                file.read(1)
                return array
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise damaged(path, f"array {name!r} cannot be read ({error})") from None


def _start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begin: after its local header, whose last two fields are the lengths of name and extra."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + name + extra


def pixels(stored: np.ndarray, where: str, channels: Literal["none", "first", "last"]) -> Callable:
    """A reader of images in [0, 1], channels first, from uint8 in 0..255 or floats that are in [0, 1] already."""
    if stored.dtype != np.uint8 and stored.dtype.kind not in "fb":
        mend = "Convert with `images.astype('uint8')`"
        raise Refused(where, str(stored.dtype), "images must be uint8 (0..255) or floats in [0, 1]", mend)

    def read(index: np.ndarray) -> np.ndarray:
        raw = stored[index]
        x = raw.astype(np.float32)
        if raw.dtype == np.uint8:
            x /= 255.0
        elif not (x.min() >= 0.0 and x.max() <= 1.0):
            found = f"{x.min()}..{x.max()}"
            raise Refused(where, found, "float images must be in [0, 1]", "Scale them first, or save them as uint8")
        if channels == "none":
            return x[:, None]
        return x if channels == "first" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    return read
