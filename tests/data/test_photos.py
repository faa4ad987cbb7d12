import numpy as np
import pytest
from PIL import Image

from vtviz.data.photos import list_photos
from vtviz.errors import DataError


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return path


def test_a_folder_of_photos_is_taken_with_all_below_it(tmp_path):
    wanted = {put(tmp_path / "b.png"), put(tmp_path / "A.JPG"), put(tmp_path / "deep" / "er" / "c.webp")}
    (tmp_path / "notes.txt").write_text("none")
    found = list_photos(tmp_path)
    assert set(found) == wanted
    assert list(found) == sorted(found)


def test_class_folders_have_splits_of_their_own_or_made_ones(tmp_path):
    val = {put(tmp_path / "sets" / "val" / name / "1.png") for name in ("cat", "dog")}
    put(tmp_path / "sets" / "train" / "cat" / "2.png")
    assert set(list_photos(tmp_path / "sets")) == val
    assert len(list_photos(tmp_path / "sets", "train")) == 1
    for i in range(10):
        put(tmp_path / "flat" / "cat" / f"{i}.png")
    made = list_photos(tmp_path / "flat", "train"), list_photos(tmp_path / "flat", "val")
    assert [len(part) for part in made] == [9, 1]
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        list_photos(tmp_path / "sets", "vall")


def test_of_a_segmentation_set_the_photos_and_not_the_masks(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    photo = put(tmp_path / "val" / "images" / "1.jpg")
    put(tmp_path / "val" / "masks" / "1.png")
    assert list_photos(tmp_path) == (photo,)
    with pytest.raises(DataError, match="has no split 'train'"):
        list_photos(tmp_path, "train")


def test_what_is_no_set(tmp_path):
    with pytest.raises(DataError, match="no data folder at"):
        list_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        list_photos(tmp_path)
