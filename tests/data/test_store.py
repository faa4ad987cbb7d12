import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from vtviz import images
from vtviz.data.store import PixelStore
from vtviz.errors import DataError, ImageError


@pytest.fixture
def files(tmp_path, chelsea, coffee, astronaut):
    """Photos of several sizes and formats."""
    paths = []
    for name, image in (("a.png", chelsea), ("b.jpg", coffee[:, :300]), ("c.webp", astronaut[:100, :80])):
        paths.append(tmp_path / name)
        Image.fromarray(image).save(paths[-1])
    return paths


def damage(path):
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("memory", [2**30, 0])
def test_pixels_are_those_of_the_gate(files, memory):
    store = PixelStore(files, memory=memory, workers=1)
    assert store.in_memory == bool(memory)
    assert len(store) == 3
    for i, path in enumerate(files):
        wanted = images.load(path)
        assert np.array_equal(store[i].permute(1, 2, 0), wanted)
        assert store[i].dtype == torch.uint8
        assert store.shape(i) == wanted.shape[:2]
    store[0].zero_()
    assert store[0].any()  # each access is a fresh tensor


def test_large_images_are_shrunk_to_the_short_side_and_small_ones_kept(files):
    store = PixelStore(files, short_side=128, workers=1)
    assert [store.shape(i) for i in range(3)] == [(128, 192), (170, 128), (100, 80)]
    original = torch.from_numpy(images.load(files[0])).permute(2, 0, 1)
    assert torch.equal(store[0], tvf.resize(original, [128], antialias=True))
    read_later = PixelStore(files, short_side=128, memory=0)
    assert [read_later.shape(i) for i in range(3)] == [store.shape(i) for i in range(3)]
    assert all(torch.equal(store[i], read_later[i]) for i in range(3))


def test_several_processes_decode_what_one_does(files, monkeypatch):
    from vtviz.data import store as module

    monkeypatch.setattr(module, "CHUNK", 2)
    seen = []
    threads = torch.get_num_threads()
    many = PixelStore(files * 3, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    one = PixelStore(files * 3, workers=1)
    assert all(torch.equal(many[i], one[i]) for i in range(9))
    assert torch.get_num_threads() == threads


@pytest.fixture
def reads(monkeypatch):
    """Counts, for each file that is read, the images that are alive by then."""
    from vtviz.data import store as module

    alive, counts, read = weakref.WeakSet(), [], module._read

    class Pixels(np.ndarray):
        __hash__ = object.__hash__

    def watched(path, short_side):
        image = read(path, short_side).view(Pixels)
        alive.add(image)
        counts.append(len(alive))
        return image

    monkeypatch.setattr(module, "_read", watched)
    return counts


def test_a_check_holds_one_image_at_a_time(files, reads):
    store = PixelStore(files * 7, memory=-1, check=True, workers=1)
    assert not store.in_memory
    assert max(reads) <= 2  # the last one, and the one that is being read


def test_without_a_bound_every_file_is_read_once(files, reads):
    assert PixelStore(files * 7, workers=1).in_memory
    assert len(reads) == 21


@pytest.mark.parametrize("memory", [2**30, 0])
def test_files_that_cannot_be_read_are_reported_and_left_out(files, memory):
    damage(files[1])
    store = PixelStore(files, memory=memory, check=True, workers=1)
    assert store.kept == [0, 2]
    assert len(store) == 2
    assert store.shape(1) == (100, 80)
    assert torch.equal(store[1], PixelStore(files[2:])[0])
    (line,) = store.skipped
    assert line.startswith(f"{files[1]}: ")
    assert "damaged" in line


def test_a_set_that_is_read_later_goes_on_to_the_next_image(files, caplog):
    damage(files[2])
    store = PixelStore(files, memory=0)
    assert len(store) == 3
    with pytest.raises(ImageError):
        store[2]
    for _ in range(2):
        index, pixels = store.read_near(2)
        assert (index, tuple(pixels.shape)) == (0, (3, 300, 451))
    assert store.read_near(1)[0] == 1
    assert len(store.skipped) == len(caplog.records) == 1
    assert str(files[2]) in caplog.text


def test_after_the_first_epoch_only_a_set_that_is_gone_ends_a_run(files, tmp_path):
    bad = [tmp_path / f"bad{i}.png" for i in range(18)]
    for path in bad:
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    store = PixelStore([*bad[:8], files[0], *bad[8:16], files[1], *bad[16:]], memory=0)
    assert [store.read_near(index, bounded=False)[0] for index in (0, 9, 18)] == [8, 17, 8]
    assert len(store.skipped) == 18
    with pytest.raises(DataError, match="18 of 20 images cannot be read"):
        store.read_near(0)
    files[0].unlink()
    with pytest.raises(DataError, match=r"11 images one after the other cannot be read; last: .*a\.png"):
        store.read_near(18, bounded=False)
    files[1].unlink()
    with pytest.raises(DataError, match="3 images one after the other"):
        PixelStore(bad[:3], memory=-1).read_near(1, bounded=False)


def test_too_many_bad_files_are_an_error(files, tmp_path):
    bad = [tmp_path / f"bad{i}.png" for i in range(11)]
    for path in bad:
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert len(PixelStore([*files, *bad[:10]], workers=1).skipped) == 10
    with pytest.raises(DataError, match=r"11 of 14 images cannot be read; first: .*bad0\.png"):
        PixelStore([*files, *bad], workers=1)
    with pytest.raises(DataError, match="none of 2 images can be read; first"):
        PixelStore(bad[:2], workers=1)
    with pytest.raises(DataError, match="11 of 11 images cannot be read"):
        PixelStore(bad, memory=-1).read_near(0)
    with pytest.raises(DataError, match="none of 3 images"):
        PixelStore(bad[:3], memory=-1, check=True, workers=1)


def test_nothing_to_read():
    with pytest.raises(DataError, match="at least one image"):
        PixelStore([])
