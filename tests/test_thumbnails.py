from dataclasses import replace

import numpy as np
import pytest

from vtviz import render
from vtviz.errors import ConfigError
from vtviz.predictor import Predictor
from vtviz.thumbnails import shrink, thumbnails


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea):
    return Predictor(tiny_model()).extract(chelsea, size=96)


def test_there_is_a_picture_of_every_map_on_the_overlays_scale(maps):
    pictures, limits, cmap = thumbnails(maps, 64)
    assert [len(each) for each in pictures] == [16, 8]
    assert {picture.shape for each in pictures for picture in each} == {(43, 64, 3)}
    expected = render.overlay(shrink(maps, 64), 1, 3, opacity=0.55)  # whose scale all maps share too
    assert np.array_equal(pictures[1][3], expected)
    peaks = [layer.times_uniform().max(axis=(1, 2)) for layer in maps.layers]
    assert (limits, cmap) == ((0.0, max(2.0, float(np.median(np.concatenate(peaks))))), "jet")


def test_a_sliver_can_be_seen(tiny_model):
    predictor = Predictor(tiny_model())
    sliver = np.full((3, 900, 3), 90, np.uint8)
    small = shrink(predictor.extract(sliver, size=64), 80)
    assert small.image.shape == (20, 80, 3)
    assert small.geometry.original == (20, 80)
    assert thumbnails(predictor.extract(sliver, size=64), 80).pictures[0][0].shape == (20, 80, 3)


def test_maps_without_their_image_are_one_line(maps):
    with pytest.raises(ConfigError, match="do not hold their image"):
        thumbnails(replace(maps, image=None))
