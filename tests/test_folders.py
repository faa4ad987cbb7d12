"""Whole folders through the command line: the same results as one by one, in order, with memory that stays flat."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vtviz
from vtviz.errors import ConfigError, ImageError
from vtviz.predictor import Photo, load_model
from vtviz.tokens import TokenMaps

ROOT = Path(vtviz.__file__).parent.parent


def fill(folder: Path, photos: list[np.ndarray], n: int) -> list[Path]:
    """``n`` photos, each of them turned or cut in its own way, under names whose order is that of their numbers."""
    folder.mkdir()
    paths = [folder / f"{i:04d}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        photo = photos[i % len(photos)]
        Image.fromarray(np.rot90(photo[: 200 + i % 50], i % 4)).resize((120 + i % 7, 96 + i % 5)).save(path)
    return paths


def vtviz_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vtviz", *map(str, arguments)]


def test_a_folder_gives_the_arrays_of_one_by_one(tiny_checkpoint, tmp_path, chelsea, coffee, astronaut):
    paths = fill(tmp_path / "in", [chelsea, coffee, astronaut], 12)
    (tmp_path / "in" / "0005.jpg").write_bytes(b"no photo")
    command = vtviz_command("extract", tmp_path / "in", "--out", tmp_path / "out", "--model", "tiny", "--device", "cpu")
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of other parts differ in the last bit
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=alike)
    assert done.returncode == 2
    assert [line.split(" -> ")[0] for line in done.stdout.splitlines()] == [str(p) for p in paths if p != paths[5]]
    assert done.stderr.count("\n") == 1
    assert "0005.jpg" in done.stderr
    predictor = load_model("tiny", "cpu")
    for path in paths:
        if path == paths[5]:
            assert not (tmp_path / "out" / path.stem).exists()
            continue
        got, expected = TokenMaps.load(tmp_path / "out" / path.stem), predictor.extract(path)
        assert np.array_equal(got.logits, expected.logits)
        assert got.source == str(path)
        for one, other in zip(got.layers, expected.layers, strict=True):
            assert np.array_equal(one.coefficients, other.coefficients)
            assert np.array_equal(one.tokens_out, other.tokens_out)
        assert len(list((tmp_path / "out" / path.stem / "overlays").iterdir())) == 24


def test_a_stream_gives_photos_and_errors_in_order_for_every_method(tiny_checkpoint, tmp_path, chelsea):
    predictor = load_model("tiny", "cpu")
    sources = [chelsea, tmp_path / "missing.png", chelsea[:, ::-1], b"", chelsea[::-1]]
    opened = list(predictor.stream(sources, size=64))
    assert [isinstance(photo, ImageError) for photo in opened] == [False, True, False, True, False]
    for source, photo in zip(sources, opened, strict=True):
        if isinstance(photo, Photo):
            assert photo.input.shape == (3, *photo.geometry.input)
            assert np.array_equal(predictor.extract(photo).logits, predictor.extract(source, size=64).logits)
            assert predictor.predict(photo) == predictor.predict(source, size=64)
    photos = [photo for photo in opened if isinstance(photo, Photo)]
    assert len(predictor.extract(photos)) == 3
    with pytest.raises(ConfigError, match="size must be"):
        list(predictor.stream(sources, size=-1))


def test_segmentation_of_a_folder_keeps_its_order(tiny_segmenter, tmp_path, chelsea, astronaut):
    paths = fill(tmp_path / "in", [chelsea, astronaut], 6)
    command = vtviz_command("segment", tmp_path / "in", "--out", tmp_path / "out", "--model", "segmenter")
    command += ["--size", "96", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [found["image"] for found in json.loads(done.stdout)] == list(map(str, paths))
    predictor = load_model("segmenter", "cpu")
    for path in paths:
        labels = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}.png"))
        assert np.array_equal(labels, predictor.segment(path, size=96).labels)


def test_a_disk_that_fails_in_the_middle_ends_the_run_with_one_line(tiny_checkpoint, tmp_path, chelsea):
    fill(tmp_path / "in", [chelsea], 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0004").write_text("in the way")
    command = vtviz_command("extract", tmp_path / "in", "--out", tmp_path / "out", "--model", "tiny", "--no-pictures")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "0004: cannot write" in done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert_complete(tmp_path / "out", least=4)


def assert_complete(out: Path, least: int) -> None:
    """What an ended run leaves: whole results and nothing half done."""
    folders = [folder for folder in out.iterdir() if folder.is_dir()]
    for folder in folders:
        assert TokenMaps.load(folder).layers
    assert len(folders) >= least
    assert list(out.rglob(".unfinished*")) == []


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
def test_ctrl_c_leaves_whole_results(tiny_checkpoint, tmp_path, chelsea):
    fill(tmp_path / "in", [chelsea], 300)
    command = vtviz_command("extract", tmp_path / "in", "--out", tmp_path / "out", "--model", "tiny")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        assert "0000.jpg" in first
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - started < 30
    assert "Traceback" not in errors
    done = 1 + len(rest.splitlines())
    assert done < 300
    assert_complete(tmp_path / "out", least=done)


def resident(pid: int) -> float:
    """Megabytes that a process holds; 0 of one that has ended."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_10000_images(tiny_checkpoint, tmp_path, chelsea, astronaut, tally):
    count = 10_000
    paths = fill(tmp_path / "in", [chelsea, astronaut], 50)
    for i in range(50, count):
        os.link(paths[i % 50], tmp_path / "in" / f"again{i}.jpg")
    out = tmp_path / "out"
    command = vtviz_command("extract", tmp_path / "in", "--out", out, "--model", "tiny", "--no-pictures")
    seen, done = [], 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if done % 25 == 0:
                seen.append((done, resident(process.pid)))
            shutil.rmtree(out / Path(line.split(" -> ")[0]).stem)  # all of them would fill a disk
            done += 1
    assert (process.returncode, done) == (0, count)
    # the first ones load libraries and fill caches; the last ones may be read when the process has ended
    images, megabytes = np.array([(i, held) for i, held in seen if i >= 50 and held]).T
    assert len(images) > 300
    slope = np.polyfit(images, megabytes, 1)[0]
    assert slope * 1000 < 20, f"{slope * 1000:.1f} kB an image, whose arrays alone are 100"
    tally("photos extracted while memory stayed flat", count)
