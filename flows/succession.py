"""The champion before and after a run: what a run that goes on from it starts with, and whether it is succeeded."""

import json
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from flows import checkout
from flows.process import run
from tasks import tracking
from tasks.aggregate.register import registered_name
from tasks.config import Refused
from tasks.models.start import FIELD, Champion, File, Fresh
from tasks.params import FILE, Params
from tasks.promotion.champions import INPUTS, START, standing
from tasks.promotion.rule import Decision, Promotion


def resolved(folder: Path, settings: Params, say: checkout.Say) -> dict[str, str]:
    """Writes into the parameters of ``folder`` what a run that starts from the champion starts from.

    Returns the tags by which its model is to be known: what it was trained with, and what from. A champion that was
    trained with the same hands its own start on, so that the stages find their results in the cache.
    """
    wanted = settings.model.start
    if not isinstance(wanted, Champion):
        return {}
    name = wanted.model or registered_name(settings, settings.partition.dataset.title)
    try:
        champion = standing(name)
    except Exception as error:
        mend = "Mend the registry, or start from fresh weights"
        raise Refused(FIELD, wanted.name, f"{name} cannot be looked up ({error})", mend) from None
    inputs = _inputs(folder, settings)
    if champion is None:
        if not wanted.optional:
            raise Refused(
                FIELD, wanted.name, f"{name} has none yet", "Let it be optional, or run another pipeline first"
            )
        start = Fresh().model_dump(mode="json")
        say(f"{name} has no champion yet: starts from fresh weights")
    elif champion.tags.get(INPUTS) == inputs:
        start = json.loads(champion.tags[START])
        say(f"the champion of {name}, version {champion.version}, is of these data and parameters: nothing to go on to")
    else:
        start = File(path=champion.path, sha256=champion.sha256, head=True).model_dump(mode="json")
        say(f"starts from the champion of {name}, version {champion.version}")
    checkout.write(folder / FILE, {"model": {"start": start}})
    return {INPUTS: inputs, START: json.dumps(start)}


def decided(
    folder: Path, rule: Promotion | None, stages: list[str], tags: dict[str, str], parent: str, say: checkout.Say
) -> Decision | None:
    """What is decided about the model that the ``stages`` of a run left in ``folder``: see :mod:`tasks.promotion`."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch, "decision.json")
        command = [sys.executable, "-m", "tasks.promotion", "--rule", rule.model_dump_json() if rule else "null"]
        command += ["--stages", *stages, "--tags", json.dumps(tags), "--decision", str(found)]
        run(command, folder, {tracking.PARENT: parent}, say)
        return Decision.model_validate_json(found.read_text()) if found.exists() else None


def told(decision: Decision) -> str:
    """A decision as Markdown."""
    rows = [
        f"| version {version} | {role} | {'–' if value is None else f'{value:.4f}'} |"
        for version, role, value in (
            (decision.version, "new", decision.new),
            (decision.champion, "champion until now", decision.standing),
        )
        if version
    ]
    head = f"| {decision.model} | | {decision.metric} on the test set of this run |\n|---|---|---|"
    return "\n".join([f"**{decision.sentence}**\n", head, *rows])


def _inputs(folder: Path, settings: Params) -> str:
    """What a training follows from, its start and the layout of its work apart, as one digest."""
    trained = settings.model_dump(mode="json", include={"seed", "model", "train"})
    del trained["model"]["start"], trained["train"]["engine"]
    return sha256(json.dumps([checkout.reads(folder, "partition"), trained], sort_keys=True).encode()).hexdigest()
