import json
import re
from dataclasses import replace

import numpy as np
import pytest

from vtviz.drawing import Shape, Words
from vtviz.errors import ConfigError
from vtviz.explain.query import PixelQuery, query
from vtviz.explain.query_picture import MARGIN, PHOTO, READ_BY, READS, TOP, query_figure, query_png, save_query
from vtviz.geometry import upsample
from vtviz.predictor import Predictor


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea):
    return Predictor(tiny_model(blocks=3)).extract(chelsea, size=160)


@pytest.fixture(scope="module")
def levels(tiny_model, chelsea):
    return Predictor(tiny_model("vt_fpn_resnet18")).extract(chelsea, size=96)


@pytest.mark.parametrize("at", [(0, 0), (450, 299), (123, 45), (300, 200)])
def test_a_pixels_answer_is_the_drawn_maps_value_there(maps, at):
    result = query(maps, at=at)
    x, y = at
    assert (result.box, result.pixels) == ((x, y, x + 1, y + 1), 1)
    for index, layer in enumerate(maps.layers):
        asked = result.layers[index]
        assert asked.read_by.dtype == np.float32
        drawn = [
            [maps.at_image_size(index, t, h)[y, x] for t in range(layer.num_tokens)] for h in range(layer.num_heads)
        ]
        np.testing.assert_allclose(asked.read_by, drawn, rtol=2e-5)
        mean = [maps.at_image_size(index, t)[y, x] for t in range(layer.num_tokens)]
        np.testing.assert_allclose(asked.read_by.mean(axis=0), mean, rtol=2e-5)


def test_a_boxs_answer_is_the_mean_over_its_pixels(levels):
    x0, y0, x1, y1 = box = (100, 20, 260, 119)
    result = query(levels, box=box)
    assert result.pixels == 160 * 99
    for index, layer in enumerate(levels.layers):
        inside = upsample(layer.times_uniform(), levels.geometry, stride=layer.stride)[:, y0:y1, x0:x1]
        np.testing.assert_allclose(result.layers[index].read_by[0], inside.mean(axis=(1, 2)), rtol=1e-4)
        shares = upsample(layer.projector, levels.geometry, stride=layer.stride)[..., y0:y1, x0:x1]
        np.testing.assert_allclose(result.layers[index].reads, shares.mean(axis=(2, 3)), rtol=1e-4)
        np.testing.assert_allclose(result.layers[index].reads.sum(axis=1), 1, rtol=1e-5)


def test_the_whole_image_is_nearly_uniform(levels):
    """Over all of it a map's mean is 1, but for cells that reach over the border."""
    height, width = levels.geometry.original
    finest = query(levels, box=(0, 0, width, height)).layers[0]
    assert np.abs(finest.read_by - 1).max() < 0.2


def test_the_last_block_of_a_classifier_has_no_projector(maps):
    first, middle, last = query(maps, at=(10, 10)).layers
    assert (first.kept, middle.kept, last.kept) == (0, 8, 8)
    assert (first.reads.shape, middle.reads.shape, last.reads) == ((4, 16), (4, 16), None)
    assert (first.read_by.shape, middle.read_by.shape) == ((1, 16), (4, 8))


def test_what_a_crop_cut_off_does_not_count(tiny_model, chelsea):
    maps = Predictor(tiny_model()).extract(chelsea, size=96, crop="center")
    seen = ~np.isnan(maps.at_image_size(0, 0))
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    inner = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    whole, part = query(maps, box=(0, 0, 451, 300)), query(maps, box=inner)
    assert whole.pixels == part.pixels == seen.sum()
    assert np.array_equal(whole.layers[1].read_by, part.layers[1].read_by)
    with pytest.raises(ConfigError, match="the model did not see the pixel 0, 150: the crop cut it off"):
        query(maps, at=(0, 150))
    with pytest.raises(ConfigError, match="did not see the box 0, 0, 451, 2"):
        query(maps, box=(0, 0, 451, 2))
    query(maps, at=inner[:2])
    with pytest.raises(ConfigError):
        query(maps, at=(inner[0] - 1, inner[1]))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({}, "either at"),
        ({"at": (1, 2), "box": (0, 0, 1, 1)}, "either at"),
        ({"at": (451, 0)}, "the pixel 451, 0 is outside the image of 451 x 300 pixels"),
        ({"at": (0, -1)}, "the pixel 0, -1 is outside"),
        ({"at": (1.5, 2)}, r"at needs two whole numbers \(x, y\), got \(1.5, 2\)"),
        ({"at": (1, 2, 3)}, "at needs two whole numbers"),
        ({"box": (1, 2, 3)}, "box needs four whole numbers"),
        ({"box": (5, 5, 5, 9)}, "the box 5, 5, 5, 9 is empty or not within the image of 451 x 300 pixels"),
        ({"box": (0, 0, 452, 300)}, "not within"),
    ],
)
def test_a_place_that_is_none_is_one_line(maps, place, message):
    with pytest.raises(ConfigError, match=message) as caught:
        query(maps, **place)
    assert "\n" not in str(caught.value)


def test_to_dict_is_json_with_the_mean_and_each_head(maps):
    result = query(replace(maps, source="cat.jpg"), box=(1, 2, 30, 40))
    stated = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (stated["image"], stated["box"], stated["pixels"]) == ("cat.jpg", [1, 2, 30, 40], 29 * 38)
    for said, layer in zip(stated["layers"], result.layers, strict=True):
        assert (said["name"], said["kept"]) == (layer.name, layer.kept)
        assert said["tokens"][layer.kept :] == [str(j) for j in range(layer.read_by.shape[1])]
        assert all(re.fullmatch(r"kept \d+", token) for token in said["tokens"][: layer.kept])
        np.testing.assert_allclose(said["read_by"]["heads"], layer.read_by, rtol=1e-6)
        np.testing.assert_allclose(said["read_by"]["mean"], layer.read_by.mean(axis=0), rtol=1e-6)
    assert stated["layers"][2]["reads"] is None


# --- the picture


def bars(figure, colour) -> list[float]:
    """Lengths of the bars of a colour, from top to bottom, first chart first."""
    shapes = [part for part in figure.parts if isinstance(part, Shape) and part.fill == colour]
    return [shape.points[1][0] - shape.points[0][0] for shape in shapes]


def test_bars_are_as_long_as_the_values(levels):
    result = query(levels, at=(200, 100))
    figure = query_figure(levels, result)
    values = np.concatenate([layer.read_by.mean(axis=0) for layer in result.layers])
    shares = np.concatenate([layer.reads.mean(axis=0) * 8 for layer in result.layers])
    lengths = np.array(bars(figure, READ_BY) + bars(figure, READS))
    both = np.concatenate([values, shares])
    np.testing.assert_allclose(lengths / lengths.max(), both / both.max(), rtol=1e-4)


def test_kept_tokens_have_a_row_where_a_place_can_read_them(maps):
    words = [part.text for part in query_figure(maps, query(maps, at=(9, 9))).parts if isinstance(part, Words)]
    kept = [text for text in words if text.startswith("kept")]
    assert kept == [f"kept {token}" for token in range(8, 16)]  # block0's
    assert "none: the last block" in words


def test_a_box_of_which_one_pixel_was_seen_is_called_a_box(tiny_model, chelsea):
    maps = Predictor(tiny_model()).extract(chelsea, size=96, crop="center")
    y, x = (int(i) for i in np.argwhere(~np.isnan(maps.at_image_size(0, 0)))[0])
    result = query(maps, box=(x - 3, y, x + 1, y + 1))
    assert result.pixels == 1
    titles = [query_figure(maps, each).parts[0].text for each in (result, query(maps, at=(x, y)))]
    assert titles == [f"box {x - 3}, {y} to {x + 1}, {y + 1}", f"pixel {x}, {y}"]


@pytest.mark.parametrize("place", [{"at": (300, 200)}, {"box": (240, 150, 360, 250)}])
def test_the_place_is_marked_on_the_photo(maps, place):
    blank = replace(maps, image=np.full_like(maps.image, 128))
    picture = query_png(blank, query(blank, **place))
    top, left = 2 * (TOP - 20), 2 * MARGIN
    photo = picture[top : top + 398, left : left + 2 * PHOTO]  # 600 x 399 pixels
    marked = np.argwhere((photo == 255).all(axis=2))
    np.testing.assert_allclose((marked.min(axis=0) + marked.max(axis=0)) / 2 * 451 / 600, [200.5, 300.5], atol=1.5)


def test_it_is_saved_with_its_picture(maps, tmp_path):
    result = query(maps, at=(9, 9))
    assert isinstance(result, PixelQuery)
    paths = save_query(maps, result, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(paths) == {"query.png", "query.json"}
    assert json.loads(paths["query.json"].read_text()) == result.to_dict()
    with pytest.raises(ConfigError, match="do not hold their image"):
        query_png(replace(maps, image=None), result)
