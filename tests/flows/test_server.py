"""Finding, starting and refusing Prefect servers; and ending whole groups of processes."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import server
from flows.process import Failed, run
from tasks.config import Refused


def test_a_port_that_another_program_has_is_refused_at_once(checkout):
    with socket.create_server((server.HOST, 0)) as other:
        port = other.getsockname()[1]
        output = checkout.fedloom("serve", "--port", str(port), code=2)
    assert f"port = {port}: is used by another program" in " ".join(output.split())
    assert "--port" in output


def test_a_configured_server_that_does_not_answer_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(Refused, match="no Prefect server answers"), server.serving(tmp_path):
        pass


def test_a_note_leads_to_a_server_only_while_it_answers(prefect_server, monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with server.noted(tmp_path, prefect_server):
        assert server.found(tmp_path) == prefect_server
    assert server.found(tmp_path) is None
    with server.noted(tmp_path, "http://127.0.0.1:9/api"):
        assert server.found(tmp_path) is None


def test_output_arrives_line_by_line_and_the_last_lines_explain_a_failure(tmp_path):
    said: list[str] = []
    with pytest.raises(Failed) as failed:
        run(["sh", "-c", "for i in $(seq 30); do echo line $i; done; exit 3"], tmp_path, say=said.append)
    assert said == [f"line {i}" for i in range(1, 31)]
    assert failed.value.code == 3
    assert "line 30" in str(failed.value) and "line 5\n" not in str(failed.value)


def test_stopping_reaches_the_processes_that_the_command_started(tmp_path):
    """An interrupted wait ends a grandchild too, even one that ignores the first signals."""
    script = "trap '' INT TERM; sleep 300 & echo $!; wait"
    code = (
        "import sys; from pathlib import Path; from flows import process; process.GRACE = 0.3\n"
        f"process.run(['sh', '-c', {script!r}], Path('.'), say=lambda line: print(line, flush=True))"
    )
    root = Path(__file__).resolve().parents[2]
    outer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root
    )
    timer = threading.Timer(60, outer.kill)
    timer.start()
    grandchild = int(outer.stdout.readline())
    outer.send_signal(2)
    outer.wait(30)
    timer.cancel()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{grandchild}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{grandchild}")
