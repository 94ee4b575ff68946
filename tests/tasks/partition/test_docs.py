"""docs/data.md: every block in it is run, in the order of the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tasks.params import build
from tasks.partition.stage import partition
from tasks.tracking import Tracker

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def test_every_block_of_the_page_on_data_works(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml", "pipelines.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "FEDLOOM_TRACKING": "off"}
    default, ran = YAML(typ="safe").load(Path("params.yaml")), set()
    for language, text in BLOCK.findall((ROOT / "docs" / "data.md").read_text()):
        if language == "yaml":
            section = YAML(typ="safe").load(text)["partition"]
            clients = section.get("clients", default["partition"]["clients"])
            train = default["train"] | {"cohort": min(default["train"]["cohort"], clients)}
            # A model that reads whatever the data are.
            model = {"name": "custom", "path": "own:Network"}
            params = build(default | {"partition": section, "train": train, "model": model})
            files = getattr(params.partition.dataset, "path", None)
            if files is None or files.exists():
                partition(params, tmp_path / "artifacts", Tracker("partition"))
                ran.add(params.partition.dataset.name)
        else:
            command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    # The published sets are not there in a fresh clone; everything else on the page was run.
    assert ran == {"digits", "synthetic", "npz", "table", "image_folder"}
