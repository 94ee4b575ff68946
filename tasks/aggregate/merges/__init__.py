"""Ways to make the released model out of what the training left. To add one: a file here, and its name in the union."""

from tasks.aggregate.merges.final import Final
from tasks.aggregate.merges.geometric_median import GeometricMedian
from tasks.aggregate.merges.krum import Krum
from tasks.aggregate.merges.mean import Mean
from tasks.aggregate.merges.median import Median
from tasks.aggregate.merges.merge import Combination, Fusion, Merge
from tasks.aggregate.merges.single import Single
from tasks.aggregate.merges.trimmed_mean import TrimmedMean
from tasks.aggregate.merges.variance_corrected import VarianceCorrected
from tasks.config import one_of

AnyMerge = one_of(Final, Mean, Median, TrimmedMean, Krum, GeometricMedian, Single, VarianceCorrected)

__all__ = ["AnyMerge", "Combination", "Fusion", "Merge"]
