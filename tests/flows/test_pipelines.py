"""`pipelines.yaml`: what it says, and how mistakes in it are explained."""

from pathlib import Path

import pytest

from flows import checkout, pipelines
from flows.overrides import merge
from tasks.artifacts import read_json
from tasks.config import Refused
from tasks.partition.stage import partition
from tasks.tracking import Tracker
from tasks.train.stage import train

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, text: str) -> dict[str, pipelines.Pipeline]:
    (folder / "pipelines.yaml").write_text(text)
    return pipelines.load(folder)


def test_the_project_has_the_pipelines_that_it_promises():
    known = pipelines.load(ROOT)
    assert {"default", "dp", "compressed", "large-cohort"} <= set(known)
    settings = {name: checkout.resolve(ROOT, pipeline.changes) for name, pipeline in known.items()}
    assert known["default"].changes == {}
    assert settings["dp"].train.privacy.name == "gaussian"
    assert len(settings["compressed"].train.uplink) == 2
    assert (settings["large-cohort"].partition.clients, settings["large-cohort"].train.cohort) == (1000, 100)
    assert not any(p.schedule.active for p in known.values() if p.schedule)


@pytest.mark.parametrize("name", sorted(set(pipelines.load(ROOT)) - {"growing"}))
def test_every_pipeline_of_the_project_has_a_model_that_fits_its_data_and_trains(name, tmp_path, monkeypatch):
    """`growing`, whose data are its user's own, is run in test_drift.py."""
    monkeypatch.chdir(tmp_path)
    short = {"train": {"rounds": 2, "engine": {"workers": 0}}}
    settings = checkout.resolve(ROOT, merge(pipelines.load(ROOT)[name].changes, short))
    for stage in (partition, train):
        stage(settings, tmp_path / "artifacts", Tracker(stage.__name__))
    found = read_json(tmp_path / "metrics" / "train.json")
    assert found["rounds"] == 2
    assert (found["epsilon"] is not None) == (name == "dp")


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        ("pipelines: {a: {overides: {}}}", "pipelines.a.overides: unknown field; did you mean `overrides`"),
        ("pipelines: {a: {stages: [trian]}}", "pipelines.a.stages.0 = 'trian'"),
        ("pipelines: {a: {schedule: {cron: daily}}}", "pipelines.a.schedule.cron = 'daily': must have five fields"),
        ("pipelines: {a: {schedule: {cron: 0 99 * * *}}}", "the hour must be *, or within 0 to 23"),
        ("pipelines: {a: {schedule: {}}}", "pipelines.a.schedule: needs either `cron` or `interval`"),
        (
            "pipelines: {a: {schedule: {interval: 5, crom: x}}}",
            "pipelines.a.schedule.crom: unknown field; did you mean",
        ),
        ("pipelines: {a: {schedule: {cron: 0 3 * * *, timezone: Mars}}}", "is no time zone"),
        ("pipelines: {a: {promote: {marign: 1}}}", "pipelines.a.promote.marign: unknown field; did you mean `margin`"),
        ("pipelines: {a: {promote: {metric: recall}}}", "pipelines.a.promote.metric = 'recall'"),
        ("pipelines: {a: {resources: {concurrency: 0}}}", "pipelines.a.resources.concurrency = 0"),
        ("pipelines: {My Run: {}}", "a name is made of a-z, 0-9 and -"),
        ("pipline: {}", "pipline: unknown field; did you mean `pipelines`"),
        ("pipelines: [", "is not YAML"),
        ("- a", "the file"),
    ],
)
def test_a_mistake_is_explained_with_its_place(tmp_path, text, explained):
    with pytest.raises(Refused) as refused:
        load(tmp_path, text)
    assert explained in str(refused.value)


def test_a_missing_file_and_an_unknown_name(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        pipelines.load(tmp_path)
    with pytest.raises(Refused, match="did you mean `nightly`"):
        pipelines.pick("nigthly", load(tmp_path, "pipelines: {nightly: {}}"))


def test_workers_are_an_override_of_the_engine(tmp_path):
    known = load(tmp_path, "pipelines: {a: {overrides: {train: {rounds: 3}}, resources: {workers: 2}}}")
    assert known["a"].changes == {"train": {"rounds": 3, "engine": {"workers": 2}}}


@pytest.mark.parametrize("line", ["*/5 * * * *", "0 9-17/2 * * mon-fri", "15,45 0 1 jan,JUL *", "0 0 * * 7"])
def test_prefect_takes_every_cron_line_that_is_accepted(line):
    from flows.deploy import schedule

    assert schedule(pipelines.Schedule(cron=line)).cron == line
