"""Progress lines: readable, and read back by the flow."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.progress import Progress, parse


@given(
    total=st.integers(1, 10**6),
    accuracy=st.none() | st.floats(0, 1),
    rate=st.floats(0, 1e5),
    unit=st.sampled_from(["round", "message"]),
)
def test_a_line_is_read_back(total, accuracy, rate, unit):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        Progress("train").update(total, total, unit, **{"accuracy": accuracy, "clients/s": rate})
    step = parse(printed.getvalue().strip())
    assert (step.stage, step.unit, step.done, step.total, step.percent) == ("train", unit, total, total, 100.0)
    assert ("accuracy" in step.rest) == (accuracy is not None)
    assert step.rest.endswith("clients/s")


def test_other_lines_are_no_progress():
    assert parse("Running stage 'train':") is None
    assert parse("[train] round 0/0 0%") is None


def test_the_first_and_last_steps_are_said_and_the_rest_now_and_then(capsys):
    progress = Progress("train")
    for done in range(1, 1001):
        progress.update(done, 1000, "round")
    lines = capsys.readouterr().out.splitlines()
    assert [parse(line).done for line in lines] == [1, 1000]


def test_the_estimate_is_that_of_the_pace_so_far(capsys, monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr("tasks.progress.time.monotonic", lambda: next(now))
    progress = Progress("train")
    progress.update(10, 50, "round")
    progress.update(20, 50, "round")
    assert capsys.readouterr().out.splitlines()[1] == "[train] round 20/50 40% · 0:30 left"
