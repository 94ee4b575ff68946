"""What is measured to find the best layout, and where compiled programs are kept meanwhile."""

import os

import pytest

from tasks.params import build
from tasks.tracking import Tracker
from tasks.train import tune
from tasks.train.engine.plan import Plan


@pytest.mark.parametrize("there", [True, False], ids=["a compiler", "none"])
def test_compiled_plans_are_measured_where_there_is_a_compiler(monkeypatch, there):
    monkeypatch.setattr("shutil.which", lambda name: name if there else None)
    plans = list(tune.candidates(Plan(16, "cpu", 0), cohort=20))
    assert any(plan.compile for plan in plans) == there
    assert {plan.stack for plan in plans} == {1, 4, 16, 20}


def test_it_compiles_into_the_folder_that_runs_do(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "main_checkout", lambda: tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "so that it is put back afterwards")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(tune, "candidates", lambda *_: [])
    params = build({"model": {"name": "mlp"}, "train": {"cohort": data.clients}})
    assert tune.tune(params, data.path.parent, Tracker("tune")) == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".fedloom" / "compiled")
