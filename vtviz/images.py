"""The one gate for images: anything that is a picture goes in, (H, W, 3) uint8 RGB comes out, or one line says why not.

Nothing is decoded before its header has passed the limits, only six decoders can ever run, and no metadata gets past
this gate.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from vtviz.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor
"""What :func:`load` reads."""


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is let in.

    Attributes:
        pixels: height x width, as the header states it.
        bytes: size of the encoded file.
        side: height and width, each.
    """

    pixels: int = 40_000_000
    bytes: int = 20_000_000
    side: int = 16_384


LIMITS = ImageLimits()

MAGIC: dict[str, re.Pattern[bytes]] = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II[*+]\x00|MM\x00[*+]"),
}
"""Pillow's name of each format that is read -> the first bytes of its files. A file's name says nothing."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)


def load(
    source: ImageSource, *, limits: ImageLimits = LIMITS, background: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """Read one image.

    Args:
        source: one of

            * a path of, or the bytes of, a JPEG, PNG, WebP, BMP, GIF or TIFF file. EXIF orientation is applied, an
              animation gives its first frame, 16-bit values are scaled to 8 bits, and so are TIFF's floats in [0, 1];
            * a PIL image of any mode, its EXIF orientation applied ("I" is read as 16 bit, Pillow's convention);
            * an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, uint8 (0-255), uint16 (0-65535) or
              floats in [0, 1];
            * a tensor (1 | 3 | 4, H, W) of the same dtypes, on any device.
        limits: what is refused, before anything is decoded.
        background: RGB, 0-255, that shows through transparent pixels.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, never sharing memory with ``source``.

    Raises:
        ImageError: for anything else: in one line, what was given and what to do.
    """
    if isinstance(source, torch.Tensor):
        return _from_array(_to_channels_last(source), "the tensor", limits, background)
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array", limits, background)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image", limits, background)
    if isinstance(source, bytes):
        return _from_bytes(source, "the image", limits, background)
    if isinstance(source, str | os.PathLike):
        name = _shorten(repr(os.fsdecode(source)))
        return _from_bytes(_read_file(os.fsdecode(source), name, limits), name, limits, background)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}; pass a path, bytes, a PIL image, an array or a tensor"
    )


def _read_file(path: str, name: str, limits: ImageLimits) -> bytes:
    if _URL.match(path):
        raise ImageError(f"{name} is a URL; only local files are read: download it and pass its path")
    try:
        status = os.stat(path)  # noqa: PTH116 - Path("") would be the current folder
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder; pass an image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is not a regular file")
        _check_bytes(status.st_size, name, limits)
        with Path(path).open("rb") as file:
            return file.read(limits.bytes + 1)  # it may have grown since
    except FileNotFoundError:
        raise ImageError(f"no such image file: {name}") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path, for one
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is not a path: {error}") from None


def _from_bytes(data: bytes, name: str, limits: ImageLimits, background: tuple[int, int, int]) -> np.ndarray:
    _check_bytes(len(data), name, limits)
    kind = next((kind for kind, magic in MAGIC.items() if magic.match(data)), None)
    if kind is None:
        what = f"it starts with {data[:8]!r}" if data else "it is empty"
        raise ImageError(f"{name} is not a JPEG, PNG, WebP, BMP, GIF or TIFF image: {what}")
    try:
        silence = hushed() if kind == "TIFF" else nullcontext()  # libtiff prints what it finds odd
        with _quiet_pillow, silence, Image.open(io.BytesIO(data), formats=[kind]) as image:
            if kind == "TIFF":
                _check_tiles(image, name, limits)
            return _from_pil(image, name, limits, background)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels: {_shorten(str(error))}") from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes the decoders raise nearly anything
        raise ImageError(f"{name} is damaged: its {kind} header cannot be read ({_reason(error)})") from None


def _from_pil(image: Image.Image, name: str, limits: ImageLimits, background: tuple[int, int, int]) -> np.ndarray:
    _check_size(image.height, image.width, name, limits)
    try:
        with _quiet_pillow:
            image.load()
            image = _upright(image)
            if image.mode.startswith(("I", "F")):
                return _from_array(_deep_pixels(image, name), name, limits, background)
            if image.has_transparency_data:
                return _composite(image.convert("RGBA"), background)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # which would copy it
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise ImageError(f"{name} is damaged or truncated: its pixels cannot be decoded ({_reason(error)})") from None


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Pillow's exif_transpose also rewrites the EXIF block, and fails on odd ones."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - a damaged EXIF block says nothing, and the pixels are still good
        return image
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def _deep_pixels(image: Image.Image, name: str) -> np.ndarray:
    """(H, W) uint16 or float32 pixels of the grey modes with more than 8 bits."""
    values = np.asarray(image)
    if image.mode == "I":  # 32 bits wide, but 16-bit pictures are what Pillow uses it for
        _check_range(values, 0, 65_535, name)
        return values.astype(np.uint16)
    return values


def _composite(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return np.array(canvas)


def _to_channels_last(tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(
            f"a tensor must be one image, (3, H, W) with channels first (or 1 or 4 channels), got {tuple(tensor.shape)}"
        )
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).permute(1, 2, 0).numpy()
    except (RuntimeError, TypeError) as error:  # meta, sparse, quantized tensors
        raise ImageError(f"a tensor of {tensor.dtype} on {tensor.device} has no pixels: {_reason(error)}") from None


def _from_array(array: np.ndarray, name: str, limits: ImageLimits, background: tuple[int, int, int]) -> np.ndarray:
    array = np.asarray(array)  # neither a mask nor a matrix
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"an array must be (H, W), (H, W, 3) or (H, W, 4) with channels last, got {array.shape}")
    _check_size(array.shape[0], array.shape[1], name, limits)
    pixels = _to_uint8(array, name)
    if array.shape[2] == 4:
        return _composite(Image.fromarray(pixels), background)
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Scale to 0-255, refusing values outside the dtype's range of brightness."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size == 1:
        return np.asarray(array)
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and size == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if kind == "f":
        _check_range(array, 0, 1, name)
        return (array * 255 + 0.5).astype(np.uint8)
    raise ImageError(f"{name} of {array.dtype} is no image; convert it to uint8 (0-255), uint16 or floats in [0, 1]")


def _check_range(array: np.ndarray, low: int, high: int, name: str) -> None:
    inside = (array >= low) & (array <= high)  # NaN is inside of nothing
    if not inside.all():
        where = np.unravel_index(int(np.argmin(inside)), array.shape)
        raise ImageError(
            f"{name} of {array.dtype} must have values from {low} to {high}, "
            f"got {array[where]:.6g} at row {where[0]}, column {where[1]}"
        )


def _check_bytes(size: int, name: str, limits: ImageLimits) -> None:
    if size > limits.bytes:
        raise ImageError(f"{name} has more than the {limits.bytes / 1e6:g} MB that an image file may have; shrink it")


def _check_size(height: int, width: int, name: str, limits: ImageLimits) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if max(height, width) > limits.side:
        raise ImageError(f"{name} is {width} x {height} pixels; at most {limits.side} a side are read: shrink it")
    if height * width > limits.pixels:
        raise ImageError(
            f"{name} is {width} x {height} = {height * width / 1e6:.1f} megapixels; "
            f"at most {limits.pixels / 1e6:g} are read: shrink it"
        )


def _check_tiles(image: Any, name: str, limits: ImageLimits) -> None:
    """A TIFF's tiles are decoded whole, however small the picture that they cover."""
    width, height = (image.tag_v2.get(tag, 1) for tag in (322, 323))
    _check_size(height, width, f"a tile of {name}", limits)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names a Python object
        return "it makes no sense"
    return _shorten(" ".join(str(error).split()) or type(error).__name__)


def _shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


class _QuietPillow:
    """Keeps Pillow's warnings about odd files from the user, in any number of threads at once.

    ``warnings.catch_warnings`` alone puts the wrong filters back when two threads overlap, so the first thread in
    opens it and the last one out closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._caught.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()

_HUSHING = threading.RLock()


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing on stderr: libtiff and OpenCV's video writer write there past Python, also where all is well.

    What other threads write there meanwhile is lost, and a process that is started keeps it so: for moments only.
    """
    with _HUSHING:  # two at once would put the wrong one back
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr
            kept = None
        if kept is None:
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
