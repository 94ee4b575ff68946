"""Schedules on the virtual clock. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.schedules.sync import Sync

Schedule = one_of(Sync)

__all__ = ["Schedule", "Sync"]
