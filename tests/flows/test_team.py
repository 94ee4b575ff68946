"""A team's set-up: PostgreSQL behind Prefect and MLflow, an object store for files and DVC, and who answers of them."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows import server
from tests.flows.conftest import ROOT, Checkout, git, project, until
from tests.flows.test_end_to_end import SMALL
from tests.flows.test_serve import call, runs
from tests.flows.test_up import Up

psycopg2 = pytest.importorskip("psycopg2", reason="needs the extra `team`")
boto3 = pytest.importorskip("boto3", reason="needs the extra `team`")
pytest.importorskip("moto.server", reason="needs moto, an object store for tests")

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "team.md"
BUCKET, PASSWORD, KEY = "fedloom", "hush", "team"
REGION = "us-east-1"


def programs() -> Path:
    """The folder of PostgreSQL's programs: Debian keeps them off the path."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), Path(shutil.which("initdb") or "/nowhere")]
    if not found[0].exists():
        pytest.skip("PostgreSQL, such as Debian's package `postgresql`, is not installed")
    return found[0].parent


def unprivileged() -> list[str]:
    """How to start PostgreSQL, which root must not do."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root cannot run PostgreSQL, and there is no setpriv to become somebody else")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """``host:port`` of a real PostgreSQL with the role and the databases of the page."""
    where, prefix, port = programs(), unprivileged(), server.any_port()
    # Not under pytest's own folder, which is for root's eyes alone.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "password").write_text(PASSWORD)
        if prefix:
            nobody = pwd.getpwnam("nobody")
            for path in (Path(folder), Path(folder) / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        data = f"{folder}/data"
        secured = ["--username=postgres", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--no-sync"]
        made = [*prefix, str(where / "initdb"), "-D", data, "--encoding=UTF8", *secured]
        subprocess.run(made, check=True, capture_output=True, cwd=folder)
        command = [*prefix, str(where / "postgres"), "-D", data, "-h", server.HOST, "-p", str(port), "-k", folder]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen([*command, "-c", "fsync=off"], cwd=folder, stdout=log, stderr=log)
        try:
            until(lambda: not server.free(port) and "ready to accept" in (Path(folder) / "log").read_text())
            (statements,) = blocks("sql")
            for statement in statements.replace("'PASSWORD'", f"'{PASSWORD}'").splitlines():
                query(f"postgres:{PASSWORD}@{server.HOST}:{port}/postgres", statement)
            yield f"{server.HOST}:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of a local object store with a bucket in it."""
    port = server.any_port()
    url = f"http://{server.HOST}:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", server.HOST, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: not server.free(port))
        bucket(url).create()
        yield url
    finally:
        process.terminate()
        process.wait(60)


def query(address: str, text: str) -> list[tuple]:
    connection = psycopg2.connect(f"postgresql://{address}")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def bucket(url: str) -> Any:
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": PASSWORD, "region_name": REGION}
    return boto3.resource("s3", endpoint_url=url, **keys).Bucket(BUCKET)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def environments(names: dict[str, str]) -> list[dict[str, str]]:
    """The variables of the page's blocks, with the names of its examples replaced."""
    text = "\0".join(blocks("ini"))
    for example, real in names.items():
        text = text.replace(example, real)
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in text.split("\0")]


class Team(NamedTuple):
    """What the page sets up, running, and a pipeline that has run on it."""

    checkout: Checkout
    up: Up
    elsewhere: dict[str, str]
    doctor: str
    flow: str


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, postgres: str, store: str) -> Iterator[Team]:
    names = {"PASSWORD@db.example.org:5432": f"{PASSWORD}@{postgres}", "https://s3.example.org": store}
    on_the_server, elsewhere, cluster = environments(names | {"=KEY": f"={KEY}", "=SECRET": f"={PASSWORD}"})
    assert set(cluster) == {"RAY_ADDRESS"}, "which tests/tasks/train/test_cluster.py is about"
    checkout = project(tmp_path_factory.mktemp("team") / "server", SMALL)
    del checkout.environment["FEDLOOM_TRACKING"]
    checkout.environment["OMP_NUM_THREADS"] = "1"
    (checkout.folder / "pipelines.yaml").write_text("pipelines: {default: {stages: [aggregate]}}\n")
    checkout.environment |= on_the_server
    (commands,) = blocks("console")
    for command in commands.replace("https://s3.example.org", store).splitlines():
        checkout.dvc(*command.removeprefix("$ dvc ").split())
    said = checkout.fedloom("doctor")
    up = Up(checkout)
    try:
        deployment = up.trigger("default")
        up.until(lambda: runs(up.api, deployment, "COMPLETED", "FAILED", "CRASHED"))
        (flow,) = runs(up.api, deployment, "COMPLETED")
        yield Team(checkout, up, elsewhere, said, flow["id"])
        assert up.end() == 0
    finally:
        up.process.kill()
        print(up.output.read_text())


def recorded(postgres: str, flow: str) -> list[tuple[str, str, str]]:
    """Name, status and place of the files of each run in MLflow's database that belongs to a flow run."""
    return query(
        f"fedloom:{PASSWORD}@{postgres}/mlflow",
        "SELECT name, status, artifact_uri FROM runs JOIN tags USING (run_uuid)"
        f" WHERE key = 'prefect.flow_run_id' AND value = '{flow}'",
    )


def test_doctor_says_what_is_configured_and_no_password(team: Team, postgres: str, store: str):
    assert f"Prefect's database: postgresql+asyncpg://fedloom:***@{postgres}/prefect" in team.doctor
    assert f"MLflow's database: postgresql://fedloom:***@{postgres}/mlflow" in team.doctor
    assert f"MLflow's files: s3://{BUCKET}/mlflow at {store}" in team.doctor
    assert f"DVC remote: s3://{BUCKET}/dvc, where nothing has been pushed to" in team.doctor
    assert "broken" not in team.doctor and PASSWORD not in team.doctor


def test_runs_are_in_postgresql_and_their_files_in_the_store(team: Team, postgres: str, store: str):
    known = query(
        f"fedloom:{PASSWORD}@{postgres}/prefect", "SELECT id::text FROM flow_run WHERE state_type = 'COMPLETED'"
    )
    assert known == [(team.flow,)]
    assert not list(team.checkout.folder.glob("**/prefect.db")) and not (team.checkout.folder / "mlflow.db").exists()
    names, states, places = zip(*recorded(postgres, team.flow), strict=True)
    assert {name.split()[-1] for name in names} >= {"partition", "train", "aggregate"} and set(states) == {"FINISHED"}
    assert all(place.startswith(f"s3://{BUCKET}/mlflow/") for place in places)
    kept = [found.key for found in bucket(store).objects.filter(Prefix="mlflow/")]
    assert any(key.endswith("model.safetensors") for key in kept)
    links = {found["key"]: found["data"] for found in call(team.up.api, "artifacts/latest/filter", {})}
    assert f"({team.up.mlflow}/#/experiments/" in links["mlflow"]


def test_a_colleague_gets_the_outputs_and_records_beside_the_others(team: Team, tmp_path: Path, store: str):
    team.checkout.dvc("push")
    git(team.checkout.folder, "add", "-A")
    git(team.checkout.folder, "commit", "-q", "-m", "Run")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(team.checkout.folder), str(clone))
    colleague = Checkout(clone)
    del colleague.environment["FEDLOOM_TRACKING"]
    here = {"PREFECT_API_URL": team.up.api, "MLFLOW_TRACKING_URI": team.up.mlflow}
    assert set(here) < set(team.elsewhere)
    colleague.environment |= team.elsewhere | here
    colleague.dvc("pull", "aggregate")
    released = "artifacts/aggregate/model.safetensors"
    assert (clone / released).read_bytes() == (team.checkout.folder / released).read_bytes()
    code = (
        "from pathlib import Path; from tasks import params, tracking\n"
        "with tracking.open_tracker('train', params.Params()) as tracker: tracker.artifact(Path('params.yaml'))\n"
        "print(tracker.run_id, tracking.run_url(tracker.run_id))"
    )
    output = colleague.start(sys.executable, "-c", code).communicate(timeout=120)[0]
    run_id, url = output.split()[-2:]
    assert re.fullmatch(rf"{team.up.mlflow}/#/experiments/\d+/runs/{run_id}", url), output
    assert call(f"{team.up.mlflow}/api/2.0/mlflow", f"runs/get?run_id={run_id}")["run"]["info"]["status"] == "FINISHED"
    assert list(bucket(store).objects.filter(Prefix=f"mlflow/{run_id}/artifacts/params.yaml"))
    said = colleague.fedloom("doctor")
    assert f"Prefect: answers at {team.up.api}" in said and f"MLflow: answers at {team.up.mlflow}" in said


def test_doctor_says_who_does_not_answer(checkout: Checkout):
    closed = f"{server.HOST}:{server.any_port()}"
    checkout.environment |= {"FEDLOOM_TRACKING": "on", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    said = checkout.fedloom(
        "doctor",
        code=1,
        PREFECT_API_URL=f"http://{closed}/api",
        MLFLOW_TRACKING_URI=f"postgresql://fedloom:{PASSWORD}@{closed}/mlflow",
        MLFLOW_DEFAULT_ARTIFACT_ROOT=f"s3://{BUCKET}",
        MLFLOW_S3_ENDPOINT_URL=f"http://{closed}",
        RAY_ADDRESS=closed,
    )
    assert f"Prefect: http://{closed}/api does not answer" in said
    assert f"MLflow's database: postgresql://fedloom:***@{closed}/mlflow does not answer: " in said
    assert f"MLflow's files: s3://{BUCKET} at http://{closed}: " in said
    assert f"Ray: no cluster answers at {closed}" in said
    assert PASSWORD not in said
    with socket.create_server((server.HOST, 0)) as cluster:
        address = f"ray://{server.HOST}:{cluster.getsockname()[1]}"
        said = checkout.fedloom("doctor", code=1, RAY_ADDRESS=address, MLFLOW_TRACKING_URI=f"http://{closed}")
    assert f"Ray: a cluster answers at {address}" in said
    assert f"MLflow: http://{closed} does not answer" in said
