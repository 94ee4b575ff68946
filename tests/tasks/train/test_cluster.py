"""A real cluster of several machines' worth of Ray on this one, which loses a machine in mid-run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import ray
from ray.cluster_utils import Cluster
from tasks.train.algorithms import Scaffold
from tasks.train.engine.workers import RayWorkers
from tasks.train.settings import TrainSettings
from tests.tasks.train import runs

folder = Path(sys.argv[1])
data = runs.federation(folder / "partition")
train = TrainSettings(rounds=20, cohort=8, algorithm=Scaffold(batch_size=4))
alone = runs.run(data, train, rounds=12, stack=2).model

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
cluster.wait_for_nodes()

rounds = 0
whole = RayWorkers.run
def run(self, shared, jobs):
    global rounds
    rounds += 1
    if rounds == 1:
        assert self.data is not None, "the data were not put into the object store"
    for i, result in enumerate(whole(self, shared, jobs)):
        yield result
        if rounds == 5 and i == 0:
            cluster.remove_node(second, allow_graceful=False)
RayWorkers.run = run
spread = runs.run(data, train, rounds=12, stack=2, workers=3).model
assert rounds == 12
assert all(torch.equal(spread[name], alone[name]) for name in alone), "another model"
print("the same model with", len(ray.nodes()), "machines, one of them lost")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.timeout(150)
def test_a_lost_machine_does_not_touch_a_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=140,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "the same model with 2 machines" in done.stdout
    assert "a worker died" in done.stdout
