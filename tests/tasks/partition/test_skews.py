"""Feature skews change what they say, and nothing at their neutral setting."""

import numpy as np
import pytest

from tasks.config import Refused
from tasks.keys import generator
from tasks.partition.skews import Domain, Noise, NoSkew, Rotation


def images(n: int = 6, channels: int = 1, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((n, channels, height, width), np.float32)


def test_neutral_settings_change_no_bit():
    x, rng = images(), generator(0)
    neutral = [NoSkew(), Rotation(angles=(0.0, 360.0)), Noise(sigma=0.0), Domain(strength=0.0, invert=False)]
    for skew in neutral:
        mark = skew.draw(3, 1, rng)[np.arange(6) % 3]
        assert np.array_equal(skew.apply(x, mark, (0.0, 1.0), rng), x), skew.name


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarters):
    x = images(channels=3)
    turned = Rotation().apply(x, np.full(6, 90.0 * quarters), None, generator(0))
    assert np.allclose(turned, np.rot90(x, quarters, axes=(2, 3)), atol=1e-5)


def test_a_turn_keeps_distances_in_images_that_are_not_square():
    # A dot 3 pixels right of the centre of a 9 x 15 image lands 3 pixels above it.
    x = np.zeros((1, 1, 9, 15), np.float32)
    x[0, 0, 4, 10] = 1.0
    turned = Rotation().apply(x, np.array([90.0]), None, generator(0))
    assert turned[0, 0, 1, 7] == pytest.approx(1.0, abs=1e-4) and turned.sum() == pytest.approx(1.0, abs=1e-3)


def test_angles_are_dealt_out_evenly():
    angles = Rotation(angles=(0.0, 30.0, 60.0)).draw(300, 1, generator(0))
    assert np.unique(angles, return_counts=True)[1].tolist() == [100, 100, 100]


def test_noise_has_the_variance_of_the_clients_place():
    skew, clients = Noise(sigma=0.5), 4
    scale = skew.draw(clients, 1, generator(0))
    assert np.allclose(np.sort(scale**2), 0.5 * np.arange(1, 5) / 4)
    owner = np.repeat(np.arange(clients), 500)
    noisy = skew.apply(np.zeros((2000, 20), np.float32), scale[owner], None, generator(1))
    for client in range(clients):
        assert noisy[owner == client].var() == pytest.approx(scale[client] ** 2, rel=0.06)
    bounded = skew.apply(images(), scale[np.zeros(6, int)], (0.0, 1.0), generator(1))
    assert bounded.min() >= 0.0 and bounded.max() <= 1.0


def test_noise_does_not_depend_on_how_the_samples_are_chunked():
    x, scale = np.zeros((10, 7), np.float32), np.ones(10)
    whole, rng = Noise().apply(x, scale, None, generator(5)), generator(5)
    pieces = [Noise().apply(part, scale[: len(part)], None, rng) for part in (x[:3], x[3:4], x[4:])]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_a_domain_is_one_affine_map_of_each_channel_and_odd_domains_are_negatives():
    skew = Domain(domains=2, strength=0.4)
    marks = skew.draw(10, 3, generator(0))
    assert len(np.unique(marks, axis=0)) == 2
    x = images(1, 3) * 0.2 + 0.4
    plain = np.array([1.0, 1.0, 1.0, 0.0])
    changed = next(mark for mark in marks if not np.array_equal(mark, plain))
    seen = skew.apply(x, changed[None], (0.0, 1.0), generator(0))
    for channel in range(3):
        slope, offset = np.polyfit(x[0, channel].ravel(), seen[0, channel].ravel(), 1)
        assert slope < 0 and slope == pytest.approx(changed[channel], abs=1e-4)
        assert np.allclose(slope * x[0, channel] + offset, seen[0, channel], atol=1e-5)


def test_turning_a_table_is_refused():
    with pytest.raises(Refused, match=r"params.yaml: partition.skew.name = 'rotation'.*image data.*table"):
        Rotation().check("table")
    Noise().check("table")
