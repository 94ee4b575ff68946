"""What the earlier stages left, as the report reads it: every part loaded on first use, None where it is missing."""

import base64
import csv
from functools import cached_property
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Damaged, read_json, read_lines, read_tree
from tasks.params import counted
from tasks.partition.federation import Meta
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.params import Params

PACKAGES = (
    "fedloom", "torch", "numpy", "ray", "scikit-learn", "scipy", "safetensors", "pydantic", "dp-accounting", "dvc",
    "mlflow", "prefect",
)  # fmt: skip


class Run:
    """One run of the pipeline: its parameters, and the folders under ``folder``.

    A stage that was not run gives None or an empty list, so that a page is made of what there is; a file that is there
    and cannot be read is refused like everywhere.
    """

    def __init__(self, params: "Params", folder: Path):
        self.folder = folder
        self.params = counted(params, self.meta.clients) if self.meta else params

    @cached_property
    def meta(self) -> Meta | None:
        """What the samples are."""
        found = self._json("partition/meta.json")
        return Meta.model_validate(found, strict=False) if found else None

    @cached_property
    def card(self) -> dict[str, Any] | None:
        """The heterogeneity in numbers."""
        return self._json("partition/card.json")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One row a round."""
        return self._lines("train/history.jsonl")

    @cached_property
    def diagnostics(self) -> list[dict[str, float | None]]:
        """What topology and algorithm told of their state: numbers by name, from before the first round on."""
        return self._lines("train/diagnostics.jsonl")

    @cached_property
    def uploads(self) -> Tree:
        """The decoded uploads of the last round: ``delta/...`` stacked, and their ``weights``."""
        path = self.folder / "train" / "uploads.safetensors"
        return read_tree(path) if path.exists() else {}

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The training in a few numbers."""
        return self._json("train/summary.json")

    @cached_property
    def plan(self) -> dict[str, Any]:
        """How the engine laid the work out."""
        return self._json("train/plan.json") or {}

    @cached_property
    def timings(self) -> list[dict[str, float]]:
        """Wall-clock seconds by part of a round, one row a round, of the machine that trained."""
        return self._lines("timings.jsonl")

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """How good the released model is."""
        return self._json("aggregate/evaluation.json")

    @cached_property
    def fairness(self) -> dict[str, Any] | None:
        """How alike the released model treats groups, where the data have such and two classes."""
        return self._json("aggregate/fairness.json")

    @cached_property
    def clients(self) -> dict[str, list[float | None]]:
        """The columns of the table of clients."""
        return self._columns("aggregate/clients.csv")

    @cached_property
    def arrivals(self) -> dict[str, list[float | None]]:
        """The columns of the log of arrivals, where clients did not work in rounds."""
        return self._columns("train/schedule.csv")

    @cached_property
    def leakage(self) -> dict[str, Any] | None:
        """What the attacks on messages recovered."""
        return self._json("attack/leakage.json")

    @cached_property
    def membership(self) -> list[dict[str, Any]]:
        """What the attacks on the released model could tell."""
        return self._json("attack/membership.json") or []

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions of what made this page."""
        found = {"python": python_version()}
        for package in PACKAGES:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return found

    @cached_property
    def revision(self) -> str | None:
        """The git revision of the code at work, or None outside a repository."""
        from tasks.tracking import git

        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "tasks")
        return f"{commit} with uncommitted changes" if commit and changed else commit

    def column(self, name: str) -> list[Any]:
        """One column of the history."""
        return [row[name] for row in self.history]

    def embedded(self, path: str) -> str | None:
        """A picture under the folder of artefacts as a URI that holds all of it."""
        file = self.folder / path
        if not file.exists():
            return None
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[file.suffix]
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

    def reconstruction(self, path: str) -> Tree:
        """What an attack made of a message beside the originals: ``original``, ``reconstruction`` and ``labels``."""
        return read_tree(self.folder / "attack" / path)

    def _columns(self, name: str) -> dict[str, list[float | None]]:
        path = self.folder / name
        if not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            return {n: [float(row[n]) if row[n] != "" else None for row in rows] for n in (rows[0] if rows else ())}
        except (TypeError, ValueError) as error:
            raise Damaged(path, f"has an incomplete row ({error})") from None

    def _json(self, path: str) -> Any:
        return read_json(self.folder / path) if (self.folder / path).exists() else None

    def _lines(self, path: str) -> list[dict[str, Any]]:
        return read_lines(self.folder / path) if (self.folder / path).exists() else []
