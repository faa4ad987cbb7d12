import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from vtviz import scores

CLASSES = 5


@pytest.fixture
def pair():
    """Labels and truth (3, 20, 30) that mostly agree; a tenth of the truth is ignored, class 4 is nowhere."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES - 1, (3, 20, 30))
    labels = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, CLASSES - 1, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return labels.astype(np.uint8), truth.astype(np.uint8)


def test_the_scores_are_torchmetrics(pair):
    labels, truth = (torch.from_numpy(each).long() for each in pair)
    counts = scores.confusion(*pair, CLASSES)
    options = {"num_classes": CLASSES, "ignore_index": 255}
    assert np.array_equal(counts, MulticlassConfusionMatrix(**options)(labels, truth).numpy())
    wanted = MulticlassJaccardIndex(**options, average="none")(labels, truth).numpy()
    assert scores.iou(counts)[:4] == pytest.approx(wanted[:4])
    assert np.isnan(scores.iou(counts)[4])  # torchmetrics says 0
    assert float(scores.mean_iou(counts)) == pytest.approx(wanted[:4].mean())
    for average, score in (("micro", scores.pixel_accuracy), ("macro", scores.mean_accuracy)):
        assert score(counts) == pytest.approx(float(MulticlassAccuracy(**options, average=average)(labels, truth)))


def test_pixels_without_a_prediction_do_not_count():
    labels, truth = np.array([0, 1, 255, 255]), np.array([0, 0, 1, 255])
    assert scores.confusion(labels, truth, 2).tolist() == [[1, 1], [0, 0]]


def test_nothing_to_score():
    counts = np.zeros((3, 3), np.int64)
    assert np.isnan(scores.iou(counts)).all()
    assert scores.mean_iou(counts) == scores.pixel_accuracy(counts) == scores.mean_accuracy(counts) == 0


def test_the_bootstrap_surrounds_the_score_and_narrows_with_more_images():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 50, (40, 3, 3)) + 200 * np.eye(3, dtype=int)
    low, high = scores.bootstrap_interval(counts)
    assert low < scores.mean_iou(counts.sum(axis=0)) < high
    fewer = scores.bootstrap_interval(counts[:8])
    assert fewer[1] - fewer[0] > high - low
    assert scores.bootstrap_interval(counts) == (low, high)  # drawn from a seed
    assert scores.bootstrap_interval(np.repeat(counts[:1], 5, axis=0), rounds=20) == pytest.approx(
        (scores.mean_iou(counts[0]),) * 2
    )


def test_the_bootstrap_is_that_of_whole_numbers():
    """It multiplies in float64, where counts of pixels are exact and NumPy has BLAS."""
    images, classes, rounds = 300, 12, 200
    counts = np.random.default_rng(2).integers(0, 30_000_000, (images, classes, classes))
    times = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=rounds)
    drawn = (times @ counts.reshape(images, -1)).reshape(rounds, classes, classes)
    assert drawn.dtype == np.int64
    wanted = np.quantile(scores.mean_iou(drawn), (0.025, 0.975))
    assert scores.bootstrap_interval(counts, rounds=rounds) == tuple(wanted)  # bit for bit


def test_the_interval_is_of_95_percent():
    """Of images that are all right or all wrong the share of right ones has the spread of a coin's heads."""
    right, wrong = [[1, 0], [0, 0]], [[0, 1], [0, 0]]
    low, high = scores.bootstrap_interval(np.array([right, wrong] * 200))
    assert (low + high) / 2 == pytest.approx(0.25, abs=0.01)  # class 1 has an IoU of 0
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20 / 2, rel=0.1)


def test_boundary_f():
    truth = np.zeros((200, 300), np.uint8)
    truth[50:150, 100:200] = 1
    assert scores.boundary_f(truth, truth, 2) == 1
    tolerance = round(scores.BOUNDARY_TOLERANCE * np.hypot(200, 300))
    assert tolerance == 3
    assert scores.boundary_f(np.roll(truth, tolerance, axis=1), truth, 2) == 1  # within it
    moved = scores.boundary_f(np.roll(truth, 20, axis=1), truth, 2)
    assert 0.3 < moved < 0.7  # top and bottom still agree for the most part, left and right do not
    assert scores.boundary_f(np.zeros_like(truth), truth, 2) == 0
    assert np.isnan(scores.boundary_f(np.zeros_like(truth), np.zeros_like(truth), 2))


def test_what_is_missed_counts_as_much_as_what_is_made_up():
    one = np.zeros((100, 200), np.uint8)
    one[20:80, 20:80] = 1
    two = one | one[:, ::-1]
    for labels, truth in ((one, two), (two, one)):  # half of one boundary is near the whole of the other
        assert scores.boundary_f(labels, truth, 2) == pytest.approx(2 / 3)


def test_the_border_of_what_is_ignored_is_no_boundary():
    truth = np.zeros((60, 60), np.uint8)
    truth[:, 30:] = 1
    labels = truth.copy()
    truth[20:40, 10:50] = 255
    labels[22:38, 12:48] = 0  # wrong only where nobody looks
    assert scores.boundary_f(labels, truth, 2) == 1
