from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from vtviz.errors import ConfigError, ImageError
from vtviz.geometry import fit
from vtviz.lettering import lettering
from vtviz.render import COLORMAPS, INK, _ticks, colorbar, colorize, overlay, value_range
from vtviz.thumbnails import shrink
from vtviz.token_grid import grid
from vtviz.tokens import LayerMaps, TokenMaps

CLASSES = ("tabby", "Norwegian elkhound, elkhound", "piñata", "猫")


def layer(name: str, values: np.ndarray) -> LayerMaps:
    """A layer of the given maps (heads, tokens, h, w), scaled to sum to 1."""
    values = np.asarray(values, np.float32)
    nothing = np.zeros((values.shape[1], 4), np.float32)
    return LayerMaps(name, 16, values / values.sum((2, 3), keepdims=True), nothing, nothing, None, None, 0.0)


def make_maps(photo: np.ndarray, *, crop: str | None = None, size: int = 224) -> TokenMaps:
    """Sixteen strong maps of one head, and eight close to uniform of four heads."""
    geometry = fit(photo.shape[:2], crop=crop, size=size)
    h, w = (side // 16 for side in geometry.input)
    rng = np.random.default_rng(0)
    strong, weak = rng.random((1, 16, h, w)) ** 8, 1 + 0.1 * rng.random((4, 8, h, w))
    logits = np.array([3, 2, 1, 0], np.float32)
    return TokenMaps((layer("block0", strong), layer("block1", weak)), logits, CLASSES, geometry, "model", image=photo)


@pytest.fixture
def maps(chelsea) -> TokenMaps:
    return make_maps(chelsea)


# --- colours


def test_colour_maps_are_tables_of_rgb():
    for table in COLORMAPS.values():
        assert table.shape == (256, 3)
        assert table.dtype == np.uint8
    assert COLORMAPS["jet"][0].tolist() == [0, 0, 128]  # blue low,
    assert COLORMAPS["jet"][255].tolist() == [128, 0, 0]  # red high
    assert np.abs(COLORMAPS["viridis"][[0, 255]].astype(int) - [(68, 1, 84), (253, 231, 37)]).max() <= 2


@pytest.mark.parametrize("name", sorted(set(COLORMAPS) - {"jet", "turbo"}))
def test_perceptually_uniform_maps_grow_evenly_lighter(name):
    lightness = rgb2lab(COLORMAPS[name][None] / 255)[0, :, 0]
    assert (np.diff(lightness[::8]) > 0).all()
    assert np.corrcoef(lightness, np.arange(256))[0, 1] > 0.99


@pytest.mark.parametrize("name", COLORMAPS)
def test_colorize(name):
    values = np.linspace(-2, 6, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(colorize(values, name, -2, 6).reshape(256, 3), COLORMAPS[name])


def test_colorize_beyond_the_ends():
    values = np.array([[-1e9, 0, 1, 2, 3, 1e9, np.nan, -np.inf, np.inf]] * 5, np.float32)
    expected = COLORMAPS["viridis"][[0, 0, 0, 128, 255, 255, 0, 0, 255]]
    for dtype in (np.float32, np.float64):
        for row in colorize(values.astype(dtype), "viridis", 1, 3):
            np.testing.assert_array_equal(row, expected)
    tiny = colorize(np.array([[0, 1, -1]], np.float32), "viridis", 0, 1e-12)
    np.testing.assert_array_equal(tiny[0], COLORMAPS["viridis"][[0, 255, 0]])


def test_value_range():
    values = np.array([0.5, 6.5])
    assert value_range(values, "shared") == (0, 3.5)  # of peaks: half of the maps reach the last colour
    assert value_range(values, "map") == (0.5, 6.5)
    assert value_range(values, (1, 4)) == (1, 4)
    uniform = np.ones(9)
    assert value_range(uniform, "shared") == (0, 2)  # in the middle of the colours, not at their end
    assert value_range(uniform, "map") == (0, 2)


@pytest.mark.parametrize(
    ("scale", "match"),
    [
        ("sharde", "unknown scale 'sharde'; did you mean 'shared'"),
        ((1, 1), r"low < high, got \(1, 1\)"),
        ((3, 1), r"got \(3, 1\)"),
        ((0, np.nan), "two finite ends"),
        ((-np.inf, 1), "two finite ends"),
        ((-1e308, 1e308), "in float32"),
        ((0, 1e39), "in float32"),
        ((0, 5e-324), "in float32"),
    ],
)
def test_scales_that_cannot_work(maps, scale, match):
    for draw in (overlay, grid):
        with pytest.raises(ConfigError, match=match):
            draw(maps, scale=scale)


# --- overlay


def shared_top(*values) -> float:
    """The last value of the shared scale: the median of all maps' peaks, given (tokens, h, w) arrays in x uniform."""
    return max(2.0, float(np.median(np.concatenate([v.max(axis=(1, 2)) for v in values]))))


def blended(photo, values, low, high, name="jet", opacity=0.5) -> np.ndarray:
    """The overlay by its definition, in NumPy."""
    levels = np.clip(np.rint((values.astype(np.float64) - low) / (high - low) * 255), 0, 255).astype(int)
    return photo * (1 - opacity) + COLORMAPS[name][levels].astype(float) * opacity


def assert_close(picture, expected):
    """Equal but for the roundings: of colours between neighbouring table entries, and of the blend."""
    assert picture.dtype == np.uint8
    difference = np.abs(picture - expected)
    assert difference.max() <= 4
    assert difference.mean() < 0.4


@pytest.mark.parametrize("align", ["receptive_field", "resize"])
@pytest.mark.parametrize(("opacity", "name"), [(0.0, "jet"), (0.5, "jet"), (0.8, "magma"), (1.0, "viridis")])
def test_overlay_by_definition(maps, chelsea, align, opacity, name):
    picture = overlay(maps, 0, 3, opacity=opacity, cmap=name, align=align)
    top = shared_top(maps.times_uniform(0), maps.times_uniform(1))
    expected = blended(chelsea, maps.at_image_size(0, 3, align=align), 0, top, name, opacity)
    assert_close(picture, expected)
    if opacity == 0:
        np.testing.assert_array_equal(picture, chelsea)


def test_scale_is_shared_by_all_layers(maps, chelsea):
    top = shared_top(maps.times_uniform(0), maps.times_uniform(1))
    assert 2 < top < maps.times_uniform(0).max()
    for index, token in ((0, 1), (1, 0), (-1, -1)):
        expected = blended(chelsea, maps.at_image_size(index, token), 0, top)
        assert_close(overlay(maps, index, token), expected)
    # Near-uniform maps all look the same then; on their own ranges they look strong.
    assert np.ptp(overlay(maps, 1, 0, opacity=1).reshape(-1, 3).astype(int), axis=0).max() < 20
    assert np.ptp(overlay(maps, 1, 0, opacity=1, scale="map").reshape(-1, 3).astype(int), axis=0).min() > 200


def test_own_and_fixed_scale(maps, chelsea):
    values = maps.times_uniform(1)[2]
    drawn = maps.at_image_size(1, 2)
    assert_close(overlay(maps, 1, 2, scale="map"), blended(chelsea, drawn, values.min(), values.max()))
    assert_close(overlay(maps, 1, 2, scale=(0.5, 1.5)), blended(chelsea, drawn, 0.5, 1.5))


def test_one_head(maps, chelsea):
    """A static layer has one head; it is part of the shared scale whichever head is asked of the other layer."""
    drawn = maps.at_image_size(1, 2, head=3)
    assert_close(
        overlay(maps, 1, 2, head=3),
        blended(chelsea, drawn, 0, shared_top(maps.times_uniform(0), maps.times_uniform(1, 3))),
    )
    with pytest.raises(ConfigError, match="no head 3"):
        overlay(maps, 0, 2, head=3)
    heads = np.random.default_rng(1).random((4, 20, *maps.layers[0].coefficients.shape[2:])) ** 20
    peaky = replace(maps, layers=(maps.layers[0], layer("block1", heads)))  # each head peaks higher than their mean
    np.testing.assert_array_equal(overlay(peaky, 0, 2, head=0), overlay(peaky, 0, 2))  # the one head is the mean


@pytest.mark.parametrize("cell", [(0, 0), (5, 9), (10, 16)])
def test_the_reddest_pixel_is_where_the_cell_is(chelsea, cell):
    geometry = fit(chelsea.shape[:2])
    h, w = (side // 16 for side in geometry.input)
    values = np.full((1, 1, h, w), 1e-3)
    values[0, 0][cell] = 1
    one = TokenMaps((layer("block0", values),), np.zeros(1), ("x",), geometry, "model", image=chelsea)
    picture = overlay(one, opacity=1, cmap="viridis").astype(int).sum(axis=2)
    bright = np.argwhere(picture == picture.max())
    y, x = geometry.to_original(16 * cell[0], 16 * cell[1])
    assert (np.abs(bright - (y, x)).min(axis=0) <= 1).all()


@pytest.mark.parametrize("draw", [overlay, grid])
def test_what_a_crop_cut_off_is_dimmed(chelsea, draw):
    maps = make_maps(chelsea, crop="center")
    picture = draw(maps, opacity=1, **({"cell": 451} if draw is grid else {}))
    if draw is overlay:
        outside = np.isnan(maps.at_image_size(0, 0))
        assert 0.2 < outside.mean() < 0.8
        np.testing.assert_array_equal(picture[outside], (chelsea[outside] * 0.35).astype(np.uint8))
        assert (picture[~outside] != (chelsea[~outside] * 0.35).astype(np.uint8)).any(axis=1).mean() > 0.99
    else:
        assert occurrences(picture, overlay(maps, 0, 5, opacity=1)) == 1


def test_the_photo_is_left_alone(chelsea):
    photo = chelsea.copy()
    maps = make_maps(photo)
    for picture in (overlay(maps), overlay(maps, opacity=0), grid(maps)):
        picture[:] = 0
    np.testing.assert_array_equal(photo, chelsea)


def test_maps_without_their_photo(maps, chelsea, coffee, tmp_path):
    bare = replace(maps, image=None)
    for draw in (overlay, grid):
        np.testing.assert_array_equal(draw(bare, image=chelsea), draw(maps))
        with pytest.raises(ConfigError, match="pass it as image="):
            draw(bare)
        with pytest.raises(ConfigError, match=r"of \(H, W\) = \(300, 451\), got one of \(400, 600\)"):
            draw(bare, image=coffee)
        with pytest.raises(ImageError, match="no such image"):
            draw(bare, image=tmp_path / "none.png")


@pytest.mark.parametrize("draw", [overlay, grid, lambda maps: shrink(maps, 96).image])
def test_a_photo_put_into_maps_is_any_that_can_be_read(maps, chelsea, draw):
    expected = draw(maps)
    opaque = np.dstack([chelsea, np.full(chelsea.shape[:2], 255, np.uint8)])
    for photo in (Image.fromarray(chelsea), (chelsea / 255).astype(np.float32), opaque):
        np.testing.assert_array_equal(draw(replace(maps, image=photo)), expected)
    with pytest.raises(ImageError, match="must have values from 0 to 1"):
        draw(replace(maps, image=chelsea.astype(np.float32)))
    with pytest.raises(ConfigError, match=r"got one of \(100, 100\)"):
        draw(replace(maps, image=chelsea[:100, :100]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layer": 2}, "no layer 2"),
        ({"token": 16}, "no token 16"),
        ({"layer": 1, "token": 8, "scale": "map"}, "no token 8"),
        ({"token": "0"}, "integer"),
        ({"opacity": 1.5}, "opacity must be from 0 to 1, got 1.5"),
        ({"opacity": float("nan")}, "got nan"),
        ({"cmap": "virdis"}, "unknown colour map 'virdis'; did you mean 'viridis'"),
        ({"align": "middle"}, "unknown alignment 'middle'"),
    ],
)
def test_options_that_cannot_work(maps, options, match):
    with pytest.raises(ConfigError, match=match):
        overlay(maps, **options)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (700, 3)])
@pytest.mark.parametrize("crop", [None, "center"])
def test_odd_photos(size, crop):
    maps = make_maps(np.full((*size, 3), 90, np.uint8), crop=crop)
    assert overlay(maps).shape == (*size, 3)
    assert grid(maps).shape[0] > 150


# --- panel


def occurrences(panel: np.ndarray, part: np.ndarray) -> int:
    """How often a picture stands in the panel, pixel for pixel."""
    count, (h, w) = 0, part.shape[:2]
    first = part[0].tobytes()
    for y, row in enumerate(panel[: len(panel) - h + 1]):
        data = row.tobytes()
        at = data.find(first)
        while at >= 0:
            x = at // 3
            count += np.array_equal(panel[y : y + h, x : x + w], part)
            at = data.find(first, at + 1)
    return count


def test_grid_holds_the_photo_and_every_overlay(maps, chelsea):
    panel = grid(maps, cell=451)  # as large as the photo: cells are the very overlays
    assert panel.dtype == np.uint8
    assert occurrences(panel, chelsea) == 1
    for index, token in ((0, 0), (0, 15), (1, 0), (1, 7)):
        assert occurrences(panel, overlay(maps, index, token)) == 1
    assert occurrences(grid(maps, cell=451, scale="map", align="resize"), overlay(maps, 1, 4, scale="map")) == 0
    resized = grid(maps, cell=451, scale="map", align="resize", cmap="magma", opacity=0.7, head=2)
    one = overlay(maps, 1, 4, scale="map", align="resize", cmap="magma", opacity=0.7, head=2)
    assert occurrences(resized, one) == 1


def test_grid_small(maps, chelsea):
    thumbnail = cv2.resize(chelsea, (160, 106), interpolation=cv2.INTER_AREA)
    panel = grid(maps, opacity=0)
    assert occurrences(panel, thumbnail) == 1 + 16 + 8
    assert (panel[:10] == 255).all()
    assert (panel[-10:] == 255).all()
    assert (panel[:, :10] == 255).all()
    assert (panel[:, -10:] == 255).all()


def test_layers_and_columns(maps, chelsea):
    thumbnail = cv2.resize(chelsea, (100, 67), interpolation=cv2.INTER_AREA)
    last = grid(maps, layers=[-1], cell=100, opacity=0)
    assert occurrences(last, thumbnail) == 1 + 8
    narrow = grid(maps, layers=[-1], cell=100, opacity=0, columns=3)
    assert occurrences(narrow, thumbnail) == 1 + 8
    assert narrow.shape[0] > last.shape[0]
    assert narrow.shape[1] < last.shape[1]


@pytest.mark.parametrize(("layer", "heading"), [(0, "block0: 16 tokens"), (1, "block1: 8 tokens, mean of 4 heads")])
def test_a_heading_that_is_wider_than_the_maps_is_whole(chelsea, layer, heading):
    portrait = make_maps(np.ascontiguousarray(chelsea[:120, 100:160]))
    mask = lettering(heading, 14)  # of the usual cell
    written = Image.new("RGB", mask.size, "white")
    written.paste(INK, (0, 0), mask)
    assert occurrences(grid(portrait, layers=[layer], columns=1), np.array(written))


def test_several_images_share_one_scale(maps, coffee):
    other = make_maps(coffee, size=96)
    both = grid([maps, other], cell=128)
    assert both.shape[0] > grid(maps, cell=128).shape[0] * 1.7
    values = [m.times_uniform(i) for m in (maps, other) for i in (0, 1)]
    assert abs(shared_top(*values[:2]) - shared_top(*values)) > 0.01
    np.testing.assert_array_equal(both, grid([maps, other], cell=128, scale=(0, shared_top(*values))))


def test_segmentation_maps_have_no_predictions(maps):
    panel = grid(replace(maps, logits=np.zeros((4, 8, 8), np.float32)), opacity=0)
    difference = (panel != grid(maps, opacity=0)).any(axis=2)
    assert difference.any()
    rows, columns = np.nonzero(difference)
    assert rows.min() > 120  # below the photo,
    assert columns.max() < 180  # and nowhere else


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"maps": []}, "cannot draw 0 images"),
        ({"layers": [5]}, "no layer 5"),
        ({"layers": []}, "no layers to draw"),
        ({"columns": 0}, "columns must be at least 1"),
        ({"cell": 20}, "cell at least 64, got 8 and 20"),
        ({"head": 4}, "no head 4"),
        ({"opacity": -1}, "opacity"),
    ],
)
def test_panels_that_cannot_be_drawn(maps, options, match):
    with pytest.raises(ConfigError, match=match):
        grid(options.pop("maps", maps), **options)


def test_one_photo_does_not_serve_two_images(maps, chelsea):
    with pytest.raises(ConfigError, match="cannot draw 2 images over the one"):
        grid([maps, maps], image=chelsea)


# --- colour bar


@pytest.mark.parametrize("limits", [(0, 7.8), (0, 2), (0.93, 1.07), (-1, 3), (0, 1234), None])
def test_colorbar(limits):
    bar = colorbar("viridis", limits, height=200, text=13)
    assert bar.shape[0] == 200 + 2 * 13
    colours = bar[13:213, 5]
    np.testing.assert_array_equal(colours[[0, -1]], COLORMAPS["viridis"][[255, 0]])
    assert (bar[:13, :10] == 255).all()
    dark_rows = (bar[:, 15] < 100).all(axis=1)  # the ticks
    inner = [] if limits is None else [v for v in _ticks(*limits, 6) if limits[1] - v > 0.08 * (limits[1] - limits[0])]
    assert dark_rows.sum() == (len(inner) + 1 if limits else 2)  # and one at the end: "and more"


@pytest.mark.parametrize("height", [50, 20, 1])
def test_short_colorbar_has_few_ticks(height):
    assert colorbar("jet", (0, 5), height=height, text=13).shape[0] == height + 26


def test_colorbar_of_the_widest_scale():
    assert colorbar("jet", (-3e38, 3e38), height=200).shape[0] == 226


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 7.8, 6), [0, 2, 4, 6]),
        ((0, 6, 6), [0, 1, 2, 3, 4, 5, 6]),
        ((0, 2, 6), [0, 0.5, 1, 1.5, 2]),
        ((0.93, 1.07, 6), [0.95, 1, 1.05]),
        ((-1, 3, 4), [-1, 0, 1, 2, 3]),
        ((0, 0.3, 3), [0, 0.1, 0.2, 0.3]),
        ((0, 1234, 6), [0, 500, 1000]),
        ((0, 2.9, 2), [0, 2]),
    ],
)
def test_ticks_are_round(arguments, expected):
    assert _ticks(*arguments) == expected
