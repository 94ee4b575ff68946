"""Who talks to whom. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.topologies.gossip import Gossip
from tasks.train.topologies.server import Server

Topology = one_of(Server, Gossip)

__all__ = ["Gossip", "Server", "Topology"]
