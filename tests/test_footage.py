import errno
import io
import os
import subprocess
import sys
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vtviz import footage as footage_module
from vtviz import images
from vtviz.errors import ImageError
from vtviz.footage import LIMITS, open_footage
from vtviz.images import ImageLimits, hushed

ROOT = Path(footage_module.__file__).parent.parent
CODECS = {"avi": "MJPG", "mp4": "mp4v", "webm": "VP80", "mkv": "MJPG", "mov": "mp4v"}


@pytest.fixture(scope="module")
def make_video(tmp_path_factory, coffee):
    """Builds a video of 9 frames of 120 x 80 pixels, each of one brightness and the last ones brightest."""

    def build(suffix: str, count: int = 9, fps: float = 12.5):
        path = tmp_path_factory.mktemp("video") / f"clip.{suffix}"
        with hushed():
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODECS[suffix]), fps, (120, 80))
        for i in range(count):
            writer.write(np.full((80, 120, 3), (20 + 20 * i, 60, 120), np.uint8))
        writer.release()
        return path

    return build


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_gives_its_frames_one_by_one(make_video, suffix):
    footage = open_footage(make_video(suffix))
    assert (footage.count, footage.files) == (9, None)
    assert footage.fps == pytest.approx(12.5, rel=0.01)
    frames = list(footage.frames())
    assert [frame.number for frame in frames] == list(range(9))
    for i, frame in enumerate(frames):
        assert frame.image.shape == (80, 120, 3)
        assert frame.image.dtype == np.uint8
        np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), (120, 60, 20 + 20 * i), atol=6)  # RGB
    assert [frame.number for frame in footage.frames(every=4)] == [0, 4, 8]
    assert np.array_equal(next(footage.frames()).image, frames[0].image)  # from the start again


def test_work_may_stop_while_frames_are_passed_over(make_video, monkeypatch):
    monkeypatch.setattr(footage_module, "TICK", 2)
    ticks = []

    def stop() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 3:
            raise KeyboardInterrupt

    frames = open_footage(make_video(next(iter(CODECS)))).frames(every=10**6, tick=stop)
    assert next(frames).number == 0
    with pytest.raises(KeyboardInterrupt):
        next(frames)  # the video has nine, and none that is wanted
    assert ticks == [0, 1, 2]


def test_a_folder_gives_its_images_in_natural_order(tmp_path, chelsea, coffee):
    for name in ("frame10.png", "frame2.png", "Frame1.jpg", "b.png"):
        Image.fromarray(chelsea[:40, :60] if name != "b.png" else coffee[:30, :30]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    footage = open_footage(str(tmp_path))
    assert (footage.count, footage.fps) == (4, None)
    frames = list(footage.frames())
    assert [f.name for f in frames] == ["b.png", "Frame1.jpg", "frame2.png", "frame10.png"]
    assert [f.image.shape[:2] for f in frames] == [(30, 30), (40, 60), (40, 60), (40, 60)]
    assert [(f.number, f.name) for f in footage.frames(3)] == [(0, "b.png"), (3, "frame10.png")]


def test_a_broken_frame_is_named(tmp_path, chelsea):
    Image.fromarray(chelsea[:40, :60]).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    frames = open_footage(tmp_path).frames()
    next(frames)
    with pytest.raises(ImageError, match=r"2\.png' is damaged"):
        next(frames)


def webm(make_video) -> bytes:
    return make_video("webm").read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("clip.webm", lambda data: b"", "nor a folder of frames: it is empty"),
        ("clip.webm", lambda data: b"no video at all", "not an MP4, MOV, WebM, MKV or AVI video"),
        ("clip.webm", lambda data: data[:60], "damaged, or of a codec"),
        ("clip.webm", lambda data: data[:4] + b"garbage" * 100, "damaged, or of a codec"),
        ("list.m3u8", lambda data: b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "not an MP4"),
        ("list.ffconcat", lambda data: b"ffconcat version 1.0\nfile /etc/hostname\n", "not an MP4"),
    ],
)
def test_what_is_no_video_is_one_line_and_silent(make_video, tmp_path, capfd, name, change, reason):
    path = tmp_path / name
    path.write_bytes(change(webm(make_video)))
    with pytest.raises(ImageError, match=reason) as raised:
        open_footage(path)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_cut_short_gives_what_there_is(make_video, tmp_path):
    path = tmp_path / "cut.webm"
    data = webm(make_video)
    path.write_bytes(data[: len(data) * 2 // 3])
    assert 1 <= len(list(open_footage(path).frames())) < 9


def test_damaged_videos_say_nothing_and_others_may_speak_meanwhile(make_video, tmp_path, capfd):
    """What other threads write to stderr while frames are read is not lost."""
    random, ended = np.random.default_rng(0), threading.Event()
    written = 0

    def speak():
        nonlocal written
        while not ended.is_set():
            written += os.write(2, b".")

    videos = {path.name: path.read_bytes() for path in map(make_video, CODECS)}
    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        for name, data in videos.items():
            for count in (1, 20, 200):
                damaged = np.frombuffer(data, np.uint8).copy()
                damaged[random.integers(12, len(data), count)] = random.integers(256, size=count)
                (tmp_path / name).write_bytes(damaged.tobytes())
                with suppress(ImageError):
                    list(open_footage(tmp_path / name).frames())
    finally:
        ended.set()
        speaker.join()
    assert capfd.readouterr() == ("", "." * written)


def test_a_damaged_video_does_not_end_the_process(make_video, tmp_path):
    """A byte of an AVI's index makes FFmpeg seek to before the file's start, and OpenCV died of the error."""
    path = make_video("avi")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"idx1") + 7] |= 0x80
    path.write_bytes(data)
    code = f"from vtviz.footage import open_footage; print(len(list(open_footage({str(path)!r}).frames())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "9\n", "")


class _Failing(io.BufferedReader):
    """A file on a disk that fails a few kilobytes in."""

    def read(self, size=-1, /):
        if self.tell() > 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


def test_a_disk_that_fails_while_a_video_is_read_is_one_line(make_video, monkeypatch):
    path = make_video("avi", count=60)
    footage = open_footage(path)
    monkeypatch.setattr(Path, "open", lambda path, mode: _Failing(io.FileIO(path)))
    with pytest.raises(ImageError, match=r"clip\.avi: cannot be read: Input/output error"):
        list(footage.frames())


def test_control_c_ends_the_reading_of_a_video(make_video, tmp_path):
    """Also while OpenCV reads from the file, which Python's signal would interrupt."""
    path = make_video("avi", count=400)
    code = f"""
import os, signal, threading
from vtviz import footage
read = footage._Source.read
def interrupted(source, size=-1, /):
    os.kill(os.getpid(), signal.SIGINT)
    return read(source, size)
frames = footage.open_footage({str(path)!r}).frames()
next(frames)
footage._Source.read = interrupted
try:
    list(frames)
except KeyboardInterrupt:
    print("stopped", threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped 1\n", "")


def test_names_are_nothing_but_names(make_video, tmp_path, monkeypatch):
    """Neither patterns of images nor addresses: OpenCV never sees them."""
    for name in ("clip%03d.png", "0", "file:clip.webm", "concat:a|b", "caf\udce9.webm"):
        path = tmp_path / name
        path.write_bytes(webm(make_video))
        assert len(list(open_footage(path).frames())) == 9
    with pytest.raises(ImageError, match=r"'http://localhost/clip\.webm' is a URL; only local files are read"):
        open_footage("http://localhost/clip.webm")
    with pytest.raises(ImageError, match="no such video file"):
        open_footage(tmp_path / "nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ImageError, match="no such video file"):
        open_footage(tmp_path / "pipe.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in this folder"):
        open_footage(tmp_path / "empty")


def test_a_rate_that_cannot_be_is_none(make_video):
    assert open_footage(make_video("avi", count=2, fps=240)).fps == 240
    assert open_footage(make_video("avi", count=2, fps=1000)).fps is None


def test_a_folder_s_length_is_bounded_as_a_video_s(tmp_path, chelsea):
    for number in range(5):
        Image.fromarray(chelsea[:40, :60]).save(tmp_path / f"{number}.png")
    assert [frame.number for frame in open_footage(tmp_path, replace(LIMITS, frames=3)).frames(2)] == [0, 2]


def test_size_and_length_are_bounded(make_video, monkeypatch):
    path = make_video("avi")
    with pytest.raises(ImageError, match="more than the 1e-06 GB"):
        open_footage(path, replace(LIMITS, bytes=1000))
    footage = open_footage(path, replace(LIMITS, frames=4))
    assert [f.number for f in footage.frames(3)] == [0, 3]
    monkeypatch.setattr(images, "LIMITS", replace(images.LIMITS, pixels=9000))
    with pytest.raises(ImageError, match=r"frames of 120 x 80 pixels; at most 0\.009 megapixels"):
        open_footage(path)
    for side, refused in ((120, False), (119, True)):
        monkeypatch.setattr(images, "LIMITS", ImageLimits(side=side))
        with pytest.raises(ImageError, match="frames of 120 x 80 pixels") if refused else nullcontext():
            open_footage(path)


def test_stderr_is_put_back_whatever_happens(capfd):
    with hushed():
        os.write(2, b"not seen")
    with pytest.raises(ValueError, match="boom"), hushed():
        raise ValueError("boom")

    def work():
        for _ in range(50):
            with hushed():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_an_open_file_is_all_that_opencv_needs(make_video):
    """What the module rests on: VideoCapture reads from a Python file."""
    capture = cv2.VideoCapture(io.BytesIO(webm(make_video)), cv2.CAP_FFMPEG, [])
    assert capture.isOpened()
    assert capture.read()[0]
