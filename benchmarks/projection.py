"""What a round costs that is larger than this machine: arithmetic on constants that were measured on it.

For P parameters that train and travel, on a frozen base of B, and a client that reads T samples (tokens) a day:

    operations of a client    (4 B + 6 P) T                  forward and backward; weight gradients for P alone
    bytes down, up            4 P,  size P                   float32 down; ``size`` bytes a parameter as it is coded
    seconds of a client       down / download + operations / device + encode P + up / upload
    clients at work           clients a day * seconds / 86,400                              (Little's law)
    seconds of the server     clients a day * (copy * up + (decode + add) P)                of one core, a day
    memory of the server      4 P (2 + cores) + up * cores   model, sum; on each core one upload, coded and decoded
    seconds to simulate       clients a day * (operations / core + (encode + decode + handled) P + client)
    memory to simulate        held P + 4 B                   of one worker

Source of the rule of 4 and 6 operations: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1;
a frozen weight needs no gradient of its own, which saves 2. Little, "A Proof for the Queuing Formula L = lambda W",
Operations Research 9(3), 1961.
"""

import math
from typing import NamedTuple

from benchmarks.constants import Constants

DAY = 86_400
FLOAT = 4
"""Bytes of a number as it is broadcast and added up."""


class Setup(NamedTuple):
    """A deployment: what is assumed, in the order of the formulas.

    ``device`` operations a second of a client, None for those of one core here; ``download`` and ``upload`` in megabits
    a second, as in the section ``devices`` of `params.yaml`.
    """

    parameters: float
    coding: str
    base: float = 10e9
    samples: float = 1_000
    clients: float = 1e6
    rounds: float = 100
    download: float = 20.0
    upload: float = 5.0
    device: float | None = None


class Simulator(NamedTuple):
    """What Fedloom's engine takes beside the arithmetic: seconds of a core for each ``client``, whatever its model;
    seconds in which each parameter of each client is ``handled``, from the broadcast to the sum; and the bytes that are
    ``held`` for each parameter while a client trains."""

    client: float
    handled: float
    held: float


class Costs(NamedTuple):
    """What it takes. Bytes and seconds of one client; bytes, bandwidth (bits a second, both ways together), seconds of
    a core and memory of the server; ``at_work`` clients at any moment, ``cohort`` clients a round; ``simulated`` the
    seconds of one core in which Fedloom simulates the day, and ``simulator`` the memory of a worker that does."""

    bytes_down: float
    bytes_up: float
    client_seconds: float
    cohort: float
    at_work: float
    day_bytes: float
    bandwidth: float
    server_seconds: float
    server_cores: int
    server_memory: float
    simulated: float
    simulator: float


def costs(setup: Setup, constants: Constants, simulator: Simulator) -> Costs:
    """The costs of a day."""
    code = constants.codings[setup.coding]
    down, up = FLOAT * setup.parameters, code.size * setup.parameters
    operations = (4 * setup.base + 6 * setup.parameters) * setup.samples
    transfer = 8 * (down / setup.download + up / setup.upload) / 1e6
    device = setup.device or constants.operations
    client_seconds = transfer + operations / device + code.encode * setup.parameters
    server = setup.clients * (constants.copy * up + (code.decode + constants.add) * setup.parameters)
    cores = max(math.ceil(server / DAY), 1)
    own = (code.encode + code.decode + simulator.handled) * setup.parameters + simulator.client
    return Costs(
        bytes_down=down,
        bytes_up=up,
        client_seconds=client_seconds,
        cohort=setup.clients / setup.rounds,
        at_work=setup.clients * client_seconds / DAY,
        day_bytes=setup.clients * (down + up),
        bandwidth=8 * setup.clients * (down + up) / DAY,
        server_seconds=server,
        server_cores=cores,
        server_memory=FLOAT * setup.parameters * (2 + cores) + up * cores,
        simulated=setup.clients * (operations / constants.operations + own),
        simulator=simulator.held * setup.parameters + FLOAT * setup.base,
    )
