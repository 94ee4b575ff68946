"""The command line: ``fedloom run``, ``sweep``, ``up``, ``doctor`` and the others that ``fedloom --help`` lists."""

import asyncio
import contextlib
import inspect
import json
import os
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from tasks.config import Config, Refused

if TYPE_CHECKING:
    from flows.pipelines import Pipelines

out = Console()
errors = Console(stderr=True)


class Commands(TyperGroup):
    """Says what was refused in one message, and ends with code 2; with 1 where a stage failed, with 130 if stopped."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as refused:
            errors.print(f"[red]error:[/] {escape(str(refused))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("[red]stopped[/]")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated learning as one declarative pipeline: partition, train, aggregate, attack, report.",
    epilog="Parameters are in params.yaml, named pipelines in pipelines.yaml. Start with: fedloom run",
)

Port = Annotated[
    int, typer.Option(help="Port of the Prefect server and its UI, on this machine only.", min=1, max=65535)
]


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline of pipelines.yaml.")] = "default",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a parameter for this run, as in train.rounds=50."),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage and what it depends on; may be given again.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again even what has not changed.")] = False,
) -> None:
    """Run a pipeline: the stages that have changed, and only those.

    Without changes to params.yaml the stages run in this checkout. With --set, or in a pipeline with overrides, they
    run in a throw-away copy and are kept as a DVC experiment; params.yaml and artifacts/ stay as they are.
    """
    from flows import checkout, overrides, pipelines, server

    main = _enter()
    chosen = pipelines.pick(pipeline, pipelines.load(main))
    wanted = list(stage or chosen.stages)
    _known(wanted)
    typed = overrides.parse(changes or [])
    changed = overrides.merge(chosen.changes, typed)
    settings = checkout.resolve(
        main, changed, "params.yaml with the overrides of this run" if changed else "params.yaml"
    )
    checkout.check(main)
    # Whom the registry's champion is, only the flow asks.
    asks = settings.model.start.name == "champion"
    if not changed and not force and not asks and not any(planned.stale for planned in checkout.plan(main, wanted)):
        out.print("Nothing has changed: every stage is up to date. `--force` runs it again.")
        _where(_newest(main))
        return
    server.prepare(main)
    with out.status("starting Prefect"), server.serving(main, services=False) as url:
        result = _flow({"pipeline": pipeline, "overrides": typed, "stages": stage or None, "force": force}, url)
    _summarise(result, main)


def _flow(parameters: dict[str, Any], url: str) -> dict[str, Any]:
    """Runs the flow in this process, showing its progress."""
    from flows.display import SILENT, Display

    os.environ.update(SILENT)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.pipeline import StageFailed, drain
    from flows.pipeline import pipeline as flow

    try:
        with temporary_settings({PREFECT_API_URL: url}), Display(out):
            try:
                return flow(**parameters)
            finally:
                drain()
    except StageFailed as failed:
        errors.print(f"[red]error:[/] {escape(str(failed))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


@app.command()
def sweep(
    name: Annotated[str | None, typer.Argument(help="A sweep of pipelines.yaml; without it they are listed.")] = None,
    parallel: Annotated[
        int | None, typer.Option(help="Cells at a time, in place of what the file says.", min=1)
    ] = None,
) -> None:
    """Run a sweep: variations of a pipeline side by side, each kept as a DVC experiment, and a page that compares them.

    Goes on where it was stopped; a cell is not repeated until what it depends on has changed.
    """
    from flows import pipelines, server

    main = _enter()
    known = pipelines.read(main)
    if name is None:
        _sweeps(main, known)
        return
    pipelines.pick_sweep(name, known.sweeps)
    from flows import trials
    from tasks.report.comparison import table

    found = trials.plan(main, name, known)
    if all(trial.finished for trial in found):
        out.print("Every cell is finished.")
        header, rows = table([trial.result for trial in found])
        _compared(header, rows, trials.publish(main, name, known, found))
        return
    server.prepare(main)
    with contextlib.ExitStack() as stack:
        with out.status("starting Prefect"):
            url = stack.enter_context(server.serving(main, services=False))
        result = _cells(name, parallel, url)
    _compared(result["columns"], result["rows"], Path(result["report"]))


def _cells(name: str, parallel: int | None, url: str) -> dict[str, Any]:
    """Runs the flow of a sweep in this process, showing its progress."""
    from flows.display import SILENT

    os.environ.update(SILENT)
    from prefect.exceptions import TerminationSignal
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.pipeline import drain
    from flows.sweep import CONSOLE, CellsFailed
    from flows.sweep import sweep as flow

    CONSOLE.set(out)
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                return asyncio.run(flow(name, parallel))
            finally:
                drain()
    except CellsFailed as failed:
        errors.print(f"[red]error:[/] {escape(str(failed))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except TerminationSignal:
        raise KeyboardInterrupt from None


def _compared(columns: list[str], rows: list[list[str]], page: Path) -> None:
    from flows.display import WIDE

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    (out if out.is_terminal else Console(width=WIDE)).print(table)
    out.print(f"Comparison: {page}", soft_wrap=True, highlight=False)


def _sweeps(main: Path, known: Any) -> None:
    """Lists the sweeps, with what is finished of each."""
    from flows import trials

    table = Table("sweep", "what it is to find out", "finished", box=None, pad_edge=False)
    for name, sweep_ in known.sweeps.items():
        found = trials.plan(main, name, known)
        done = f"{sum(trial.finished for trial in found)} of {len(found)} cells"
        table.add_row(f"[bold]{name}[/]", escape(sweep_.description), done)
    out.print(table)


@app.command("list")
def list_(
    slot: Annotated[str | None, typer.Argument(help="Only methods whose place starts so, as in train.uplink.")] = None,
) -> None:
    """List the methods that each place in params.yaml takes, and the pipelines of pipelines.yaml."""
    from flows.pipelines import load, nearest
    from tasks.params import methods

    main = _enter()
    known = methods()
    shown = {place: found for place, found in known.items() if not slot or f"{place}.".startswith(f"{slot}.")}
    if not shown:
        raise Refused("slot", slot, f"unknown{nearest(slot or '', list(known))}")
    table = Table("place in params.yaml", "name", "what it does", box=None, pad_edge=False)
    for place, found in shown.items():
        for i, method in enumerate(found):
            table.add_row(f"[bold]{place}[/]" if i == 0 else "", _name(method), escape(_summary(method)))
    out.print(table)
    if slot is None:
        table = Table("pipeline", "what it is for", "starts by itself", box=None, pad_edge=False)
        for name, pipeline in load(main).items():
            when = pipeline.schedule
            text = (
                ""
                if when is None
                else f"{when.cron or f'every {when.interval:g} s'}{'' if when.active else ' (paused)'}"
            )
            table.add_row(f"[bold]{name}[/]", escape(pipeline.description), text)
        out.print("\n", table)


@app.command()
def show(
    method: Annotated[
        str,
        typer.Argument(help="The name of a method, pipeline or sweep, as `fedloom list` and `fedloom sweep` give it."),
    ],
) -> None:
    """Explain a method: what it does, its equation and source, and its parameters with defaults and bounds."""
    from ruamel.yaml import YAML

    from flows.pipelines import nearest, read
    from tasks.params import methods

    main = _enter()
    found = [(place, cls) for place, classes in methods().items() for cls in classes if _name(cls) == method]
    pipelines = {**read(main).pipelines, **read(main).sweeps}
    if not found and method not in pipelines:
        names = [_name(cls) for classes in methods().values() for cls in classes]
        raise Refused("method", method, f"unknown{nearest(method, sorted({*names, *pipelines}))}")
    for place, cls in found:
        out.print(f"[bold]{method}[/] · {place}\n")
        out.print(inspect.cleandoc(cls.__doc__ or "") + "\n", markup=False, highlight=False, soft_wrap=True)
        out.print(_fields(cls))
    if method in pipelines:
        out.print(f"[bold]{method}[/] · pipelines.yaml\n")
        YAML().dump(pipelines[method].model_dump(mode="json", exclude_defaults=True), out.file)


@app.command()
def replicate(
    slug: Annotated[str | None, typer.Argument(help="A file of replications/; without it they are listed.")] = None,
    seeds: Annotated[str, typer.Option(metavar="0,1,2", help="Seeds in place of those of the file.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="All of them whose data are there.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 for one a core.")] = 0,
) -> None:
    """Run a paper's claim: baseline and method under an equal budget, over several seeds, and judge it.

    Goes on where it was stopped, and repeats nothing that has not changed. The numbers go to
    replications/results/ and the row to docs/replications.md.
    """
    from flows import cells, claims, verdicts
    from flows.replicate import replicate as measure

    main = _enter()
    if slug is None and not all_:
        out.print(verdicts.listing(main))
        return
    wanted = [] if slug is None else [slug]
    for name in claims.slugs(main) if all_ else ():
        if absent := cells.lacking(main, name, claims.load(main, name)):
            out.print(f"{name} is left out: {absent}", markup=False, highlight=False)
        else:
            wanted.append(name)
    unjudged = measure(main, wanted, claims.seeds(seeds), jobs or len(os.sched_getaffinity(0)), out)
    out.print(verdicts.rows(main, wanted))
    if unjudged:
        raise typer.Exit(1)


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(help="Port of Prefect; 4200 if none, or the next free one.", min=1, max=65535)
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Port of MLflow; 5000 if none, or the next free one.", min=1, max=65535)
    ] = None,
    print_: Annotated[
        bool, typer.Option("--print", help="Show the commands for doing it by hand or under systemd instead.")
    ] = False,
) -> None:
    """Start the Prefect UI, the MLflow UI and the pipelines in this terminal, and keep them running until Ctrl-C.

    All of it listens on this machine only. A server that dies is started again; the logs are in .fedloom/logs.
    PREFECT_API_URL and MLFLOW_TRACKING_URI name servers that run elsewhere: then only the rest is started.
    """
    from flows import pipelines, server
    from flows import up as services

    main = _enter()
    known = pipelines.read(main)
    names, usual = [*known.pipelines, *known.sweeps], services.Ports()
    if print_:
        wanted = services.Ports(port or usual.prefect, mlflow_port or usual.mlflow)
        out.out(services.script(main, services.plan(main, names, wanted)), highlight=False)
        return
    _valid(main, known)

    def say(who: str, line: str) -> None:
        out.print(f"[bold]{who:<9}[/] │ {escape(line)}", highlight=False, soft_wrap=True)

    with server.alone(main):
        services.clear(main, say)
        found = services.Ports.free(port, mlflow_port)
        chosen = services.plan(main, names, found)
        server.prepare(main)

        here = {service.name for service in chosen.servers}
        for name, wanted, got in zip(found._fields, usual, found, strict=True):
            if name in here and got not in (wanted, port, mlflow_port):
                say("up", f"another program uses port {wanted}: {name} will be on {got}")

        def ready() -> None:
            say("prefect", chosen.prefect)
            say("mlflow", chosen.mlflow)
            say("pipelines", ", ".join(names))
            say("reports", server.note(main, "reports"))
            say("up", "ready · Ctrl-C ends it")

        for service in chosen.services:
            say("up", f"starting {service.name} · log: {service.log.relative_to(main)}")
        services.run(main, chosen, say, ready)


@app.command()
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(help="Pipelines and sweeps to serve; all of pipelines.yaml if none.")
    ] = None,
    port: Port = 4200,
) -> None:
    """Serve the pipelines and sweeps alone: start them from the Prefect UI, by their schedules or over the API.

    Uses the Prefect server at PREFECT_API_URL or on the port, or starts one there. `fedloom up` does it all.
    """
    from flows import pipelines, server
    from flows.up import MARK

    main = _enter()
    known = pipelines.read(main)
    sweeps = {name: sweep_ for name, sweep_ in known.sweeps.items() if not names or name in names}
    others = [name for name in names or known.pipelines if name not in sweeps]
    chosen = {name: pipelines.pick(name, known.pipelines) for name in others}
    server.prepare(main)
    own = None if os.environ.get("PREFECT_API_URL") else port
    # As a part of `up` it serves in the right of that.
    right = contextlib.nullcontext() if MARK in os.environ else server.alone(main)
    with right, server.serving(main, own) as url, server.noted(main, url):
        from flows.deploy import serve_all

        where = f"Prefect UI: {url.removesuffix('/api')} · pipelines: {', '.join(chosen)} · Ctrl-C ends it"
        out.print(where, soft_wrap=True, highlight=False)
        if sweeps:
            out.print(f"sweeps: {', '.join(sweeps)}")
        serve_all(main, chosen, sweeps)


@app.command()
def notify(
    url: Annotated[str | None, typer.Argument(help="A webhook, such as Slack's or Mattermost's.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Stop it.")] = False,
) -> None:
    """Have the Prefect server call a webhook when a served run fails or crashes.

    The server must be running (`fedloom up`); it keeps the address, as an automation that its UI shows.
    """
    from flows import server

    main = _enter()
    if (url is None) != off:
        raise Refused("notify", url, "needs the URL of a webhook, or --off")
    server.prepare(main)
    found = server.found(main)
    if found is None:
        raise Refused("notify", None, "no Prefect server is running", "Start it with `fedloom up`")
    os.environ["PREFECT_API_URL"] = found
    from flows import notify as automation

    if url is None:
        out.print("There is no notification any more." if automation.forget() else "There was none.")
    else:
        automation.notify(url)
        out.print(f"Runs that fail or crash are told to {url}.", soft_wrap=True, highlight=False)


@app.command()
def report(open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False) -> None:
    """Print the path of the newest report."""
    newest = _newest(_enter())
    if newest is None:
        raise Refused("report", None, "there is none yet", "Run `fedloom run` first")
    out.print(str(newest), soft_wrap=True, highlight=False)
    if open_:
        webbrowser.open(newest.as_uri())


@app.command()
def doctor(
    ray: Annotated[bool, typer.Option("--ray", help="Start Ray as well, which takes some seconds.")] = False,
) -> None:
    """Check what a run needs of this machine, and say how to mend what is missing."""
    from flows.doctor import examine

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[red]broken[/]"}
    broken = 0
    for finding in examine(_enter(), ray):
        broken += finding.state == "broken"
        out.print(f"{marks[finding.state]:<20} [bold]{finding.what}[/]: {escape(finding.found)}", highlight=False)
        if finding.mend:
            out.print(f"{'':8} mend it: {escape(finding.mend)}", highlight=False)
    if broken:
        raise typer.Exit(1)


@app.command()
def tune(
    seconds: Annotated[float, typer.Option(help="How long each plan is measured.", min=0.1)] = 3.0,
    write: Annotated[bool, typer.Option("--write", help="Write the best plan into params.yaml.")] = False,
) -> None:
    """Measure how the client work of params.yaml runs fastest here: stacked, compiled, over how many workers.

    Needs a finished partition stage. The plans differ in the last bits of the result, workers apart.
    """
    import torch

    from tasks import params, tracking
    from tasks.train.tune import tune as measure

    main = _enter()
    tracking.quiet()
    torch.set_num_threads(1)
    settings = params.load(params.FILE)
    with tracking.Tracker("tune") as tracker:
        found = measure(settings, Path("artifacts"), tracker, seconds)
    table = Table("stack", "compiled", "workers", "s to start", "ms a round", "s for the run", box=None, pad_edge=False)
    for m in found:
        cells = m.plan.stack, m.plan.compile, m.plan.workers, f"{m.start:.1f}", f"{1e3 * m.round:.1f}", f"{m.whole:.1f}"
        table.add_row(*map(str, cells))
    out.print(table)
    best = {name: getattr(found[0].plan, name) for name in ("workers", "stack", "compile")}
    if write:
        from flows import checkout

        checkout.write(main / params.FILE, {"train": {"engine": best}})
        out.print(f"params.yaml: train.engine now has {best}")
    else:
        out.print(f"The best is train.engine: {best}; `fedloom tune --write` writes it into params.yaml")


@app.command()
def validate() -> None:
    """Check params.yaml and every pipeline and sweep of pipelines.yaml, without running anything."""
    from flows import checkout, pipelines
    from tasks import params

    main = _enter()
    params.load(params.FILE)
    checkout.check(main)
    _valid(main, pipelines.read(main))
    out.print("params.yaml and pipelines.yaml are valid.")


def _valid(main: Path, known: "Pipelines") -> None:
    """Refuses a pipeline or a cell of a sweep whose overrides `params.yaml` would not take."""
    from flows import checkout, grid

    for name, pipeline in known.pipelines.items():
        checkout.resolve(main, pipeline.changes, f"pipelines.yaml: pipelines.{name}")
    for name in known.sweeps:
        grid.cells(main, name, known)


@app.command()
def schema() -> None:
    """Write the JSON schemas of params.yaml and pipelines.yaml, by which editors complete and check them."""
    main = _enter()
    for path, content in schemas().items():
        (main / path).write_text(content)
        out.print(path)


def schemas() -> dict[str, str]:
    """The JSON schemas by file name, as text."""
    from flows.pipelines import Pipelines
    from tasks.params import schema as params_schema

    found = {"params.schema.json": params_schema(), "pipelines.schema.json": Pipelines.model_json_schema()}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in found.items()}


def _enter() -> Path:
    """Changes into the checkout around the current folder."""
    from flows.checkout import root

    main = root()
    os.chdir(main)
    return main


def _known(stages: list[str]) -> None:
    from typing import get_args

    from flows.pipelines import Stage, nearest

    for name in stages:
        if name not in get_args(Stage):
            raise Refused("stage", name, f"unknown{nearest(name, list(get_args(Stage)))}")


def _newest(main: Path) -> Path | None:
    """The newest of the kept reports and of that of this checkout."""
    found = [*main.glob("reports/*.html"), *main.glob("artifacts/report/index.html")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _where(report_: Path | None) -> None:
    if report_ is not None:
        out.print(f"Report: {report_}", soft_wrap=True, highlight=False)
    uis = "Prefect and MLflow UI: `fedloom up` · DVC: `dvc exp show`, `dvc metrics diff`"
    out.print(uis, soft_wrap=True, highlight=False)


def _summarise(result: dict[str, Any], main: Path) -> None:
    table = Table("stage", "outcome", "seconds", box=None, pad_edge=False)
    for name, (outcome, seconds) in result["stages"].items():
        table.add_row(name, outcome, f"{seconds:.1f}")
    out.print(table)
    _where(Path(result["report"]) if result["report"] else _newest(main))


def _name(method: type[Config]) -> str:
    return str(method.model_fields["name"].default)


def _summary(method: type[Config]) -> str:
    return " ".join((method.__doc__ or "").strip().split("\n\n")[0].split())


def _fields(method: type[Config]) -> Table:
    """The hyperparameters of a method: default, bounds and meaning, as in docs/parameters.md."""
    from flows.reference import allowed, default

    table = Table("parameter", "default", "allowed", "what it is", box=None, pad_edge=False)
    properties = method.model_json_schema()["properties"]
    for name, field in method.model_fields.items():
        if name != "name":
            cells = default(field), allowed(properties[name]), field.description or ""
            table.add_row(name, *(escape(cell.replace("`", "")) for cell in cells))
    return table


if __name__ == "__main__":
    app()
