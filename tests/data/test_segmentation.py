"""Segmentation sets, made small in exactly their published layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.pictures import png
from vtviz.data.classes import COCO_PANOPTIC_STUFF, COCO_STUFF, LIP
from vtviz.data.segmentation import IGNORE, open_segmentation, read_mask
from vtviz.errors import DataError

SIZE = (6, 9)  # (H, W)


def picture(path, size=SIZE, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), value, np.uint8)
    pixels[0, 0] = (255, 0, 0)
    Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


def mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(SIZE, np.uint8)
    labels.flat[: len(values)] = values
    Image.fromarray(labels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes, two training images and one for validation."""
    (tmp_path / "classes.txt").write_text("null\nroad\nred car\n")
    for split, names in (("train", "ab"), ("val", "c")):
        for i, name in enumerate(names):
            picture(tmp_path / split / "images" / f"{name}.webp", value=10 * i + 5)
            mask(tmp_path / split / "masks" / f"{name}.png", [0, 1, 2, IGNORE])
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    """COCO-Stuff 164k and Detectron2's panoptic stuff side by side, two validation images."""
    for stem in ("000000000139", "000000000285"):
        picture(tmp_path / "images" / "val2017" / f"{stem}.jpg")
        # person, hair brush, banner, wood, unlabelled: ids 1, 91, 92, 182, 0 of labels.txt
        mask(tmp_path / "stuffthingmaps" / "val2017" / f"{stem}.png", [0, 90, 91, 181, 255])
        mask(tmp_path / "panoptic_stuff_val2017" / f"{stem}.png", [0, 1, 53, 255])
    return tmp_path


def lip(root, nested):
    pictures, masks = root / "TrainVal_images", root / "TrainVal_parsing_annotations"
    if nested:
        pictures, masks = pictures / pictures.name, masks / masks.name
    ids = {"train": ["77_471474", "9_1"], "val": ["36_454991"]}
    for split, stems in ids.items():
        for stem in stems:
            picture(pictures / f"{split}_images" / f"{stem}.jpg")
            mask(masks / f"{split}_segmentations" / f"{stem}.png", [0, 14, 15, 19])
        picture(pictures / f"{split}_images" / "not_listed.jpg")
        (pictures / f"{split}_id.txt").write_text("".join(f"{s}\n" for s in stems))
    return root


def test_folder_layout(folder):
    train, val = open_segmentation(folder), open_segmentation(folder, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == ("null", "road", "red car")
    assert len(set(train.palette)) == 3
    assert [p.stem for p in train.sources.images] == [p.stem for p in train.sources.masks] == ["a", "b"]
    image, labels = train[1]
    assert (image.shape, image.dtype) == ((3, *SIZE), torch.uint8)
    assert (labels.shape, labels.dtype) == (SIZE, torch.int64)
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert image[:, 1, 1].tolist() == [15, 15, 15]
    assert labels.flatten()[:5].tolist() == [0, 1, 2, IGNORE, 0]
    assert train.shape(1) == SIZE


def test_folder_layout_with_a_palette(folder):
    (folder / "palette.txt").write_text("0 0 0\n128 64 128\n255 0 0\n")
    assert open_segmentation(folder).palette == ((0, 0, 0), (128, 64, 128), (255, 0, 0))
    for text in ("0 0 0\n", "0 0 0\n1 2 256\n3 3 3\n", "0 0 0\nred\n1 1 1\n"):
        (folder / "palette.txt").write_text(text)
        with pytest.raises(DataError, match=r"palette.txt must have 3 lines of 'R G B'"):
            open_segmentation(folder)


def test_coco_stuff_layout(coco):
    dataset = open_segmentation(coco, "val", layout="coco_stuff")
    assert dataset.classes == COCO_STUFF
    assert len(dataset) == 2
    labels = dataset[0][1].flatten()
    assert labels[:5].tolist() == [IGNORE, IGNORE, 0, 90, IGNORE]
    assert [dataset.classes[i] for i in (0, 90)] == ["banner", "wood"]


def test_coco_panoptic_stuff_layout(coco):
    dataset = open_segmentation(coco, "val", layout="coco_stuff_panoptic")
    assert dataset.classes == COCO_PANOPTIC_STUFF
    assert dataset[1][1].flatten()[:4].tolist() == [0, 1, 53, IGNORE]
    assert [dataset.classes[i] for i in (0, 1, 53)] == ["things", "banner", "rug"]


def test_coco_images_beside_the_maps(coco):
    (coco / "images" / "val2017").rename(coco / "val2017")
    (coco / "images").rmdir()
    for layout in ("coco_stuff", "coco_stuff_panoptic"):
        assert len(open_segmentation(coco, "val2017", layout=layout)) == 2


@pytest.mark.parametrize("nested", [False, True])
def test_lip_layout(tmp_path, nested):
    dataset = open_segmentation(lip(tmp_path, nested), "train")
    assert dataset.classes == LIP
    assert [p.name for p in dataset.sources.images] == ["77_471474.jpg", "9_1.jpg"]
    assert dataset[0][1].flatten()[:4].tolist() == [0, 14, 15, 19]
    assert dataset.mirror_pairs == ((14, 15), (16, 17), (18, 19))
    assert dataset.palette[0] == (0, 0, 0)
    assert len(open_segmentation(tmp_path, "val")) == 1


def test_layouts_are_told_apart(folder, coco, tmp_path):
    with pytest.raises(DataError, match=r"has the layouts folder and coco_stuff .*say which with layout="):
        open_segmentation(folder, "val")
    with pytest.raises(DataError, match=r"unknown layout 'cocostuff'; did you mean 'coco_stuff'"):
        open_segmentation(folder, layout="cocostuff")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"looked for classes.txt \(folder\), stuffthingmaps"):
        open_segmentation(tmp_path / "empty")
    with pytest.raises(DataError, match="no data folder at"):
        open_segmentation(tmp_path / "nowhere")


def test_groups_and_relabelling(folder):
    groups = {"vehicle": ["red car", "bus"], "ground": ["road", "null"]}
    dataset = open_segmentation(folder, groups=groups)
    assert dataset.classes == ("vehicle", "ground")
    assert dataset[0][1].flatten()[:4].tolist() == [1, 1, 0, IGNORE]
    assert len(dataset.palette) == 2
    again = open_segmentation(folder).relabel(("Red_Car", "tree", "NULL", "road"))
    assert again[0][1].flatten()[:4].tolist() == [2, 3, 0, IGNORE]
    with pytest.raises(DataError, match="'null'"):
        open_segmentation(folder, groups={"vehicle": ["red car"], "ground": ["road"]})


def test_preload_gives_the_same_and_hands_out_copies(folder):
    lazy, eager = open_segmentation(folder), open_segmentation(folder)
    seen = []
    assert eager.preload(lambda done, total: seen.append((done, total))) is eager
    assert seen == [(1, 2), (2, 2)]
    for file in folder.rglob("*.webp"):
        file.write_bytes(b"")  # nothing is read from now on
    for _ in range(2):
        image, labels = eager[1]
        assert image[0, 1, 1] == 15
        assert labels.flatten()[:4].tolist() == [0, 1, 2, IGNORE]
        image.zero_(), labels.zero_()
    assert eager.shape(1) == SIZE
    with pytest.raises(DataError, match=r"a\.webp"):
        lazy[0]


def test_works_in_a_data_loader(folder):
    images, labels = next(iter(DataLoader(open_segmentation(folder), batch_size=2)))
    assert images.shape == (2, 3, *SIZE)
    assert labels.shape == (2, *SIZE)


def remove(folder, name):
    (folder / name).unlink()


def write(folder, name, text, encoding="utf-8"):
    (folder / name).write_text(text, encoding)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: mask(f / "train/masks/a.png", [0, 3]),
            r"a.png has value 3 at row 0, column 1.* the 3 classes nor 255",
        ),
        (lambda f: picture(f / "train/images/a.webp", (9, 6)), r"a.png has 9 x 6 pixels, but .* a.webp has 6 x 9"),
        (lambda f: picture(f / "train/masks/a.png"), r"a.png must hold one 8-bit class index .* got RGB"),
        (lambda f: write(f, "train/masks/a.png", "no"), r"a.png is not a PNG mask"),
        (lambda f: write(f, "train/images/a.webp", "no"), r"a.webp' is not a JPEG, PNG"),
        (lambda f: remove(f, "train/masks/a.png"), r"'a' has no file in .*masks"),
        (lambda f: remove(f, "train/images/a.webp"), r"mask .*a.png has no image of its name"),
        (lambda f: picture(f / "train/images/a.png"), r"two files for 'a': a.png and a.webp"),
        (lambda f: [p.unlink() for p in f.glob("train/*/*")], r"images is empty: no .bmp"),
        (lambda f: (f / "train").rename(f / "trian"), r"no split 'train'; did you mean 'trian'"),
        (lambda f: write(f, "classes.txt", "\n"), r"classes.txt is empty"),
        (lambda f: write(f, "classes.txt", "Straße", "latin-1"), r"classes.txt is not UTF-8 text: .* byte 0xdf"),
        (lambda f: write(f, "classes.txt", "road\nroad\n"), r"classes.txt must name 1 to 255 different classes"),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        open_segmentation(folder).preload()
    assert "\n" not in str(error.value)


def test_missing_lip_list_is_named(tmp_path):
    lip(tmp_path, nested=False)
    remove(tmp_path, "TrainVal_images/val_id.txt")
    with pytest.raises(DataError, match=r"no list at .*val_id.txt"):
        open_segmentation(tmp_path, "val")


def test_coco_values_between_the_lists_are_named(coco):
    mask(coco / "stuffthingmaps" / "val2017" / "000000000139.png", [182])
    with pytest.raises(DataError, match="value 182 at row 0, column 0"):
        open_segmentation(coco, "val", layout="coco_stuff")[0]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_a_mask_holds_indices_not_colours(tmp_path, mode):
    labels = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    if mode == "P":
        image = Image.fromarray(labels).convert("P")
        image.putpalette([9, 9, 9, 200, 0, 0])
    else:
        image = Image.fromarray(labels * 255 if mode == "1" else labels).convert(mode)
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == labels.tolist()


def test_two_bit_grey_is_not_spread(tmp_path):
    (tmp_path / "m.png").write_bytes(png(4, 2, 2, 0, b"\0\x1b" + b"\0\xe4"))
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


def test_four_bit_grey_is_not_spread(tmp_path):
    (tmp_path / "m.png").write_bytes(png(4, 1, 4, 0, b"\x00\x03\x9f"))
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 3, 9, 15]]


def test_a_mask_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no mask at"):
        read_mask(tmp_path / "none.png")


DATA = Path(__file__).parents[3] / "data"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "groups", "split", "n", "classes"),
    [("camvid", None, "val", 101, 11), ("ccp", None, "val", 100, 59), ("ccp", "ccp14", "val", 100, 14)],
)
def test_real_sets(name, groups, split, n, classes):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {DATA / name}")
    dataset = open_segmentation(DATA / name, split, groups=groups)
    assert (len(dataset), len(dataset.classes)) == (n, classes)
    image, labels = dataset[0]
    assert image.shape[1:] == labels.shape == dataset.shape(0)
    assert set(labels.unique().tolist()) <= {*range(classes), IGNORE}
