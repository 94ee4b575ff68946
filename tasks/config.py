"""The base of everything that `params.yaml` can name.

A method is one frozen pydantic model: its fields are its hyperparameters, its methods are its behaviour, and its
``name`` is how `params.yaml` asks for it. A package gathers its methods in one union; that union is the registry.
"""

import ast
import contextlib
import inspect
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Config(BaseModel):
    """A frozen record of hyperparameters that refuses fields it does not know.

    The docstring below a field is its description. Only schemas and pages need it, and only they read it: with
    pydantic's `use_attribute_docstrings` every process would read the source of every class, a fifth of its start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """The docstrings of the fields, by their names; those that are inherited too."""
        found = {}
        for base in reversed(cls.__mro__):
            # A class that was made while the program runs has no source.
            with contextlib.suppress(OSError, TypeError):
                body = ast.parse(dedent(inspect.getsource(base))).body[0].body if issubclass(base, Config) else []
                for field, below in pairwise(body):
                    match field, below:
                        case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                            found[name] = inspect.cleandoc(text)
        return found

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in cls.descriptions().items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema


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
