"""The champion of MLflow's model registry: its weights for a warm start, its figures on other data, its succession."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import tracking
from tasks.aggregate.register import CHAMPION, WEIGHTS, registered_name
from tasks.artifacts import read_json, sha256
from tasks.promotion.rule import Decision, Promotion

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.partition.federation import Federation

FOLDER = Path(".fedloom", "champions")
"""Where exported weights are kept in the main checkout, each file named by its SHA-256."""
INPUTS, START, PROMOTION = "fedloom.inputs", "fedloom.start", "fedloom.promotion"
"""Tags: what a version was trained with but for its start; its start; what was decided about it."""


class Champion(NamedTuple):
    """A registered model, its weights exported."""

    version: str
    path: Path
    """relative to the main checkout"""
    sha256: str
    tags: dict[str, str]


def standing(name: str) -> Champion | None:
    """The champion of the registered model ``name``, its weights put where a run can start from them."""
    if not tracking.enabled():
        return None
    version = _holder(tracking.client(), name)
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        weights = _released(name, version.version, Path(scratch)) / "model.safetensors"
        digest = sha256(weights)
        path = FOLDER / f"{digest}.safetensors"
        kept = tracking.main_checkout() / path
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}.partial")
            shutil.copyfile(weights, draft)
            os.replace(draft, kept)
    return Champion(str(version.version), path, digest, dict(version.tags))


def succession(
    rule: Promotion | None, params: "Params", artifacts: Path, numbers: dict[str, Any], tags: dict[str, str]
) -> Decision | None:
    """Decides whether the released model becomes the champion, moves the alias, and tags the version.

    ``numbers`` are those of the run by dotted name, ``tags`` what else the version is to be known by. None where the
    model is in no registry, where it is the champion already, or where there is no ``rule``.
    """
    from tasks.partition.federation import Federation

    client, federation = tracking.client(), Federation.open(artifacts / "partition")
    name = registered_name(params, federation.meta.dataset)
    version = _registered(client, name, sha256(artifacts / "aggregate" / "model.safetensors"))
    if version is None:
        return None
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    holder = _holder(client, name)
    if rule is None or (holder is not None and holder.version == version.version):
        return None
    found = None if holder is None else figures(name, holder.version, federation)
    parties = {"model": name, "version": str(version.version), "champion": str(holder.version) if holder else None}
    decision = rule.judge(numbers, found).model_copy(update=parties)
    if decision.promoted:
        client.set_registered_model_alias(name, CHAMPION, version.version)
    client.set_model_version_tag(name, version.version, PROMOTION, decision.sentence)
    return decision


def figures(name: str, version: str, federation: "Federation") -> dict[str, float | None] | str:
    """Accuracy and loss of a registered model on the test set of ``federation``, or why it has none there."""
    from tasks.aggregate import released
    from tasks.aggregate.evaluation import on_test

    meta = federation.meta
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = _released(name, version, Path(scratch))
            described = released.Description.model_validate(read_json(folder / released.DESCRIPTION), strict=False)
            model = released.load(folder)
        except Exception as error:
            # Its network may be code of the user's own.
            return f"version {version}, which cannot be loaded ({error})"
    wanted = {"shape": meta.shape, "class_names": meta.class_names}
    if described.features is not None:
        wanted["features"] = meta.features
    for field, value in wanted.items():
        if getattr(described, field) != value:
            return f"version {version}, whose {field.replace('_', ' ')} are others than those of these data"
    found = on_test(model.network, model.weights, federation)
    return {metric: found[metric] for metric in ("accuracy", "loss")}


def _holder(client: Any, name: str) -> Any:
    """The version with the alias, None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _registered(client: Any, name: str, weights: str) -> Any:
    """The newest version whose released model is the file with this digest."""
    versions = client.search_model_versions(f"name = '{name}'")
    return max((v for v in versions if v.tags.get(WEIGHTS) == weights), key=lambda v: int(v.version), default=None)


def _released(name: str, version: str, scratch: Path) -> Path:
    """The folder with the weights and the description of a registered model, copied into ``scratch``."""
    import mlflow
    from mlflow.models import Model

    folder = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(scratch))
    return Path(folder) / Model.load(folder).flavors["python_function"]["data"]
