import pytest
from PIL import Image

from vtviz.data.folder import ClassList, open_folder, read_class_names
from vtviz.errors import DataError

MODEL = ClassList(("n01", "n02", "n03", "n04"), ("tench", "African grey", "crane", "crane"))


@pytest.fixture
def tree(tmp_path):
    """Makes root/part/CLASS/file trees of empty files: tree({"train/cat": 3})."""

    def make(counts, suffix=".jpg"):
        for folder, count in counts.items():
            (tmp_path / folder).mkdir(parents=True)
            for i in range(count):
                (tmp_path / folder / f"{i:02d}{suffix}").touch()
        return tmp_path

    return make


def test_folders_are_the_classes_where_none_are_given(tree):
    root = tree({"train/cat_fish": 2, "train/ant": 1, "train/.cache": 1, "val/ant": 1})
    images = open_folder(root, "train")
    assert images.classes == ClassList(("ant", "cat_fish"), ("ant", "cat fish"))
    assert [(p.parent.name, p.name) for p in images.paths] == [
        ("ant", "00.jpg"),
        ("cat_fish", "00.jpg"),
        ("cat_fish", "01.jpg"),
    ]
    assert images.targets == (0, 1, 1)
    assert open_folder(root, "train", names={"ant": "Formicidae"}).classes.names == ("Formicidae", "cat fish")


@pytest.mark.parametrize(
    ("folder", "index"), [("n02", 1), ("n04", 3), ("tench", 0), ("african_grey", 1), ("African-Grey", 1), ("TENCH", 0)]
)
def test_a_folder_reaches_its_class_by_id_or_name_whatever_stands_beside_it(tree, folder, index):
    images = open_folder(tree({f"val/{folder}": 2}), "val", classes=MODEL)
    assert images.targets == (index, index)
    assert images.classes == MODEL


def test_an_empty_class_folder_is_a_class_without_images(tree):
    root = tree({"val/n03": 0, "val/n01": 1, "train/a": 0, "train/b": 1})
    assert open_folder(root, "val", classes=MODEL).targets == (0,)
    images = open_folder(root, "train")
    assert (images.classes.ids, images.targets) == (("a", "b"), (1,))


def test_unknown_and_ambiguous_folders_are_errors(tree):
    root = tree({"val/tenchh": 1, "test/crane": 1})
    with pytest.raises(DataError, match="'tenchh' is not one of the 4 classes; did you mean 'tench'"):
        open_folder(root, "val", classes=MODEL)
    with pytest.raises(DataError, match="'crane' names 2 classes; call it by one of their ids: n03, n04"):
        open_folder(root, "test", classes=MODEL)


def test_any_split_name(tree):
    root = tree({"train/a": 1, "holdout 2/a": 2, "notes.txt": 0})
    assert len(open_folder(root, "holdout 2")) == 2
    with pytest.raises(DataError, match="has no split 'holdout'; did you mean 'holdout 2'"):
        open_folder(root, "holdout")
    with pytest.raises(DataError, match="has no split 'val'"):  # and train is not split behind one's back
        open_folder(root, "val")


@pytest.mark.parametrize(
    ("counts", "split", "message"),
    [({"train": 0}, "train", "has no class folders"), ({"train/a": 0}, "train", "1 class folders but no images")],
)
def test_nothing_there(tree, counts, split, message):
    with pytest.raises(DataError, match=message):
        open_folder(tree(counts), split)


def test_no_folder():
    with pytest.raises(DataError, match="no data folder at /nowhere"):
        open_folder("/nowhere")


def test_only_pictures_count_and_they_may_lie_deeper(tree):
    root = tree({"train/a": 1, "train/a/more": 2}, ".PNG")
    (root / "train" / "a" / "notes.txt").touch()
    (root / "train" / "a" / "folder.jpg").mkdir()
    assert len(open_folder(root, "train")) == 3


def test_a_folder_without_splits_is_split_by_its_seed(tree):
    root = tree({"a": 20, "b": 11, "c": 2})
    train, val = (open_folder(root, split) for split in ("train", "val"))
    assert not set(train.paths) & set(val.paths)
    assert len(set(train.paths) | set(val.paths)) == 33
    assert [val.targets.count(i) for i in range(3)] == [2, 1, 1]
    assert open_folder(root, "val").paths == val.paths
    others = {open_folder(root, "val", seed=seed).paths for seed in range(5)}
    assert len(others) == 5
    with pytest.raises(DataError, match="has no split 'test'"):
        open_folder(root, "test")


@pytest.mark.parametrize("deeper", [{}, {"train/steam": 2}, {"plane/more": 2}, {"plane/.cache": 1}])
def test_a_class_may_be_called_train_and_hold_folders(tree, deeper):
    """As VOC and COCO have one; and a class folder is read with what lies deeper in it."""
    root = tree({"train": 10, "plane": 10, **deeper})
    train, val = (open_folder(root, split) for split in ("train", "val"))
    assert train.classes.ids == val.classes.ids == ("plane", "train")
    assert len(train) + len(val) == 20 + sum(deeper.values())
    assert not set(train.paths) & set(val.paths)
    assert set(train.targets) == set(val.targets) == {0, 1}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 2, "val": 2}, "train has no class folders"),  # images that nobody sorted into classes
        ({"train": 2, "val": 2, "plane": 2}, "train has no class folders"),
        ({"train": 2, "val/plane": 2}, "train has no class folders"),
        ({"train": 2}, "train has no class folders"),
        ({"train": 0, "plane": 2}, "train has no class folders"),
        ({"val": 2}, "has no split 'train'; choose from val"),
        ({"plane/more": 2, "car": 2}, "has no split 'train'; choose from plane"),
    ],
)
def test_a_split_without_classes_is_no_class(tree, counts, message):
    with pytest.raises(DataError, match=message):
        open_folder(tree(counts), "train")


def test_an_image_beside_the_classes_of_a_split_does_no_harm(tree):
    root = tree({"train": 1, "train/a": 2, "val": 1, "val/a": 3})
    assert [len(open_folder(root, split)) for split in ("train", "val")] == [2, 3]


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (2, 1), (5, 1), (15, 2)])
def test_small_classes_are_validated_on_too(tree, count, kept):
    root = tree({"a": count, "b": 20})
    assert [open_folder(root, split).targets.count(0) for split in ("train", "val")] == [count - kept, kept]


def test_classes_of_one_image_leave_none_to_validate_on(tree):
    root = tree({"a": 1, "b": 1, "c": 0})
    assert len(open_folder(root, "train")) == 2
    with pytest.raises(DataError, match=r"has no class of two images or more, so that none is left for 'val'$"):
        open_folder(root, "val")


def test_take_and_limit(tree):
    images = open_folder(tree({"train/a": 20, "train/b": 20}))
    some = images.limit(10, seed=3)
    assert some == images.limit(10, seed=3) != images.limit(10, seed=4)
    assert len(set(some.paths)) == len(some) == 10
    assert all(p.parent.name == images.classes.ids[t] for p, t in zip(some.paths, some.targets, strict=True))
    assert set(some.targets) == {0, 1}  # not the first ten
    assert images.limit(None) is images.limit(40) is images
    with pytest.raises(DataError, match="at least 1 image, got 0"):
        images.limit(0)
    assert images.take([39, 0]).targets == (1, 0)


def test_class_names_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("n01 great white shark\n\nn02 tench \n")
    assert read_class_names(file) == {"n01": "great white shark", "n02": "tench"}
    file.write_text("n01 tench\nn02\n")
    with pytest.raises(DataError, match=r"line 2: expected 'ID name', got 'n02'"):
        read_class_names(file)
    with pytest.raises(DataError, match="no class list"):
        read_class_names(tmp_path / "none.txt")


def test_every_suffix_that_is_listed_can_be_read(tmp_path, chelsea):
    from vtviz.images import load
    from vtviz.suffixes import IMAGE_SUFFIXES

    for suffix in IMAGE_SUFFIXES:
        Image.fromarray(chelsea[:8, :8]).save(tmp_path / f"x{suffix}")
        assert load(tmp_path / f"x{suffix}").shape == (8, 8, 3)
