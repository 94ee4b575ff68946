"""The ``report`` section of `params.yaml`."""

from pydantic import Field

from tasks.config import Config


class ReportSettings(Config):
    """Stage 5: the page to read."""

    title: str = Field("", max_length=200, description="title of the page; empty for one that names method and data")
    note: str = Field("", max_length=4000, description="a paragraph of your own under the title")
    pictures: int = Field(12, ge=0, description="most attacked messages shown in pictures, the worst leaks first")
