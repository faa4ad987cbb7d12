import dataclasses
import json

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from vtviz.errors import ConfigError
from vtviz.geometry import MAX_SIDE, MIN_SIDE, Geometry, fit, to_tensor, upsample

SIZES = [(300, 451), (512, 512), (1, 1), (1, 5000), (5000, 1), (16, 16_384), (33, 47), (768, 1024), (2999, 4001)]


# --- fit


@pytest.mark.parametrize("original", SIZES)
@pytest.mark.parametrize("size", [32, 96, 224, 1000])
@pytest.mark.parametrize("multiple", [1, 16, 32])
def test_whole_image(original, size, multiple):
    geometry = fit(original, size=size, multiple=multiple)
    assert geometry.original == original
    assert geometry.input == geometry.resized
    assert geometry.offset == (0, 0)
    assert all(side % multiple == 0 and MIN_SIDE <= side <= MAX_SIDE for side in geometry.input)
    ideal = [side * size / np.sqrt(np.prod(original)) for side in original]
    if all(MIN_SIDE + multiple <= side <= MAX_SIDE - multiple for side in ideal):
        assert all(abs(side - want) <= multiple / 2 for side, want in zip(geometry.input, ideal, strict=True))


def test_known_inputs():
    assert fit((300, 451)).input == (176, 272)
    assert fit((512, 512)).input == (224, 224)
    assert fit((1, 1)).input == (224, 224)
    assert fit((1, 5000)).input == (32, 1024)
    assert fit((5000, 1)).input == (1024, 32)
    assert fit((480, 640), size=320, multiple=32).input == (288, 384)


@pytest.mark.parametrize(
    "original",
    [*(size for size in SIZES if max(size) / min(size) < 20), (1000, 1012)],  # the last: 17.5 pixels are cut off
)
@pytest.mark.parametrize("size", [96, 224])
def test_centre_crop_is_torchvisions(original, size):
    geometry = fit(original, size=size, crop="center")
    coordinates = torch.stack(torch.meshgrid(*map(torch.arange, original), indexing="ij")).float()
    resized = v2.functional.resize(coordinates, [round(size * 256 / 224)], antialias=False)
    assert geometry.resized == tuple(resized.shape[1:])
    cropped = v2.functional.center_crop(resized, [size, size])
    rows, columns = np.indices(geometry.input)
    y, x = geometry.to_original(rows, columns)
    inside = [np.clip(c, 0, n - 1) for c, n in zip((y, x), original, strict=True)]
    np.testing.assert_allclose(inside, cropped.numpy(), atol=max(original) * 1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 31}, "size must be a whole number of pixels from 32 to 1024, got 31"),
        ({"size": 1025}, "got 1025"),
        ({"size": 224.0}, r"got 224\.0"),
        ({"size": True}, "got True"),
        ({"multiple": 0}, "multiple must be .* got 0"),
        ({"crop": "centre"}, "crop must be None .* or 'center', got 'centre'"),
    ],
)
def test_options_that_cannot_work(options, match):
    with pytest.raises(ConfigError, match=match):
        fit((300, 451), **options)
    with pytest.raises(ConfigError, match=r"original must be two integers of at least 1, got \(0, 5\)"):
        fit((0, 5))


def test_any_whole_number_will_do():
    geometry = fit((300, 451), size=np.int64(96), multiple=np.uint8(32))
    assert geometry == fit((300, 451), size=96, multiple=32)
    assert all(type(n) is int for pair in dataclasses.astuple(geometry) for n in pair)


# --- Geometry

GEOMETRIES = [
    *(fit(size, crop=crop) for size in SIZES for crop in (None, "center")),
    Geometry((97, 31), (64, 40), (3, 7), (48, 32)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_there_and_back(geometry):
    y, x = np.random.default_rng(0).uniform(-5, 5000, (2, 100))
    np.testing.assert_allclose(geometry.to_original(*geometry.to_input(y, x)), (y, x), rtol=1e-9, atol=1e-6)
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_edges_meet(geometry):
    """The outer edge of the image (pixel index -0.5) is the outer edge of the resized image."""
    (height, width), (h, w), (top, left) = geometry.original, geometry.resized, geometry.offset
    np.testing.assert_allclose(geometry.to_input(-0.5, -0.5), (-0.5 - top, -0.5 - left))
    np.testing.assert_allclose(geometry.to_input(height - 0.5, width - 0.5), (h - 0.5 - top, w - 0.5 - left))


def test_identity():
    geometry = Geometry((64, 48), (64, 48), (0, 0), (64, 48))
    assert geometry.scale == (1, 1)
    assert geometry.to_input(5, 7) == (5, 7)
    assert geometry.to_original(5.25, 0) == (5.25, 0)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"original": [3, 4], "resized": [3, 4], "offset": [0, 0]},
        {"original": [3, 4], "resized": [3, 4], "offset": [0, 0], "input": [3, 4], "more": 1},
        {"original": [3, 4], "resized": [3, 4], "offset": [0, 0], "input": [3, 5]},
        {"original": [3, 4], "resized": [3, 4], "offset": [1, 0], "input": [3, 4]},
        {"original": [3, 4], "resized": [3, 4], "offset": [-1, 0], "input": [3, 4]},
        {"original": [0, 4], "resized": [3, 4], "offset": [0, 0], "input": [3, 4]},
        {"original": [3.5, 4], "resized": [3, 4], "offset": [0, 0], "input": [3, 4]},
        {"original": [3], "resized": [3, 4], "offset": [0, 0], "input": [3, 4]},
        {"original": "34", "resized": [3, 4], "offset": [0, 0], "input": [3, 4]},
    ],
)
def test_what_is_no_geometry(data):
    with pytest.raises(ConfigError) as caught:
        Geometry.from_dict(data)
    assert "\n" not in str(caught.value)


# --- to_tensor


@pytest.mark.parametrize("crop", [None, "center"])
def test_to_tensor_is_torchvisions_resize(crop, chelsea, coffee):
    for image in (chelsea, coffee, chelsea[:33, :47], np.ascontiguousarray(coffee[:, 100:140])):
        geometry = fit(image.shape[:2], crop=crop)
        tensor = to_tensor(image, geometry)
        (top, left), (h, w) = geometry.offset, geometry.input
        resized = v2.functional.resize(torch.tensor(image).permute(2, 0, 1), list(geometry.resized), antialias=True)
        difference = (resized[:, top : top + h, left : left + w] - tensor * 255).abs()
        assert difference.max() <= 1.001  # the last of 256 steps
        assert difference.mean() < 0.01
        assert tensor.shape == (3, h, w)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.min() >= 0
        assert tensor.max() <= 1


def test_to_tensor_leaves_pixels_alone_where_nothing_is_resized(astronaut):
    whole = Geometry((512, 512), (512, 512), (0, 0), (512, 512))
    expected = torch.tensor(astronaut).permute(2, 0, 1) / 255
    assert torch.equal(to_tensor(astronaut, whole), expected)
    cut = Geometry((512, 512), (512, 512), (30, 50), (64, 96))
    assert torch.equal(to_tensor(astronaut, cut), expected[:, 30:94, 50:146])


@pytest.mark.parametrize("crop", [None, "center"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (1, 16_384)])
def test_to_tensor_of_slivers(size, crop):
    """The paper's crop of 1 x 16384 would be a picture of 256 x 4194304: only what is kept may be computed."""
    image = np.full((*size, 3), 200, np.uint8)
    geometry = fit(size, crop=crop)
    tensor = to_tensor(image, geometry)
    assert tensor.shape[1:] == geometry.input
    assert torch.all(tensor == 200 / 255)


def test_to_tensor_of_another_image(chelsea):
    with pytest.raises(ConfigError, match=r"for an image of \(400, 600\), got one of \(300, 451\)"):
        to_tensor(chelsea, fit((400, 600)))


# --- upsample


def impulse(cells, at) -> np.ndarray:
    values = np.zeros(cells, np.float32)
    values[at] = 1
    return values


@pytest.mark.parametrize("original", [(300, 451), (768, 1024), (2999, 401), (640, 640), (99, 1201)])
@pytest.mark.parametrize("crop", [None, "center"])
@pytest.mark.parametrize("stride", [4, 16, 32])
@pytest.mark.parametrize("align", ["receptive_field", "resize"])
def test_a_cell_is_drawn_where_the_geometry_says(original, crop, stride, align):
    """The centre of mass of one cell's drawing, in original pixels, is the cell's centre taken to the original."""
    geometry = fit(original, crop=crop, multiple=32)
    cells = tuple(side // stride for side in geometry.input)
    if min(cells) < 4:
        pytest.skip("no cell that is far enough from the border")
    cell = (cells[0] // 2, cells[1] // 2 + 1) if cells[1] > 4 else (cells[0] // 2, 2)
    drawn = upsample(impulse(cells, cell), geometry, stride=stride, align=align)
    assert drawn.shape == original
    assert drawn.dtype == np.float32
    shift = 0 if align == "receptive_field" else (stride - 1) / 2
    centre = geometry.to_original(stride * cell[0] + shift, stride * cell[1] + shift)
    weight = np.nan_to_num(drawn.astype(np.float64))
    rows, columns = np.indices(original)
    mass = [(weight * index).sum() / weight.sum() for index in (rows, columns)]
    np.testing.assert_allclose(mass, centre, atol=0.1)  # a tent sampled at whole pixels
    peak = np.unravel_index(np.nanargmax(drawn), original)
    assert np.abs(np.subtract(peak, centre)).max() <= 0.5 + 1e-6
    # a tent, as wide as a cell on each side
    away_y, away_x = (
        np.abs(c - z) * s / stride for c, z, s in zip((rows, columns), centre, geometry.scale, strict=True)
    )
    tent = np.maximum(0, 1 - away_y) * np.maximum(0, 1 - away_x)
    inside = ~np.isnan(drawn)
    np.testing.assert_allclose(drawn[inside], tent[inside], atol=1e-5)


def test_the_two_alignments_are_half_a_cell_apart():
    geometry = Geometry((224, 224), (224, 224), (0, 0), (224, 224))
    values = np.random.default_rng(0).random((14, 14), np.float32)
    exact, plain = (upsample(values, geometry, stride=16, align=align) for align in ("receptive_field", "resize"))
    np.testing.assert_allclose(exact[::16, ::16], values, rtol=1e-6)  # cell i at pixel 16 i
    ordinary = torch.nn.functional.interpolate(torch.tensor(values)[None, None], (224, 224), mode="bilinear")
    np.testing.assert_allclose(plain, ordinary[0, 0], atol=1e-6)


def test_edge_values_go_on():
    geometry = Geometry((64, 96), (64, 96), (0, 0), (64, 96))
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    drawn = upsample(values, geometry, stride=16)
    np.testing.assert_allclose(drawn[48:, 80:], 23)
    plain = upsample(values, geometry, stride=16, align="resize")
    np.testing.assert_allclose(plain[:8, :8], 0)
    np.testing.assert_allclose(plain[-8:, -8:], 23)


@pytest.mark.parametrize("original", SIZES[:-1])
@pytest.mark.parametrize("crop", [None, "center"])
def test_constant_maps_stay_constant_and_crops_leave_nan(original, crop):
    geometry = fit(original, crop=crop)
    cells = tuple(-(-side // 16) for side in geometry.input)
    drawn = upsample(np.full(cells, 0.125, np.float32), geometry, stride=16)
    assert drawn.shape == original
    y, x = geometry.to_input(*(np.arange(side) for side in original))
    kept = [(c >= -0.5) & (c <= side - 0.5) for c, side in zip((y, x), geometry.input, strict=True)]
    inside = np.logical_and.outer(*kept)
    np.testing.assert_allclose(drawn[inside], 0.125, rtol=1e-6)
    assert np.isnan(drawn[~inside]).all()
    assert crop == "center" or inside.all()


def test_crop_of_known_size():
    geometry = Geometry((100, 200), (100, 200), (10, 20), (64, 96))
    drawn = upsample(np.ones((4, 6), np.float32), geometry, stride=16)
    expected = np.zeros((100, 200), bool)
    expected[10:74, 20:116] = True
    np.testing.assert_array_equal(~np.isnan(drawn), expected)


def test_stacks_of_maps_and_dtypes():
    geometry = fit((123, 45))
    h, w = (side // 16 for side in geometry.input)
    values = np.random.default_rng(0).random((2, 3, h, w))
    drawn = upsample(values, geometry, stride=16)
    assert drawn.shape == (2, 3, 123, 45)
    assert drawn.dtype == np.float32
    assert drawn.min() >= values.min() - 1e-6
    assert drawn.max() <= values.max() + 1e-6
    np.testing.assert_allclose(drawn[1, 2], upsample(values[1, 2], geometry, stride=16), rtol=1e-6)


def test_unknown_alignment():
    with pytest.raises(ConfigError, match="unknown alignment 'receptive-field'; did you mean 'receptive_field'"):
        upsample(np.ones((2, 2)), fit((32, 32)), stride=16, align="receptive-field")
