"""The rules of the house, read off the imports (docs/architecture.md)."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("algorithms", "uplink", "schedules", "topologies", "privacy")
HEAVY = ("ray", "mlflow", "dvc", "dp_accounting", "matplotlib", "sklearn", "pyarrow", "prefect")


def modules(package: str) -> dict[str, ast.Module]:
    """Every module of a package, by dotted name."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return {name: ast.parse(file.read_text()) for name, file in zip(names, files, strict=True)}


def imports(tree: ast.AST) -> Iterator[str]:
    """What a module imports, anywhere in it; ``from a import b`` counts as both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_the_top(tree: ast.Module) -> Iterator[str]:
    """What a module imports when it is imported itself."""
    for node in tree.body:
        yield from imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ()


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


TASKS = modules("tasks")
FLOWS = modules("flows")


@pytest.mark.parametrize("name", TASKS)
def test_stages_know_no_orchestrator(name):
    forbidden = ["flows", "prefect"] + ([] if name == "tasks.tracking" else ["dvc"])
    assert not [found for found in imports(TASKS[name]) if within(found, *forbidden)]


@pytest.mark.parametrize("name", [n for n in TASKS if within(n, *(f"tasks.train.{m}" for m in METHODS))])
def test_methods_know_mathematics_not_machines(name):
    forbidden = ("ray", "mlflow", "tasks.train.engine", "tasks.train.coordinator", "tasks.train.stage")
    assert not [found for found in imports(TASKS[name]) if within(found, *forbidden)]


def test_no_tensor_is_touched_in_flows():
    assert not [(name, found) for name, code in FLOWS.items() for found in imports(code) if within(found, "torch.nn")]


def test_only_the_scoring_opens_the_private_batches():
    users = {
        name
        for name, code in (TASKS | FLOWS).items()
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and node.attr == "private" and isinstance(node.ctx, ast.Load)
    }
    assert users == {"tasks.attack.scoring"}


def test_heavy_packages_are_imported_where_they_are_used():
    top = {(name, found) for name, code in TASKS.items() for found in at_the_top(code) if within(found, *HEAVY)}
    assert not {pair for pair in top if not pair[0].startswith("tasks.report.")}


def test_the_schema_imports_without_the_heavy_packages():
    """So `tasks` runs where Ray, Prefect, DVC and MLflow are not installed."""
    code = f"import sys; import tasks.params, tasks.train.stage; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_are_no_circles_of_imports():
    graph = networkx.DiGraph()
    for name, code in (TASKS | FLOWS).items():
        for found in at_the_top(code):
            if found in TASKS or found in FLOWS:
                graph.add_edge(name, found)
    assert not list(itertools.islice(networkx.simple_cycles(graph), 3))


def test_no_module_is_a_drawer_for_everything():
    assert not [n for n in TASKS | FLOWS if {"utils", "helpers", "common", "misc"} & set(n.split("."))]


def test_nothing_is_unpickled():
    names = {"pickle", "cloudpickle", "dill", "joblib"}
    for name, code in (TASKS | FLOWS).items():
        assert not [found for found in imports(code) if within(found, *names)], name
        for node in ast.walk(code):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "torch.save"), name
                if called == "np.load":
                    allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert allowed.get("allow_pickle") == "False", name
