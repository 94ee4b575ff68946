"""The section on nodes without a server."""

from tasks import params as schema
from tasks.artifacts import write_lines
from tasks.report.diagnostics.gossip import gossip
from tasks.report.run import Run
from tests.tasks.report.conftest import Document

ROUNDS = 5


def finished(folder, graph, clients=12):
    """A run whose nodes' accuracy rises by a tenth a round, their merge's by two, and whose variance halves."""
    history = [
        {"round": t, "personal_test_accuracy": None if t == 2 else t / 10, "test_accuracy": 2 * t / 10}
        for t in range(1, ROUNDS + 1)
    ]
    told = [
        {"round": t, "consensus_distance": 3.0 - t / 2, "cosine": t / 10, "variance/0.weight": 0.25 * 0.5**t}
        for t in range(ROUNDS + 1)
    ]
    write_lines(folder / "train" / "history.jsonl", history)
    write_lines(folder / "train" / "diagnostics.jsonl", told)
    topology = {"name": "gossip", "graph": graph} if graph else {"name": "server"}
    train = {"rounds": ROUNDS, "cohort": clients, "topology": topology}
    return Run(schema.build({"partition": {"clients": clients}, "train": train}), folder)


def test_it_says_what_a_merge_is_worth_and_draws_every_link_once(tmp_path):
    panel = gossip(finished(tmp_path, {"name": "random_regular", "degree": 5}))
    text = panel.blocks[0].text.replace("\N{NO-BREAK SPACE}", " ")
    assert "a node gets 50.0 % of the test set right" in text
    assert "models 100 %: one merge is worth 50 points" in text
    assert "Half of a node's final accuracy was there after 3 rounds" in text
    assert "from 0 to 0.5 on average" in text
    graph, *rest = panel.blocks[1].blocks
    assert len(rest) == 3
    assert "each hears 5 others a round" in graph.drawing.alt
    assert graph.drawing.svg.count("stroke-opacity") == 12 * 5 // 2
    assert graph.drawing.rows == tuple((str(node), "5") for node in range(12))
    assert len(Document(panel.html()).all("svg")) == 4


def test_a_graph_of_too_many_links_is_not_drawn_and_a_server_has_none(tmp_path):
    crowded = gossip(finished(tmp_path / "crowded", {"name": "complete"}, clients=40))
    assert len(crowded.blocks[1].blocks) == 3
    assert gossip(finished(tmp_path / "server", None)) is None
