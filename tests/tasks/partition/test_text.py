"""Text: windows, their labels, who said them, and what is held out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Refused
from tasks.models.architectures import Transformer
from tasks.params import ParamsRefused, build
from tasks.partition.datasets import Text

PLAY = "First:\nabcabcabcabc\nmore of it\n\nSecond:\nxyzxyzxyzxyzxyz\n\nFirst:\nand again abc\n"


def decoded(samples, rows: np.ndarray) -> list[str]:
    return ["".join(eval(f"'{samples.class_names[t]}'") for t in row) for row in rows]


@pytest.fixture
def play(tmp_path: Path) -> Path:
    (tmp_path / "play.txt").write_text(PLAY)
    return tmp_path / "play.txt"


@given(window=st.integers(1, 6), stride=st.integers(1, 4))
def test_a_window_is_followed_by_its_label_in_what_its_speaker_says(tmp_path_factory, window, stride):
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(PLAY)
    samples = Text(path=path, window=window, stride=stride).load(0, 0.3)
    said = {"First": "abcabcabcabc\nmore of it\n\nand again abc\n", "Second": "xyzxyzxyzxyzxyz\n\n"}
    for x, y, source in (
        (samples.x, samples.y, samples.columns["source"]),
        (samples.test_x, samples.test_y, samples.test_columns["source"]),
    ):
        shown = decoded(samples, x.read(x.index))
        for text, label, name in zip(shown, decoded(samples, y[:, None]), source, strict=True):
            assert text + label in said[name]


def test_no_character_of_the_test_set_was_seen_in_training(play):
    samples = Text(path=play, window=3, stride=1).load(0, 0.4)
    seen = {i for start in samples.x.index for i in range(start, start + 4)}
    held = {i for start in samples.test_x.index for i in range(start, start + 4)}
    assert not seen & held


def test_a_folder_has_a_source_a_file(tmp_path):
    for name, text in (("a", "aaaaaaaaaaaa"), ("b", "bbbbbbbbbbbb"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text(text)
    samples = Text(path=tmp_path, window=2, stride=1, speaker="").load(0, 0.3)
    assert set(samples.columns["source"]) == {"a", "b"}  # "c" says too little for two windows


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"path = .*does not exist"):
        Text(path=tmp_path / "none.txt").load(0, 0.2)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="is not UTF-8"):
        Text(path=tmp_path / "bad.txt").load(0, 0.2)
    with pytest.raises(ParamsRefused, match=r"speaker = '\(': is no regular expression"):
        build({"partition": {"dataset": {"name": "text", "path": "x.txt", "speaker": "("}}})


def test_what_cannot_take_the_kind_of_samples_is_refused_before_anything_runs():
    with pytest.raises(ParamsRefused, match="dataset 'text' has text data; use transformer, custom"):
        build({"partition": {"dataset": {"name": "text", "path": "x.txt"}}})
    with pytest.raises(ParamsRefused, match=r"model\.name = 'transformer': dataset 'digits' has image data"):
        build({"model": {"name": "transformer"}})
    wine = {"dataset": {"name": "wine"}, "skew": {"name": "rotation"}, "clients": 10}
    with pytest.raises(ParamsRefused) as refused:
        build({"partition": wine, "model": {"name": "cnn"}})
    assert [problem.split(" = ")[0] for problem in refused.value.problems] == ["partition.skew.name", "model.name"]
    # The arrays in a .npz may be either: the stage itself looks.
    assert build({"partition": {"dataset": {"name": "npz", "path": "x.npz"}}})


def test_the_transformer_does_not_look_ahead():
    """What a position gives depends on no later token (only the last is read, so a shorter window is compared)."""
    import torch

    network = Transformer(width=8, heads=2).build((6,), 5).eval()
    blocks = lambda x: network.blocks(network.tokens(x) + network.positions)  # noqa: E731
    a, b = torch.tensor([[0, 1, 2, 3, 4, 0]]), torch.tensor([[0, 1, 2, 4, 3, 1]])
    assert torch.equal(blocks(a)[:, :3], blocks(b)[:, :3])
    assert not torch.equal(blocks(a)[:, 3], blocks(b)[:, 3])
