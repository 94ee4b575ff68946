"""Refinements: what changes the data before the training. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.partition.refine.ggeur import GGEUR
from tasks.partition.refine.negative import Negative
from tasks.partition.refine.pca import PCA
from tasks.partition.refine.preparation import Partitioned, Preparation, Wire
from tasks.partition.refine.random_features import RandomFeatures

Refinement = one_of(PCA, RandomFeatures, Negative, GGEUR)

__all__ = ["GGEUR", "PCA", "Negative", "Partitioned", "Preparation", "RandomFeatures", "Refinement", "Wire"]
