import contextlib
import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vtviz import images
from vtviz.errors import ImageError
from vtviz.images import ImageLimits, load

PATTERN = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}
FORMATS = (*LOSSLESS, "JPEG", "GIF")


def encode(image, kind="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, raw=None, *extra: bytes) -> bytes:
    """A PNG built by hand; without ``raw``, a header and nothing more."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"") if raw is not None else b""
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + (pixels or png_chunk(b"IDAT", b""))


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A little-endian TIFF built by hand; ``-1`` as a value stands for the offset of the data."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", t, 4, 1, start if v == -1 else v) for t, v in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def refused(source, match=None, **options) -> str:
    with pytest.raises(ImageError, match=match) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "0x" not in message.replace("\\x", "")  # no addresses of Python objects
    return message


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


# --- refusals


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (np.full((2, 2, 3), np.nan), "got nan at row 0, column 0"),
        (np.array([[0.5, 1.5]]), "float64 must have values from 0 to 1, got 1.5 at row 0, column 1"),
        (np.array([[0.5], [-1e-3]], np.float32), "got -0.001 at row 1, column 0"),
        (np.full((2, 2), np.inf), "got inf"),
        (np.zeros((2, 2, 3), np.int64), "int64 is no image; convert it to uint8"),
        (np.zeros((2, 2, 3), complex), "complex128"),
        (np.array([["a"]]), "is no image"),
        (np.array([[object()]]), "object is no image"),
        (np.zeros((0, 5, 3), np.uint8), "is empty: 5 x 0 pixels"),
        (np.zeros((2, 2, 2), np.uint8), r"got \(2, 2, 2\)"),
        (np.zeros((3, 20, 30), np.uint8), r"channels last, got \(3, 20, 30\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got \(1, 4, 4, 3\)"),
        (np.zeros(5, np.uint8), r"got \(5,\)"),
        (np.float32(1), "cannot read an image from float32"),
        (torch.zeros(1, 3, 4, 4), r"one image, .* got \(1, 3, 4, 4\)"),
        (torch.zeros(5, 4, 3), r"channels first .* got \(5, 4, 3\)"),
        (torch.full((3, 2, 2), -2.1179), "got -2.1179 at row 0"),
        (torch.zeros(3, 2, 2, device="meta"), "on meta has no pixels"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
        (None, "from NoneType"),
        (42, "from int"),
        ([[1, 2]], "from list"),
        (io.BytesIO(b""), "from BytesIO; pass a path, bytes"),
        (b"", "it is empty"),
        ("", "no such image file: ''"),
        ("no/such/photo.jpg", "no such image file: 'no/such/photo.jpg'"),
        ("two\nlines.jpg", r"no such image file: 'two\\nlines.jpg'"),
        ("nul\0byte.jpg", "is not a path"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("http://example.com/a.jpg", "is a URL"),
        ("HTTPS://example.com/a.jpg", "is a URL"),
        ("file:///etc/hostname", "is a URL"),
        ("data:image/png;base64," + "A" * 9999, "is a URL"),
        (os.devnull, "is not a regular file"),
    ],
    ids=str,
)
def test_what_is_no_image(source, match):
    refused(source, match)


def test_folders_and_pipes_are_not_opened(tmp_path):
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "is not a regular file")  # reading it would wait for ever


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(PATTERN))
    path.chmod(0)
    refused(path, "Permission denied")


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\0\1" + bytes(40),
        b"\0\0\0\x1cftypavif" + bytes(40),
        b"P6 2 2 255 " + bytes(12),
        b"not a picture",
        *(encode(PATTERN, kind) for kind in ("PDF", "ICO", "PPM", "TGA", "EPS", "SGI", "DDS", "JPEG2000", "AVIF")),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_other_formats_never_run(data, tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    monkeypatch.setattr(Image, "open", None)  # refused before Pillow is asked
    refused(path, "is not a JPEG, PNG, WebP, BMP, GIF or TIFF image: it starts with b['\"]")
    refused(data, "is not a JPEG")


def test_limits_hold_for_every_source(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(PATTERN))
    tensor = torch.from_numpy(PATTERN.transpose(2, 0, 1).copy())
    for source in (path, path.read_bytes(), Image.fromarray(PATTERN), PATTERN, tensor):
        refused(source, "9 x 6 pixels; at most 8 a side", limits=ImageLimits(side=8))
        refused(source, "9 x 6 = 0.0 megapixels", limits=ImageLimits(pixels=53))
        assert load(source, limits=ImageLimits(side=9, pixels=54)).shape == (6, 9, 3)
    size = path.stat().st_size
    assert load(path, limits=ImageLimits(bytes=size)).shape == (6, 9, 3)
    for source in (path, path.read_bytes()):
        refused(source, "more than the .* MB", limits=ImageLimits(bytes=size - 1))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (png(13_000, 13_000, 8, 2), "13000 x 13000 = 169.0 megapixels; at most 40"),
        (png(13_000, 13_000, 1, 0, bytes(13_000 * 1626)), "169.0 megapixels"),  # a complete file of 21 kB
        (png(100_000, 100_000, 8, 2), "too many pixels"),
        (png(2**31 - 1, 1, 8, 2), "too many pixels"),
        (png(20_000, 1, 8, 2), "20000 x 1 pixels; at most 16384 a side"),
        (png(0, 5, 8, 2), "damaged|empty"),
        (b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(9) + b"\x02\0;", "pixels|damaged"),
        (b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6), "too many pixels"),
        (tiff({256: 30_000, 257: 3_000, 258: 8, 259: 1, 262: 1, 273: 8, 278: 3_000, 279: 9}, b""), "30000 x 3000"),
        (
            tiff(
                {256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_000, 323: 16_000, 324: -1, 325: 99},
                zlib.compress(bytes(10**6)),
            ),
            "a tile of the image is 16000 x 16000 = 256.0 megapixels",
        ),
    ],
    ids=["png", "png complete", "png huge", "png side", "png wide", "png 0", "gif", "bmp", "tiff", "tiff tile"],
)  # fmt: skip
def test_bombs_are_refused_by_their_header(data, match):
    assert len(data) < 30_000
    refused(data, match)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(kind, chelsea):
    data = encode(chelsea[:40, :60], kind, **LOSSLESS.get(kind, {}))
    full = load(data)
    for length in {*range(64), *range(64, len(data) // 2, max(1, len(data) // 50)), len(data) // 2}:
        refused(data[:length])
    for length in range(len(data) // 2, len(data), max(1, len(data) // 50)):
        try:
            image = load(data[:length])
        except ImageError:
            continue
        np.testing.assert_array_equal(image, full)  # nothing but an end mark was missing


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_give_an_image_or_one_line(kind, chelsea):
    rng = np.random.default_rng(7)
    data = np.frombuffer(encode(chelsea[:40, :60], kind, **LOSSLESS.get(kind, {})), np.uint8)
    for _ in range(80):
        damaged = data.copy()
        where = rng.integers(0, min(len(data), int(rng.choice([64, 400, len(data)]))), size=rng.integers(1, 9))
        damaged[where] = rng.integers(0, 256, len(where))
        try:
            image = load(damaged.tobytes(), limits=ImageLimits(pixels=1_000_000))
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert image.dtype == np.uint8
            assert image.ndim == 3


# --- Pillow's warnings


def noisy_images() -> list[bytes]:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    odd_tag = tiff({256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: -1, 277: 1, 278: 1, 279: 1, 34665: 9_999}, b"\7")
    return [encode(palette, transparency=bytes([0, 255])), odd_tag, png(10_000, 10_000, 1, 0)]


def test_pillow_does_warn_about_these():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in noisy_images()[1:]:
            with contextlib.suppress(OSError, SyntaxError):
                Image.open(io.BytesIO(data)).load()
    assert len(caught) >= 2


def test_warnings_do_not_leak(capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        first, second, bomb = noisy_images()
        load(first)
        load(second)
        refused(bomb, "100.0 megapixels")
        assert warnings.filters == before
    assert caught == []
    assert capfd.readouterr() == ("", "")


def test_warning_filters_survive_overlapping_threads():
    before = list(warnings.filters)
    inside, leave = threading.Barrier(3), threading.Event()

    def hold() -> None:
        with images._quiet_pillow:
            inside.wait()
            leave.wait()

    first, second = threading.Thread(target=hold), threading.Thread(target=hold)
    first.start()
    second.start()
    inside.wait(timeout=10)
    assert warnings.filters != before
    leave.set()
    first.join()
    second.join()
    assert warnings.filters == before


def test_threads_read_the_same_pixels(chelsea):
    data = [encode(chelsea, kind, **LOSSLESS[kind]) for kind in LOSSLESS]
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda d=d: results.append(load(d))) for d in data * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    assert all(np.array_equal(result, chelsea) for result in results)
