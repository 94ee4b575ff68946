"""Splits of the samples over the clients. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.partition.splits.classes import Classes
from tasks.partition.splits.column import Column
from tasks.partition.splits.dirichlet import Dirichlet
from tasks.partition.splits.division import Division
from tasks.partition.splits.dual_dirichlet import DualDirichlet
from tasks.partition.splits.groups import Groups
from tasks.partition.splits.iid import Iid
from tasks.partition.splits.quantity import Quantity
from tasks.partition.splits.sensitive import Sensitive
from tasks.partition.splits.shards import Shards

Split = one_of(Iid, Dirichlet, DualDirichlet, Shards, Classes, Groups, Quantity, Column, Sensitive)

__all__ = [
    "Classes",
    "Column",
    "Dirichlet",
    "Division",
    "DualDirichlet",
    "Groups",
    "Iid",
    "Quantity",
    "Sensitive",
    "Shards",
    "Split",
]
