"""Entry of the released model into MLflow's model registry.

What is logged is a plain folder of weights and description, the code that reads it, and pinned requirements: nothing is
pickled, nothing is inferred, and the model loads where Fedloom is not installed. ``mlflow.pytorch`` would need a pickle
or an exported graph; ``mlflow.pyfunc.load_model(...).get_raw_model()`` gives the torch module too.
"""

import re
import shutil
import sys
import tempfile
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from tasks.aggregate import released
from tasks.artifacts import read_tree, sha256
from tasks.models import build
from tasks.models.architectures import Custom
from tasks.models.start import Fresh
from tasks.partition.federation import Meta

if TYPE_CHECKING:
    from tasks.params import Params

CANDIDATE, CHAMPION = "candidate", "champion"
"""The aliases of the newest version, and of the one to use."""
WEIGHTS = "fedloom.weights"
"""The tag of a version by which the released model is found again: the SHA-256 of its file."""
REQUIREMENTS = ("torch", "numpy", "pydantic", "safetensors")


def register(params: "Params", meta: Meta, weights: Path, numbers: dict[str, float | None]) -> None:
    """Logs the model under MLflow's active run and registers it; a failure is said, and costs only the entry."""
    try:
        version = _register(params, meta, weights, numbers)
    except Exception as error:
        print(f"warning: the model is not in MLflow's registry: {error}", file=sys.stderr)
        return
    uri = f"models:/{version.name}/{version.version}"
    print(f"registered {version.name} version {version.version}: mlflow.pyfunc.load_model({uri!r})")


def registered_name(params: "Params", dataset: str) -> str:
    """The name under which the released model of a training on ``dataset`` is registered."""
    given = params.aggregate.registry and params.aggregate.registry.model
    return given or re.sub(r"[^\w.-]+", "-", f"fedloom-{dataset}-{params.model.name}")


def _register(params: "Params", meta: Meta, weights: Path, numbers: dict[str, float | None]) -> Any:
    """The new version."""
    import mlflow

    name = registered_name(params, meta.dataset)
    with tempfile.TemporaryDirectory() as scratch:
        folder, code = Path(scratch, "released"), Path(scratch, "code")
        # What does not train goes along, so that nobody needs what it was started from.
        frozen = build(params.model, meta.shape, meta.classes, params.seed).frozen
        described = released.Description(
            model=params.model.model_copy(update={"start": Fresh()}),
            shape=meta.shape,
            classes=meta.classes,
            class_names=meta.class_names,
            features=meta.features,
            seed=params.seed,
        )
        released.save(folder, described, read_tree(weights) | frozen)
        shipped, installed = sources(params.model)
        for package in shipped:
            copy_code(package, code)
        with warnings.catch_warnings():
            # The signature is given, so there is nothing to learn from an example.
            warnings.filterwarnings("ignore", message=".*input example was not provided")
            logged = mlflow.pyfunc.log_model(
                name="released",
                loader_module=released.__name__,
                data_path=str(folder),
                code_paths=[str(path) for path in sorted(code.iterdir())],
                signature=signature(meta),
                pip_requirements=[f"{package}=={pinned(package)}" for package in (*REQUIREMENTS, *installed)],
                metadata={"dataset": meta.dataset, "class_names": list(meta.class_names)},
            )
    version = mlflow.register_model(logged.model_uri, name)
    client = mlflow.MlflowClient()
    client.set_model_version_tag(name, version.version, WEIGHTS, sha256(weights))
    for key, value in numbers.items():
        if value is not None:
            client.set_model_version_tag(name, version.version, key, repr(value))
    client.set_registered_model_alias(name, CANDIDATE, version.version)
    return version


def signature(meta: Meta) -> Any:
    """Samples in, class probabilities out."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    kind = np.dtype(np.int64 if meta.kind == "text" else np.float32)
    inputs = Schema([TensorSpec(kind, (-1, *meta.shape))])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float32), (-1, meta.classes))]))


def sources(model: Any) -> tuple[list[Path], list[str]]:
    """The packages whose code has to travel with ``model``, and the installed distributions that it needs besides."""
    here = Path(tasks.__file__).parent
    if not isinstance(model, Custom):
        return [here], []
    top = model.path.split(":")[0].split(".")[0]
    module = import_module(top)
    path = Path(module.__file__) if getattr(module, "__file__", None) else Path(next(iter(module.__path__)))
    path = path.parent if path.name == "__init__.py" else path
    if path == here:
        return [here], []
    owners = metadata.packages_distributions().get(top)
    if owners and "site-packages" in path.parts:
        return [here], owners
    return [here, path], []


def copy_code(package: Path, to: Path) -> None:
    """Copies a module or the Python files of a package."""
    if package.is_file():
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(package, to)
        return
    for path in package.rglob("*.py"):
        target = to / package.name / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def pinned(package: str) -> str:
    """The installed version, without the local label of a build, which no index has."""
    return metadata.version(package).split("+")[0]
