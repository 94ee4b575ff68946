"""The base of everything that `params.yaml` can name.

A method is one frozen pydantic model: its fields are its hyperparameters, its methods are its behaviour, and its
``name`` is how `params.yaml` asks for it. A package gathers its methods in one union; that union is the registry.
"""

import copyreg
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """A frozen record of hyperparameters that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def one_of(*methods: type[Config]) -> Any:
    """The union of ``methods``, told apart by their ``name`` field."""
    union = methods[0]
    for method in methods[1:]:
        union = union | method
    return Annotated[union, Field(discriminator="name")] if len(methods) > 1 else union


class Refused(Exception):
    """Bad input, said so that the reader can mend it: where, what was found, what is allowed, what to do next."""

    def __init__(self, where: str, found: object, allowed: str, mend: str = ""):
        self.where, self.found, self.allowed, self.mend = where, found, allowed, mend
        shown = "" if found is None else f" = {found!r}"
        super().__init__(f"{where}{shown}: {allowed}" + (f". {mend}" if mend else ""))

    def __reduce__(self) -> tuple:
        # What was found may be anything; to another process the sentence goes, as an error of the same kind.
        return copyreg.__newobj__, (type(self), str(self)), self.__dict__ | {"found": None}
