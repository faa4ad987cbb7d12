"""Image files, also those that no library would write."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vtviz.errors import ImageError
from vtviz.images import load

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
