import tracemalloc

import numpy as np
import pytest

from vtviz.errors import ConfigError, DataError
from vtviz.explain.token_classes import MARGIN, MOST_ROWS, segmentation_scores, token_classes
from vtviz.geometry import Geometry, fit
from vtviz.predictor import Predictor
from vtviz.segmentation import UNSEEN, from_maps
from vtviz.tokens import LayerMaps, TokenMaps

CLASSES = ("sky", "grass", "sheep")


def make_maps(cells: np.ndarray, geometry: Geometry, stride: int = 16) -> TokenMaps:
    """Token maps of one layer from values (heads, tokens, h, w)."""
    values = np.asarray(cells, np.float32)
    values = values / values.sum(axis=(2, 3), keepdims=True)
    nothing = np.zeros((values.shape[1], 4), np.float32)
    layer = LayerMaps("p4", stride, values, nothing, nothing, None, None, 0.0)
    return TokenMaps((layer,), np.zeros((3, *geometry.input), np.float32), CLASSES, geometry, "model")


def halves(height: int, width: int) -> np.ndarray:
    """Sky above, grass below, a sheep in a corner of the grass."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    labels[-height // 4 :, : width // 4] = 2
    return labels


WHOLE = Geometry((64, 64), (64, 64), (0, 0), (64, 64))


def test_mass_area_and_names():
    everywhere = np.ones((8, 8))
    below = np.repeat([[0.0]] * 4 + [[1.0]] * 4, 8, axis=1)
    corner = np.zeros((8, 8))
    corner[7, 0] = 1
    result = token_classes(make_maps([[everywhere, below, corner]], WHOLE, stride=8), halves(64, 64))
    assert (result.layer, result.classes) == ("p4", CLASSES)
    np.testing.assert_allclose(result.area, [0.5, 0.5 - 1 / 16, 1 / 16])
    np.testing.assert_allclose(result.mass.sum(axis=1), 1)
    np.testing.assert_allclose(result.mass[0], result.area)  # looking everywhere alike is what areas are
    # cell 4 is centred at pixel 32, its map begins to rise at 24: 4 rows' worth of mass in the sky, 32 below
    np.testing.assert_allclose(result.mass[1, 0], 3.5 / (3.5 + 32), atol=1e-6)
    np.testing.assert_allclose(result.mass[2], [0, 0, 1])
    assert result.names == (None, "grass", "sheep")


def test_a_name_needs_more_than_the_margin():
    maps = make_maps([[np.repeat([[1.0]] * 4 + [[1.5]] * 4, 8, axis=1)]], WHOLE, stride=8)
    labels = (np.arange(64)[:, None] >= 32).astype(np.uint8).repeat(64, axis=1)
    excess = token_classes(maps, labels).mass[0, 1] - 0.5
    assert 0.05 < excess < MARGIN
    assert token_classes(maps, labels).names == (None,)
    assert token_classes(maps, labels, margin=excess - 1e-9).names == ("grass",)
    assert token_classes(maps, labels, margin=excess + 1e-9).names == (None,)


def test_pixels_without_a_label_count_for_nothing():
    labels = halves(64, 64)
    labels[:, 32:] = UNSEEN
    labels[:8] = UNSEEN
    result = token_classes(make_maps([[np.ones((8, 8))]], WHOLE, stride=8), labels)
    np.testing.assert_allclose(result.area, [24 / 56, 24 / 56, 8 / 56])
    np.testing.assert_allclose(result.mass[0], result.area)
    nothing = token_classes(make_maps([[np.ones((8, 8))]], WHOLE, stride=8), np.full((64, 64), UNSEEN, np.uint8))
    assert not nothing.mass.any()
    assert not nothing.area.any()
    assert nothing.names == (None,)


def test_a_token_without_mass_where_there_are_labels_has_no_name():
    corner = np.zeros((8, 8))
    corner[7, 7] = 1
    labels = halves(64, 64)
    labels[:, 32:] = UNSEEN
    result = token_classes(make_maps([[corner]], WHOLE, stride=8), labels, margin=0)
    assert not result.mass.any()
    assert result.names == (None,)


def test_pixels_that_a_crop_cut_off_count_for_nothing_though_people_labelled_them():
    geometry = fit((80, 160), size=64, crop="center")
    truth = np.zeros((80, 160), np.uint8)
    truth[:, :40] = 2  # all of it outside of the central square
    cells = np.ones((1, 1, 4, 4))
    result = token_classes(make_maps(cells, geometry), truth)
    np.testing.assert_allclose(result.area, [1, 0, 0])
    np.testing.assert_allclose(result.mass[0], [1, 0, 0])


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor(tiny_model("vt_fpn_resnet18"))


@pytest.mark.parametrize("crop", [None, "center"])
@pytest.mark.parametrize("layer", [0, 3])
def test_it_is_the_sum_over_the_maps_as_they_are_drawn(predictor, chelsea, crop, layer):
    maps = predictor.extract(chelsea, size=96, crop=crop)
    labels = from_maps(maps, predictor.palette).labels
    result = token_classes(maps, labels, layer=layer)
    assert result.layer == f"p{2 + layer}"
    seen = labels != UNSEEN
    for token in range(8):
        drawn = maps.at_image_size(layer, token)[seen].astype(np.float64)
        shares = [drawn[labels[seen] == c].sum() / drawn.sum() for c in range(5)]
        np.testing.assert_allclose(result.mass[token], shares, atol=1e-6)
    np.testing.assert_allclose(result.area, [(labels[seen] == c).mean() for c in range(5)])


def test_heads_are_averaged_or_taken_one_by_one(tiny_model, chelsea):
    maps = Predictor(tiny_model()).extract(chelsea, size=96)  # the second layer of a classifier has heads
    labels = halves(*chelsea.shape[:2])
    for head in (None, 0, 3):
        drawn = maps.at_image_size(1, 5, head).astype(np.float64)
        shares = [drawn[labels == c].sum() / drawn.sum() for c in range(3)]
        mass = token_classes(maps, labels, CLASSES, layer=1, head=head).mass
        np.testing.assert_allclose(mass[5], shares, atol=1e-6)
    with pytest.raises(ConfigError, match="there is no head 4"):
        token_classes(maps, labels, CLASSES, layer=1, head=4)
    with pytest.raises(ConfigError, match="there is no layer 2"):
        token_classes(maps, labels, CLASSES, layer=2)


def test_a_large_photo_costs_no_more_than_a_small_one():
    geometry = Geometry((3000, 4000), (96, 128), (0, 0), (96, 128))
    maps = make_maps(np.random.default_rng(0).random((1, 8, 6, 8)) ** 4, geometry)
    labels = halves(3000, 4000)
    tracemalloc.start()
    try:
        result = token_classes(maps, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80e6  # one map at the photo's size would take 48 MB, eight of them 384 MB
    small = token_classes(
        make_maps(maps.layers[0].coefficients, Geometry((384, 512), (96, 128), (0, 0), (96, 128))), halves(384, 512)
    )
    np.testing.assert_allclose(result.mass, small.mass, atol=0.005)
    np.testing.assert_allclose(result.area, small.area, atol=0.005)


def test_slivers_are_sampled_along_their_length():
    geometry = fit((1, 5 * MOST_ROWS), size=64)
    labels = np.repeat(np.array([[0, 1, 2, 1, 1]], np.uint8), MOST_ROWS, axis=1)
    h, w = (side // 16 for side in geometry.input)
    np.testing.assert_allclose(
        token_classes(make_maps(np.ones((1, 1, h, w)), geometry), labels).area, [0.2, 0.6, 0.2], atol=0.002
    )


def test_labels_that_do_not_fit_are_one_line():
    maps = make_maps([[np.ones((8, 8))]], WHOLE, stride=8)
    with pytest.raises(DataError, match=r"labels for an image of \(64, 64\) must have its size, got \(64, 63\)"):
        token_classes(maps, halves(64, 63))
    with pytest.raises(DataError, match="labels must be 0 to 1, or 255 for pixels that do not count, got 2"):
        token_classes(maps, halves(64, 64), CLASSES[:2])


def test_scores_of_one_image():
    truth = np.array([[0, 0, 1, UNSEEN], [0, 1, 1, 1]], np.uint8)
    labels = np.array([[0, 0, 0, 2], [1, 1, 1, UNSEEN]], np.uint8)
    scores = segmentation_scores(labels, truth, 4)
    np.testing.assert_allclose(scores.iou, [2 / 4, 2 / 4, np.nan, np.nan])
    assert scores.miou == pytest.approx(0.5)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    perfect = segmentation_scores(truth, truth, 2)
    assert (perfect.miou, perfect.pixel_accuracy) == (1, 1)
    with pytest.raises(DataError, match="must have its size"):
        segmentation_scores(labels, truth.T, 4)
    with pytest.raises(DataError, match=r"labels must be 0 to 0, .* got 1"):
        segmentation_scores(np.zeros_like(truth), truth, 1)
    with pytest.raises(DataError, match="nothing to compare"):
        segmentation_scores(np.full_like(truth, UNSEEN), truth, 2)
