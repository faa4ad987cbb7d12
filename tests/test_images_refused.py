"""One gate for images: what is refused, in one line, and what Pillow has to say meanwhile."""

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
from PIL import Image

from tests.pictures import FORMATS, LOSSLESS, PATTERN, encode, png, refused, tiff
from vtviz import images
from vtviz.errors import ImageError
from vtviz.images import ImageLimits, load

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
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
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
