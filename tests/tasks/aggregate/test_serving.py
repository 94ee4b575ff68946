"""`mlflow models serve` on a registered model: a process without Fedloom on its path, asked over HTTP."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

from flows import server
from tasks import params as schema
from tests.tasks.aggregate.test_register import meta, released, store  # noqa: F401 - fixtures


def test_it_answers_as_the_network_does(store, meta, tmp_path):  # noqa: F811
    settings = schema.build({"model": {"name": "mlp", "hidden": [3]}, "aggregate": {"registry": {"model": "served"}}})
    network, weights = released(settings, meta, tmp_path)
    port = server.any_port()
    command = ["-m", "mlflow", "models", "serve", "-m", "models:/served/1", "--env-manager", "local"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": store,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(
            [sys.executable, *command, "-h", server.HOST, "-p", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while server.free(port):
            assert serving.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        question = urllib.request.Request(
            f"http://{server.HOST}:{port}/invocations",
            json.dumps({"inputs": x.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question, timeout=60) as answer:
            found = json.load(answer)["predictions"]
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        serving.wait(60)
    expected = network.apply(weights, torch.from_numpy(x)).softmax(-1).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
