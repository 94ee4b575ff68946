"""Who talks to whom. To add one: a file here, and its name in the union."""

from typing import Literal

from tasks.config import Config, one_of


class Server(Config):
    """A server in the middle, which holds the model and talks to every client."""

    name: Literal["server"] = "server"


Topology = one_of(Server)

__all__ = ["Server", "Topology"]
