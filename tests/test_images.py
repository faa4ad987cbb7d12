"""One gate for images: what is read, and that every way in leads to the same pixels."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tests.pictures import LOSSLESS, PATTERN, encode, png, refused
from vtviz.images import load

# --- every door leads to the same pixels


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_are_read_exactly(kind, chelsea, tmp_path):
    data = encode(chelsea, kind, **LOSSLESS[kind])
    path = tmp_path / "photo.dat"  # the name says nothing about the format
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(path)):
        image = load(source)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
        np.testing.assert_array_equal(image, chelsea)


def test_jpeg_and_gif(chelsea):
    assert np.abs(load(encode(chelsea, "JPEG", quality=95)).astype(int) - chelsea).mean() < 2
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(load(encode(grey, "GIF"))[..., 1], grey)


def test_arrays_and_tensors_agree(chelsea):
    floats = chelsea.astype(np.float32) / 255
    deep = chelsea.astype(np.uint16) * 257
    channels_first = torch.from_numpy(chelsea.copy()).permute(2, 0, 1)
    for source in (
        chelsea,
        np.asfortranarray(chelsea),
        chelsea[:, ::-1][:, ::-1],
        floats,
        floats.astype(np.float64),
        floats.astype(np.float16),
        deep,
        deep.astype(">u2"),
        channels_first,
        channels_first.float().div(255).requires_grad_(),
        channels_first.to(torch.float64) / 255,
        Image.fromarray(chelsea),
    ):
        image = load(source)
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, chelsea)
    half = load((channels_first.float() / 255).bfloat16())
    assert np.abs(half.astype(int) - chelsea).max() <= 1


def test_result_shares_no_memory():
    array, tensor, pil = PATTERN.copy(), torch.from_numpy(PATTERN.copy()).permute(2, 0, 1), Image.fromarray(PATTERN)
    for source in (array, tensor, pil):
        load(source)[:] = 0
        np.testing.assert_array_equal(load(source), PATTERN)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey(shape):
    grey = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = np.repeat(grey.reshape(5, 7, 1), 3, axis=2)
    np.testing.assert_array_equal(load(grey), expected)
    np.testing.assert_array_equal(load(torch.from_numpy(grey.reshape(1, 5, 7))), expected)
    mask = grey > 127
    np.testing.assert_array_equal(load(mask), np.where(expected > 127, 255, 0))
    np.testing.assert_array_equal(load(torch.from_numpy(mask.reshape(1, 5, 7))), load(mask))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_odd_sizes(size):
    image = np.full((*size, 3), (10, 20, 30), np.uint8)
    for source in (image, encode(image), encode(image, "TIFF"), encode(image, "BMP")):
        np.testing.assert_array_equal(load(source), image)


# --- orientation, once

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, kind):
    stored = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((8, 8), np.uint8))  # JPEG blocks
    stored = np.repeat(stored[..., None], 3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, kind, exif=exif, **LOSSLESS.get(kind, {}))
    expected = UPRIGHT[orientation](stored)
    for source in (data, Image.open(io.BytesIO(data))):
        image = load(source)
        assert image.shape == expected.shape
        np.testing.assert_allclose(image.astype(int), expected, atol=3)
    again = Image.open(io.BytesIO(data))
    load(again)
    np.testing.assert_allclose(load(again).astype(int), expected, atol=3)  # the caller's image is as it was


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"\xff" * 99]
)
def test_damaged_exif_is_ignored(block):
    np.testing.assert_array_equal(load(encode(PATTERN, "PNG", exif=block)), PATTERN)


# --- transparency

RED_FADING = np.zeros((1, 4, 4), np.uint8)
RED_FADING[..., 0], RED_FADING[..., 3] = 255, (0, 85, 170, 255)


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ((255, 255, 255), [(255, 255, 255), (255, 170, 170), (255, 85, 85), (255, 0, 0)]),
        ((0, 0, 255), [(0, 0, 255), (85, 0, 170), (170, 0, 85), (255, 0, 0)]),
    ],
)
def test_alpha_is_composited(background, expected):
    sources = [
        RED_FADING,
        RED_FADING.astype(np.float32) / 255,
        RED_FADING.astype(np.uint16) * 257,
        torch.from_numpy(RED_FADING).permute(2, 0, 1),
        Image.fromarray(RED_FADING),
        Image.fromarray(RED_FADING).convert("RGBa"),
        *(encode(RED_FADING, kind, **LOSSLESS[kind]) for kind in ("PNG", "TIFF")),
    ]
    for source in sources:
        np.testing.assert_array_equal(load(source, background=background)[0], expected)
    webp = load(encode(RED_FADING, "WEBP", lossless=True, exact=True), background=background)
    np.testing.assert_array_equal(webp[0], expected)


def test_grey_alpha():
    pixels = np.array([[[0, 0], [0, 51], [0, 255]]], np.uint8)
    image = Image.merge("LA", [Image.fromarray(channel) for channel in pixels.transpose(2, 0, 1)])
    for source in (image, encode(image), encode(image, "TIFF")):
        np.testing.assert_array_equal(load(source)[0, :, 0], [255, 204, 0])
        np.testing.assert_array_equal(load(source, background=(100, 0, 0))[0, :, 0], [100, 80, 0])


def test_palette_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    opaque = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    np.testing.assert_array_equal(load(encode(image))[0], opaque)
    one_index = encode(image, transparency=1)
    np.testing.assert_array_equal(load(one_index, background=(9, 9, 9))[0], [(255, 0, 0), (9, 9, 9), (0, 0, 255)])
    by_entry = encode(image, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(load(by_entry)[0], [(255, 255, 255), (127, 255, 127), (0, 0, 255)])
    gif = encode(image, "GIF", transparency=2)
    np.testing.assert_array_equal(load(gif, background=(9, 9, 9))[0], [(255, 0, 0), (0, 255, 0), (9, 9, 9)])


@pytest.mark.parametrize(("mode", "key", "value"), [("L", 7, 7), ("RGB", (7, 8, 9), (7, 8, 9)), ("1", 0, 0)])
def test_transparent_colour(mode, key, value):
    image = Image.new(mode, (2, 1), value)
    image.putpixel((1, 0), 255 if mode != "RGB" else (255, 0, 0))
    loaded = load(encode(image, transparency=key), background=(1, 2, 3))
    np.testing.assert_array_equal(loaded[0, 0], (1, 2, 3))
    assert loaded[0, 1, 0] == 255


# --- bit depths and colour models

DEEP = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
DEEP_IN_8_BITS = [0, 0, 1, 1, 128, 255]  # value / 257, rounded


@pytest.mark.parametrize(
    "source",
    [
        DEEP,
        Image.fromarray(DEEP),
        encode(DEEP),
        encode(DEEP, "TIFF"),
        png(6, 1, 16, 0, b"\0" + DEEP.astype(">u2").tobytes()),
        Image.fromarray(DEEP.astype(np.int32)),
        torch.from_numpy(DEEP[None]),
    ],
    ids=["array", "I;16", "png", "tiff", "png by hand", "I", "tensor"],
)
def test_16_bit_grey_is_scaled(source):
    loaded = load(source)
    np.testing.assert_array_equal(loaded[0], np.repeat(np.array(DEEP_IN_8_BITS)[:, None], 3, axis=1))


def test_16_bit_big_endian_tiff():
    tags = {256: 6, 257: 1, 258: 16, 259: 1, 262: 1, 273: -1, 277: 1, 278: 1, 279: 12}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(">HHII", t, 4, 1, start if v == -1 else v) for t, v in sorted(tags.items()))
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + DEEP.astype(">u2").tobytes()
    np.testing.assert_array_equal(load(data)[0, :, 0], DEEP_IN_8_BITS)


def test_16_bit_rgb_png():
    values = np.array([0, 128, 257, 32_768, 50_000, 65_535], ">u2")
    image = load(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    np.testing.assert_allclose(image.ravel(), values / 257, atol=1)


def test_float_tiff():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(load(encode(values, "TIFF"))[0, :, 0], [0, 64, 128, 255])
    refused(encode(values * 255, "TIFF"), r"from 0 to 1, got 63.75 at row 0, column 1")
    refused(Image.fromarray(values * np.float32("nan")), "got nan at row 0, column 0")


def test_wide_integers_outside_16_bits_are_refused():
    refused(Image.fromarray(np.array([[0, 70_000]], np.int32)), "from 0 to 65535, got 70000 at row 0, column 1")
    refused(Image.fromarray(np.array([[-1, 0]], np.int32)), "got -1 at row 0, column 0")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind, chelsea):
    image = Image.fromarray(chelsea).convert("CMYK")
    data = encode(image, kind, **({"quality": 95} if kind == "JPEG" else {}))
    assert (b"Adobe" in data) == (kind == "JPEG")  # Adobe's JPEGs hold inverted values
    assert np.abs(load(data).astype(int) - chelsea).mean() < 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "RGBX"])
def test_modes(mode, chelsea):
    image = Image.fromarray(chelsea).convert(mode)
    np.testing.assert_array_equal(load(image), np.array(image.convert("RGB")))


def test_lab(chelsea):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(chelsea), to_lab)
    assert np.abs(load(encode(lab, "TIFF")).astype(int) - chelsea).mean() < 4


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_animations(kind, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load(data), np.full((8, 8, 3), (255, 0, 0)))
