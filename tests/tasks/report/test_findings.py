"""What the page says first, for set-ups of many kinds: every sentence follows from numbers that are written here."""

import pytest

from tasks import params as schema
from tasks.artifacts import read_json, read_lines, write_json, write_lines
from tasks.report.diagnostics.findings import findings
from tasks.report.page import Headline, Points
from tasks.report.run import Run
from tasks.report.stage import lead
from tests.tasks.report.conftest import PARAMS


def attacked(attack: str, defence: str, recovered: tuple[int, ...], of: int = 4, malicious: bool = False) -> list[dict]:
    """One attack on so many messages of ``of`` images each, in the shape that the attack stage writes."""
    return [
        {
            "attack": attack, "family": "optimisation", "malicious": malicious, "defence": defence, "applicable": True,
            "declined": False, "reason": None, "image": None, "reconstruction": None, "verdict": "recovers some",
            "message": {"label": f"m{i}", "round": i + 1, "client": i, "samples": of, "steps": 1},
            "scores": {"samples": of, "recovered": got, "psnr": 10.0 + got, "label_accuracy": 1.0},
        }
        for i, got in enumerate(recovered)
    ]  # fmt: skip


def labelled(defence: str, right: float) -> list[dict]:
    (row,) = attacked("labels", defence, (0,))
    return [row | {"family": "inference", "scores": {"label_accuracy": right}}]


@pytest.fixture
def said(artifacts, params):
    """The headline and what to do, of a run whose files were changed."""

    def told(leakage=None, summary=(), evaluation=(), run_params=params) -> tuple[str, dict[str, str]]:
        if leakage is not None:
            write_json(artifacts / "attack/leakage.json", {"findings": [], "results": leakage})
        for name, changes in (("train/summary.json", summary), ("aggregate/evaluation.json", evaluation)):
            write_json(artifacts / name, read_json(artifacts / name) | dict(changes))
        panel = findings(Run(run_params, artifacts))
        (headline,) = [block for block in panel.blocks if isinstance(block, Headline)]
        _, *todo = [block for block in panel.blocks if isinstance(block, Points)]
        text = " ".join(headline.sentences).replace("\N{NO-BREAK SPACE}", " ")
        advised = (point for points in todo for point in points.points)
        return text, {name: what.replace("\N{NO-BREAK SPACE}", " ") for name, what in advised}

    return told


def test_the_message_that_leaks_most_is_told_before_all_together_and_before_the_defences(said):
    rows = attacked("search", "none", (1, 4)) + attacked("weak", "none", (1, 1)) + attacked("search", "noise", (0, 0))
    text, todo = said(rows)
    assert (
        "The attacker recovers 4 of 4 images from one message of round 2, and 5 of 8 images from all 2 that were "
        "attacked; behind noise none of 8."
    ) in text
    assert todo["Defend the messages."] == (
        "search gives whoever reads messages 5 of 8 images from 2 messages; behind noise no attack gets any."
    )


def test_of_several_defences_the_best_is_advised_by_the_strongest_attack_that_is_left(said):
    rows = attacked("search", "none", (4, 4)) + attacked("other", "none", (2, 2))
    rows += (
        attacked("search", "prune", (1, 0)) + attacked("other", "prune", (2, 2)) + attacked("search", "clip", (2, 1))
    )
    text, todo = said(rows)
    assert "behind prune 1 of 8, behind clip 3 of 8" in text
    assert todo["Defend the messages."].endswith("behind clip no attack gets more than 3 of 8.")
    _, todo = said(attacked("search", "none", (1,)) + attacked("search", "prune", (1,)))
    assert "and prune did not help. `attack.defences` tries others" in todo["Defend the messages."]


def test_labels_are_told_where_no_sample_was_recovered(said):
    rows = attacked("search", "none", (0,)) + labelled("none", 0.75) + labelled("noise", 0.0)
    text, todo = said(rows)
    assert "The attacker recovers none of 4 images, but 3 of 4 labels from 1 message." in text
    assert todo["Defend the messages."] == (
        "labels gives whoever reads messages 3 of 4 labels from 1 message; behind noise no attack gets any."
    )


def test_a_server_that_breaks_the_protocol_is_told_of_where_it_gets_more(said):
    text, _ = said(attacked("search", "none", (1,)) + attacked("imprint", "none", (4,), malicious=True))
    assert "A server that sends models of its own making recovers 4 of 4 images with imprint." in text
    text, _ = said(attacked("search", "none", (4,)) + attacked("imprint", "none", (1,), malicious=True))
    assert "of its own making" not in text


@pytest.mark.parametrize(
    ("mechanism", "covers"),
    [("gaussian", "the messages are not"), ("local", "Its messages are differentially private before they leave")],
)
def test_with_differential_privacy_it_says_what_the_promise_covers_and_whether_it_is_worth_much(
    said, mechanism, covers
):
    private = {"epsilon": 3.1, "delta": 1e-5, "privacy": mechanism}
    unfit = [row | {"applicable": False} for row in attacked("search", "none", (0,))]
    text, todo = said(unfit, private)
    assert covers in text and "ε = 3.1 at δ = 1e-05" in text
    assert "No attack on a message could be tried." in text
    assert not {"Promise something.", "Tighten the promise."} & set(todo)
    assert "exp(34.8)" in said(unfit, private | {"epsilon": 34.8})[1]["Tighten the promise."]


def test_without_it_nothing_is_promised_and_without_attacks_nothing_is_known(said, artifacts):
    text, todo = said()
    assert "no promise of privacy" in text
    assert "Promise something." in todo and "Attack it." not in todo
    write_json(artifacts / "attack/membership.json", [])
    text, todo = said([])
    assert "Nothing was attacked, so what the messages and the model give away is not known." in text
    assert "Attack it." in todo


def test_members_that_are_told_apart_for_sure_are_in_the_headline(said, artifacts):
    rows = read_json(artifacts / "attack/membership.json")
    scores = rows[0]["scores"] | {"auc": 0.9, "auc_deviation": 0.1}
    write_json(artifacts / "attack/membership.json", [rows[0] | {"scores": scores}])
    text, todo = said()
    assert "who was trained on better than a coin (AUC 0.9)" in text
    assert "AUC 0.9" in todo["Hide who was trained on."]
    write_json(artifacts / "attack/membership.json", [rows[0] | {"scores": scores | {"auc": 0.79}}])
    text, todo = said()
    assert "coin" not in text and "Hide who was trained on." not in todo


def test_personal_models_are_advised_where_more_clients_gain_and_advised_against_where_more_lose(said, artifacts):
    own = read_json(artifacts / "aggregate/evaluation.json")["personalised"]
    own |= {"name": "finetune", "mean": 0.9, "before": own["before"] | {"mean": 0.5}, "improved": 8, "worsened": 1}
    text, todo = said(evaluation={"personalised": own})
    assert "fitted to each (finetune) it takes the mean client from 50.0 % to 90.0 %" in text
    assert "8 gain and 1 lose" in todo["Give clients their own."]
    text, todo = said(evaluation={"personalised": own | {"improved": 1, "worsened": 8}})
    assert "fitted to each" not in text
    assert "8 lose by their own and 1 gain" in todo["Give all the one model."]


def test_the_worst_served_and_a_better_round_are_minded_only_where_there_is_something_to_mind(said, artifacts):
    history = read_lines(artifacts / "train/history.jsonl")
    write_lines(artifacts / "train/history.jsonl", [r | {"test_accuracy": 0.5} for r in history])
    clients = read_json(artifacts / "aggregate/evaluation.json")["per_client"]
    even = {"personalised": None, "per_client": clients | {"mean": 0.8, "worst_decile": 0.75}}
    _, todo = said(evaluation=even)
    assert not {"Mind the worst served.", "Keep the best."} & set(todo)
    write_lines(
        artifacts / "train/history.jsonl", [r | {"test_accuracy": 0.9 if r["round"] == 2 else 0.5} for r in history]
    )
    _, todo = said(evaluation=even | {"per_client": clients | {"mean": 0.8, "worst_decile": 0.4}})
    assert "A tenth of the clients gets 40.0 % where the mean gets 80.0 %" in todo["Mind the worst served."]
    assert todo["Keep the best."].startswith("Round 2 had 90.0 %, the end 50.0 %")


def test_nodes_and_clients_at_their_own_pace_are_told_of_as_such(said, artifacts, params):
    gossip = schema.build(
        PARAMS | {"train": PARAMS["train"] | {"cohort": 12, "topology": {"name": "gossip"}}, "aggregate": {}}
    )
    text, _ = said(summary={"personal_test_accuracy": 0.25}, run_params=gossip)
    assert "a client's own 25.0 %" in text
    assert lead(Run(gossip, artifacts)).startswith("12 nodes trained a logistic model each for 4 rounds, and mixed it")
    assert lead(Run(params, artifacts)).startswith(
        "12 clients, 4 of them a round for 4 rounds, trained a logistic model"
    )
    (artifacts / "train/schedule.csv").write_text("step,client\n1,0\n")
    assert "each at its own pace, for 4 steps of the server" in lead(Run(params, artifacts))
