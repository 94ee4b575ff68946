"""The panel on clients that work at their own pace: its numbers are those of the log."""

import pytest

from tasks.artifacts import Damaged, read_json, write_json
from tasks.report.diagnostics.schedule import schedule
from tasks.report.run import Run
from tests.tasks.report.conftest import Document

HEADER = "step,seconds,client,turn,version,staleness,local_steps,sent,arrived,weight"
ROWS = (
    "1,1.0,0,1,0,0,{},0.0,1.0,0.5", "3,2.0,0,2,1,1,{},1.0,2.0,0.5", "3,2.0,1,1,0,2,{},0.0,2.0,0.5",
    "4,9.0,2,1,0,40,{},0.0,9.0,0.5",
)  # fmt: skip


def logged(artifacts, steps: str) -> None:
    (artifacts / "train" / "schedule.csv").write_text("\n".join([HEADER, *(row.format(steps) for row in ROWS)]) + "\n")
    summary = read_json(artifacts / "train" / "summary.json")
    told = {"schedule_bias": 0.0625, "staleness": 10.75, "max_staleness": 40, "idle": 0.25}
    write_json(artifacts / "train" / "summary.json", summary | told)


def test_a_run_in_rounds_has_no_such_panel(finished, params):
    assert schedule(Run(params, finished / "artifacts")) is None


def test_uploads_steps_and_bias_are_those_of_the_log(artifacts, params):
    logged(artifacts, "")
    document = Document(f"<body>{schedule(Run(params, artifacts)).html()}</body>")
    _, facts = document.table("Steps and arrivals")
    assert facts == {
        "uploads taken in": ["4"],
        "in steps of the server": ["4"],
        "staleness in the mean": ["10.8"],
        "staleness at most": ["40"],
        "time in which clients waited": ["25.0 %"],
        "greatest share that a client had too much or too little": ["6.2 %"],
    }
    assert "heard 3 clients of 12" in document.text
    assert "is not quite the one that was meant" in document.text
    # Step 2 took in nothing, step 3 two; staleness has a range of 41 values in bars of 4.
    labels = [element["text"].strip() for element in document.all("text")]
    assert {"0 to 3", "40 to 43", "0", "1", "2"} <= set(labels)
    assert len(document.all("figure")) == 2


def test_assigned_steps_are_shown_where_there_are_some(artifacts, params):
    logged(artifacts, "7")
    document = Document(f"<body>{schedule(Run(params, artifacts)).html()}</body>")
    assert len(document.all("figure")) == 3
    assert "7" in {element["text"].strip() for element in document.all("text")}


def test_a_log_that_breaks_off_is_refused_by_name(artifacts, params):
    logged(artifacts, "")
    path = artifacts / "train" / "schedule.csv"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(Damaged, match=r"schedule\.csv"):
        schedule(Run(params, artifacts))
