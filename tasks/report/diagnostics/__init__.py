"""The sections of the page. To add one: a file here with a function from :class:`~tasks.report.run.Run` to a
:class:`~tasks.report.page.Panel`, or to None where it has nothing to show, and its name in the tuple."""

from collections.abc import Callable

from tasks.report.diagnostics.clients import clients
from tasks.report.diagnostics.data import data
from tasks.report.diagnostics.fairness import fairness
from tasks.report.diagnostics.findings import findings
from tasks.report.diagnostics.gossip import gossip
from tasks.report.diagnostics.leakage import leakage
from tasks.report.diagnostics.learning import learning
from tasks.report.diagnostics.membership import membership
from tasks.report.diagnostics.price import price
from tasks.report.diagnostics.reading import reading
from tasks.report.diagnostics.rejected import rejected
from tasks.report.diagnostics.schedule import schedule
from tasks.report.diagnostics.setup import setup
from tasks.report.diagnostics.time import time
from tasks.report.diagnostics.uploads import uploads
from tasks.report.page import Panel
from tasks.report.run import Run

DIAGNOSTICS: tuple[Callable[[Run], Panel | None], ...] = (
    findings,
    learning,
    gossip,
    schedule,
    clients,
    fairness,
    data,
    price,
    time,
    rejected,
    uploads,
    leakage,
    membership,
    setup,
    reading,
)
"""In the order of the page."""
