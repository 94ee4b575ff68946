"""`docs/combinations.md`: which methods do not go together, asked of the validation itself."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import verdicts
from tasks import params
from tasks.params import ParamsRefused, methods

PAGE = Path("docs") / "combinations.md"

HEAD = """# Combinations

Methods of different places compose: what is not in a table below is accepted by the validation, and a test trains a
random sample of such combinations. What is there makes no sense, and is refused before anything runs, with this reason.
Written by `python -m flows.reference`; a test checks that it is current.
"""

SLOTS = ("train.algorithm", "train.uplink", "train.privacy", "train.schedule", "train.topology", "model")
CLIENTS = 10
ALIKE = {"weighting": "uniform"}
"""Clients count alike and all take part, so that what is refused is refused for the two methods' sake."""


def page() -> str:
    """The page as Markdown."""
    blocks = [HEAD.strip()]
    names = {slot: [method.model_fields["name"].default for method in methods()[slot]] for slot in SLOTS}
    for first, second in itertools.combinations(SLOTS, 2):
        refused: dict[tuple[str, str], list[str]] = {}
        for a, b in itertools.product(names[first], names[second]):
            alone = {*_reasons({first: a}), *_reasons({second: b})}
            if found := [reason for reason in _reasons({first: a, second: b}) if reason not in alone]:
                # The same reason for several is said once.
                refused.setdefault((a, "; ".join(found).replace(f"{second}.name = {b!r}", "it")), []).append(b)
        rows = [[f"`{a}`", ", ".join(f"`{b}`" for b in others), why] for (a, why), others in refused.items()]
        if rows:
            head = [f"`{first}`", f"`{second}`", "why not"]
            blocks += [f"## `{first}` and `{second}`", verdicts.markdown([head, *rows])]
    return "\n\n".join(blocks) + "\n"


def _reasons(chosen: dict[str, str]) -> Iterator[str]:
    """Why parameters with these methods and defaults beside them are refused, if they are."""
    train: dict[str, Any] = {"cohort": CLIENTS, "algorithm": {"name": "fedavg", **ALIKE}}
    document: dict[str, Any] = {"partition": {"clients": CLIENTS}, "train": train, "attack": {"suite": []}}
    for place, name in chosen.items():
        entry = {"name": name}
        match place.split("."):
            case ["train", "algorithm"]:
                train["algorithm"] = entry | ALIKE
            case ["train", "uplink"]:
                train["uplink"] = [entry]
            case ["train", slot]:
                train[slot] = entry
            case [slot]:
                document[slot] = entry
    try:
        params.build(document)
    except ParamsRefused as refused:
        for problem in refused.problems:
            yield problem.partition(": ")[2]
