from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vtviz.data.segmentation import read_mask
from vtviz.errors import ConfigError
from vtviz.geometry import fit
from vtviz.render import DIMMED
from vtviz.render_labels import label_overlay, legend, palette_image
from vtviz.segmentation import UNSEEN, Segmentation, label_map

CLASSES = ("wall", "fur", "eye", "unused")
PALETTE = ((0, 0, 0), (200, 16, 32), (7, 255, 99), (255, 255, 255))


def make(photo: np.ndarray, crop: str | None = None) -> Segmentation:
    """A fur disc on a wall, an eye within it; the last class is nowhere."""
    geometry = fit(photo.shape[:2], size=96, crop=crop)
    h, w = geometry.input
    y, x = np.indices((h, w), dtype=np.float32)
    away = np.hypot(y - h / 2, x - w / 2)
    logits = np.stack([away, np.full_like(away, 30), 60 - 3 * away, np.full_like(away, -9)])
    return Segmentation(label_map(logits, geometry), logits, CLASSES, PALETTE, geometry, "model", image=photo)


@pytest.fixture(scope="module")
def cat(chelsea) -> Segmentation:
    return make(chelsea)


def test_colours_are_exactly_the_palettes(cat):
    assert {0, 1, 2} == set(np.unique(cat.labels))
    np.testing.assert_array_equal(label_overlay(cat, opacity=1), np.array(PALETTE, np.uint8)[cat.labels])
    np.testing.assert_array_equal(np.array(palette_image(cat).convert("RGB")), label_overlay(cat, opacity=1))
    np.testing.assert_array_equal(label_overlay(cat, opacity=0, outlines=False), cat.image)


def test_opacity_mixes_photo_and_colour(cat):
    expected = 0.4 * cat.image + 0.6 * np.array(PALETTE)[cat.labels]
    assert np.abs(label_overlay(cat, outlines=False) - expected).max() <= 1
    assert label_overlay(cat).dtype == np.uint8


def test_outlines_are_the_border_pixels_of_each_region_in_its_own_colour(cat):
    drawn, labels = label_overlay(cat, opacity=0), cat.labels
    padded = np.pad(labels, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    border = (windows != labels[..., None, None]).any(axis=(2, 3))
    np.testing.assert_array_equal(drawn[border], np.array(PALETTE, np.uint8)[labels[border]])
    np.testing.assert_array_equal(drawn[~border], cat.image[~border])
    assert 0 < border.mean() < 0.05


def test_outlines_of_a_large_photo_are_thicker(chelsea):
    photo = np.repeat(np.repeat(chelsea, 10, axis=0), 10, axis=1)
    large = make(photo)
    drawn = label_overlay(large, opacity=0)
    row = large.labels.shape[0] // 2
    edge = np.flatnonzero(np.diff(large.labels[row].astype(int)))[0]
    assert (large.labels[row, edge], large.labels[row, edge + 1]) == (0, 1)
    np.testing.assert_array_equal(drawn[row, edge - 4 : edge + 1], [PALETTE[0]] * 5)
    np.testing.assert_array_equal(drawn[row, edge + 1 : edge + 6], [PALETTE[1]] * 5)
    np.testing.assert_array_equal(drawn[row, edge - 9], photo[row, edge - 9])


def test_some_classes_leave_the_photo_alone_elsewhere(cat):
    everything, eye = label_overlay(cat), label_overlay(cat, classes=["eye"])
    inside = cat.labels == 2
    np.testing.assert_array_equal(eye[inside], everything[inside])
    np.testing.assert_array_equal(eye[~inside], cat.image[~inside])
    np.testing.assert_array_equal(label_overlay(cat, classes=[2]), eye)
    np.testing.assert_array_equal(label_overlay(cat, classes=["eye", 0, -3, 3]), everything)
    np.testing.assert_array_equal(label_overlay(cat, classes=[]), cat.image)


def test_what_a_crop_cut_off_is_dimmed_and_has_no_outline(chelsea):
    cropped = make(chelsea, crop="center")
    outside = cropped.labels == UNSEEN
    assert 0.2 < outside.mean() < 0.8
    for drawn in (label_overlay(cropped, opacity=1), label_overlay(cropped, classes=[])):
        np.testing.assert_array_equal(drawn[outside], (chelsea[outside] * DIMMED).astype(np.uint8))
    left = np.flatnonzero(~outside[150])[0]
    assert cropped.labels[150, left] == 0
    np.testing.assert_array_equal(label_overlay(cropped, opacity=0)[150, left], chelsea[150, left])


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 2)])
def test_slivers(shape):
    photo = np.full((*shape, 3), 99, np.uint8)
    assert label_overlay(make(photo)).shape == (*shape, 3)
    assert palette_image(make(photo)).size == shape[::-1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"opacity": 1.5}, "opacity must be from 0 to 1, got 1.5"),
        ({"classes": ["eyes"]}, "unknown class 'eyes'; did you mean 'eye'?"),
        ({"classes": [4]}, "there is no class 4"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(cat, options, match):
    with pytest.raises(ConfigError, match=match):
        label_overlay(cat, **options)


def test_a_segmentation_without_its_image_is_one_line(cat):
    with pytest.raises(ConfigError, match="does not hold its image"):
        label_overlay(replace(cat, image=None))


@pytest.mark.parametrize("crop", [None, "center"])
def test_a_palette_image_is_a_mask_that_any_reader_of_masks_takes(chelsea, crop, tmp_path):
    segmentation = make(chelsea, crop)
    image = palette_image(segmentation)
    assert image.mode == "P"
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png"), segmentation.labels)
    with Image.open(tmp_path / "labels.png") as stored:
        alpha = np.array(stored.convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(alpha == 0, segmentation.labels == UNSEEN)


def test_a_legend_shows_every_class_and_wraps():
    wide, narrow = (legend(CLASSES, PALETTE, width=width) for width in (900, 90))
    assert wide.shape[1] == 900
    assert narrow.shape[1] == 90
    assert narrow.shape[0] > 2 * wide.shape[0]
    for picture in (wide, narrow):
        colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
        assert set(PALETTE[1:]) <= colours
    tiny = legend(["a rather long name"], [(1, 2, 3)], width=10)
    assert tiny.shape[1] > 100  # not cut off
