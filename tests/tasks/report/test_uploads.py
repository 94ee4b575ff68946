"""The uploads of the last round on the page: lengths and shares counted by hand, and the method's own numbers."""

import pytest
import torch

from tasks import tree
from tasks.artifacts import read_tree, write_lines, write_tree
from tasks.report.amounts import number
from tasks.report.diagnostics.uploads import uploads
from tasks.report.page import Folded, Table
from tasks.report.run import Run


def table(run: Run) -> dict[str, tuple[str, ...]]:
    (folded,) = [block for block in uploads(run).blocks if isinstance(block, Folded)]
    (found,) = folded.blocks
    assert isinstance(found, Table)
    return {row[0]: tuple(row[1:]) for row in found.rows}


def test_lengths_are_those_of_the_uploads_that_counted(artifacts, params):
    path = artifacts / "train" / "uploads.safetensors"
    kept = read_tree(path)
    weights = kept["weights"].clone()
    weights[1] = 0.0  # as if its upload had been refused
    write_tree(path, kept | {"weights": weights, "delta/long": torch.full((len(weights), 2), 3.0)})
    heard = [i for i in range(len(weights)) if i != 1]
    shown = table(Run(params, artifacts))
    assert list(shown) == [*tree.part(kept, "delta"), "long"]
    for name, value in tree.part(kept, "delta").items():
        lengths = [float(value[i].norm()) for i in heard]
        assert shown[name][1].startswith(f"{number(sum(lengths) / len(lengths))} ± ")
    assert shown["long"] == ("2", f"{number(18**0.5)} ± 0", "100\N{NO-BREAK SPACE}%")


def test_the_share_of_entries_that_changed_is_that_of_a_sparse_upload(artifacts, params):
    path = artifacts / "train" / "uploads.safetensors"
    sparse = torch.zeros(4, 10, 5)
    sparse[:, 0, :3] = 1.0
    write_tree(path, {"delta/w": sparse, "weights": torch.ones(4), "clients": torch.arange(4)})
    assert table(Run(params, artifacts))["w"][2] == "6.0\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize("left", [{}, {"delta/w": torch.ones(2, 3), "weights": torch.zeros(2)}])
def test_without_an_upload_that_counted_there_is_nothing_to_show(artifacts, params, left):
    write_tree(artifacts / "train" / "uploads.safetensors", left)
    assert uploads(Run(params, artifacts)) is None


def test_what_the_method_tells_of_its_state_is_drawn(artifacts, params):
    def drawn() -> str:
        return "".join(block.html() for block in uploads(Run(params, artifacts)).blocks)

    write_lines(artifacts / "train" / "diagnostics.jsonl", [{"round": r, "mean_dual": 0.5 / (r + 1)} for r in range(5)])
    assert "mean dual over rounds, ending at 0.1" in drawn()
    (artifacts / "train" / "diagnostics.jsonl").unlink()
    assert "over rounds" not in drawn()
