"""Moving pictures, from a video file or a folder of frames: one frame at a time, each through the gate for images.

OpenCV gets an open file and never a name, so that none is taken for an address, a device or a pattern of other files.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from vtviz import images
from vtviz.errors import ImageError
from vtviz.suffixes import IMAGE_SUFFIXES

# FFmpeg prints what it finds damaged, frame by frame. OpenCV reads this once, when it opens the process's first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
_QUIET = threading.Lock()

MAGIC = re.compile(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL)
"""First bytes of MP4 and MOV, of WebM and MKV, and of AVI."""
TICK = 25
"""Frames of a video from one look at whether to stop to the next."""


@dataclass(frozen=True)
class FootageLimits:
    """The largest video that is let in; each frame has the limits of an image besides.

    Attributes:
        bytes: size of a video file.
        frames: of which any are looked at, counted from the first.
        seconds: that the opening, and each frame, may take.
    """

    bytes: int = 4_000_000_000
    frames: int = 100_000
    seconds: int = 20


LIMITS = FootageLimits()


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture.

    Attributes:
        number: its place in the footage, from 0.
        name: of its file; of a video empty.
        image: (H, W, 3) uint8 RGB.
    """

    number: int
    name: str
    image: np.ndarray


@dataclass(frozen=True)
class Footage:
    """A video file or a folder of frames.

    Attributes:
        path: of either.
        files: frames of a folder in their order; None for a video.
        fps: frames a second as a video states them; None where it states none that can be.
        count: how many frames there are, as a video states it; None where it does not.
        limits: what is refused.
    """

    path: Path
    files: tuple[Path, ...] | None
    fps: float | None
    count: int | None
    limits: FootageLimits = LIMITS

    def frames(self, every: int = 1, tick: Callable[[], None] = lambda: None) -> Iterator[Frame]:
        """The frames, or every n-th one from the first on.

        Args:
            every: n.
            tick: called now and then, also while frames of a video are passed over; it may raise to stop.

        Raises:
            ImageError: for a frame that cannot be read, naming it; and where a video has none.
        """
        if self.files is not None:
            for number in range(0, min(len(self.files), self.limits.frames), every):
                path = self.files[number]
                yield Frame(number, path.name, images.load(path))
            return
        with _opened(self.path, self.limits) as (_, read):
            for number in range(self.limits.frames):
                if number and number % TICK == 0:
                    tick()
                found, picture = read(number % every == 0)
                if not found:
                    if number == 0:
                        raise ImageError(f"{self.path}: a video without a frame that can be decoded")
                    return
                if picture is not None:
                    yield Frame(number, "", images.load(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)))


def open_footage(path: str | os.PathLike[str], limits: FootageLimits = LIMITS) -> Footage:
    """Look at a video file (MP4, MOV, WebM, MKV, AVI) or a folder of frames, without decoding any.

    Args:
        path: of either. Of a folder the images right in it are taken, in the order of their names, numbers in them
            counted: 2 before 10.
        limits: what is refused.

    Raises:
        ImageError: for what is neither, in one line.
    """
    if not os.fspath(path):
        raise ImageError("'' is not a path: name a video file or a folder of frames")
    if "://" in os.fspath(path):
        raise ImageError(f"{os.fspath(path)!r} is a URL; only local files are read: download it and pass its path")
    try:
        path = Path(path).expanduser()
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have; a ~user that there is not
        raise ImageError(f"{str(path)[:100]!r} is not a path: {getattr(error, 'strerror', None) or error}") from None
    if is_folder:
        files = tuple(
            sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), key=_natural)
        )
        if not files:
            raise ImageError(f"{path}: no images in this folder")
        return Footage(path, files, None, len(files), limits)
    with _opened(path, limits) as (video, _):
        fps, count = (float(video.get(key)) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    return Footage(
        path,
        None,
        fps if math.isfinite(fps) and 0 < fps <= 240 else None,
        int(count) if math.isfinite(count) and count > 0 else None,
        limits,
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(n), "") if n else (-1, text) for n, text in re.findall(r"(\d{1,18})|(\D+)", path.name.lower())]


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV warns in its log of files that it cannot open. The log's level is the whole process's."""
    log = cv2.utils.logging
    with _QUIET:  # two at once would put the wrong level back
        level = log.setLogLevel(log.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            log.setLogLevel(level)


class _Source(io.BufferedIOBase):
    """A file for OpenCV, which dies of an exception: a damaged video has it seek to before the start, for one.

    Attributes:
        error: of the disk, where it failed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; none where the disk fails."""
        try:
            return self._file.read(-1 if size is None else size)
        except (OSError, ValueError) as error:  # the latter of a file that is closed
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """The new position, or -1 where there is no such."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


Read = Callable[[bool], tuple[bool, np.ndarray | None]]
"""Goes to the next frame: whether it is wanted -> whether there is one, and if so its pixels, BGR."""


@contextmanager
def _opened(path: Path, limits: FootageLimits) -> Iterator[tuple[cv2.VideoCapture, Read]]:
    if not path.is_file():
        raise ImageError(f"{path}: no such video file or folder of frames")
    try:
        # OpenCV works in a thread of its own: in the main one Ctrl-C could be an exception within _Source
        with path.open("rb") as file, ThreadPoolExecutor(1) as aside:
            _check_file(path, file, limits)
            wait = limits.seconds * 1000
            options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait]
            source: Any = _Source(file)
            with _quiet_opencv():
                video = aside.submit(cv2.VideoCapture, source, cv2.CAP_FFMPEG, options).result()

            def step(wanted: bool) -> tuple[bool, np.ndarray | None]:
                found = video.grab()
                return found, video.retrieve()[1] if found and wanted else None

            def read(wanted: bool) -> tuple[bool, np.ndarray | None]:
                done = aside.submit(step, wanted).result()
                if source.error:
                    raise source.error
                return done

            try:
                _check_video(path, video)
                yield video, read
            finally:
                aside.shutdown()  # a frame may be on its way
                video.release()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_file(path: Path, file: IO[bytes], limits: FootageLimits) -> None:
    start, size = file.read(12), os.fstat(file.fileno()).st_size
    file.seek(0)
    if not MAGIC.match(start):
        what = f"it starts with {start[:8]!r}" if start else "it is empty"
        raise ImageError(f"{path}: not an MP4, MOV, WebM, MKV or AVI video, nor a folder of frames: {what}")
    if size > limits.bytes:
        raise ImageError(f"{path}: more than the {limits.bytes / 1e9:g} GB that a video may have; cut it")


def _check_video(path: Path, video: cv2.VideoCapture) -> None:
    if not video.isOpened():
        raise ImageError(f"{path}: damaged, or of a codec that this OpenCV does not know")
    width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    most = images.LIMITS
    if width * height > most.pixels or max(width, height) > most.side:
        raise ImageError(
            f"{path}: frames of {width} x {height} pixels; at most {most.pixels / 1e6:g} megapixels are read: shrink it"
        )
