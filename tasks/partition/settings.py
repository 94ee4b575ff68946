"""The section ``partition`` of `params.yaml`."""

from collections.abc import Iterator

from pydantic import Field

from tasks.config import Config
from tasks.partition.datasets import Dataset, Digits
from tasks.partition.federation import Kind
from tasks.partition.refine import Refinement
from tasks.partition.skews import NoSkew, Skew
from tasks.partition.splits import Dirichlet, Split
from tasks.partition.splits.division import Division


class PartitionSettings(Config):
    """Which data, and who has which."""

    dataset: Dataset = Field(Digits(), description="the samples")
    clients: int | None = Field(
        100,
        ge=1,
        le=100_000_000,
        description="clients of the federation; null with split column: one for each value of the column",
    )
    split: Split = Field(Dirichlet(), description="which client owns which sample")
    skew: Skew = Field(NoSkew(), description="how the clients' samples differ for the same label")
    refine: tuple[Refinement, ...] = Field(
        (), description="methods that change the data before training, in this order; encoders first"
    )
    validation_fraction: float = Field(0.1, ge=0, le=0.9, description="part of each client's samples that validates")
    test_fraction: float = Field(
        0.2, ge=0.01, le=0.9, description="part of every class set aside where no test set exists"
    )
    public: int = Field(
        0, ge=0, description="samples of the test set that the server owns, for methods that need some; untested"
    )
    min_size: int = Field(2, ge=1, description="samples that every client has at least, moved from the largest")
    limit: int | None = Field(None, ge=2, description="use this many training samples only, drawn at random")
    test_limit: int | None = Field(None, ge=1, description="use this many test samples only, drawn at random")

    @property
    def kinds(self) -> set[Kind]:
        """What the samples may be once they are refined."""
        return next(({step.gives} for step in reversed(self.refine) if step.gives), set(self.dataset.kinds))

    def conflicts(self, promised: bool) -> Iterator[str]:
        """What is wrong between fields; ``promised``: differential privacy is promised of the run."""
        if self.clients is None and type(self.split).natural is Division.natural:
            yield f"partition.clients = None: split {self.split.name!r} needs their number; the data tell it to column"
        kinds: set[Kind] = set(self.dataset.kinds)
        for i, step in enumerate(self.refine):
            where = f"partition.refine[{i}].name = {step.name!r}"
            if not kinds & set(step.kinds):
                yield f"{where}: works on {' and '.join(step.kinds)} data, not {' or '.join(kinds)}; {step.mend}"
            if promised and step.reads_data:
                yield (
                    f"{where}: reads the clients' samples out of reach of train.privacy, so epsilon would promise too "
                    "much; take it out, or train.privacy"
                )
            kinds = {step.gives} if step.gives else kinds
