import base64
import hashlib
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tasks import params as schema
from tasks.artifacts import Damaged, read_json, read_lines, read_tree, write_json, write_lines
from tasks.report.amounts import percent, size
from tasks.report.diagnostics import DIAGNOSTICS
from tasks.report.diagnostics.leakage import SAMPLES
from tasks.report.page import SCRIPTS
from tasks.report.run import Run
from tasks.report.stage import made, report
from tasks.tracking import Tracker
from tests.tasks.report.conftest import PARAMS, Document


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_asks_for_nothing_from_elsewhere_and_runs_its_own_scripts_alone(page, document):
    assert not document.all("link", "iframe", "object", "embed", "form", "base")
    scripts = [element["text"].encode() for element in document.all("script")]
    assert len(scripts) == len(SCRIPTS)
    (policy,) = [m["attrs"]["content"] for m in document.all("meta") if "http-equiv" in m["attrs"]]
    allowed = dict(directive.split(maxsplit=1) for directive in policy.split("; "))
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
    assert allowed.pop("script-src").split() == hashes
    assert allowed == {
        "default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "img-src": "data:",
        "style-src": "'unsafe-inline'",
    }  # fmt: skip
    for element in document.elements:
        for name, value in element["attrs"].items():
            assert not name.startswith("on"), (element["tag"], name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("#", "data:image/")), (element["tag"], value[:80])
    assert not re.search(r"url\((?!#)|@import", page)


def test_every_element_is_closed_and_every_id_is_its_own_and_every_reference_leads_somewhere(page, document):
    assert not document.open
    ids = [element["attrs"]["id"] for element in document.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:url\(|href=")#([\w.-]+)', page)
    wanted += [e["attrs"]["aria-labelledby"] for e in document.elements if "aria-labelledby" in e["attrs"]]
    assert wanted
    assert set(wanted) <= set(ids)


def test_a_reader_who_sees_no_pictures_is_told_what_they_show(document):
    levels = [int(element["tag"][1]) for element in document.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    pictures = document.all("img") + document.all("svg")
    names = [picture["attrs"].get("alt") or picture["attrs"].get("aria-label") for picture in pictures]
    assert len(names) >= 8
    assert all(name and len(name) > 20 for name in names)
    assert all(picture["attrs"].get("role") == "img" for picture in document.all("svg"))
    assert document.all("html")[0]["attrs"]["lang"] == "en"
    assert len(document.all("caption")) == len(document.all("table"))
    assert all(cell["attrs"].get("scope") in ("row", "col") for cell in document.all("th"))


def test_the_numbers_on_the_page_are_those_of_the_artefacts(finished, document):
    folder = finished / "artifacts"
    evaluation, summary = read_json(folder / "aggregate/evaluation.json"), read_json(folder / "train/summary.json")
    tiles = dict(zip(*(([e["text"] for e in document.all(tag)]) for tag in ("dt", "dd")), strict=True))
    assert tiles["Test accuracy"].startswith(percent(evaluation["global"]["accuracy"]))
    assert tiles["Worst tenth of clients"].startswith(percent(evaluation["per_client"]["worst_decile"]))
    assert tiles["Sent"].startswith(size(summary["bytes_up"] + summary["bytes_down"]))
    _, price = document.table("The price")
    history = read_lines(folder / "train/history.jsonl")
    assert price["bytes up"][0] == plain(size(sum(row["bytes_up"] for row in history)))
    assert price["uploads rejected"][0] == f"0 of {sum(row['cohort'] for row in history)}"
    _, over = document.table("Over clients")
    own = evaluation["personalised"]
    assert over["worst tenth"][0] == plain(percent(evaluation["per_client"]["worst_decile"]))
    assert over["mean"][2:] == [plain(percent(own["before"]["mean"])), plain(percent(own["mean"]))]


def test_every_attack_on_every_message_is_listed_with_its_verdict(finished, document):
    results = read_json(finished / "artifacts/attack/leakage.json")["results"]
    _, rows = document.table("Every attack on every message")
    shown = [cell for cells in rows.values() for cell in cells]
    tried = [row for row in results if row["applicable"]]
    assert len(tried) >= 4
    for row in tried:
        assert row["verdict"] in shown
        assert f"client {row['message']['client']}, round {row['message']['round']}" in shown
    for row in read_json(finished / "artifacts/attack/membership.json"):
        assert row["verdict"] in document.text


def test_each_original_stands_beside_its_reconstructions_with_their_scores(finished, document):
    """The mean of the scores under the pictures is the mean that the attack stage wrote, message by message."""
    results = read_json(finished / "artifacts/attack/leakage.json")["results"]
    rows = [row for row in results if row["image"]]
    assert {row["defence"] for row in rows} == {"none", "noise"}
    assert len({row["message"]["label"] for row in rows}) == 1
    pictures = [img["attrs"] for img in document.all("img") if img["attrs"]["src"].startswith("data:image/png")]
    samples = rows[0]["scores"]["samples"]
    assert samples <= SAMPLES
    assert len(pictures) == 3 * samples
    for row, how in zip(rows, ("as recorded", "behind noise"), strict=True):
        scores = [float(p["alt"].split()[-2]) for p in pictures if f"made of it {how}" in p["alt"]]
        assert len(scores) == samples
        assert sum(scores) / samples == pytest.approx(row["scores"]["psnr"], abs=0.06)
    kept = read_tree(finished / "artifacts/attack" / rows[0]["reconstruction"])
    shown = [p["src"] for p in pictures if p["alt"].startswith("Original of client")]
    found = sorted(np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1])))).tolist() for src in shown)
    assert found == sorted((kept["original"][:, 0] * 255).round().byte().tolist())


def test_the_findings_say_what_all_messages_gave_away_together(finished, document):
    results = read_json(finished / "artifacts/attack/leakage.json")["results"]
    rows = [row for row in results if row["attack"] == "labels"]
    total = sum(row["message"]["samples"] for row in rows if row["defence"] == "none")
    right = {
        d: sum(round(r["scores"]["label_accuracy"] * r["message"]["samples"]) for r in rows if r["defence"] == d)
        for d in ("none", "noise")
    }
    recovered = f"{right['noise']} of {total}" if right["noise"] else f"none of {total}"
    sentence = (
        f"From 1 message, as recorded, the attack labels recovers {right['none']} of {total} labels; "
        f"behind noise, {recovered}."
    )
    assert sentence in document.text


def test_seed_versions_revision_and_sources_are_there(finished, params, document):
    import numpy
    import torch

    _, made_with = document.table("Made with")
    assert made_with["torch"] == [torch.__version__]
    assert made_with["numpy"] == [numpy.__version__]
    assert re.match(r"[0-9a-f]{40}|not in a git", made_with["revision"][0])
    assert json.loads(document.all("code")[0]["text"])["seed"] == params.seed
    _, sources = document.table("Methods and their sources")
    assert "McMahan" in sources["fedavg"][1]


def test_on_a_phone_where_a_table_loses_its_header_each_cell_names_its_column(page):
    stacked = re.findall(r'<table class="stacked">.*?</table>', page, re.DOTALL)
    assert stacked
    for table in stacked:
        header = re.findall(r'<th scope="col">(.*?)</th>', table)
        for row in re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", table, re.DOTALL):
            assert re.findall(r'<td data-column="(.*?)">', row) == header[1:]


def test_the_same_run_gives_the_same_bytes(finished, params, page):
    assert made(Run(params, finished / "artifacts")) == page


def test_titles_and_names_that_look_like_markup_stay_text(artifacts):
    title, note = "<b>Bold</b> & “quoted”", "</p><script>alert(1)</script>"
    meta = read_json(artifacts / "partition/meta.json")
    names = ["<i>zero</i>", *meta["class_names"][1:]]
    write_json(artifacts / "partition/meta.json", meta | {"class_names": names, "dataset": 'a"><img src=x>'})
    evaluation = read_json(artifacts / "aggregate/evaluation.json")
    evaluation["global"]["classes"][0]["name"] = names[0]
    write_json(artifacts / "aggregate/evaluation.json", evaluation)
    wanted = schema.build(PARAMS | {"report": {"title": title, "note": note}})
    document = Document(made(Run(wanted, artifacts)))
    assert document.all("h1")[0]["text"] == title
    assert note in document.text
    assert names[0] in document.text
    assert len(document.all("script")) == len(SCRIPTS)
    assert not document.all("i", "b")
    assert all(img["attrs"]["src"].startswith("data:") for img in document.all("img"))


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("attack", ("What leaks from the messages", "Who was trained on")),
        ("aggregate", ("How clients are served",)),
        ("train", ("How it learned", "The price", "What the uploads changed")),
        ("timings.jsonl", ("Where the time went",)),
        ("partition", ("The data and who has them",)),
    ],
)
def test_a_page_is_made_of_what_there_is(artifacts, params, document, missing, gone):
    path = artifacts / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    headings = [h["text"] for h in Document(made(Run(params, artifacts))).all("h2")]
    assert headings == [h["text"] for h in document.all("h2") if h["text"] not in gone]


def test_with_nothing_at_all_the_page_still_says_what_was_meant_to_run(tmp_path, params):
    document = Document(made(Run(params, tmp_path)))
    assert [h["text"] for h in document.all("h2")] == ["What was run", "What to read next"]


def test_numbers_that_do_not_exist_are_dashes_and_the_page_is_whole(artifacts, params):
    history = read_lines(artifacts / "train/history.jsonl")
    for row in history:
        row.update(loss=None, test_loss=None, test_accuracy=None, validation_accuracy=None)
    write_lines(artifacts / "train/history.jsonl", history)
    evaluation = read_json(artifacts / "aggregate/evaluation.json")
    evaluation["global"] |= {"accuracy": None, "loss": None}
    for name in ("mean", "std", "worst_decile", "best_decile", "minimum", "median", "maximum", "gini", "jain"):
        evaluation["per_client"][name] = evaluation["per_client"]["loss"][name] = None
    write_json(artifacts / "aggregate/evaluation.json", evaluation)
    text = made(Run(params, artifacts))
    assert not Document(text).open
    assert not re.search(r">\s*(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


def test_epsilon_is_shown_with_its_delta_where_there_is_one_and_nothing_is_promised_where_there_is_none(
    artifacts, params, document
):
    assert "no formal promise" in document.text
    history = read_lines(artifacts / "train/history.jsonl")
    write_lines(artifacts / "train/history.jsonl", [r | {"epsilon": 0.5 * r["round"]} for r in history])
    summary = read_json(artifacts / "train/summary.json")
    write_json(artifacts / "train/summary.json", summary | {"epsilon": 2.0, "delta": 1e-5, "privacy": "gaussian"})
    private = Document(made(Run(params, artifacts)))
    assert "epsilon 2 at delta 1e-05 (mechanism gaussian)" in private.text
    assert any("Epsilon over rounds" in svg["attrs"]["aria-label"] for svg in private.all("svg"))


def test_rejected_uploads_are_told_of_only_where_there_are_some(artifacts, params, document):
    assert "Rejected uploads" not in document.text
    history = read_lines(artifacts / "train/history.jsonl")
    history[1]["rejected"] = 3
    write_lines(artifacts / "train/history.jsonl", history)
    page = Document(made(Run(params, artifacts)))
    _, rows = page.table("Rounds with rejected uploads")
    assert rows == {"2": ["3", str(history[1]["cohort"])]}


def test_groups_are_compared_where_the_data_have_some(artifacts, params):
    evaluation = read_json(artifacts / "aggregate/evaluation.json")
    values = [{"name": n, "samples": 5, "accuracy": a, "loss": 0.1} for n, a in (("left", 0.5), ("right", 0.75))]
    evaluation["global"]["groups"] = {"name": "side", "values": values, "gap": 0.25}
    write_json(artifacts / "aggregate/evaluation.json", evaluation)
    page = Document(made(Run(params, artifacts)))
    assert page.table("Test set by side")[1]["right"] == ["5", "75.0 %", "0.1"]
    assert "25.0 % apart" in page.text


def test_pictures_beyond_those_asked_for_are_left_in_their_folder(artifacts):
    none = schema.build(PARAMS | {"report": {"pictures": 0}})
    page = Document(made(Run(none, artifacts)))
    assert "Side by side" not in page.text
    assert not [img for img in page.all("img") if img["attrs"]["src"].startswith("data:image/png")]


def test_a_truncated_file_is_refused_by_name_rather_than_shown_in_part(artifacts, params):
    path = artifacts / "train/history.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(Damaged, match=r"history\.jsonl"):
        made(Run(params, artifacts))


def test_the_stage_publishes_one_file_and_keeps_it_when_it_fails(artifacts, params):
    report(params, artifacts, Tracker("report"))
    published = artifacts / "report/index.html"
    before = published.read_bytes()
    assert [path.name for path in published.parent.iterdir()] == ["index.html"]
    (artifacts / "attack/leakage.json").write_text("{")
    with pytest.raises(Damaged):
        report(params, artifacts, Tracker("report"))
    assert published.read_bytes() == before


def test_a_new_diagnostic_is_one_function_from_a_run_to_a_panel(finished, params):
    run = Run(params, finished / "artifacts")
    panels = [panel for diagnostic in DIAGNOSTICS if (panel := diagnostic(run))]
    anchors = [panel.anchor for panel in panels]
    assert len(set(anchors)) == len(anchors)
    assert all(re.fullmatch(r"[a-z0-9-]+", anchor) for anchor in anchors)
