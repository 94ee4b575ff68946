"""What a run needs of the machine, looked at piece by piece; what is wrong is said with the way to mend it."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from flows import checkout, pipelines, server
from tasks import params, tracking
from tasks.config import Refused

SPACE = 2 * 2**30
"""Bytes that should be free: artifacts, cache and MLflow's copies of a few runs."""

TEAM = "pip install -e '.[team]'"
"""What adds the drivers of databases and object stores."""


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
    yield from _prefect(main)
    yield from _mlflow(main)
    yield _remote(main)
    yield _torch()
    if os.environ.get("RAY_ADDRESS"):
        yield _cluster(os.environ["RAY_ADDRESS"])
    elif ray:
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


def _space(main: Path) -> Finding:
    free = shutil.disk_usage(main).free
    shown = f"{free / 2**30:.1f} GiB free"
    if free < SPACE:
        return Finding("disk", "warning", shown, "Free some; `dvc gc -w` removes what no revision here needs")
    return Finding("disk", "ok", shown)


def _prefect(main: Path) -> Iterator[Finding]:
    """The server that is configured or runs, or where one would start; and its database."""
    configured = os.environ.get("PREFECT_API_URL")
    url = configured or server.found(main)
    if url is None:
        yield _port(server.PORT, "Prefect")
    elif server.answers(url):
        yield Finding("Prefect", "ok", f"answers at {url}")
    else:
        mend = "Start it there, or unset PREFECT_API_URL: then a server starts here"
        yield Finding("Prefect", "broken", f"{url} does not answer", mend)
    names = "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL"
    for database in filter(None, map(os.environ.get, names)):
        yield _database("Prefect's database", database)


def _mlflow(main: Path) -> Iterator[Finding]:
    """The server or the database that runs are recorded in, and the store of their files."""
    if not tracking.enabled():
        yield Finding("MLflow", "warning", "runs are not recorded", "Unset FEDLOOM_TRACKING, or install mlflow")
        return
    uri = tracking.store()
    if tracking.remote() and server.mlflow_answers(uri):
        yield Finding("MLflow", "ok", f"answers at {tracking.shown(uri)}")
    elif tracking.remote():
        mend = "Start it there, or unset MLFLOW_TRACKING_URI: then runs are recorded in mlflow.db"
        yield Finding("MLflow", "broken", f"{tracking.shown(uri)} does not answer", mend)
    else:
        yield _database("MLflow's database", uri)
        if (running := server.note(main, "mlflow")) and server.mlflow_answers(running):
            yield Finding("MLflow", "ok", f"answers at {running}")
        else:
            yield _port(server.MLFLOW_PORT, "MLflow")
    if (root := tracking.artifact_root() or "").startswith("s3://"):
        yield _bucket("MLflow's files", root)


def _port(port: int, who: str) -> Finding:
    if server.free(port):
        return Finding(who, "ok", f"port {port} is free for it")
    return Finding(who, "ok", f"port {port} is used by another program: `fedloom up` takes the next one that is free")


def _database(what: str, url: str) -> Finding:
    """Whether a database takes a connection. SQLite is a file, whose place is looked at elsewhere."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    shown = tracking.shown(url)
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            # Asked by the driver that waits; what the other one is told in the address it does not know.
            asked = parsed.set(drivername="postgresql+psycopg2", query={} if "asyncpg" in url else parsed.query)
            with create_engine(asked, connect_args={"connect_timeout": 5}).connect():
                pass
    except ArgumentError:
        return Finding(what, "broken", f"{shown} is no address of a database", "Write postgresql://user@host/database")
    except ModuleNotFoundError:
        return Finding(what, "broken", f"{shown} needs the driver psycopg2", TEAM)
    except SQLAlchemyError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        return Finding(what, "broken", f"{shown} does not answer: {reason}", "Start it, or correct its address")
    return Finding(what, "ok", shown)


def _bucket(what: str, uri: str) -> Finding:
    """Whether the bucket of an object store is there and may be used with the credentials of the environment."""
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    shown = f"{uri} at {endpoint}" if endpoint else uri
    if importlib.util.find_spec("boto3") is None:
        return Finding(what, "broken", f"{shown} needs boto3", TEAM)
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(connect_timeout=5, read_timeout=5, retries={"max_attempts": 1})
    try:
        boto3.client("s3", endpoint_url=endpoint, config=patience).head_bucket(Bucket=urlsplit(uri).netloc)
    except (BotoCoreError, ClientError, ValueError) as error:
        mend = "Create the bucket, or correct MLFLOW_S3_ENDPOINT_URL and the AWS_ variables"
        return Finding(what, "broken", f"{shown}: {error}", mend)
    return Finding(what, "ok", shown)


def _remote(main: Path) -> Finding:
    """Whether DVC has a place to push to, and that place answers."""
    from dvc.config import NoRemoteError, RemoteConfigError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    what = "DVC remote"
    try:
        with Repo(str(main)) as repo:
            try:
                remote = repo.cloud.get_remote()
            except NoRemoteError:
                return Finding(what, "ok", "none: what stages made stays in the cache of this checkout")
            url = tracking.shown(remote.fs.unstrip_protocol(remote.path))
            try:
                used = remote.fs.exists(remote.path)
            except Exception as error:
                # Each kind of store fails in its own way.
                return Finding(what, "broken", f"{url}: {error}", "`dvc remote modify` corrects it")
    except (DvcException, RemoteConfigError) as error:
        return Finding(what, "broken", str(error).splitlines()[0], f"`dvc remote list` shows what there is. {TEAM}")
    return Finding(what, "ok", url if used else f"{url}, where nothing has been pushed to")


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


def _cluster(address: str) -> Finding:
    """Whether something listens at the address of a Ray cluster."""
    parsed = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parsed.hostname or "", parsed.port or 6379), timeout=5):
            return Finding("Ray", "ok", f"a cluster answers at {address}")
    except (OSError, ValueError) as error:
        mend = "Start it with `ray start --head`, or unset RAY_ADDRESS: then Ray starts on this machine"
        return Finding("Ray", "broken", f"no cluster answers at {address}: {error}", mend)


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
