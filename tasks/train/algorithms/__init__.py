"""Federated algorithms. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.algorithms.fedcac import FedCAC
from tasks.train.algorithms.fedper import FedPer
from tasks.train.algorithms.fedprox import FedProx
from tasks.train.algorithms.fedspeed import FedSpeed
from tasks.train.algorithms.hyperfl import HyperFL
from tasks.train.algorithms.one_byte import OneByte
from tasks.train.algorithms.parity import Parity
from tasks.train.algorithms.scaffold import Scaffold

Algorithm = one_of(FedAvg, FedProx, Scaffold, FedSpeed, FedPer, FedCAC, HyperFL, OneByte, Parity)

__all__ = ["Algorithm", "FedAvg", "FedCAC", "FedPer", "FedProx", "FedSpeed", "HyperFL", "OneByte", "Parity", "Scaffold"]
