"""The panel that says where the time went."""

import pytest

from tasks.artifacts import read_lines, write_lines
from tasks.report.run import Run
from tasks.report.stage import made
from tasks.train.coordinator import PARTS
from tests.tasks.report.conftest import Document


@pytest.fixture
def shown(artifacts, params) -> Document:
    """The page of a run of four rounds of which the first took longest, by hand."""
    parts = dict.fromkeys(PARTS, 0.0) | {"compute": 0.5, "aggregate": 0.25}
    first = parts | {"compute": 6.5, "wait": 1.0}
    rows = [{"round": 1, **first, "total": 8.0}, *({"round": r, **parts, "total": 1.0} for r in (2, 3, 4))]
    write_lines(artifacts / "timings.jsonl", rows)
    return Document(made(Run(params, artifacts)))


def test_the_parts_and_what_is_left_add_up_to_the_whole(shown):
    """11 s: 8 s of steps, 1 s of server, 1 s of waiting, and in each round a quarter that nothing accounts for."""
    header, rows = shown.table("Wall-clock time")
    assert header == ["part", "what it is", "in all", "share"]
    assert {name: cells[-2:] for name, cells in rows.items() if cells[-2] != "0 s"} == {
        "compute": ["8 s", "72.7 %"],
        "aggregate": ["1 s", "9.1 %"],
        "wait": ["1 s", "9.1 %"],
        "everything else": ["1 s", "9.1 %"],
    }
    assert next(iter(rows)) == "compute"
    assert set(rows) == {*PARTS, "everything else"}
    assert all(len(cells[0]) > 10 for cells in rows.values())


def test_a_typical_round_is_told_beside_the_longest(shown):
    """The first round compiles and reads for the first time, so a mean would say little."""
    clients = 16
    assert f"11 s for 4 rounds, {clients / 11:.3g} clients a second" in shown.text
    assert "A typical round took 1 s, the longest, round 1, 8 s." in shown.text
    names = [svg["attrs"]["aria-label"].replace("\N{NO-BREAK SPACE}", " ") for svg in shown.all("svg")]
    assert "Seconds by part of a round; most in compute with 8 s" in names
    assert any(name.startswith("Seconds of each round in compute, ") for name in names)


def test_a_real_run_accounts_for_its_time(finished, document):
    """Every part that the coordinator times is on the page, and no part is longer than the round it is of."""
    rows = read_lines(finished / "artifacts" / "timings.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert all(row[name] >= -1e-6 for name in PARTS)
        assert sum(row[name] for name in PARTS) <= row["total"] + 1e-4
        assert row["compute"] > 0
        assert row["evaluate"] > 0
    assert {*PARTS} < set(document.table("Wall-clock time")[1])


def test_the_training_left_no_seconds_in_what_it_publishes(finished):
    """Wall-clock time stands in timings.jsonl alone, so that the same run has the same bytes."""
    history = read_lines(finished / "artifacts" / "train" / "history.jsonl")
    assert not [name for name in history[0] if name in (*PARTS, "total", "seconds")]
    published = (finished / "artifacts" / "train").rglob("*.json*")
    assert not [path for path in published if '"compute"' in path.read_text()]
