"""UCI Adult: the census table that fairness work is measured on."""

from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.encoding import encoded
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Rows, Samples, Source
from tasks.partition.sources import damaged, existing

NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
Attribute = Literal[
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
]  # fmt: skip
COLUMNS: tuple[str, ...] = get_args(Attribute)
CLASSES = ("<=50K", ">50K")


class Adult(Source):
    """Whether a person earns above 50,000 dollars a year, from 14 attributes of the census of 1994.

    ``path`` holds ``adult.data`` and ``adult.test`` as published. Numbers are standardised and text is one-hot; a
    missing value (``?``) is a category of its own. Every text column can split the clients (``split: {name: column,
    by: occupation}``), and ``group`` is published as the sensitive attribute. It is a feature too,
    unless ``exclude`` has it.

    Source: Becker and Kohavi, "Adult", UCI, 1996.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    name: Literal["adult"] = "adult"
    path: Path = Field(Path("data/adult"), description="the folder, relative to params.yaml")
    exclude: tuple[Attribute, ...] = Field((), description="attributes that are no features; they can still split")
    group: Literal["sex", "race"] = Field("sex", description="the sensitive attribute to publish as groups")

    def load(self, seed: int, test_fraction: float) -> Samples:
        folder = existing(self.path, "folder")
        table, y = _rows(existing(folder / "adult.data", "file"))
        test_table, test_y = _rows(existing(folder / "adult.test", "file"))
        both = {name: np.concatenate([table[name], test_table[name]]) for name in COLUMNS}
        train = np.arange(len(y))
        used = {name: values for name, values in both.items() if name not in self.exclude}
        if not used:
            raise Refused(f"{FIELD}.exclude", list(self.exclude), "leaves no feature")
        read, features = encoded(used, train, str(folder))
        texts = [name for name in COLUMNS if name not in NUMBERS]
        return Samples(
            x=Rows(train, read),
            y=y,
            test_x=Rows(np.arange(len(y), len(y) + len(test_y)), read),
            test_y=test_y,
            kind="table",
            shape=(len(features),),
            class_names=CLASSES,
            features=features,
            columns={name: table[name] for name in texts},
            test_columns={name: test_table[name] for name in texts},
            group=self.group,
        )


def _rows(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns [n] by name and the labels int64 [n]. The test file opens with a comment and dots its labels."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("|"):
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(COLUMNS) + 1 or fields[-1].rstrip(".") not in CLASSES:
            problem = f"line {number} is not {len(COLUMNS)} attributes and {' or '.join(CLASSES)}: {line[:60]!r}"
            raise damaged(path, problem)
        rows.append(fields)
    if not rows:
        raise damaged(path, "holds no row")
    *columns, labels = zip(*rows, strict=True)
    table = {}
    for name, values in zip(COLUMNS, columns, strict=True):
        try:
            table[name] = np.array(values, np.float64 if name in NUMBERS else np.str_)
        except ValueError as error:
            raise damaged(path, f"column {name}: {error}") from None
    return table, np.array([CLASSES.index(label.rstrip(".")) for label in labels], np.int64)
