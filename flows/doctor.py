"""What a run needs of the machine, looked at piece by piece; what is wrong is said with the way to mend it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from flows import checkout, pipelines, server
from tasks import params, tracking
from tasks.config import Refused

SPACE = 2 * 2**30
"""Bytes that should be free: artifacts, cache and MLflow's copies of a few runs."""


class Finding(NamedTuple):
    """One thing looked at. ``mend`` says what to do about it, and is empty where all is well."""

    what: str
    state: Literal["ok", "warning", "broken"]
    found: str
    mend: str = ""


def examine(main: Path, ray: bool = False) -> Iterator[Finding]:
    """All findings, in the order in which they should be mended. ``ray`` also starts Ray, which takes some seconds."""
    yield _python()
    yield from _packages()
    yield _git(main)
    yield _files(main)
    yield _dvc(main)
    yield from _places(main)
    yield _space(main)
    yield from _ports(main)
    yield _torch()
    if ray:
        yield _ray()


def _python() -> Finding:
    found = sys.version.split()[0]
    if sys.prefix == sys.base_prefix:
        return Finding("Python", "warning", f"{found}, not in a virtual environment", "Run `make run`, which makes one")
    return Finding("Python", "ok", f"{found} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    """Each requirement of the project, and of Prefect what `pip check` cannot see."""
    from packaging.requirements import Requirement

    broken = False
    for text in requires("fedloom") or []:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            broken = True
            yield Finding(need.name, "broken", "not installed", "Run `make install`")
            continue
        if not need.specifier.contains(found, prereleases=True):
            broken = True
            yield Finding(need.name, "broken", f"{found}, needs {need.specifier}", f"pip install '{need}'")
    if not broken:
        yield Finding("packages", "ok", "every requirement is met, the pins of FastAPI and SQLAlchemy included")


def _git(main: Path) -> Finding:
    if shutil.which("git") is None:
        return Finding("git", "broken", "not installed", "Install git")
    if tracking.git("rev-parse", "HEAD", folder=main) is None:
        mend = "git init && git add -A && git commit -m 'Start'"
        return Finding("git", "broken", "this folder is no repository with a commit", mend)
    dirty = tracking.git("status", "--porcelain", folder=main)
    return Finding("git", "ok", "repository, with edits not committed" if dirty else "repository, all committed")


def _files(main: Path) -> Finding:
    try:
        for name, pipeline in pipelines.load(main).items():
            checkout.resolve(main, pipeline.changes, f"pipelines.yaml: pipelines.{name}")
        params.load(main / params.FILE)
        checkout.check(main)
    except Refused as refused:
        return Finding("parameters", "broken", str(refused), "Mend the file; `fedloom validate` checks it again")
    return Finding("parameters", "ok", "params.yaml and pipelines.yaml are valid")


def _dvc(main: Path) -> Finding:
    try:
        stages = checkout.plan(main)
    except Exception as error:
        return Finding("DVC", "broken", str(error), "`dvc status` says more; `git checkout dvc.yaml .dvc` restores it")
    stale = [stage.name for stage in stages if stage.stale]
    return Finding("DVC", "ok", f"to run: {', '.join(stale)}" if stale else "all stages are up to date")


def _places(main: Path) -> Iterator[Finding]:
    for place in (main, main / ".fedloom", main / ".dvc", main / "artifacts", main / "reports", main / "mlflow.db"):
        if place.exists() and not os.access(place, os.W_OK):
            mend = f"chown -R $(id -u) '{place}' or chmod -R u+w '{place}'"
            yield Finding("permission", "broken", f"{place} cannot be written", mend)
    yield Finding("tracking", *_tracking())


def _tracking() -> tuple[Literal["ok", "warning"], str, str]:
    if not tracking.enabled():
        return "warning", "runs are not recorded in MLflow", "Unset FEDLOOM_TRACKING, or install mlflow"
    return "ok", tracking.store(), ""


def _space(main: Path) -> Finding:
    free = shutil.disk_usage(main).free
    shown = f"{free / 2**30:.1f} GiB free"
    if free < SPACE:
        return Finding("disk", "warning", shown, "Free some; `dvc gc -w` removes what no revision here needs")
    return Finding("disk", "ok", shown)


def _ports(main: Path) -> Iterator[Finding]:
    running = server.found(main)
    for port, who, mend in ((server.PORT, "Prefect", "fedloom serve --port N"), (5000, "MLflow", "make mlflow PORT=N")):
        url = f"http://{server.HOST}:{port}/api"
        if server.free(port):
            yield Finding(f"port {port}", "ok", f"free for {who}")
        elif running == url or server.answers(url):
            yield Finding(f"port {port}", "ok", f"{who} answers there")
        else:
            yield Finding(f"port {port}", "warning", "used by another program", mend)


def _torch() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        found = f"{torch.__version__}, {torch.cuda.device_count()} GPU ({torch.cuda.get_device_name(0)}), {cores} cores"
        return Finding("PyTorch", "ok", found)
    if shutil.which("nvidia-smi"):
        mend = "Install a build of PyTorch for CUDA: see pytorch.org"
        return Finding("PyTorch", "warning", f"{torch.__version__} does not see the GPU of this machine", mend)
    return Finding("PyTorch", "ok", f"{torch.__version__}, no GPU, {cores} cores, one thread a process")


def _ray() -> Finding:
    """Starts Ray in a process of its own, which cannot hang this one."""
    if importlib.util.find_spec("ray") is None:
        return Finding("Ray", "broken", "not installed", "Run `make install`, or set train.engine.workers to 0")
    code = "import ray; ray.init(num_cpus=1, include_dashboard=False, logging_level='ERROR'); ray.shutdown()"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    mend = "Set train.engine.workers to 0, which needs no Ray; logs are under /tmp/ray"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("Ray", "broken", "did not start within two minutes", mend)
    if done.returncode:
        last = re.sub(r"\s+", " ", (done.stderr.strip().splitlines() or ["no message"])[-1])
        return Finding("Ray", "broken", f"does not start: {last}", mend)
    return Finding("Ray", "ok", "starts and stops")
