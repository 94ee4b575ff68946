"""The command line as a new user tries it, mistakes included."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli
from tasks.params import methods

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["run", "sweep", "list", "show", "up", "serve", "report", "doctor", "validate", "schema"]


@pytest.fixture
def fedloom(monkeypatch):
    """Runs a command in this process, in the project's own checkout."""
    from rich.console import Console

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "out", Console(width=300))
    monkeypatch.setattr(cli, "errors", Console(width=300, stderr=True))

    def invoke(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli.app, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(fedloom, command):
    assert command in fedloom("--help")
    assert len(fedloom(command, "--help").split()) > 20


def test_list_names_every_method_and_pipeline(fedloom):
    output = fedloom("list")
    for place, classes in methods().items():
        assert place in output
        assert all(cls.model_fields["name"].default in output for cls in classes)
    assert "large-cohort" in output
    only = fedloom("list", "train.uplink")
    assert "topk" in only and "fedavg" not in only


def test_show_gives_the_equation_the_source_and_the_knobs(fedloom):
    output = fedloom("show", "fedprox")
    assert "Federated Optimization in Heterogeneous Networks" in output
    assert "mu / 2" in output
    (line,) = [line for line in output.splitlines() if line.startswith("mu ")]
    assert "0.01" in line and "≥ 0" in line
    assert "privacy" in fedloom("show", "dp")


@pytest.mark.parametrize("name", sorted({c.model_fields["name"].default for cs in methods().values() for c in cs}))
def test_every_method_can_be_shown(fedloom, name):
    assert name in fedloom("show", name)


@pytest.mark.parametrize(
    ("arguments", "explained"),
    [
        (["show", "fedporx"], "did you mean `fedprox`"),
        (["list", "train.uplnk"], "did you mean `train.uplink`"),
        (["run", "defualt"], "did you mean `default`"),
        (["run", "--stage", "trian"], "did you mean `train`"),
        (["run", "--set", "train.ruonds=3"], "did you mean `rounds`"),
        (["run", "--set", "train.rounds"], "FIELD=VALUE"),
        (["run", "--set", "train.cohort=101"], "partition.clients = 100"),
        (["serve", "nigthly"], "did you mean `nightly`"),
    ],
)
def test_a_mistyped_name_gives_the_nearest(fedloom, arguments, explained):
    output = fedloom(*arguments, code=2)
    assert explained in output
    assert "Traceback" not in output


def test_the_schemas_in_the_repository_are_current():
    for name, content in cli.schemas().items():
        assert (ROOT / name).read_text() == content, f"{name} is stale: run `fedloom schema`"
        assert json.loads(content)["type"] == "object"


def test_validate_checks_all_pipelines(checkout):
    assert "valid" in checkout.fedloom("validate")
    checkout.edit("pipelines.yaml", "cohort: 100", "cohort: 2000")
    output = checkout.fedloom("validate", code=2)
    assert "pipelines.large-cohort" in output and "train.cohort = 2000" in output


def test_a_parameter_that_dvc_needs_and_the_file_lacks_is_named_with_its_default(checkout):
    checkout.edit("params.yaml", "  evaluate_every: 1\n", "")
    assert "train.evaluate_every is missing; its default is train.evaluate_every: 1" in checkout.fedloom("run", code=2)


def test_outside_a_checkout_every_command_says_so(checkout, tmp_path):
    checkout.folder = tmp_path
    assert "is in no checkout of Fedloom" in checkout.fedloom("run", code=2)


def test_report_finds_the_newest(checkout):
    assert "artifacts/report/index.html" in checkout.fedloom("report")
    (checkout.folder / "reports").mkdir()
    (checkout.folder / "reports" / "later.html").write_text("later")
    assert checkout.fedloom("report").strip().endswith("reports/later.html")


def test_doctor_finds_nothing_wrong_here_and_says_what_is_wrong_there(checkout):
    output = checkout.fedloom("doctor")
    assert "broken" not in output
    assert "all stages are up to date" in output
    checkout.edit("params.yaml", "rounds: 200", "rounds: none")
    output = checkout.fedloom("doctor", code=1)
    assert "train.rounds = 'none'" in output and "mend it" in output


def test_a_comparison_that_another_program_reads_has_a_line_a_cell(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    row = ["a cell with a name of some length", *(f"{number} seconds" for number in range(8))]
    cli._compared(["cell", *map(str, range(8))], [row], Path("comparison.html"))
    assert row == re.split(r" {2,}", capsys.readouterr().out.splitlines()[1].strip())
