"""What was run: enough to run it again."""

import json

from tasks.config import Config
from tasks.report.amounts import number
from tasks.report.page import Code, Folded, Panel, Row, Table
from tasks.report.run import Run


def setup(run: Run) -> Panel:
    """Method, data, model and seed; versions and revision; every parameter."""
    params, train = run.params, run.params.train
    data = run.meta.dataset if run.meta else params.partition.dataset.name
    parameters = f" ({number(run.summary['parameters'])} parameters)" if run.summary else ""
    what = [
        ("data", data),
        ("clients", f"{params.partition.clients:,}, split by {said(params.partition.split)}"),
        ("model", said(params.model) + parameters),
        ("method", said(train.algorithm)),
        ("rounds", f"{train.rounds:,} with a cohort of {train.cohort:,}, drawn {said(train.sampling)}"),
        ("uplink", "; ".join(map(said, train.uplink)) or "uncompressed"),
        ("privacy", said(train.privacy)),
        ("schedule", f"{said(train.schedule)}, topology {said(train.topology)}"),
        ("devices", said(train.devices)),
        ("merge", said(params.aggregate.merge)),
        ("seed", str(params.seed)),
    ]
    engine = ", ".join(f"{name} {value}" for name, value in run.plan.items())
    made_with = [
        ("revision", run.revision or "not in a git repository"),
        *run.versions.items(),
        *([("engine", engine)] if engine else []),
    ]
    content = json.dumps(params.model_dump(mode="json"), indent=2)
    tables = (
        Table("The run", ("part", "choice"), what, numeric=False),
        Table("Made with", ("what", "version"), made_with, numeric=False),
    )
    return Panel("What was run", (Row(tables), Folded("Every parameter", [Code(content)])))


def said(config: Config) -> str:
    """A method with its settings: ``dirichlet (alpha 0.3)``."""
    settings = {name: getattr(config, name) for name in type(config).model_fields if name != "name"}
    shown = ", ".join(f"{name} {_value(value)}" for name, value in settings.items())
    return f"{config.name} ({shown})" if shown else config.name


def _value(value: object) -> str:
    if isinstance(value, Config):
        return said(value) if hasattr(value, "name") else str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
