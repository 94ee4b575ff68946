"""The stage as a whole, on messages written by hand."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from tasks import artifacts, tree
from tasks.artifacts import Damaged
from tasks.attack.attacks import InvertingGradients, LabelRecovery, Membership, ReadOut
from tasks.attack.defences import NoDefence, Noise
from tasks.attack.settings import AttackSettings
from tasks.attack.stage import Bench, attack
from tasks.models import CNN, MLP
from tasks.tracking import Tracker
from tasks.train.algorithms import FedAvg
from tasks.train.privacy import Gaussian
from tasks.train.settings import TrainSettings
from tasks.train.uplink import Clip
from tests.tasks.attack.scenes import write_run

SIZES = [5, 2, 30, 1]


def run(folder, model, **settings):
    """Runs the stage; returns what it published."""
    train = TrainSettings(algorithm=FedAvg(lr=0.1, batch_size=0))
    params = SimpleNamespace(seed=0, model=model, train=train, attack=AttackSettings(**settings))
    attack(params, folder, Tracker("attack"))
    return folder / "attack"


def rows(published):
    return json.loads((published / "leakage.json").read_text())["results"]


@pytest.fixture(scope="module")
def convolution(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run"), CNN(), SIZES)
    suite = (InvertingGradients(), ReadOut(), LabelRecovery(), Membership(shadows=4, epochs=1))
    return run(folder, CNN(), suite=suite, messages=2)


def test_the_undefended_message_leaks_and_the_same_message_behind_noise_does_not(convolution):
    by = {(r["defence"], r["message"]["client"]): r for r in rows(convolution) if r["attack"] == "inverting_gradients"}
    for client, size in ((3, 1), (1, 2)):
        clear, noisy = by["none", client], by["noise", client]
        assert clear["scores"]["recovered"] == size and clear["scores"]["psnr"] > clear["scores"]["baseline_psnr"] + 8
        assert noisy["scores"]["recovered"] == 0 and noisy["scores"]["psnr"] < noisy["scores"]["baseline_psnr"]
        assert clear["evaluations"] == noisy["evaluations"] <= 1000
    metrics = json.loads((convolution.parent.parent / "metrics" / "attack.json").read_text())
    assert metrics["messages"]["none"]["recovered"] == 1.0 and metrics["messages"]["noise"]["recovered"] == 0.0
    assert metrics["messages"]["none"]["psnr"] > metrics["messages"]["noise"]["psnr"] + 15


def test_the_findings_say_so_in_words(convolution):
    findings = json.loads((convolution / "leakage.json").read_text())["findings"]
    inversion = [sentence for sentence in findings if sentence.startswith("inverting_gradients")]
    assert "recovers" in inversion[0] and "From all 2 messages: 3 of 3 images" in inversion[0]
    assert "same message, behind DP noise" in inversion[1] and "0 of 3 images" in inversion[1]
    assert any("read_out: not applicable" in sentence and "Conv2d" in sentence for sentence in findings)
    assert any("no better than a coin" in sentence for sentence in findings)


def test_the_messages_with_the_fewest_samples_are_attacked(convolution):
    assert {r["message"]["client"] for r in rows(convolution)} == {1, 3}


def test_every_row_leads_to_its_files_and_they_hold_what_was_scored(convolution):
    for row in rows(convolution):
        if row["attack"] != "inverting_gradients":
            assert row["image"] is None and row["reconstruction"] is None
            continue
        kept = artifacts.read_tree(convolution / row["reconstruction"])
        errors = (kept["original"].double() - kept["reconstruction"]).square().flatten(1).mean(1)
        assert float(errors.mean()) == pytest.approx(row["scores"]["mse"], rel=1e-6)
        pixels = np.asarray(Image.open(convolution / row["image"]))
        # 12 x 12 screen pixels a pixel of the digit, the original above its reconstruction.
        first, second = pixels[6:102:12, 6:102:12, 0], pixels[108:204:12, 6:102:12, 0]
        assert np.array_equal(first, np.round(255 * kept["original"][0, 0].numpy()))
        assert np.abs(second - 255 * kept["reconstruction"][0, 0].numpy()).max() <= 0.51


def test_the_curve_in_the_table_is_the_one_in_the_json(convolution):
    told = {entry["attack"]: entry for entry in json.loads((convolution / "membership.json").read_text())}
    assert set(told) == {"membership/loss_threshold", "membership/lira"}
    with (convolution / "roc.csv").open() as file:
        points = list(csv.DictReader(file))
    for name, entry in told.items():
        fpr = [float(point["fpr"]) for point in points if point["attack"] == name]
        tpr = [float(point["tpr"]) for point in points if point["attack"] == name]
        assert np.allclose(fpr, entry["roc"]["fpr"], atol=1e-5) and fpr == sorted(fpr) and tpr == sorted(tpr)
        assert np.diff(fpr) @ (np.array(tpr[1:]) + tpr[:-1]) / 2 == pytest.approx(entry["scores"]["auc"], abs=1e-4)


def test_the_released_model_is_attacked_once_and_the_messages_once_a_defence(convolution):
    assert sorted({(r["attack"], r["defence"]) for r in rows(convolution)}) == sorted(
        (name, defence) for name in ("inverting_gradients", "read_out", "labels") for defence in ("none", "noise")
    )


def test_a_linear_first_layer_gives_its_sample_away_and_two_defences_of_a_name_stay_apart(tmp_path):
    folder = write_run(tmp_path, MLP(), SIZES)
    defences = (NoDefence(), Noise(noise_multiplier=1.0), Noise(noise_multiplier=0.1))
    published = run(folder, MLP(), suite=(ReadOut(),), defences=defences, messages=1)
    found = {row["defence"]: row for row in rows(published)}
    assert list(found) == ["none", "noise", "noise-2"]
    assert found["none"]["scores"]["psnr"] > 60.0 and found["none"]["message"]["samples"] == 1
    assert found["noise"]["scores"]["recovered"] == found["noise-2"]["scores"]["recovered"] == 0


def test_the_same_run_again_gives_the_same_bytes(tmp_path):
    contents = []
    for place in ("a", "b"):
        folder = write_run(tmp_path / place, CNN(width=4), SIZES)
        published = run(folder, CNN(width=4), budget=20, suite=(InvertingGradients(), Membership(shadows=2, epochs=1)))
        contents.append({p.relative_to(published): p.read_bytes() for p in published.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_a_suite_without_attacks_on_messages_needs_no_transcript(tmp_path):
    folder = write_run(tmp_path, MLP(), SIZES)
    (folder / "train" / "transcript" / "index.json").unlink()
    assert not AttackSettings(suite=(Membership(),)).needs_transcript and AttackSettings().needs_transcript
    published = run(folder, MLP(), suite=(Membership(shadows=0),))
    assert rows(published) == []
    with pytest.raises(Damaged, match=r"index\.json"):
        run(folder, MLP(), suite=(LabelRecovery(),))
    assert rows(published) == []


def test_a_model_of_another_architecture_is_refused_by_name(tmp_path):
    folder = write_run(tmp_path, MLP(), SIZES, released={"other": torch.zeros(3)})
    with pytest.raises(Damaged, match=r"model\.safetensors.*1\.weight"):
        run(folder, MLP(), suite=(Membership(shadows=0),))


def test_the_settings_shown_in_the_documentation_are_settings():
    text = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text()
    shown = [YAML(typ="safe").load(block)["attack"] for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    read = [AttackSettings.model_validate_json(json.dumps(section), strict=True) for section in shown]
    assert read[0] == AttackSettings() and len(read[1].defences) == 5
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert {method.name for method in read[0].suite} <= named


def test_an_attacker_has_the_runs_own_codecs_and_mechanism(tmp_path):
    """And so repeats their clipping on what it simulates, by the shorter of the two."""
    folder = write_run(tmp_path, MLP(hidden=(8,)), SIZES)
    train = TrainSettings(algorithm=FedAvg(lr=0.1, batch_size=0))
    for norms in ((1e-3, 1e-2), (1e-2, 1e-3)):
        on_way = {"uplink": (Clip(norm=norms[0]),), "privacy": Gaussian(clip_norm=norms[1])}
        params = SimpleNamespace(
            seed=0, model=MLP(hidden=(8,)), train=train.model_copy(update=on_way), attack=AttackSettings()
        )
        bench = Bench(params, folder)
        case = bench.case(bench.messages[0], NoDefence())
        count = case.context.samples
        sent = case.simulate(case.public.x[:count], case.public.y[:count])
        assert float(tree.norm(sent)) == pytest.approx(1e-3, rel=1e-4)
