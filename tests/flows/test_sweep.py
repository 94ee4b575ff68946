"""Sweeps: what their cells are, and that they are run once each, side by side, whatever happens meanwhile."""

import itertools
import json
import re
import signal
import sys
from pathlib import Path

import pytest

from flows import checkout as place
from flows import grid, pipelines
from flows.deploy import sweep_deployment
from tasks.config import Refused
from tests.flows.conftest import ROOT, Checkout, git, until
from tests.flows.test_serve import call

HEAD = "pipelines: {default: {}, other: {overrides: {train: {cohort: 7}}}}\n"
FOUR = HEAD + (
    "sweeps: {s: {list: [{name: a}, {name: b, overrides: {train: {rounds: 3}}}], "
    "grid: {attack.messages: [1, 2]}, resources: {parallel: 2}}}\n"
)


@pytest.fixture
def known(tmp_path):
    """The cells of the sweep `s` of a `pipelines.yaml`, with the project's own `params.yaml` beside it."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())

    def expand(text: str) -> list[grid.Cell]:
        (tmp_path / "pipelines.yaml").write_text(HEAD + text)
        return grid.cells(tmp_path, "s", pipelines.read(tmp_path))

    return expand


def test_every_case_meets_every_point_of_the_grid_once(known):
    cells = known(
        "sweeps: {s: {pipeline: other, overrides: {train: {rounds: 9}}, "
        "list: [{name: a}, {name: b, overrides: {train: {rounds: 3}}}], "
        "grid: {seed: [1, 2], train.uplink: [[], [{name: sign}], [{name: topk, density: 0.5}]]}}}"
    )
    found = [
        (cell.settings.train.rounds, cell.settings.seed, tuple(codec.name for codec in cell.settings.train.uplink))
        for cell in cells
    ]
    assert found == list(itertools.product((9, 3), (1, 2), ((), ("sign",), ("topk",))))
    assert {cell.settings.train.cohort for cell in cells} == {7}
    assert cells[-1].label == "b, seed 2, uplink topk density 0.5"
    assert cells[0].values == {"case": "a", "seed": "1", "uplink": "none"}


def test_a_method_in_a_grid_takes_over_what_it_has_in_common(known):
    fedavg, fedprox = known("sweeps: {s: {grid: {train.algorithm.name: [fedavg, fedprox]}}}")
    assert (fedavg.settings.train.algorithm.lr, fedprox.settings.train.algorithm.name) == (0.5, "fedprox")
    assert fedprox.settings.train.algorithm.lr == 0.5
    assert fedprox.label == "algorithm fedprox"


def test_columns_whose_short_names_collide_are_told_apart(known):
    (cell,) = known("sweeps: {s: {grid: {train.algorithm.epochs: [2], train.privacy: [{name: none}], seed: [1]}}}")
    assert list(cell.values) == ["epochs", "privacy", "seed"]
    (cell,) = known("sweeps: {s: {grid: {train.algorithm.lr: [2], train.privacy.name: [none], train.privacy: [{}]}}}")
    assert list(cell.values) == ["lr", "train.privacy.name", "train.privacy"]


def test_an_experiment_is_named_by_what_its_numbers_depend_on_and_nothing_else(known):
    text = "sweeps: {{s: {{grid: {{train.rounds: [{}]}}, resources: {{parallel: {}, workers: {}}}}}}}"
    (cell,) = known(text.format(3, 1, 1))
    (same,) = known(text.format(3, 2, 2))
    (other,) = known(text.format(4, 1, 1))
    assert cell.experiment("v") == same.experiment("v")
    assert re.fullmatch(r"s-rounds-3-[0-9a-f]{8}", cell.experiment("v"))
    assert len({cell.experiment("v"), cell.experiment("w"), other.experiment("v")}) == 3
    (long,) = known(f"sweeps: {{s: {{grid: {{report.title: [{'x' * 200}]}}}}}}")
    assert len(long.experiment("v")) < 100


def test_cells_that_differ_after_the_training_share_it(known):
    one, two, three = known(
        "sweeps: {s: {list: [{name: a}, {name: b, overrides: {attack: {messages: 1}}}, "
        "{name: c, overrides: {train: {rounds: 3}}}]}}"
    )
    assert one.training == two.training != three.training


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        ("sweeps: {s: {}}", "sweeps.s: needs a `grid`, a `list` or both"),
        ("sweeps: {s: {grid: {seed: []}}}", "sweeps.s.grid.seed"),
        ("sweeps: {s: {gird: {seed: [1]}}}", "sweeps.s.gird: unknown field; did you mean `grid`"),
        ("sweeps: {s: {resources: {paralel: 2}, grid: {seed: [1]}}}", "did you mean `parallel`"),
        ("sweeps: {s: {list: [{nam: a}]}}", "sweeps.s.list.0.nam: unknown field; did you mean `name`"),
        ("sweeps: {s: {list: [{name: a}, {name: a}]}}", "two cases of `list` are called a"),
        ("sweeps: {s: {pipeline: othr, grid: {seed: [1]}}}", "sweeps.s.pipeline = 'othr': unknown; did you mean"),
        ("sweeps: {other: {grid: {seed: [1]}}}", "sweeps.other: a pipeline has this name already"),
        ("sweeps: {s: {grid: {train.ruonds: [1]}}}", "sweeps.s, cell `ruonds 1`: 1 problem\n  - train.ruonds"),
        ("sweeps: {s: {grid: {train.cohort: [10, 101]}}}", "sweeps.s, cell `cohort 101`: 1 problem"),
        ("sweeps: {s: {grid: {seed: [1, 1]}}}", "cell `seed 1`: is the same run as `seed 1`"),
        ("sweeps: {s: {list: [{name: a, overrides: {seed: 1}}, {name: b, overrides: {seed: 1}}]}}", "same run as `a`"),
    ],
)
def test_a_mistake_is_explained_with_its_sweep_and_its_cell(known, text, explained):
    with pytest.raises(Refused) as refused:
        known(text)
    assert explained in str(refused.value)


def test_the_sweeps_of_the_project_can_be_run():
    known = pipelines.read(ROOT)
    assert known.sweeps
    for name in known.sweeps:
        assert len(grid.cells(ROOT, name, known)) > 1


def test_validate_covers_sweeps_and_names_are_corrected(checkout: Checkout):
    (checkout.folder / "pipelines.yaml").write_text(FOUR.replace("[1, 2]", "[1, 0]"))
    output = checkout.fedloom("validate", code=2)
    assert "sweeps.s, cell `a, messages 0`" in output and "attack.messages = 0" in output
    (checkout.folder / "pipelines.yaml").write_text(FOUR)
    assert "(known: s)" in checkout.fedloom("sweep", "t", code=2)
    assert "0 of 4 cells" in checkout.fedloom("sweep")


def test_code_and_data_have_a_version_and_the_report_is_not_in_it(checkout: Checkout):
    folder, versions = checkout.folder, [place.version(checkout.folder)]
    (folder / "tasks" / "report" / "more.py").write_text("")
    (folder / "README.md").write_text("Nothing depends on it.")
    assert place.version(folder) == versions[0]
    for path in (folder / "tasks" / "attack" / "more.py", folder / "data" / "more.csv"):
        path.write_text("x")
        versions.append(place.version(folder))
    assert len(set(versions)) == 3


def test_a_sweep_is_deployed_with_what_it_varies():
    served = sweep_deployment("s", pipelines.Sweep(description="Which?", grid={"seed": (1, 2)}, tags=("x",)))
    assert (served.name, served.parameters, served.tags) == ("s", {"name": "s"}, ["x"])
    assert served.description.startswith("Which?") and "seed" in served.description


@pytest.fixture
def swept(checkout: Checkout, prefect_server: str) -> Checkout:
    """A checkout with a sweep of four cells, of which two train the same, on the running server."""
    (checkout.folder / "pipelines.yaml").write_text(FOUR)
    git(checkout.folder, "commit", "-aqm", "A sweep")
    checkout.environment["PREFECT_API_URL"] = prefect_server
    return checkout


SWEEP = (sys.executable, "-m", "flows.cli", "sweep", "s")


def kept(checkout: Checkout) -> dict[str, str]:
    """The experiments with their commits."""
    found = git(checkout.folder, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    pairs = (line.split() for line in found.splitlines())
    return {name.rpartition("/")[2]: commit for name, commit in pairs if "/s-" in name}


def test_a_sweep_that_is_killed_goes_on_and_repeats_nothing(swept: Checkout, prefect_server: str):
    # The cells of case a share the training that is there; those of b train, which takes long enough to be killed in.
    process = swept.start(*SWEEP, FEDLOOM_TEST_WAIT="train=60")
    until(lambda: "2 of 4 cells finished" in page(swept) and "train" in swept.log.read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "2 of 4 cells finished; waiting: 3 (b, messages 1), 4 (b, messages 2)" in page(swept)
    assert len(git(swept.folder, "worktree", "list").splitlines()) == 1
    before = kept(swept)
    swept.ran()

    output = swept.fedloom("sweep", "s")

    assert before.items() < kept(swept).items() and len(kept(swept)) == 4
    # One training for the two cells that need it, and what follows for each.
    assert sorted(swept.ran()) == sorted(["train", "aggregate", "attack", "report", "attack", "report"])
    assert "2 cells are unchanged and not repeated" in output
    shown = json.loads(swept.dvc("exp", "show", "--json"))
    names = {entry["name"] for entry in shown[1]["experiments"] for entry in entry["revs"]}
    assert names == set(kept(swept))
    for name, commit in kept(swept).items():
        assert f'href="{name}.html"' in page(swept) and (swept.folder / "reports" / f"{name}.html").exists()
        wanted = 3 if name.startswith("s-b-") else 200
        assert f"rounds: {wanted}" in git(swept.folder, "show", f"{commit}:params.yaml")
    # Each cell is a run of its own under that of the sweep, which did not run what was finished.
    runs = call(prefect_server, "flow_runs/filter", {"flow_runs": {"tags": {"all_": ["sweep:s"]}}})
    states = sorted((run["name"][:4], run["state_type"]) for run in runs)
    assert [state for state in states if state[1] == "COMPLETED"] == [("s-a-", "COMPLETED")] * 2 + [
        ("s-b-", "COMPLETED")
    ] * 2
    assert all(run["parent_task_run_id"] for run in runs)

    (name,) = (name for name in kept(swept) if name.startswith("s-b-messages-2-"))
    swept.dvc("exp", "apply", name)
    assert "rounds: 3" in (swept.folder / "params.yaml").read_text()
    git(swept.folder, "reset", "-q", "--hard")

    # Nothing is left to do: no server is needed, and a deleted report comes back from the cache.
    (gone,) = (swept.folder / "reports").glob("s-a-messages-1-*.html")
    text = gone.read_text()
    gone.unlink()
    assert "Every cell is finished" in swept.fedloom("sweep", "s", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert gone.read_text() == text
    assert swept.ran() == []


def test_a_cell_that_fails_stops_no_other_and_is_shown(swept: Checkout):
    (swept.folder / "pipelines.yaml").write_text(HEAD + "sweeps: {s: {grid: {seed: [13, 0]}}}\n")
    output = swept.fedloom("sweep", "s", code=1)
    assert "1 of 2 cells failed" in output
    assert "seed 13: partition: params.yaml: seed = 13: brings bad luck" in " ".join(output.split())
    assert "1 of 2 cells finished; failed: 1 (seed 13)" in page(swept)
    assert "brings bad luck" in page(swept)
    assert len(kept(swept)) == 1


def test_a_sweep_killed_outright_leaves_no_cell_running(swept: Checkout):
    process = swept.start(*SWEEP, FEDLOOM_TEST_WAIT="attack=60")
    until(lambda: swept.log.exists() and "attack" in swept.log.read_text())
    process.kill()
    process.communicate(timeout=60)
    pids = [line.split()[-1] for line in swept.log.read_text().splitlines()]
    # The cells notice at their next line that nobody listens.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    until(lambda: len(git(swept.folder, "worktree", "list").splitlines()) == 1)


@pytest.mark.slow
def test_a_sweep_is_started_and_cancelled_from_the_server(swept: Checkout, prefect_server: str):
    (swept.folder / "pipelines.yaml").write_text(HEAD + "sweeps: {s: {grid: {attack.messages: [1, 2]}}}\n")
    process = swept.start(sys.executable, "-m", "flows.cli", "serve", "s", FEDLOOM_TEST_WAIT="attack=6")
    wanted = {"flows": {"name": {"any_": ["sweep"]}}, "deployments": {"name": {"any_": ["s"]}}}

    def started() -> str:
        (served,) = call(prefect_server, "deployments/filter", wanted)
        return call(prefect_server, f"deployments/{served['id']}/create_flow_run", {})["id"]

    def state(run: str) -> str:
        return call(prefect_server, f"flow_runs/{run}")["state_type"]

    def working() -> list[str]:
        lines = swept.log.read_text().splitlines() if swept.log.exists() else []
        return [pid for pid in (line.split()[-1] for line in lines) if Path(f"/proc/{pid}").exists()]

    try:
        until(lambda: call(prefect_server, "deployments/filter", wanted))
        run = started()
        until(working)
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        call(prefect_server, f"flow_runs/{run}/set_state", cancelling)
        until(lambda: state(run) == "CANCELLED")
        until(lambda: not working() and len(git(swept.folder, "worktree", "list").splitlines()) == 1)
        assert kept(swept) == {}

        run = started()
        until(lambda: state(run) == "COMPLETED")
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.communicate(timeout=60)[0])
    assert len(kept(swept)) == 2 and "2 of 2 cells finished" in page(swept)
    artifacts = call(prefect_server, "artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    found = {artifact["key"]: artifact for artifact in artifacts}
    assert set(found) == {"sweep-progress", "cells", "comparison"}
    assert found["sweep-progress"]["data"] == 100
    assert [row["messages"] for row in json.loads(found["cells"]["data"])] == ["1", "2"]


def page(checkout: Checkout) -> str:
    path = checkout.folder / "reports" / "s.html"
    return path.read_text() if path.exists() else ""
