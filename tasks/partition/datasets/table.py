"""The user's own tables."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.encoding import encoded
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Located, Rows, Samples, coded, hold_out
from tasks.partition.sources import damaged, existing

if TYPE_CHECKING:
    import pyarrow

CLIENT = "client"
"""The column that tells from which file of a folder a row is."""
SUFFIXES = (".csv", ".tsv", ".parquet")
LEVELS = 1000
"""More values than this in a text column are taken for names or free text, which one-hot columns cannot carry."""
UNKNOWN = "missing"
"""The category that a missing text value becomes under ``missing: fill``."""


class Table(Located):
    """Your own CSV or Parquet files: one row a sample, ``target`` names the column of the labels.

    ``path`` is a file, or a folder in which every file is a client: the file's name is the value of the column
    ``client``, by which ``split: {name: column, by: client}`` gives each file to a client of its own. Files may come
    and may grow at their ends: each row of a folder is set aside for testing by a draw of its own, so that a row once
    tested on is never trained on. With ``reference`` the features and the classes stay as they are, too.

    Numbers are standardised and text columns are one-hot, both fitted on the training part alone. An empty field,
    ``NA``, ``NaN``, ``null`` or ``?`` is missing: by default such a table is refused, naming the columns; ``missing:
    fill`` puts the column's training mean (text: a category of its own), ``missing: drop`` leaves the row out.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("table",)
    name: Literal["table"] = "table"
    path: Path = Field(description="the .csv, .tsv or .parquet file, or a folder of them, relative to params.yaml")
    test_path: Path | None = Field(None, description="a file of the same columns for the test set")
    reference: Path | None = Field(
        None,
        description="a file of the same columns that settles features and classes: means, deviations and texts are "
        "those of its rows, which serve nothing else; null takes those of the training part",
    )
    target: str = Field(description="the column of the labels")
    ignore: tuple[str, ...] = Field((), description="columns that are no features, such as row numbers")
    categorical: tuple[str, ...] = Field((), description="columns of numbers that are names of categories")
    keep: tuple[str, ...] = Field((), description="columns by which to split or group; features too unless ignored")
    group: str | None = Field(None, description="one of `keep`, to publish as groups")
    missing: Literal["refuse", "fill", "drop"] = Field("refuse", description="what to do with missing values")

    def load(self, seed: int, test_fraction: float) -> Samples:
        if self.group is not None and self.group not in self.keep:
            raise Refused(f"{FIELD}.group", self.group, "must be one of `keep`", f"keep holds {list(self.keep)}")
        table, files = self._table()
        ends = [table.num_rows]
        for field in ("test_path", "reference"):
            path = getattr(self, field)
            table = table if path is None else _joined([(self.path, table), (path, self._read(path, field))])
            ends.append(table.num_rows)
        own, tested, whole = ends
        y, class_names = self._classes(self._labels(table), tested)
        if self.test_path is not None:
            train, test_index = np.arange(own), np.arange(own, tested)
        elif files is not None:
            train, test_index = _drawn(files, test_fraction, seed)
        else:
            train, test_index = hold_out(y[:own], test_fraction, generator(seed, "test set"))
        fit = train if self.reference is None else np.arange(tested, whole)
        names = [name for name in table.column_names if name != self.target and name not in self.ignore]
        if not names:
            raise Refused(f"{FIELD}.ignore", list(self.ignore), f"leaves no feature of {self.path}")
        read, features = encoded({name: self._feature(table, name, fit) for name in names}, fit, str(self.path))
        kept = {name: self._texts(table, name) for name in self.keep}
        if files is not None:
            # Rows of a test file are of no client.
            kept[CLIENT] = np.concatenate([files, np.full(whole - own, "")])
        return Samples(
            x=Rows(train, read),
            y=y[train],
            test_x=Rows(test_index, read),
            test_y=y[test_index],
            kind="table",
            shape=(len(features),),
            class_names=class_names,
            features=features,
            columns={name: values[train] for name, values in kept.items()},
            test_columns={name: values[test_index] for name, values in kept.items()},
            group=self.group,
        )

    def _table(self) -> "tuple[pyarrow.Table, np.ndarray | None]":
        """The rows of ``path`` and, where it is a folder, the name of each row's file."""
        if not self.path.is_dir():
            return self._read(self.path), None
        if CLIENT in self.keep:
            raise Refused(f"{FIELD}.keep", CLIENT, f"means the file, in a folder of files such as {self.path}")
        paths = sorted(path for path in self.path.iterdir() if path.suffix in SUFFIXES and path.name[0] != ".")
        if not paths:
            raise Refused(f"{FIELD}.path", str(self.path), f"has no file that ends in {', '.join(SUFFIXES)}")
        tables = [(path, self._read(path)) for path in paths]
        return _joined(tables), np.repeat([path.stem for path in paths], [table.num_rows for _, table in tables])

    def _classes(self, labels: np.ndarray, own: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels as codes, and the names of the classes: those of the reference, whose rows begin at ``own``."""
        where = f"{self.path}: {self.target}"
        if self.reference is not None and len(unknown := np.setdiff1d(labels[:own], labels[own:])):
            mend = f"Give {self.reference.name} a row of it, or leave `reference` out"
            raise Refused(where, str(unknown[0]), "is no class of the reference", mend)
        return coded(labels, where)

    def _read(self, path: Path, field: str = "path") -> "pyarrow.Table":
        import pyarrow as pa
        from pyarrow import csv, parquet

        existing(path, "file", field)
        convert = csv.ConvertOptions(
            null_values=["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"], strings_can_be_null=True
        )
        parse = csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            if path.suffix == ".parquet":
                table = parquet.read_table(path, memory_map=True)
            else:
                table = csv.read_csv(path, parse_options=parse, convert_options=convert)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, f"cannot be read ({str(error).splitlines()[0]})") from None
        named = {"target": (self.target,), "ignore": self.ignore, "categorical": self.categorical, "keep": self.keep}
        for setting, columns in named.items():
            for column in columns:
                if column not in table.column_names:
                    raise Refused(f"{FIELD}.{setting}", column, f"is no column of {path}", f"It has {_listed(table)}")
        if not table.num_rows:
            raise damaged(path, "holds no row")
        return self._complete(table, path)

    def _complete(self, table: "pyarrow.Table", path: Path) -> "pyarrow.Table":
        """The rows to use: all of them, unless values are missing that may not be, or whose rows are to be dropped."""
        from pyarrow import compute

        used = [name for name in table.column_names if name in self.keep or name not in self.ignore]
        present = {name: compute.and_kleene(compute.is_valid(table[name]), _finite(table[name])) for name in used}
        gaps = {name: table.num_rows - compute.sum(column).as_py() for name, column in present.items()}
        gaps = {name: count for name, count in gaps.items() if count}
        if self.missing == "refuse" and gaps:
            listed = ", ".join(f"{name} ({count})" for name, count in gaps.items())
            mend = "Choose `missing: fill` (mean, or a category of its own) or `missing: drop` (leave the rows out)"
            raise Refused(f"{FIELD}.missing", self.missing, f"{path} lacks values in {listed}", mend)
        if self.missing == "fill" and self.target in gaps:
            mend = "Use `missing: drop`, or leave the unlabelled rows out of the file"
            raise Refused(f"{FIELD}.missing", self.missing, f"{gaps[self.target]} rows of {path} have no label", mend)
        if self.missing == "drop" and gaps:
            whole = present[used[0]]
            for name in used[1:]:
                whole = compute.and_(whole, present[name])
            table = table.filter(whole)
            if not table.num_rows:
                raise Refused(f"{FIELD}.missing", self.missing, f"leaves no row of {path}: each lacks a value")
        return table

    def _labels(self, table: "pyarrow.Table") -> np.ndarray:
        values = table[self.target].to_numpy()
        return values if values.dtype.kind in "fiub" else values.astype(np.str_)

    def _feature(self, table: "pyarrow.Table", name: str, train: np.ndarray) -> np.ndarray:
        """A column as float64 [n], or as text [n] where it is a category, with the gaps filled."""
        from pyarrow import types

        kind = table.schema.field(name).type
        if (
            types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        ) and name not in self.categorical:
            values = table[name].cast("float64").to_numpy().astype(np.float64)
            known = np.isfinite(values[train])
            if not known.any():
                raise Refused(str(self.path), None, f"column {name} holds no value", f"List it under {FIELD}.ignore")
            return np.where(np.isfinite(values), values, values[train][known].mean())
        values = self._texts(table, name)
        if (levels := len(np.unique(values))) > LEVELS:
            mend = f"List it under {FIELD}.ignore, or store it as numbers"
            raise Refused(str(self.path), None, f"column {name} holds {levels} different texts, above {LEVELS}", mend)
        return values

    def _texts(self, table: "pyarrow.Table", name: str) -> np.ndarray:
        return table[name].cast("string").fill_null(UNKNOWN).to_numpy().astype(np.str_)


def _joined(tables: "list[tuple[Path, pyarrow.Table]]") -> "pyarrow.Table":
    """One table of all rows, with the columns of the first."""
    import pyarrow as pa

    (first, table), *others = tables
    for path, other in others:
        if lacking := [name for name in table.column_names if name not in other.column_names]:
            raise damaged(path, f"lacks the columns {', '.join(lacking)} of {first.name}")
        try:
            table = pa.concat_tables([table, other.select(table.column_names)], promote_options="permissive")
        except pa.ArrowException as error:
            raise damaged(path, f"has other types than {first.name} ({str(error).splitlines()[0]})") from None
    return table


def _drawn(files: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of a training and a test part; which of them a row is in depends on its place in its file alone."""
    tests = np.zeros(len(files), bool)
    for name in np.unique(files):
        mine = np.flatnonzero(files == name)
        tests[mine] = generator(seed, "test set", str(name)).random(len(mine)) < fraction
    if not tests.any() or tests.all():
        found = f"{tests.sum()} of {len(tests)} rows were drawn to test on"
        mend = "Add rows, change partition.test_fraction, or name a test_path"
        raise Refused("params.yaml: partition.test_fraction", fraction, found, mend)
    return np.flatnonzero(~tests), np.flatnonzero(tests)


def _finite(column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    from pyarrow import compute, types

    return compute.is_finite(column) if types.is_floating(column.type) else compute.is_valid(column)


def _listed(table: "pyarrow.Table") -> str:
    names = table.column_names
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
