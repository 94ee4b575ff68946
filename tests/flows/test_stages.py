"""`dvc.yaml`: what runs again after which edit, and that no parameter and no line of code is forgotten."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.checkout import plan
from tasks.params import Params
from tasks.train.settings import Engine, TrainSettings

ROOT = Path(__file__).resolve().parents[2]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
WITHOUT_EFFECT = {"workers", "checkpoint_every", "profile"}
"""Fields of `train.engine` that change no result."""
NO_DEPENDENCY = {"tasks", "tasks.params", "tasks.config", "tasks.stage", "tasks.tracking", "tasks.progress"}
"""What every stage imports and what changes no number: the schema, the command and the tracking."""


def stale(folder: Path) -> list[str]:
    return [stage.name for stage in plan(folder) if stage.stale]


@pytest.mark.parametrize("stage", ["train", "report"])
def test_every_field_of_train_is_listed(stage):
    wanted = {f"train.{field}" for field in TrainSettings.model_fields} - {"train.engine"}
    wanted |= {f"train.engine.{field}" for field in set(Engine.model_fields) - WITHOUT_EFFECT}
    assert {name for name in STAGES[stage]["params"] if name.startswith("train.")} == wanted


def test_the_report_shows_all_that_the_other_stages_read():
    listed = set(STAGES["report"]["params"])
    assert all(set(entry["params"]) <= listed for entry in STAGES.values())
    assert {name.split(".")[0] for name in listed} == set(Params.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_a_stage_imports_is_a_dependency(stage):
    listed = [Path(name) for name in STAGES[stage]["deps"] if name.startswith("tasks/")]
    used = {path for path in closure(f"tasks.{stage}.stage") if path.is_relative_to(ROOT / "tasks")}
    forgotten = [p for p in used if not any(p.relative_to(ROOT).is_relative_to(known) for known in listed)]
    assert forgotten == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 0", "seed: 1", ["partition", "train", "aggregate", "attack", "report"]),
        ("alpha: 0.3", "alpha: 0.4", ["partition", "train", "aggregate", "attack", "report"]),
        ("lr: 0.5", "lr: 0.25", ["train", "aggregate", "attack", "report"]),
        ("merge: {name: final}", "merge: {name: mean}", ["aggregate", "attack", "report"]),
        ("messages: 4", "messages: 2", ["attack", "report"]),
        ("checkpoint_every: 10", "checkpoint_every: 5", []),
        ("workers: auto", "workers: 2", []),
    ],
)
def test_an_edited_parameter_runs_what_depends_on_it(checkout, old, new, expected):
    assert stale(checkout.folder) == []
    checkout.edit("params.yaml", old, new)
    assert stale(checkout.folder) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tasks/attack/stage.py", ["attack", "report"]),
        ("tasks/aggregate/stage.py", ["aggregate", "attack", "report"]),
        ("tasks/train/engine/plan.py", ["train", "aggregate", "attack", "report"]),
        ("tasks/params.py", []),
        ("data/mine.csv", ["partition", "train", "aggregate", "attack", "report"]),
    ],
)
def test_edited_code_and_data_run_what_depends_on_them(checkout, file, expected):
    with (checkout.folder / file).open("a") as text:
        text.write("\n# edited\n")
    assert stale(checkout.folder) == expected


def test_what_is_compiled_or_cached_is_no_edit(checkout):
    for name in ("tasks/attack/__pycache__/stage.cpython-311.pyc", ".fedloom/prefect/prefect.db"):
        path = checkout.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bytes")
    assert stale(checkout.folder) == []


def test_targets_bring_what_they_depend_on(checkout):
    assert [stage.name for stage in plan(checkout.folder, ["aggregate"])] == ["partition", "train", "aggregate"]


def test_metrics_and_plots_can_be_read(checkout):
    checkout.edit("params.yaml", "seed: 0", "seed: 1")
    checkout.dvc("repro")
    assert "train.json" in checkout.dvc("metrics", "diff")
    assert "index.html" in checkout.dvc("plots", "show")


def closure(module: str, seen: set[str] | None = None) -> Iterator[Path]:
    """The files that a module of ``tasks`` imports to work with, directly or not, with the ``__init__`` of packages."""
    seen = set() if seen is None else seen
    if module in seen or module in NO_DEPENDENCY:
        return
    seen.add(module)
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():
        return
    yield path
    for name in imported(ast.parse(path.read_text())):
        # A section of the schema may look at another one to refuse what does not fit together; that changes no number.
        crosses = module.endswith(".settings") and name.split(".")[:2] != module.split(".")[:2]
        if name.split(".")[0] == "tasks" and not crosses:
            yield from closure(name, seen)


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that are imported at run time; ``from a import b`` may mean a or a.b."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ImportFrom) and inner.module:
            yield from (inner.module, *(f"{inner.module}.{alias.name}" for alias in inner.names))
        elif isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif not (isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING"):
            yield from imported(inner)
