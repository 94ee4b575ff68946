"""Characters of text, one after the other: the next-character task of federated language modelling."""

import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from tasks.config import Refused
from tasks.partition.federation import Kind
from tasks.partition.samples import FIELD, Located, Rows, Samples
from tasks.partition.sources import damaged


class Text(Located):
    """Windows of text; the label of each is the character that follows it.

    ``path`` is a ``.txt`` file, or a folder of them. What the speakers of a play say, or the files of a folder, are in
    the column ``source``: give them to the clients with ``split: {name: column, by: source}``. Of every source the last
    part is the test set, so that no window of it was seen in training.

    Source: the task is Shakespeare's in Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, table 1.
    """

    name: Literal["text"] = "text"
    kinds: ClassVar[tuple[Kind, ...]] = ("text",)
    path: Path = Field(description="a .txt file, or a folder of them")
    window: int = Field(40, ge=1, le=4096, description="characters that a sample shows")
    stride: int = Field(10, ge=1, description="characters from one window to the next")
    speaker: str = Field(
        r"^([A-Z][^:\n]{0,40}):\n",
        description="pattern at the start of a line that names who speaks; its group is the name; empty: files alone",
    )

    @field_validator("speaker")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        try:
            if pattern and re.compile(pattern).groups != 1:
                raise ValueError("must have one group, for the name")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return pattern

    def load(self, seed: int, test_fraction: float) -> Samples:
        texts = self._sources()
        alphabet = sorted(set("".join(texts.values())))
        code = {character: number for number, character in enumerate(alphabet)}
        tokens = np.concatenate([np.array([code[c] for c in text], np.int64) for text in texts.values()])
        train, test, start = [], [], 0
        for text in texts.values():
            cut = len(text) - int(len(text) * test_fraction)
            train.append(self._windows(start, start + cut))
            test.append(self._windows(start + cut, start + len(text)))
            start += len(text)
        if not sum(map(len, train)) or not sum(map(len, test)):
            mend = "Use a smaller window, or more text"
            raise Refused(f"{FIELD}.window", self.window, "is longer than what any source says", mend)
        names = np.array(list(texts))
        first, held = np.concatenate(train), np.concatenate(test)
        reach = np.arange(self.window)

        def read(starts: np.ndarray) -> np.ndarray:
            return tokens[starts[:, None] + reach]

        return Samples(
            x=Rows(first, read),
            y=tokens[first + self.window],
            test_x=Rows(held, read),
            test_y=tokens[held + self.window],
            kind="text",
            shape=(self.window,),
            class_names=tuple(repr(character)[1:-1] for character in alphabet),
            columns={"source": np.repeat(names, list(map(len, train)))},
            test_columns={"source": np.repeat(names, list(map(len, test)))},
        )

    def _windows(self, start: int, stop: int) -> np.ndarray:
        """Where windows begin that have their label before ``stop``."""
        return np.arange(start, stop - self.window, self.stride)

    def _sources(self) -> dict[str, str]:
        """All that each speaker says, or each file holds, by name; those with fewer than two windows are left out."""
        files = sorted(self.path.glob("*.txt")) if self.path.is_dir() else [self.path]
        if not files or not files[0].exists():
            problem = "does not exist" if not self.path.exists() else "has no .txt file"
            raise Refused(f"{FIELD}.path", str(self.path), problem, "Name a text file, or a folder of them")
        said: dict[str, list[str]] = {}
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise damaged(file, f"is not UTF-8 text ({error})") from None
            parts = re.split(self.speaker, text, flags=re.MULTILINE) if self.speaker else [text]
            said.setdefault(file.stem, []).append(parts[0])
            for name, speech in zip(parts[1::2], parts[2::2], strict=True):
                said.setdefault(name, []).append(speech)
        return {name: text for name, parts in said.items() if len(text := "".join(parts)) >= 2 * (self.window + 1)}
