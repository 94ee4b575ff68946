"""The cells of a replication: one arm with one seed each, in a working folder of its own that is kept between runs.

The folders are under `.fedloom/replications/<slug>/`, named by the parameters of the cell and the code of the stages.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ruamel.yaml import YAML

from flows import claims, overrides
from flows.claims import Replication
from flows.pipelines import Stage
from tasks import params
from tasks.artifacts import read_json
from tasks.attack.settings import AttackSettings
from tasks.config import Config, Refused

DATA = "FEDLOOM_DATA"
"""Environment variable: a folder with what `data/` does not have."""


class Cell(NamedTuple):
    """One arm with one seed: what to run, and where. Without ``data`` it is a partition, which arms share."""

    slug: str
    arm: str
    seed: int
    settings: params.Params
    stages: tuple[Stage, ...]
    folder: Path
    data: Path | None

    @property
    def label(self) -> str:
        return f"{self.slug} · {self.arm} · seed {self.seed}"

    @property
    def record(self) -> Path:
        """The file that says which stages are done, and in how many seconds; and the run in MLflow."""
        return self.folder / "cell.json"

    @property
    def known(self) -> dict[str, Any]:
        return read_json(self.record) if self.record.exists() else {"seconds": {}, "run": None}

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage that is done."""
        return self.known["seconds"]

    @property
    def missing(self) -> list[Stage]:
        """The stages still to run. Of a partition little is kept in the end, so it may have to run again."""
        gone = self.data is None and not (self.folder / "artifacts" / "partition" / "x.npy").exists()
        return [stage for stage in self.stages if gone or stage not in self.seconds]


def plan(place: Path, slug: str, replication: Replication, seeds: Sequence[int]) -> list[Cell]:
    """The cells of a replication, seed by seed, for the code in ``place``.

    Every seed runs what the metrics need; the first one is attacked too, so that each arm's leak is known.
    """
    found, version = [], code(place)
    for seed in seeds:
        for arm in replication.arms:
            chosen = settings(slug, replication, arm, seed)
            needs = replication.needs | ({"attack"} if chosen.attack.suite and seed == seeds[0] else set())
            if "attack" in needs and not all(method.needs_transcript for method in chosen.attack.suite):
                needs = needs | {"aggregate"}  # which releases the model that is attacked
            stages = tuple(stage for stage in get_args(Stage) if stage in needs - {"partition"})
            folder = _folder(place, arm, seed, chosen.model_dump_json(), version)
            data = _folder(place, "partition", seed, chosen.partition.model_dump_json(), version)
            found.append(Cell(slug, arm, seed, chosen, stages, folder, data))
    return found


def _folder(place: Path, what: str, seed: int, *depends: str) -> Path:
    digest = hashlib.sha256("\0".join(depends).encode()).hexdigest()[:12]
    return place.parent / f"{what}-{seed}-{digest}"


def partition(cell: Cell) -> Cell:
    """The partition that a cell trains on."""
    return cell._replace(arm="partition", stages=("partition",), folder=cell.data, data=None)


def settings(slug: str, replication: Replication, arm: str, seed: int) -> params.Params:
    """The parameters of an arm, which is attacked as by default unless its own suite says otherwise."""
    attack = AttackSettings()
    leak = {
        "suite": [method.model_dump(mode="json") for method in attack.suite if method.needs_transcript],
        "defences": [attack.defences[0].model_dump(mode="json")],
    }
    alone = {"train": {"engine": {"workers": 0}}, "aggregate": {"registry": None}, "seed": seed}
    document = overrides.merge({"attack": leak}, replication.base, replication.arms[arm], alone)
    return params.build(document, f"{claims.FOLDER}/{slug}.yaml, arm {arm}")


def about(replication: Replication, todo: Sequence[Cell]) -> list[str]:
    """The methods that the claims are about, as places and names: those that are named, or else those that the arm
    `method` uses and the arm `baseline` does not, whatever they are attacked with.

    Raises ``Refused`` where there are none: the page on methods would not know of the replication.
    """
    used = {cell.arm: list(dict.fromkeys(_used(cell.settings, ""))) for cell in todo}
    new = [method for method in used["method"] if method not in used["baseline"]]
    found = list(replication.about) or [method for method in new if not method.startswith("attack.")]
    if not found:
        problem = "arm `method` uses no method that `baseline` does not use too"
        raise Refused(f"{claims.FOLDER}/{todo[0].slug}.yaml: about", None, problem, "Name what the claims are about")
    return found


def _used(section: Config, prefix: str) -> Iterator[str]:
    """The methods in some settings."""
    for name, value in section:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Config):
                if "name" in type(inner).model_fields:
                    yield f"{prefix}{name}.{inner.name}"
                yield from _used(inner, f"{prefix}{name}.")


def prepare(cell: Cell) -> Path:
    """The cell's folder with its parameters, whose file is returned, and a link to the partition."""
    (cell.folder / "artifacts").mkdir(parents=True, exist_ok=True)
    with (cell.folder / params.FILE).open("w", encoding="utf-8") as text:
        YAML(typ="safe", pure=True).dump(cell.settings.model_dump(mode="json"), text)
    if cell.data:
        (cell.folder / "metrics").mkdir(exist_ok=True)
        for name in ("artifacts/partition", "metrics/partition.json"):
            link = cell.folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(cell.data / name, link.parent))
    return cell.folder / params.FILE


def lacking(main: Path, slug: str, replication: Replication) -> Refused | None:
    """The refusal of a replication whose data are not there."""
    for arm in replication.arms:
        for path in _paths(settings(slug, replication, arm, replication.seeds[0]).partition):
            below = path.relative_to("data") if path.is_relative_to("data") else path
            if not any((root / below).exists() for root in roots(main)):
                mend = f"Put it there, or set {DATA} to a folder that has {below}; docs/data.md says what it holds"
                return Refused(f"{claims.FOLDER}/{slug}.yaml: {arm}", str(path), "does not exist", mend)
    return None


def _paths(section: Any) -> Iterator[Path]:
    """Every path in some settings."""
    if isinstance(section, Path):
        yield section
    elif isinstance(section, Config):
        for _, value in section:
            yield from _paths(value)
    elif isinstance(section, tuple):
        for value in section:
            yield from _paths(value)


def roots(main: Path) -> list[Path]:
    """The folders that may have a dataset, the first that has it counts."""
    return [main / "data", *(Path(folder) for folder in [os.environ.get(DATA)] if folder)]


def workplace(main: Path, slug: str) -> Path:
    """Where the stages of a replication run: the code as it is now, whatever is edited meanwhile, and the data."""
    place = main / ".fedloom" / "replications" / slug / "code"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(main / "tasks", place / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(main / "dvc.yaml", place / "dvc.yaml")
    (place / "data").mkdir()
    for root in roots(main):
        for entry in sorted(root.glob("*")):
            link = place / "data" / entry.name
            if not link.exists():
                link.symlink_to(entry.resolve())
    return place


def code(folder: Path) -> str:
    """A hash of the code that the numbers of a cell depend on, as `dvc.yaml` lists it."""
    stages = YAML(typ="safe", pure=True).load(folder / "dvc.yaml")["stages"]
    listed = {dep for name, stage in stages.items() if name != "report" for dep in stage["deps"]}
    digest = hashlib.sha256()
    for name in sorted(dep for dep in listed if dep.startswith("tasks/")):
        path = folder / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def sweep(place: Path, kept: Sequence[Cell]) -> None:
    """Removes the forerunners of the cells, which had other parameters or other code, and the samples, by far the
    largest part of a partition and quickly made again."""
    folders, seeds = {cell.folder for cell in kept}, {str(cell.seed) for cell in kept}
    for old in place.glob("*-*-*"):
        if old not in folders and old.name.split("-")[1] in seeds:
            shutil.rmtree(old, ignore_errors=True)
    for array in place.glob("partition-*/artifacts/partition/*.npy"):
        array.unlink()
