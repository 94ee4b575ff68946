"""Where stages run: in this checkout or in a throw-away worktree that shares its cache; and what has to run there."""

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from flows import overrides
from flows.process import Failed, dvc, run
from tasks import params
from tasks.artifacts import write_text
from tasks.config import Refused
from tasks.models.start import File
from tasks.tracking import flatten, git

Say = Callable[[str], None]


class Planned(NamedTuple):
    """A stage in the order of execution, and whether it or one that it depends on has changed."""

    name: str
    stale: bool


def root(start: Path | None = None) -> Path:
    """The checkout around ``start`` (or the current folder): the nearest folder that has a `dvc.yaml`."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").exists():
            return folder
    raise Refused(str(start), None, "is in no checkout of Fedloom (no dvc.yaml here or above)", "Change into one")


def plan(folder: Path, targets: Collection[str] = ()) -> list[Planned]:
    """The stages that ``targets`` (or all) consist of, in DVC's order; asked in this process, which takes a moment.

    A stage that is busy in another process counts as stale, so that it is waited for.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    with Repo(str(folder)) as repo:
        graph = repo.index.graph
        upstream = {stage.name: {needed.name for needed in graph.successors(stage)} for stage in graph}
        chosen = [stage for stage in graph if stage.name in targets]
        stale: set[str] = set()
        planned = []
        # By name, for DVC reads an address relative to the current folder.
        for stage in plan_repro(graph, chosen or None):
            try:
                with repo.lock:
                    changed = bool(upstream[stage.name] & stale) or stage.changed()
            except DvcException:
                changed = True
            if changed:
                stale.add(stage.name)
            planned.append(Planned(stage.name, changed))
    return planned


def reads(folder: Path, name: str) -> dict[str, Any]:
    """The digests of what a stage reads from the disk and the values of its parameters, as DVC would file them now."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile

    with Repo(str(folder)) as repo, repo.lock:
        (stage,) = (stage for stage in repo.index.stages if stage.name == name)
        stage.save_deps()
        entry = to_single_stage_lockfile(stage)
    return json.loads(json.dumps({part: entry[part] for part in ("deps", "params")}))


def resolve(folder: Path, changes: dict[str, Any], source: str = params.FILE) -> params.Params:
    """The parameters of the checkout with ``changes`` made, checked; ``source`` names them in what is refused."""
    document = _read(folder / params.FILE)
    overrides.apply(changes, document)
    settings = params.build(document, source)
    if isinstance(settings.model.start, File):
        settings.model.start.check()
    return settings


def check(folder: Path) -> None:
    """Refuses a `params.yaml` that leaves out a field by which DVC tells whether a stage has changed."""
    document = _read(folder / params.FILE)
    settings = params.build(document)
    stages = _read(folder / "dvc.yaml")["stages"].values()
    wanted = sorted({name for stage in stages for name in stage.get("params", []) if isinstance(name, str)})
    written, full = flatten(document), flatten(settings)
    lacking = []
    for name in wanted:
        if not any(f"{field}.".startswith(f"{name}.") for field in written):
            default = {field: value for field, value in full.items() if f"{field}.".startswith(f"{name}.")}
            lacking.append(f"{name} is missing; its default is " + ", ".join(f"{f}: {v}" for f, v in default.items()))
    if lacking:
        raise params.ParamsRefused(params.FILE, lacking)


@contextlib.contextmanager
def exclusive(folder: Path, name: str, say: Say) -> Iterator[None]:
    """Holds the lock ``name`` of the checkout, however many processes want it; a killed holder gives it up."""
    path = folder / ".fedloom" / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another run to end ({name})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fingerprint(settings: params.Params, *more: str) -> str:
    """A short name of all parameters, and of what ``more`` names, such as the :func:`version` of the code.

    Two runs with the same one would compute the same things.
    """
    return sha256("\0".join([settings.model_dump_json(), *more]).encode()).hexdigest()[:16]


def version(folder: Path) -> str:
    """What names the code and the data that the numbers of a run depend on, as `dvc.yaml` lists them.

    By DVC's own hashes, so that what DVC would run again has another name; but for the code that makes the report.
    """
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        needed = [dep for stage in repo.index.stages if stage.name != "report" for dep in stage.deps]
        given = {
            dep.def_path: dep
            for dep in needed
            if not isinstance(dep, ParamsDependency) and not dep.def_path.startswith("artifacts/")
        }
        hashes = [f"{path} {dep.get_hash().value}" for path, dep in sorted(given.items())]
    return sha256("\n".join(hashes).encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """``name`` in the letters that DVC allows for an experiment."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


@contextlib.contextmanager
def worktree(main: Path, name: str, changes: dict[str, Any], say: Say) -> Iterator[Path]:
    """A copy of the checkout as it is now with ``changes`` in its parameters, saved as a DVC experiment.

    It has what is committed, what is edited since, and `data/`; it shares the cache; and it is gone afterwards.
    """
    if git("rev-parse", "HEAD", folder=main) is None:
        raise Refused(str(main), None, "is no git repository with a commit, which a run with overrides needs")
    folder = main / ".fedloom" / "worktrees" / name
    sweep(main)
    with exclusive(main, f"worktree-{name}", say):
        try:
            with _one_in_git(main):
                run(["git", "worktree", "add", "--quiet", "--detach", str(folder), "HEAD"], main)
                _carry(main, folder, say)
            write(folder / params.FILE, changes)
            yield folder
            with _one_in_git(main):
                # The metrics are no outputs in DVC's cache: where git does not know them yet, they must be named.
                run(dvc("exp", "save", "--name", name, "--include-untracked", "metrics", *_targets(folder)), folder)
            say(f"kept as experiment {name}: `dvc exp show`, `dvc exp apply {name}`")
        finally:
            _remove(main, folder)


def sweep(main: Path) -> None:
    """Removes the worktrees of runs that were killed."""
    for folder in (main / ".fedloom" / "worktrees").glob("*"):
        lock = FileLock(main / ".fedloom" / "locks" / f"worktree-{folder.name}.lock")
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            _remove(main, folder)


def _targets(folder: Path) -> list[str]:
    """The arguments that name the stages to save: those with outputs, where DVC would miss others that nobody wanted.

    Nothing where all have theirs: DVC saves them at once then, in half of the time.
    """
    stages = _read(folder / "dvc.yaml")["stages"]
    made = [name for name, stage in stages.items() if all((folder / out).exists() for out in stage["outs"])]
    return ["--", *made] if len(made) < len(stages) else []


def experiment_exists(main: Path, name: str) -> bool:
    return bool(git("for-each-ref", f"refs/exps/**/{name}", folder=main))


def _revision(main: Path, name: str) -> str:
    """The commit that an experiment is kept in."""
    return git("for-each-ref", "--count=1", "--format=%(objectname)", f"refs/exps/**/{name}", folder=main) or ""


def recorded(main: Path, name: str) -> dict[str, Any]:
    """The numbers of an experiment, of each stage by its name, without a copy of it in the way."""
    revision = _revision(main, name)
    paths = git("ls-tree", "--name-only", revision, "metrics/", folder=main) or ""
    return {
        Path(path).stem: json.loads(git("show", f"{revision}:{path}", folder=main) or "{}") for path in paths.split()
    }


def report_of(main: Path, name: str) -> Path | None:
    """The report of an experiment in `reports/`, taken out of DVC's cache again where it was deleted."""
    kept = main / "reports" / f"{name}.html"
    if not kept.exists():
        from dvc.api import read
        from dvc.exceptions import DvcException

        try:
            write_text(kept, read("artifacts/report/index.html", str(main), _revision(main, name), encoding="utf-8"))
        except (DvcException, OSError):
            return None
    return kept


def numbers(folder: Path) -> dict[str, Any]:
    """The numbers that the stages are judged by, from `metrics/`, by dotted name."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "metrics").glob("*.json")):
        found |= flatten(json.loads(path.read_text()), path.stem)
    return found


def publish_report(main: Path, folder: Path, name: str) -> Path | None:
    """Copies the report of a run to `reports/` of the main checkout, where it stays."""
    made = folder / "artifacts" / "report" / "index.html"
    if not made.exists():
        return None
    kept = main / "reports" / f"{name}.html"
    kept.parent.mkdir(exist_ok=True)
    shutil.copyfile(made, kept)
    return kept


def _carry(main: Path, folder: Path, say: Say) -> None:
    """Brings into a worktree what git does not: the cache, uncommitted edits and the data."""
    from dvc.config import Config
    from dvc.repo import Repo

    with Repo(str(main)) as repo:
        cache = repo.cache.local_cache_dir
    local = main / ".dvc" / "config.local"
    if local.exists():
        shutil.copyfile(local, folder / ".dvc" / "config.local")
    with Config(str(folder / ".dvc")).edit("local") as settings:
        settings["cache"]["dir"] = cache
    edits = git("stash", "create", folder=main)
    if edits:
        say("this run includes the edits that are not committed yet")
        run(["git", "checkout", edits, "--", "."], folder)
        run(["git", "reset", "--quiet"], folder)
    unknown = git("ls-files", "--others", "--exclude-standard", folder=main)
    if unknown:
        say(f"not part of this run, because git does not know them: {', '.join(unknown.splitlines()[:10])}")
    _link(main / "data", folder / "data")


def _link(there: Path, here: Path) -> None:
    """The files under ``there`` as links in real folders: DVC looks behind a link to a file, not to a folder."""
    for folder, inner, files in os.walk(there):
        place = here / os.path.relpath(folder, there)
        place.mkdir(exist_ok=True)
        for name in [*files, *(name for name in inner if os.path.islink(os.path.join(folder, name)))]:
            if not (place / name).exists():
                (place / name).symlink_to(os.path.join(folder, name))


def _remove(main: Path, folder: Path) -> None:
    with _one_in_git(main):
        with contextlib.suppress(Failed):
            run(["git", "worktree", "remove", "--force", "--force", str(folder)], main)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(Failed):
            run(["git", "worktree", "prune"], main)


def _one_in_git(main: Path) -> contextlib.AbstractContextManager[None]:
    """One process at a time where refs are written that all worktrees share, such as DVC's stash of experiments."""
    return exclusive(main, "git", lambda line: None)


def _read(path: Path, kind: str = "safe") -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ=kind).load(path) or {}
    except FileNotFoundError:
        raise Refused(str(path), None, "does not exist") from None
    except YAMLError as error:
        raise Refused(str(path), None, f"is not YAML: {error}") from None


def write(path: Path, changes: dict[str, Any]) -> None:
    """Changes a parameter file, keeping its comments and its order."""
    from ruamel.yaml import YAML

    document, text = _read(path, "rt"), io.StringIO()
    overrides.apply(changes, document)
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(document, text)
    write_text(path, text.getvalue())
