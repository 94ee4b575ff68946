"""The benchmarks: every contender does the same work, and what is computed from their figures is right."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import benchmarks.__main__
from benchmarks import constants, layouts, memory, scale, tables
from benchmarks.__main__ import app
from benchmarks.constants import Coding, Constants
from benchmarks.contenders.contract import Job
from benchmarks.contenders.fedloom import Fedloom
from benchmarks.contenders.plain import Plain
from benchmarks.environments import PFL, Peer, suitable
from benchmarks.layouts import Layout
from benchmarks.projection import DAY, Setup, Simulator, costs
from benchmarks.speed import CONTENDERS, engine
from benchmarks.workloads import SEED, WORKLOADS, Workload, completed
from tasks import artifacts, keys, tree
from tasks.config import Refused
from tasks.models import Model
from tasks.models.architectures import CNN
from tasks.train.engine.batches import order
from tasks.train.engine.plan import Plan
from tasks.train.engine.workers import hire
from tests.tasks.train.runs import MODEL, SIZES, federation

ROOT = Path(__file__).resolve().parents[1]


def small(folder: Path, model: Model = MODEL, shape: tuple[int, ...] = (4,)) -> Job:
    """A job on eight ragged clients, five of them a round."""
    federation(folder, shape=shape)
    workload = Workload("small", "", None, len(SIZES), model, 5, 4, 0.2, 1, 1, 1, 1)
    return Job(completed(workload, folder))


def trained(job: Job, folder: Path, rounds: int, changes: dict | None = None) -> tree.Tree:
    fedloom = Fedloom(job, changes)
    with hire(fedloom.blueprint) as workers:
        coordinator = fedloom.coordinator(workers, folder)
        steps = fedloom.train.schedule.run(coordinator)
        for _ in range(rounds):
            next(steps)
        return coordinator.model


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shape"), [(MODEL, (4,)), (CNN(width=3), (1, 8, 8))], ids=["mlp", "cnn"])
def test_the_plain_loop_on_fedlooms_batches_trains_fedlooms_model(tmp_path, model, shape):
    """So start, cohorts, loss, steps, ragged batches and weights are the same, and only the order of batches is not."""
    job = small(tmp_path / "job", model, shape)
    fedloom = Fedloom(job)

    def drawn(round_: int, client: int, samples: int) -> list[torch.Tensor]:
        own = keys.each(keys.derive(SEED, "round", round_, 0), np.array([client]))
        positions, steps = order(fedloom.train.algorithm.batches, np.array([samples]), own)
        return [torch.from_numpy(row[row >= 0]) for row in positions[0, : steps[0]]]

    plain = Plain(job, drawn)
    for cohort in job.cohorts[:4]:
        plain.round(cohort)
    for name, value in trained(job, tmp_path / "run", rounds=4).items():
        torch.testing.assert_close(plain.params[name], value, rtol=1e-4, atol=1e-5)


def test_contenders_start_from_the_same_weights_and_see_the_same_clients(tmp_path):
    job = small(tmp_path / "job")
    fedloom = Fedloom(job)
    with hire(fedloom.blueprint) as workers:
        coordinator = fedloom.coordinator(workers, tmp_path)
        assert all(torch.equal(value, Plain(job).params[name]) for name, value in coordinator.model.items())
        for number in range(3):
            coordinator.rounds = number
            assert coordinator.select().tolist() == job.cohorts[number].tolist()
    assert [len(y) for _, y in job.clients()] == list(SIZES)


def test_every_contender_of_fedloom_is_a_valid_section_of_the_parameters(tmp_path):
    """Its engine's fields are those asked for, and nothing else differs."""
    job, own = small(tmp_path / "job"), [c for c in CONTENDERS.values() if c.module == "fedloom"]
    assert len(own) == 4
    base = Fedloom(job).train
    for contender in [*own, Layout(4, True).contender()]:
        fields = json.loads(contender.options[1]) if contender.options else {}
        train = Fedloom(job, fields | {"engine": fields.get("engine", {}) | {"compile": False}}).train
        assert train.model_copy(update={"engine": base.engine}) == base
    assert engine("x", "x", workers=2).options[1] == '{"engine": {"workers": 2}}'


def test_the_targets_are_those_that_were_set():
    wanted = {(t.workload, t.what): t.factor for t in tables.TARGETS}
    assert wanted == pytest.approx({
        ("a", "the plain loop"): 10, ("b", "the plain loop"): 3.5, ("c", "the plain loop"): 0.97,
        ("d", "the plain loop"): 0.97, ("a", "Flower"): 100, ("b", "Flower"): 30, ("c", "Flower"): 2,
        ("a", "pfl-research"): 12, ("b", "pfl-research"): 4, ("c", "pfl-research"): 1, ("a", "FedJAX"): 5,
        ("b", "FedJAX"): 1.5, ("c", "FedJAX"): 1.2, ("c", "two Ray workers against one"): 1.7,
        ("c", "one Ray worker against none"): 1 / 1.05,
    })  # fmt: skip


def figures(*seconds: float) -> dict:
    return {
        "seconds": list(seconds), "startup": 2.5, "memory": 300 * 2**20, "own": None, "accuracy": 0.9, "loss": 0.3,
        "distance": 1e-6, "versions": {"torch": "2.0", "plan": "stack 4"},
    }  # fmt: skip


def results(**contenders: dict) -> dict:
    machine = {"processor": "Abacus", "cores": 2, "system": "Linux", "day": "2026-01-02", "busy": 0.25}
    workload = {"title": "t", "clients": 100, "cohort": 10, "judged": 5, "samples": 14.0}
    return {"workloads": {"b": workload | {"machine": machine, "contenders": contenders}}}


def test_a_ratio_is_between_the_fastest_on_either_side_in_the_median_pass():
    """The third pass met a machine ten times as slow, which touches no ratio."""
    measured = results(**{
        "plain-1": figures(0.20, 0.24, 2.0), "plain-all": figures(0.4, 0.4, 4.0), "fedloom": figures(0.10, 0.10, 1.0),
        "fedloom-compiled": figures(0.05, 0.06, 0.40), "pfl": figures(0.1, 0.1, 0.8), "flower": {"failed": "no wheel"},
    })  # fmt: skip
    found = {reached.target.what: reached for reached in tables.reached(measured)}
    assert set(found) == {"the plain loop", "pfl-research"}
    assert found["the plain loop"].ratio == pytest.approx(4.0)
    assert found["the plain loop"].subject == "fedloom-compiled"
    assert found["the plain loop"].holds
    assert found["pfl-research"].ratio == pytest.approx(2.0)
    assert not found["pfl-research"].holds
    text = tables.speed_tables(measured)
    row = next(line for line in text.splitlines() if "compiled |" in line and "± " in line)
    # 10 clients in 0.06 s of 14 samples each; passes from 0.05 to 0.40 around 0.06.
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["167", "2,333", "4.00", "± 292%"]
    assert "| Flower | failed |" in text
    assert "Flower failed: no wheel" in text
    assert "25% of the cores" in text
    assert "| b | pfl-research | 4 | 2 | **no** |" in text


def test_a_table_goes_between_its_marks_and_leaves_the_rest(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- speed -->\nold\n<!-- /speed -->\nb\n")
    tables.insert(page, "speed", tables.markdown([["who", "how fast"], ["we", "1"]]))
    once = page.read_text()
    assert once == "a\n<!-- speed -->\n\n| who | how fast |\n| --- | ---: |\n| we | 1 |\n\n<!-- /speed -->\nb\n"
    tables.insert(page, "speed", tables.markdown([["who", "how fast"], ["we", "1"]]))
    assert page.read_text() == once
    with pytest.raises(Refused, match="must hold the lines <!-- layouts -->"):
        tables.insert(page, "layouts", "")


def test_the_rules_choice_is_judged_by_whole_runs():
    """Compiling that takes 10 s and saves 0.1 s a round pays from round 100 on."""
    workload = {
        "cohort": 10,
        "ruled": {"30": "stacked 4", "1000": "stacked 4", "100000": "compiled 4"},
        "layouts": {
            "looped": {"seconds": [0.5], "startup": 1.0},
            "stacked 4": {"seconds": [0.2], "startup": 1.0},
            "compiled 4": {"seconds": [0.1], "startup": 11.0},
            "compiled 16": {"failed": "killed"},
        },
    }
    assert layouts.break_even(workload) == pytest.approx(100)
    assert layouts.loss(workload, 30) == 1
    assert layouts.loss(workload, 1000) == pytest.approx((1 + 200) / (11 + 100))
    assert layouts.loss(workload, 100_000) == 1
    assert layouts.steady(workload, "looped") == pytest.approx(20)
    assert layouts.steady(workload, "compiled 16") is None


def test_the_layouts_tried_reach_the_cohort_and_no_further():
    assert [layout.stack for layout in layouts.layouts(10) if not layout.compile] == [1, 4, 16]
    assert [layout.stack for layout in layouts.layouts(64) if layout.compile] == [4, 16, 64]
    tried = layouts.layouts(50)
    assert layouts.nearest(Plan(50, "cpu", 0, True), tried) == Layout(64, True)
    assert layouts.nearest(Plan(10, "cpu", 0, False), tried) == Layout(16, False)
    assert layouts.nearest(Plan(1, "cpu", 0, True), tried) == Layout(1, False)


CODINGS = {"plain": Coding(4.0, 0.0, 0.0, 1.0), "tiny": Coding(0.1, 2e-8, 3e-9, 1.0)}
CONSTANTS = Constants(operations=1e10, add=1e-9, copy=1e-10, codings=CODINGS)
ENGINE = Simulator(client=1e-3, handled=5e-9, held=40.0)


def test_the_plan_past_this_machine_adds_up():
    """By hand: P = 1e6, B = 1e8, 100 samples, 8 Mbit/s both ways, 1,000 clients in 10 rounds a day."""
    setup = Setup(1e6, "plain", base=1e8, samples=100, clients=1000, rounds=10, download=8, upload=8)
    cost = costs(setup, CONSTANTS, ENGINE)
    assert cost.bytes_down == cost.bytes_up == 4e6
    assert cost.client_seconds == pytest.approx(4 + (4e8 + 6e6) * 100 / 1e10 + 4)
    assert cost.at_work == pytest.approx(1000 * cost.client_seconds / DAY)
    assert cost.cohort == 100
    assert cost.day_bytes == 8e9
    assert cost.bandwidth == pytest.approx(8 * 8e9 / DAY)
    assert cost.server_seconds == pytest.approx(1000 * (4e6 * 1e-10 + 1e6 * 1e-9))
    assert cost.server_cores == 1
    assert cost.server_memory == 4e6 * 3 + 4e6
    assert cost.simulated == pytest.approx(1000 * (4.06 + 1e6 * 5e-9 + 1e-3))
    assert cost.simulator == 4e7 + 4e8


def test_the_plan_scales_as_it_must():
    """What the server does is in proportion to the clients, messages to the adapter; codecs touch the way up alone."""
    setup = Setup(1e7, "tiny")
    one, ten = (costs(setup._replace(clients=n), CONSTANTS, ENGINE) for n in (1e6, 1e7))
    assert ten.day_bytes == pytest.approx(10 * one.day_bytes)
    assert ten.server_seconds == pytest.approx(10 * one.server_seconds)
    assert ten.client_seconds == one.client_seconds
    large = costs(setup._replace(parameters=1e8), CONSTANTS, ENGINE)
    assert (large.bytes_up, large.bytes_down) == pytest.approx((10 * one.bytes_up, 10 * one.bytes_down))
    bare = costs(setup._replace(coding="plain"), CONSTANTS, ENGINE)
    assert bare.bytes_down == one.bytes_down
    assert bare.bytes_up == 40 * one.bytes_up


def test_the_measured_sizes_are_those_of_real_payloads():
    """A quarter, an eighth and a thirty-second of float32 and a scale a tensor; 1 % with indices of 4 or 2 bytes."""
    found = constants.measure(side=128, matrices=2, passes=1).codings
    entries = 128 * 128
    assert found["as it is"].size == 4
    assert found["quantize, 8 bits"].size == pytest.approx(1 + 4 / entries)
    assert found["quantize, 4 bits"].size == pytest.approx(0.5 + 4 / entries)
    assert found["sign"].size == pytest.approx(1 / 8 + 4 / entries)
    assert found["topk, 1 %"].size == pytest.approx(6 * 164 / entries)


def test_constants_survive_their_file(tmp_path):
    artifacts.write_json(tmp_path / "constants.json", CONSTANTS.content())
    assert Constants.read(artifacts.read_json(tmp_path / "constants.json")) == CONSTANTS


def test_slopes_give_what_the_engine_takes():
    """2 ms and 1 ms a client: a model of a million parameters takes 8 ms and 40 MB more of four clients."""
    found = scale.simulator({
        "cohort": {"10": {"seconds": 0.012}, "1000": {"seconds": 1.002}},
        "parameters": {"8": 1_000_000, "16": 2_000_000},
        "model": {"8": {"seconds": 0.1, "memory": 50_000_000}, "16": {"seconds": 0.108, "memory": 90_000_000}},
    })  # fmt: skip
    assert found == pytest.approx((1e-3, 2e-9, 40.0))


def test_the_memory_of_a_process_counts_its_children_once():
    """A child that holds 80 MB of its own beside what it shares with its parent."""
    code = (
        "import os, time\n"
        "shared = bytes([1]) * 120_000_000\n"
        "if not os.fork():\n"
        "    own = bytes([2]) * 80_000_000\n"
        "    print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        family = memory.family(process.pid)
        assert len(family) == 2
        assert 200e6 <= memory.own(process.pid) < 260e6
        assert memory.own(process.pid) <= memory.peak(process.pid) < 300e6
    finally:
        for member in family[::-1]:
            os.kill(member, 9)
        process.wait()
        process.stdout.close()
    assert memory.own(process.pid) is None


def test_a_peer_gets_a_python_that_it_runs_on_or_the_lack_is_told():
    version = sys.version_info[:2]
    assert suitable(Peer("x", (), version, version)) == sys.executable
    with pytest.raises(Refused, match=r"pfl = |pfl: needs a Python of 2\.6 to 2\.7"):
        suitable(Peer(PFL.name, (), (2, 6), (2, 7)))


def test_the_workloads_are_the_four_that_are_compared():
    a, b, c, d = (WORKLOADS[name] for name in "abcd")
    assert (a.clients, a.cohort, a.model.hidden) == (1000, 50, (64,))
    assert (b.clients, b.cohort, b.model.width, b.model.kernel) == (100, 10, 16, 3)
    assert (c.clients, c.cohort, c.model.width, c.model.kernel) == (100, 10, 32, 5)
    assert (d.clients, d.cohort, d.model.name) == (100, 10, "transformer")


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the checkout in which the command may write."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("benchmarks", "tasks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def command(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_measures_contenders_that_reach_the_same_model_and_writes_the_page(copied):
    said = command(copied, "speed", "--workloads", "a", "--contenders", "plain-1,fedloom", "--rounds", "1")
    rows = re.findall(r"^\| (plain loop, 1 thread|Fedloom, workers: 0) \|(.*)\|$", said, re.MULTILINE)
    (_, plain), (_, own) = ((name, [cell.strip() for cell in cells.split("|")]) for name, cells in rows)
    assert plain[-2] == own[-2]  # accuracy
    assert float(own[-1]) < 1e-4  # distance
    page = (copied / "docs" / "benchmarks.md").read_text()
    assert "| Fedloom, workers: 0 | " + own[0] in page
    figures = artifacts.read_json(copied / "benchmarks" / "results" / "speed.json")["workloads"]["a"]["contenders"]
    assert all(len(contender["seconds"]) == WORKLOADS["a"].passes for contender in figures.values())


def test_the_plan_is_computed_again_from_the_kept_constants(tmp_path, monkeypatch):
    """The page in the repository is what the kept figures give, and other constants give another page."""
    shutil.copy(ROOT / "docs" / "scale.md", tmp_path)
    monkeypatch.setattr(benchmarks.__main__, "DOCS", tmp_path)
    page, results = tmp_path / "scale.md", artifacts.read_json(scale.RESULTS)
    before = page.read_text()
    CliRunner().invoke(app, ["plan"], catch_exceptions=False)
    assert page.read_text() == before
    assert "</svg>" in (tmp_path / "scale.svg").read_text()
    results["constants"]["codings"]["as it is"]["size"] = 8.0
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "scale.json")
    artifacts.write_json(scale.RESULTS, results)
    said = CliRunner().invoke(app, ["plan"], catch_exceptions=False).stdout
    assert "| 1e+06 | as it is | 4 MB | 8 MB |" in said.replace("\N{NO-BREAK SPACE}", " ")
    assert page.read_text() != before


@pytest.mark.parametrize("name", ["speed", "layouts", "scale", "plan"])
def test_every_command_says_what_it_does(name):
    said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}, catch_exceptions=False).stdout
    assert f"Usage: root {name}" in said or f" {name} [OPTIONS]" in said
    assert name == "plan" or "--no-write" in said


def test_a_workload_that_does_not_exist_is_refused_with_those_that_do():
    result = CliRunner().invoke(app, ["speed", "--workloads", "az"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "'z' is none of a, b, c, d" in result.output
