"""Damaged and lying image files, thousands of them: each gives an array or one line, in bounded time and memory."""

import ctypes
import ctypes.util
import faulthandler
import gc
import io
import re
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import vtviz
from tests.pictures import png, png_chunk
from vtviz.cli import main
from vtviz.errors import ImageError
from vtviz.images import LIMITS, load

SECONDS = 30
"""Of the processor's time, which no input may take; the guard ends the process: a decoder in C hears nothing else."""
MEGABYTES = 150
"""By so much the memory in use may differ before and after some hundred inputs."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


# --- whole files to begin with


@lru_cache
def seeds() -> tuple[bytes, ...]:
    """Whole files of every format in most of the ways that Pillow can write them, each of a few kilobytes."""
    photo = Image.fromarray(skimage.data.chelsea()[100:148, 100:164])
    frames = [photo.rotate(a) for a in (0, 40, 80)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray((np.arange(48 * 64, dtype=np.uint16) * 20).reshape(48, 64))
    floats = Image.fromarray(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64))
    alpha = photo.copy()
    alpha.putalpha(128)
    made: list[tuple[Image.Image, str, dict]] = [
        *((photo.convert(m), "JPEG", {"exif": exif}) for m in ("RGB", "L", "CMYK")),
        (photo, "JPEG", {"progressive": True, "icc_profile": profile}),
        (photo, "JPEG", {"restart_marker_blocks": 4, "comment": b"hello"}),
        *((photo.convert(m), "PNG", {}) for m in ("RGB", "L", "P", "1", "LA")),
        (photo, "PNG", {"exif": exif, "icc_profile": profile}),
        (photo.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (deep, "PNG", {}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
        (photo, "WEBP", {"quality": 80, "exif": exif}),
        (alpha, "WEBP", {"lossless": True}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:]}),
        *((photo.convert(m), "BMP", {}) for m in ("RGB", "L", "P", "1")),
        (photo.convert("P"), "GIF", {"transparency": 3}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        *((photo, "TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        (photo.convert("1"), "TIFF", {"compression": "group4"}),
        (photo.convert("CMYK"), "TIFF", {"exif": exif}),
        (deep, "TIFF", {}),
        (floats, "TIFF", {}),
        (frames[0], "TIFF", {"save_all": True, "append_images": frames[1:]}),
    ]
    files = []
    for image, kind, options in made:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
        assert load(files[-1]).shape[:2] in {(48, 64), (64, 48)}
    return tuple(files)


# --- what is done to them

EDGES = (0, 1, 2, 127, 128, 255, 2**14, 2**15 - 1, 2**15, 40_000, 2**16 - 1, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
Numbers = np.random.Generator


def flips(data: bytes, rng: Numbers) -> bytes:
    """Some bytes replaced, in the header, near it or anywhere."""
    changed = bytearray(data)
    reach = min(len(data), int(rng.choice([32, 64, 400, len(data)])))
    for where in rng.integers(0, reach, size=rng.integers(1, 17)):
        changed[where] = rng.integers(0, 256)
    return bytes(changed)


def truncation(data: bytes, rng: Numbers) -> bytes:
    """The end cut off, or a piece out of the middle."""
    start, end = sorted(rng.integers(0, len(data), size=2).tolist())
    return data[:end] if rng.random() < 0.6 else data[:start] + data[end:]


def lie(data: bytes, rng: Numbers) -> bytes:
    """A number of two or four bytes replaced by one at the edge of what it can say."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        width = int(rng.choice([2, 4]))
        where = int(rng.integers(0, min(len(data), int(rng.choice([40, 200, len(data)]))) - width))
        value = int(rng.choice(EDGES)) % 256**width
        changed[where : where + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")
    return bytes(changed)


def chunk_lie(data: bytes, rng: Numbers) -> bytes:
    """A PNG chunk whose content is changed and its checksum right, or its length wrong; a lie for other formats.

    Of a TIFF an entry of the directory, of a JPEG the length of a segment or the picture's size.
    """
    changed = bytearray(data)
    if data[:4] == b"\x89PNG":
        starts, at = [], 8
        while at + 12 <= len(data):
            starts.append(at)
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        at = int(rng.choice(starts or [8]))
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 0 or rng.random() < 0.2:
            changed[at : at + 4] = int(rng.choice(EDGES)).to_bytes(4, "big")
            return bytes(changed)
        body = data[at + 4 : at + 8] + flips(data[at + 8 : at + 8 + length], rng)
        return (
            data[:at]
            + struct.pack(">I", length)
            + body
            + struct.pack(">I", zlib.crc32(body))
            + data[at + 12 + length :]
        )
    if data[:2] == b"II":
        directory = int.from_bytes(data[4:8], "little")
        count = int.from_bytes(data[directory : directory + 2], "little")
        entry = directory + 2 + 12 * int(rng.integers(0, count + 1))
        where = min(entry + int(rng.choice([0, 2, 4, 8])), len(data) - 2)
        changed[where : where + 2] = int(rng.choice([*EDGES, *range(254, 330)]) % 65_536).to_bytes(2, "little")
        return bytes(changed)
    if data[:2] == b"\xff\xd8":
        marks = [m.start() for m in re.finditer(rb"\xff[\xc0-\xcf\xda-\xef]", data[:2000])]
        where = int(rng.choice(marks or [2])) + int(rng.choice([2, 5, 7]))
        changed[where : where + 2] = int(rng.choice(EDGES) % 65_536).to_bytes(2, "big")
        return bytes(changed)
    return lie(data, rng)


def splice(data: bytes, rng: Numbers) -> bytes:
    """The head of one file with the tail of another, of its own format or of any, or one within the other."""
    other = seeds()[rng.integers(len(seeds()))]
    cut, start = int(rng.integers(4, len(data))), int(rng.integers(0, len(other)))
    return data[:cut] + other[start:] + (data[cut:] if rng.random() < 0.5 else b"")


MUTATIONS: tuple[Callable[[bytes, Numbers], bytes], ...] = (flips, truncation, lie, chunk_lie, splice)


def hostile(count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged files, each from one to three mutations of a whole one; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = seeds()[number % len(seeds())]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            data = MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
            if len(data) < 40:
                break
        yield data


# --- what must hold


@contextmanager
def guarded() -> Iterator[None]:
    """Ends the process with every thread's stack where the block takes more than :data:`SECONDS`."""
    faulthandler.register(signal.SIGPROF, file=sys.__stderr__, chain=True)  # the signal's own way is to end it
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.unregister(signal.SIGPROF)


def memory() -> float:
    """Megabytes that this process holds, all that is free given back."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def attempt(work: Callable[[], np.ndarray | None]) -> bool:
    """Whether ``work`` gave an image; if not, its error is an ImageError of one line that gives nothing away."""
    try:
        with guarded():
            image = work()
    except ImageError as error:
        line = str(error)
        assert "\n" not in line
        assert 10 < len(line) < 400
        assert " object at 0x" not in line
        return False
    if image is not None:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert 0 < image.shape[0] * image.shape[1] <= LIMITS.pixels
    return True


def run(count: int, seed: int, work: Callable[[bytes], np.ndarray | None]) -> tuple[int, int]:
    """Try so many files: how many of them were read, and how many in all; both happen, and memory comes back."""
    for data in hostile(5, seed + 1):  # warm up
        attempt(lambda data=data: work(data))
    before, read, slowest = memory(), 0, 0.0
    for data in hostile(count, seed):
        start = time.process_time()
        read += attempt(lambda data=data: work(data))
        slowest = max(slowest, time.process_time() - start)
    assert memory() - before < MEGABYTES
    assert slowest < SECONDS
    assert 0 < read < count
    return read, count


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured in /proc")


@needs_proc
@pytest.mark.parametrize("count", [350, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_gate_gives_an_array_or_one_line(count, tally):
    read, tried = run(count, count, load)
    tally("damaged images tried", tried)
    tally("of these, still readable", read)


@needs_proc
@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_extraction_gives_maps_or_one_line(count, tiny_checkpoint, tally):
    def work(data: bytes) -> np.ndarray:
        maps = vtviz.extract_tokens(data, "tiny", size=64)
        assert np.isfinite(maps.logits).all()
        assert all(np.isfinite(layer.coefficients).all() for layer in maps.layers)
        return maps.image

    read, tried = run(count, 3 * count, work)
    tally("damaged images tried", tried)
    tally("of these, still readable", read)


@needs_proc
@pytest.mark.parametrize("count", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_the_command_line_gives_files_or_one_line(count, tiny_checkpoint, tmp_path, capfd, tally):
    """In this process, so that a leak or a crash shows here; the exit code is 0 or 2, and nothing is left half done."""
    path, out = tmp_path / "photo.jpg", tmp_path / "out"

    def work(data: bytes) -> None:
        path.write_bytes(data)
        command = ["extract", str(path), "--out", str(out), "--model", "tiny", "--size", "64", "--no-pictures"]
        with pytest.raises(SystemExit) as stop:
            main(command)
        said = capfd.readouterr()  # of decoders in C, too
        if stop.value.code:
            assert stop.value.code == 2
            lines = said.err.strip().splitlines()
            assert len(lines) == 1
            assert lines[0].startswith("error: ")
            raise ImageError(lines[0])
        assert said.err == ""
        assert (out / "photo" / "manifest.json").is_file()

    read, tried = run(count, 7 * count, work)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    tally("damaged images tried", tried)
    tally("of these, still readable", read)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"BM", b"GIF89a", b"II*\0", b"MM\0*", b""]
    ),
    st.binary(max_size=400),
)
@example(b"II+\0", b"\x08\0\0\0" + b"\xff" * 40)  # BigTIFF
def test_any_bytes_after_a_magic_number_give_an_array_or_one_line(magic, rest):
    attempt(lambda: load(magic + rest))


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_hypothesis_finds_no_file_that_breaks_the_gate(data):
    """As above, but with what Hypothesis chooses to change in whole files, which it can make small again."""
    file = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(1, 5))):
        where = data.draw(st.integers(0, len(file) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        file[where : where + len(piece)] = piece
    attempt(lambda: load(bytes(file)))


# --- bombs: small files of many pixels, tags or frames


def gif(canvas: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    picture = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6) + picture * frames + b";"


def tiff(tags: dict[int, tuple[int, int, int]], entries: int | None = None) -> bytes:
    """A little-endian TIFF: tag -> kind, count, value; the number of entries may be a lie."""
    packed = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) if entries is None else entries) + packed + bytes(64)


SQUARE = {256: (4, 1, 9), 257: (4, 1, 9), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 278: (4, 1, 9)}
TEXT = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000), 9))
PROFILE = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60_000_000), 9))
BOMBS = {
    "png of 169 megapixels": png(13_000, 13_000, 1, 0, bytes(13_000 * 1626)),
    "png of text": png(8, 8, 1, 0, bytes(16), TEXT),
    "png of a profile": png(8, 8, 1, 0, bytes(16), PROFILE),
    "png whose pixels go on": png(8, 8, 1, 0, bytes(60_000_000)),
    "png of 100,000 chunks": png(8, 8, 1, 0, bytes(16), *[png_chunk(b"tEXt", b"a\0b")] * 100_000),
    "gif canvas": gif((65_535, 65_535), (1, 1)),
    "gif frame": gif((8, 8), (65_535, 65_535)),
    "gif of 50,000 frames": gif((8, 8), (8, 8), 50_000),
    "tiff of 4 gigapixels": tiff(SQUARE | {256: (4, 1, 65_535), 257: (4, 1, 65_535), 273: (4, 1, 8), 279: (4, 1, 9)}),
    "tiff of 65,535 entries": tiff(SQUARE | {273: (4, 1, 8), 279: (4, 1, 9)}, entries=65_535),
    "tiff of a billion strips": tiff(SQUARE | {273: (4, 10**9, 8), 279: (4, 10**9, 8)}),
    "tiff of a billion bits": tiff(SQUARE | {258: (3, 10**9, 8), 273: (4, 1, 8), 279: (4, 1, 9)}),
    "tiff of 65,535 samples": tiff(SQUARE | {277: (3, 1, 65_535), 273: (4, 1, 8), 279: (4, 1, 9)}),
    "tiff in a circle": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "ico of 169 megapixels": struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 1, 22_000, 22)
    + png(13_000, 13_000, 1, 0, bytes(13_000 * 1626)),
    "jpeg of 4 gigapixels": b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xd9",
    "jpeg of empty segments": b"\xff\xd8" + b"\xff\xe0\0\x02" * 100_000 + b"\xff\xd9",
    "webp of 268 megapixels": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0\xff\x3f\0" + bytes(8),
    "bmp upside down": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 16_000, -16_000, 1, 1, *[0] * 6),
}


@needs_proc
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_neither_time_nor_memory(name, tally):
    """Its size is read in its header; what it would unpack to is never all there at once."""
    data = BOMBS[name]
    assert len(data) < 1_600_000
    before, start = memory(), time.process_time()
    with suppress(PermissionError):  # then the peak is that of the whole process, which may be more
        Path("/proc/self/clear_refs").write_text("5")
    attempt(lambda: load(data))
    assert time.process_time() - start < 10
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    assert peak - before < 100
    tally("bombs tried")


def test_what_is_no_picture_under_a_picture_s_name_is_refused(tmp_path, tiny_checkpoint, capsys):
    """Through the command line, whose message is the gate's; no interpreter for any of these is ever started."""
    others = {
        "drawing.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "vector.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "paper.jpeg": b"%PDF-1.7\n1 0 obj<</OpenAction 1>>endobj",
        "layers.webp": b"8BPS\0\1" + bytes(40),
        "icon.png": BOMBS["ico of 169 megapixels"],
    }
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SystemExit) as stop:
            main(["extract", str(tmp_path / name), "--out", str(tmp_path / "out"), "--model", "tiny"])
        assert stop.value.code == 2
        assert f"{name}' is not a JPEG, PNG, WebP, BMP, GIF or TIFF image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
