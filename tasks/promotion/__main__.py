import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from tasks import tracking
from tasks.aggregate.register import CHAMPION
from tasks.artifacts import ROOT, read_json, write_text
from tasks.promotion.champions import PROMOTION, succession
from tasks.promotion.rule import Promotion


def main() -> None:
    """Decides about what the stages in the current folder left; a failure is said, and costs only the alias."""
    parser = argparse.ArgumentParser(prog="python -m tasks.promotion", description=succession.__doc__)
    parser.add_argument("--rule", type=json.loads, required=True, help="the rule as JSON, null for none")
    parser.add_argument("--stages", nargs="+", required=True, help="the stages that belong to the run")
    parser.add_argument("--tags", type=json.loads, default={}, help="tags for the version, as a JSON object")
    parser.add_argument(
        "--decision", type=Path, required=True, help="the file to write the decision to, if there is one"
    )
    options = parser.parse_args()
    import torch

    from tasks.params import load

    torch.set_num_threads(1)
    rule = options.rule and Promotion.model_validate(options.rule)
    numbers: dict[str, Any] = {}
    for path in (Path("metrics", f"{stage}.json") for stage in options.stages):
        # Of a stage that is not of the run there may be old ones, from git.
        numbers |= tracking.flatten(read_json(path), path.stem) if path.exists() else {}
    try:
        decision = succession(rule, load(), ROOT, numbers, options.tags)
        if decision is None:
            return
        if parent := os.environ.get(tracking.PARENT):
            tracking.client().set_tag(parent, PROMOTION, decision.sentence)
    except Exception as error:
        print(f"warning: `{CHAMPION}` stays where it is: {error}", file=sys.stderr)
        return
    print(decision.sentence)
    write_text(options.decision, decision.model_dump_json())


main()
