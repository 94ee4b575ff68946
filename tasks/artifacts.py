"""What one stage hands to the next: folders of plain files, written whole or not at all.

Trees are safetensors, tables are Parquet, logs are JSON lines, arrays are ``.npy`` opened memory-mapped. Nothing is
pickled, and what cannot be read is refused with the file's name and what to do about it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.config import Refused
from tasks.tree import Tree

ROOT = Path("artifacts")
"""Where the stages of a run keep their outputs, relative to the folder of ``dvc.yaml``."""


STAGES = ("partition", "train", "aggregate", "attack", "report")


class Damaged(Refused):
    """A file that is missing, truncated or not what it should be."""

    def __init__(self, path: Path, problem: str):
        stage = next((part for part in reversed(path.parts[:-1]) if part in STAGES), None)
        again = f"run {stage} again: `dvc repro -f -s {stage}`" if stage else "run the stage that wrote it again"
        super().__init__(str(path), None, problem, f"Remove it and {again}" if path.exists() else again.capitalize())


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` to write into, which takes its place when the block ends without an error.

    A process killed inside the block leaves ``path`` as it was; what it had half written is swept up by the next call.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        draft = path.parent / f".{path.name}.{os.getpid()}.draft.partial"
        draft.mkdir()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield draft
        _sync(draft)
        retired = path.parent / f".{path.name}.{os.getpid()}.retired.partial"
        if path.exists():
            path.rename(retired)
        draft.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise unwritable(path, error) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def unwritable(path: Path, error: OSError) -> Refused:
    """The refusal for a place that cannot be written to: full, read-only or not ours."""
    mend = "Free space or mend the permissions, then run again; nothing was lost"
    # shutil reports a list of all files that it could not copy; the first says why.
    reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
    return Refused(str(path), None, f"cannot be written ({reason})", mend)


def _sweep(path: Path) -> None:
    """Removes what dead processes left behind; one that died between two renames had the old folder out of place."""
    for stale in sorted(path.parent.glob(f".{path.name}.*.partial")):
        owner, kind = stale.name.removesuffix(".partial").split(".")[-2:]
        if _alive(int(owner)):
            continue
        if kind == "retired" and not path.exists():
            stale.rename(path)
        shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _discard(draft: Path) -> None:
    with contextlib.suppress(OSError):
        draft.unlink()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        _discard(draft)
        raise unwritable(path, error) from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(path, f"cannot be read ({error})") from None


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Damaged(path, f"is not complete JSON ({error})") from None


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines, one row a line."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in read_text(path).splitlines()]
    except json.JSONDecodeError as error:
        raise Damaged(path, f"has an incomplete line ({error})") from None


def write_tree(path: Path, tree: Tree, **notes: str) -> None:
    """A tree as safetensors; ``notes`` go into the file's header."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The format sorts its tensors; the header keeps the tree's own order, which a flattened vector relies on.
        header = {"names": json.dumps(list(tree)), **notes}
        save_file(_apart(tree), draft, metadata=header)
        draft.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        _discard(draft)
        raise unwritable(path, error if isinstance(error, OSError) else OSError(str(error))) from error


def _apart(tree: Tree) -> Tree:
    """The tensors on the CPU, none of them on the memory of another, which the format refuses."""
    taken: set[int] = set()
    apart = {}
    for name, value in tree.items():
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if memory in taken else plain
        taken.add(memory)
    return apart


def read_tree(path: Path) -> Tree:
    if not path.exists():
        raise Damaged(path, "does not exist")
    try:
        with safe_open(path, "pt") as file:
            names = json.loads((file.metadata() or {}).get("names", "null")) or file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise Damaged(path, f"is not a complete safetensors file ({error})") from None


def sha256(path: Path) -> str:
    """What a file's content is known by, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_array(path: Path) -> np.ndarray:
    """A ``.npy`` array, memory-mapped; what is written into it stays in memory and never reaches the file."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise Damaged(path, "does not exist") from None
    except (ValueError, OSError, EOFError) as error:
        raise Damaged(path, f"is not a complete .npy array ({error})") from None
