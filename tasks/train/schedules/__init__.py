"""Schedules on the virtual clock. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.schedules.fedasync import FedAsync
from tasks.train.schedules.fedbuff import FedBuff
from tasks.train.schedules.fedcompass import FedCompass
from tasks.train.schedules.fedfix import FedFix
from tasks.train.schedules.fleet import Fleet, Flight, Step
from tasks.train.schedules.log import arrivals, review
from tasks.train.schedules.sync import Sync

Schedule = one_of(Sync, FedFix, FedAsync, FedBuff, FedCompass)

__all__ = [
    "FedAsync", "FedBuff", "FedCompass", "FedFix", "Fleet", "Flight", "Schedule", "Step", "Sync", "arrivals", "review",
]  # fmt: skip
