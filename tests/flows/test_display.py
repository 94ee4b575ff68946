"""What a person sees of a run, at a terminal and in a log."""

import io
import logging

import pytest
from rich.console import Console

from flows.display import LOGGERS, Display

LINES = [
    "Beginning task run",
    "> python -m tasks.train",
    "[train] round 10/200 5% · accuracy 0.5",
    "goes on after round 5",
    "error: train: params.yaml: 2 problems",
    "  - one of them",
    "ERROR: failed to reproduce 'train'",
]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_at_a_terminal_and_lines_in_a_log_and_the_error_is_left_to_the_end(terminal):
    told = io.StringIO()
    with Display(Console(file=told, force_terminal=terminal, width=100, no_color=True)) as display:
        for line in LINES:
            logging.getLogger(LOGGERS[0]).handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
    assert [key for key in display.known] == ([("train", "round")] if terminal else [])
    assert ("[train] round 10/200 5% · accuracy 0.5" in told.getvalue()) == (not terminal)
    assert "goes on after round 5" in told.getvalue()
    for hidden in ("Beginning", "python -m", "problem", "one of them", "ERROR"):
        assert hidden not in told.getvalue()
