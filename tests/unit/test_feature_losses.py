"""Distances between features, their scales and probes, against values worked out by hand in two dimensions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from learngene.data.images import ImageSet
from learngene.system.errors import DataError
from learngene.training.feature_losses import DISTANCES, Queue, queue_kl, self_similarity
from learngene.training.feature_scales import Scale, even_rotation
from learngene.training.probes import common_neighbours, compared_neighbours, knn_accuracy, linear_probe, refuse_few


def vectors(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


# (3, 4) has length 5; beside (1, 0) its cosine is 0.6, and its differences are 2 and 4. (0, 1) is right.
STUDENT, TEACHER = vectors((3.0, 4.0), (0.0, 1.0)), vectors((1.0, 0.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cosine", (0.4 + 0) / 2),
        ("smooth-l1", (1.5 + 3.5 + 0 + 0) / 4),  # 2 - 0.5 and 4 - 0.5
        ("mix", 0.9 * 0.2 + 0.1 * 1.25),
        ("mse", (4 + 16 + 0 + 0) / 4),
    ],
)
def test_distances_of_vectors(name: str, value: float) -> None:
    assert DISTANCES[name](STUDENT, TEACHER).item() == pytest.approx(value)
    tokens = DISTANCES[name](STUDENT.view(1, 2, 2), TEACHER.view(1, 2, 2))
    assert tokens.item() == pytest.approx(value)
    assert DISTANCES[name](TEACHER.bfloat16(), TEACHER).item() == pytest.approx(0, abs=1e-6)


def test_smooth_l1_is_half_the_square_of_small_differences() -> None:
    assert DISTANCES["smooth-l1"](vectors((0.5, 0.0)), vectors((0.0, 0.0))).item() == pytest.approx(0.125 / 2)


def kl(teacher: list[float], student: list[float]) -> float:
    theirs, mine = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (teacher, student))
    return sum(p * math.log(p / q) for p, q in zip(theirs, mine, strict=True))


def test_a_queue_holds_the_latest_features_newest_first_and_classifies() -> None:
    queue = Queue(3, 2)
    queue.push(vectors((2.0, 0.0)))
    queue.push(vectors((0.0, 5.0), (3.0, 4.0)))
    torch.testing.assert_close(queue.latest, vectors((0.0, 1.0), (0.6, 0.8), (1.0, 0.0)))
    queue.push(vectors((0.0, -1.0)))
    torch.testing.assert_close(queue.latest, vectors((0.0, -1.0), (0.0, 1.0), (0.6, 0.8)))
    keys = vectors((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    # At temperature 0.5 similarities 0.6 and 0.8 become 1.2 and 1.6; what is not filled yet gives 0.
    expected = (kl([2, 0, 0], [1.2, 1.6, 0]) + kl([0, 2, 0], [0, 2, 0])) / 2
    assert queue_kl(STUDENT, TEACHER, keys, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_self_similarity_compares_who_resembles_whom() -> None:
    student, teacher = vectors((3.0, 4.0), (1.0, 0.0))[None], vectors((1.0, 0.0), (0.0, 2.0))[None]
    # Cosines of the student's tokens are 1 and 0.6, of the teacher's 1 and 0; both rows have the same divergence.
    assert self_similarity(student, teacher, 0.5).item() == pytest.approx(kl([2, 0], [2, 1.2]), rel=1e-5)
    turned = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert self_similarity(teacher @ turned, teacher, 0.5).item() == pytest.approx(0, abs=1e-6)
    wider = torch.nn.functional.pad(teacher, (0, 3))  # widths may differ
    assert self_similarity(teacher, wider, 0.5).item() == pytest.approx(0, abs=1e-6)


# -- scales ------------------------------------------------------------------------------------------------


def settled(kind: str, rows: Tensor) -> Scale:
    scale = Scale(rows.shape[1], kind)
    scale.see(rows[:3].view(1, 3, -1))
    scale.see(rows[3:])
    scale.settle()
    return scale


def test_each_dimension_is_standardised_and_a_constant_one_is_left() -> None:
    scale = settled("standardise", vectors((0.0, 10.0, 5.0), (2.0, 10.0, 5.0), (4.0, 40.0, 5.0), (2.0, 20.0, 5.0)))
    # Means 2, 20 and 5; variances (4 + 0 + 4 + 0) / 4 = 2 and (100 + 100 + 400 + 0) / 4 = 150.
    found = scale(vectors((4.0, 40.0, 5.0)))
    torch.testing.assert_close(found, vectors((2 / math.sqrt(2), 20 / math.sqrt(150), 0.0)))
    assert torch.equal(Scale(2, "none")(STUDENT), STUDENT)


def test_phi_s_turns_all_dimensions_to_the_same_variance_with_one_scale() -> None:
    rows = vectors((4.0, 0.0), (-4.0, 0.0), (0.0, 2.0), (0.0, -2.0)) + 7
    scale = settled("phi-s", rows)
    # Variances 8 and 2, mean 5; the rotation spreads both axes evenly: (4, 0) becomes (+-4, +-4) / sqrt(2 * 5).
    found = scale(rows)
    torch.testing.assert_close(found[0].abs(), torch.full((2,), 4 / math.sqrt(10)))
    torch.testing.assert_close(found.var(0, unbiased=False), torch.ones(2))
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(rows, rows) / math.sqrt(5))


@pytest.mark.parametrize("order", [1, 2, 4, 12, 16, 20, 24, 96, 192, 384])
def test_hadamard_matrices_spread_every_axis_evenly(order: int) -> None:
    found = even_rotation(order)
    np.testing.assert_allclose(found @ found.T, np.eye(order), atol=1e-12)
    np.testing.assert_allclose(np.abs(found), order**-0.5)


def test_without_a_hadamard_matrix_any_rotation_will_do() -> None:
    found = even_rotation(7)
    np.testing.assert_allclose(found @ found.T, np.eye(7), atol=1e-12)
    assert np.array_equal(found, even_rotation(7))


# -- probes ------------------------------------------------------------------------------------------------


def test_neighbours_vote_by_similarity() -> None:
    bank = vectors((1.0, 0.0), (0.8, 0.6), (0.8, -0.6), (0.0, 1.0)), torch.tensor([0, 1, 1, 2])
    test = vectors((2.0, 0.0), (0.0, 3.0)), torch.tensor([0, 2])
    # To (1, 0) the similarities are 1, 0.8, 0.8: at T = 0.07 the nearest outvotes both, at T = 1 it does not.
    assert knn_accuracy(bank, test, 3) == 100.0
    assert knn_accuracy(bank, test, 3, k=3, temperature=1.0) == 50.0
    assert knn_accuracy(bank, test, 3, k=1, temperature=1.0) == 100.0


def test_neighbours_in_common() -> None:
    one = vectors((1.0, 0.0), (0.9, 0.1), (0.0, 1.0), (0.1, 0.9))
    other = one[[0, 2, 1, 3]]
    assert common_neighbours(one, one, k=1).tolist() == [1, 1, 1, 1]
    # One's pairs are 0-1 and 2-3, the other's 0-2 and 1-3.
    assert common_neighbours(one, other, k=1).tolist() == [0, 0, 0, 0]
    assert common_neighbours(one, other, k=20).tolist() == [1, 1, 1, 1]  # among four, all three others
    assert common_neighbours(one, other).tolist() == [0, 0, 0, 0]  # so of these one, a quarter at most


@pytest.mark.parametrize(("images", "nearest"), [(2, 1), (9, 2), (10, 2), (21, 5), (80, 19), (81, 20), (2048, 20)])
def test_at_most_a_quarter_of_the_others_are_neighbours(images: int, nearest: int) -> None:
    assert compared_neighbours(images) == nearest


def test_a_single_image_agrees() -> None:
    one = vectors((1.0, 0.0))
    assert common_neighbours(one[:1], one[:1]).tolist() == [1]


def test_a_linear_probe_finds_the_line_between_two_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 4, generator=generator) * torch.tensor([1.0, 100.0, 1.0, 0.0])
    labels = (features[:, 0] > 0).long()
    found = linear_probe((features[:60], labels[:60]), (features[60:], labels[60:]), 2, seeds=2, steps=100)
    assert found.top1 > 85
    assert len(found.seeds) == 2
    assert found == linear_probe((features[:60], labels[:60]), (features[60:], labels[60:]), 2, seeds=2, steps=100)


def test_a_class_of_one_image_cannot_vote() -> None:
    few = ImageSet("data few", Image.open, ["a", "b", "c"], [0, 0, 1], ["cat", "dog"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"class dog has 1 training image; .* two or more"):
        refuse_few(few)
