"""Data sets that were made to do harm: archives with ways out, links, masks that lie."""

import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.datasets import DataRoot, has_photos
from vtviz.data.folder import open_folder
from vtviz.data.imagenet import ARCHIVES, LARGEST, Devkit, _train_images, _val_images, _write_images
from vtviz.data.photos import list_photos
from vtviz.data.segmentation import read_mask
from vtviz.errors import DataError

KIT = Devkit({"n01440764": "tench"}, {"n01440764": 1}, ["n01440764"])
IMAGE, VAL = "n01440764_0.JPEG", "ILSVRC2012_val_00000001.JPEG"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def pack(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def unpack(data: bytes, split: str, folder: Path) -> None:
    read = _train_images if split == "train" else _val_images
    with tarfile.open(name=ARCHIVES[split], fileobj=io.BytesIO(data)) as tar:
        for _ in _write_images(folder / "staging", read(tar, KIT), {"n01440764": 1}):
            pass


HARMFUL = {
    "up": member("../../evil.JPEG"),
    "absolute": member("/tmp/evil.JPEG"),
    "link": member(IMAGE, tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member(IMAGE, tarfile.LNKTYPE, "../../etc/passwd"),
    "device": member(IMAGE, tarfile.CHRTYPE),
    "pipe": member(IMAGE, tarfile.FIFOTYPE),
    "of another class": member("n09999999_0.JPEG"),
    "no name": member("n01440764_.JPEG"),
    "not UTF-8": member("n01440764_0\udc80.JPEG"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_class_s_archive_within_the_archive_has_no_way_out(tmp_path, kind, tally):
    """The train split is an archive of archives: what holds for the outer holds for the inner."""
    inner = pack((HARMFUL[kind], b""))
    with pytest.raises(DataError, match="does not belong there"):
        unpack(pack((member("n01440764.tar"), inner)), "train", tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()]
    tally("hostile data files tried")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_unpacks_to_terabytes_is_refused(tmp_path, split):
    """A sparse file takes a few bytes in an archive, and what its header says on the disk."""
    name = IMAGE if split == "train" else VAL
    header = bytearray(member(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = tarfile.itn(2**42, 12, tarfile.GNU_FORMAT)  # the real size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + bytes(1024)
    if split == "train":
        data = pack((member("n01440764.tar"), data))
    with pytest.raises(DataError, match=rf"4,398,046,511,104 bytes; an image has at most {LARGEST:,}"):
        unpack(data, split, tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) == 0


@pytest.fixture
def tree(tmp_path, coffee) -> Path:
    """A data set of two classes below a root, and a photo that lies outside of it."""
    for name in ("cat", "dog"):
        (tmp_path / "root" / "pets" / name).mkdir(parents=True)
        Image.fromarray(coffee[::8, ::8]).save(tmp_path / "root" / "pets" / name / "a.png")
    Image.fromarray(coffee[::8, ::8]).save(tmp_path / "private.png")
    return tmp_path


@pytest.mark.parametrize("way", ["file", "folder", "chain", "relative", "hidden"])
def test_the_page_refuses_a_data_set_with_a_link_to_the_outside(tree, way, tally):
    pets = tree / "root" / "pets"
    link, target = {
        "file": (pets / "cat" / "b.png", tree / "private.png"),
        "folder": (pets / "mouse", tree),
        "chain": (pets / "cat" / "b.png", pets / "dog" / "c.png"),
        "relative": (pets / "cat" / "b.png", Path("../../../private.png")),
        "hidden": (pets / "cat" / ".b.png", tree / "private.png"),
    }[way]
    link.symlink_to(target)
    if way == "chain":
        target.symlink_to(tree / "private.png")
    with pytest.raises(DataError, match=r"is a link to outside of the data root") as caught:
        DataRoot(tree / "root").path("pets", has_photos)
    assert str(tree) not in str(caught.value)
    assert DataRoot(tree / "root").file("pets", str(link.relative_to(pets))) is None
    tally("hostile data files tried")


@pytest.mark.parametrize("name", ["../private.png", "/etc/passwd", "cat/../../../private.png", "a\0b", "x" * 5000, "."])
def test_a_photo_s_name_in_an_atlas_is_no_way_out(tree, name):
    assert DataRoot(tree / "root").file("pets", name) is None


def test_links_in_a_circle_end(tree):
    pets = tree / "root" / "pets"
    (pets / "cat" / "again.png").symlink_to(pets)
    (pets / "dog" / "self.png").symlink_to(pets / "dog" / "self.png")
    os.mkfifo(pets / "dog" / "pipe.png")
    (tree / "root" / "train").symlink_to(pets)
    assert {p.name for p in open_folder(tree / "root", "train").paths} == {"a.png"}
    assert {p.name for p in list_photos(pets / "dog")} == {"a.png"}


def test_masks_that_lie_are_refused_in_one_line(tmp_path, tally):
    good = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(good, "PNG")
    rng, path, refusals = np.random.default_rng(5), tmp_path / "mask.png", 0
    for number in range(200):
        data = bytearray(good.getvalue())
        for where in rng.integers(8, len(data), size=rng.integers(1, 6)):
            data[where] = rng.integers(0, 256)
        if number % 4 == 0:
            data = data[: rng.integers(0, len(data))]
        path.write_bytes(data)
        try:
            mask = read_mask(path)
        except DataError as error:
            line = str(error)
            assert "\n" not in line
            assert "mask.png" in line
            refusals += 1
        else:
            assert mask.dtype == np.uint8
    assert refusals > 100
    bomb = io.BytesIO()
    Image.new("L", (13_000, 13_000)).save(bomb, "PNG")
    huge = bytearray(good.getvalue())
    huge[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    for data in (bomb.getvalue(), bytes(huge), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_mask(path)
        assert "\n" not in str(caught.value)
    tally("hostile data files tried", 205)
