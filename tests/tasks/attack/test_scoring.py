"""Scores against closed forms and naive versions, and what does not change them."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.attack
from tasks.attack.guesses import Declined, Reconstruction
from tasks.attack.scoring import MARGIN, PSNR_CAP, Referee, match, psnr, roc, square_errors, ssim
from tasks.attack.wavelets import cw_ssim
from tasks.models import MLP
from tasks.partition.federation import Federation
from tasks.train.transcript import Transcript
from tests.tasks.attack.scenes import scene, write_run

MODEL = MLP(hidden=(8,))


@pytest.fixture
def referee(tmp_path) -> Referee:
    folder = write_run(tmp_path, MODEL, [3, 2, 40])
    federation = Federation.open(folder / "partition")
    return Referee(federation, Transcript.open(folder / "train" / "transcript"), 0, public=100, candidates=1000)


@pytest.fixture
def case(digits):
    """A case of client 0 of the referee's federation: its first three samples."""
    return scene(MODEL, digits[0][:3], digits[1][:3]).case


def test_only_the_scoring_code_opens_private_batches():
    folder = Path(tasks.attack.__file__).parent
    opens = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "private"
    }
    assert opens == {"scoring.py"}


def test_no_attack_imports_the_scoring_code_the_transcript_or_the_data():
    folder = Path(tasks.attack.__file__).parent
    seen_by_attacks = [*folder.glob("attacks/*.py"), *folder.glob("defences/*.py")]
    seen_by_attacks += [folder / f"{name}.py" for name in ("case", "guesses", "label_leak", "layers", "matching")]
    for path in seen_by_attacks:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            # A context says what is public of a message, and the meta data what is public of the samples.
            assert not ({"Transcript", "Message", "Federation", "Referee"} & set(names)), path
            assert not source.startswith(("tasks.attack.scoring", "tasks.attack.stage", "tasks.artifacts")), path


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 6), found=st.integers(0, 6))
def test_the_matching_is_the_cheapest_of_all_and_the_order_of_the_guesses_is_no_matter(seed, samples, found):
    generator = torch.Generator().manual_seed(seed)
    x, guesses = torch.rand(samples, 5, generator=generator), torch.rand(found, 5, generator=generator)
    rows, columns = match(x, guesses)
    cost = float(square_errors(x[rows], guesses[columns]).sum())
    few, many = sorted((samples, found))
    pairings = (list(zip(range(few), chosen, strict=True)) for chosen in itertools.permutations(range(many), few))
    flip = samples > found
    cheapest = min(
        sum(float((x[b if flip else a] - guesses[a if flip else b]).square().mean()) for a, b in pairs)
        for pairs in pairings
    )
    assert cost == pytest.approx(cheapest, abs=1e-5)
    shuffled = guesses[torch.randperm(found, generator=generator)]
    rows_2, columns_2 = match(x, shuffled)
    assert torch.equal(rows, rows_2) and torch.allclose(guesses[columns], shuffled[columns_2])


def test_psnr_is_decibels_below_the_range_and_capped_for_equal_images():
    assert psnr(torch.tensor([0.01]), 1.0).item() == pytest.approx(20.0)
    assert psnr(torch.tensor([0.01 * 255**2]), 255.0).item() == pytest.approx(20.0)
    assert psnr(torch.tensor([0.0, 1e-30]), 1.0).tolist() == [PSNR_CAP, PSNR_CAP]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 9), (1, 5, 4)])
def test_ssim_is_what_its_definition_says_window_by_window(shape):
    a, b = torch.rand(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    side = min(7, *(n if n % 2 else n - 1 for n in shape[1:]))
    values = []
    for c, i, j in itertools.product(range(shape[0]), range(shape[1] - side + 1), range(shape[2] - side + 1)):
        p, q = (v[0, c, i : i + side, j : j + side].flatten().numpy() for v in (a, b))
        cov = np.cov(p, q)
        top = (2 * p.mean() * q.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
        values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)))
    assert ssim(a, b, 1.0).item() == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a, 1.0).item() == pytest.approx(1.0)
    # Pixels of 0 to 255 are judged as pixels of 0 to 1.
    assert ssim(255 * a, 255 * b, 255.0).item() == pytest.approx(np.mean(values), abs=1e-9)


def test_similarity_by_wavelets_of_a_paler_copy_is_what_its_definition_gives():
    """Every coefficient is scaled by the same c, so that the index is 2 c / (1 + c^2), whatever the image."""
    x = torch.rand(4, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cw_ssim(x, x), torch.ones(4).double())
    for c in (0.2, 0.7, 3.0):
        assert torch.allclose(cw_ssim(x, c * x), torch.full((4,), 2 * c / (1 + c * c)).double())
    # What is constant over the image is no structure.
    assert torch.allclose(cw_ssim(x, x + 0.3), torch.ones(4).double())
    assert cw_ssim(torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8)).shape == (0,)


def test_similarity_by_wavelets_forgives_a_shift_that_windows_do_not(digits):
    x = torch.nn.functional.interpolate(digits[0][:20], scale_factor=4, mode="bilinear")
    moved, other = x.roll(1, -1), x.roll(1, 0)
    by_wavelets, by_windows = (float(measure.mean()) for measure in (cw_ssim(x, moved), ssim(x, moved, 1.0)))
    assert by_wavelets > by_windows + 0.1
    assert float(cw_ssim(x, other).mean()) < by_wavelets - 0.3
    assert (cw_ssim(x, other) - cw_ssim(other, x)).abs().max() < 1e-12


def test_the_truth_recovers_everything_in_any_order_and_the_class_average_nothing(referee, case):
    truth = referee._truth(case.message)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = referee.judge(Reconstruction(case, truth["x"][order], truth["y"][order], 0))
        assert found.scores["recovered"] == 3 and found.scores["label_accuracy"] == 1.0
        assert found.scores["exact"] == 3 and found.scores["cw_ssim"] == pytest.approx(1.0)
        assert found.scores["psnr"] == PSNR_CAP and found.scores["ssim"] == pytest.approx(1.0)
        assert torch.equal(found.matched["original"], found.matched["reconstruction"])
    average = referee._class_means[truth["y"]]
    judged = referee.judge(Reconstruction(case, average, None, 0))
    assert judged.scores["recovered"] == 0 and "none of 3 images" in judged.verdict
    assert judged.scores["psnr"] == pytest.approx(judged.scores["baseline_psnr"])
    assert judged.scores["label_accuracy"] is None


def test_a_recovered_sample_beats_the_class_average_by_the_margin_and_every_public_sample(referee, case):
    x = referee._truth(case.message)["x"]
    y = referee._truth(case.message)["y"]
    average, nearest = square_errors(x, referee._class_means[y]), referee._nearest_public(x)
    bar = torch.minimum(average * 10 ** (-MARGIN / 10), nearest)
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    away /= away.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
    for factor, expected in ((0.98, 3), (1.02, 0)):
        guess = x + away * (factor * bar.sqrt()).reshape(-1, 1, 1, 1).float()
        assert referee.judge(Reconstruction(case, guess, y, 0)).scores["recovered"] == expected


def test_what_was_declined_is_not_recovered_and_its_labels_are_not_known(referee, case):
    samples, labels = (referee.judge(Declined(case, "it has no time", infers)) for infers in (False, True))
    assert samples.scores == {"samples": 3, "recovered": 0, "exact": 0} and labels.scores == {"label_accuracy": 0.0}
    assert samples.verdict == "recovers nothing: the client stays out of the round, as it has no time"


def test_what_was_not_found_counts_as_not_recovered(referee, case):
    truth = referee._truth(case.message)
    one = referee.judge(Reconstruction(case, truth["x"][1:2], truth["y"][1:2], 0)).scores
    assert (one["recovered"], one["samples"], one["label_accuracy"]) == (1, 3, pytest.approx(1 / 3))
    none = referee.judge(Reconstruction(case, truth["x"][:0], None, 0))
    assert none.scores["recovered"] == 0 and none.scores["psnr"] is None and "nothing" in none.verdict
    broken = referee.judge(Reconstruction(case, truth["x"] * torch.nan, None, 0)).scores
    assert broken["recovered"] == 0 and broken["mse"] is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_the_chance_that_a_member_ranks_above_another_and_ties_count_half(drawn):
    scores = torch.tensor([float(score) for score, _ in drawn])
    members = torch.tensor([member for _, member in drawn])
    if members.all() or not members.any():
        return
    curve = roc(scores, members)
    pairs = scores[members][:, None] - scores[~members][None]
    assert curve.auc == pytest.approx(float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()), abs=1e-6)
    for rate in (0.0, 0.01, 0.3):
        reached = [
            float((scores[members] >= cut).double().mean())
            for cut in [*scores.tolist(), torch.inf]
            if float((scores[~members] >= cut).double().mean()) <= rate
        ]
        # Corners that lie on a straight piece were left out: they may be the best point for a rate, never beyond it.
        assert curve.at(rate) == pytest.approx(max(reached), abs=1e-6)


def test_candidates_are_all_training_samples_and_none_of_the_attackers_own(referee):
    data = referee.federation
    assert int(referee.members.sum()) == int(data.train_sizes.sum()) and (~referee.members).sum() == 3 + 200
    trained = {data.x[row].tobytes() for client in range(3) for row in data.train(client)}
    public = {sample.numpy().tobytes() for sample in referee.public.x}
    asked = [sample.numpy().tobytes() for sample in referee.x]
    assert {a for a, member in zip(asked, referee.members, strict=True) if member} == trained
    assert not public & set(asked)
