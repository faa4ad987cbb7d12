import numpy as np
import pytest

from vtviz.data.classes import (
    COCO_PANOPTIC_STUFF,
    COCO_STUFF,
    GROUPS,
    LIP,
    find_class,
    find_groups,
    make_palette,
    match_classes,
    mirror_pairs,
)
from vtviz.errors import ConfigError, DataError


def test_published_lists():
    assert [len(names) for names in (COCO_STUFF, COCO_PANOPTIC_STUFF, LIP)] == [91, 54, 20]
    for names in (COCO_STUFF, COCO_PANOPTIC_STUFF, LIP):
        assert len(set(names)) == len(names)
    # ids of COCO-Stuff's labels.txt
    assert [COCO_STUFF[i - 92] for i in (92, 124, 157, 182)] == ["banner", "grass", "sky-other", "wood"]
    assert COCO_PANOPTIC_STUFF[0] == "things"
    assert set(COCO_PANOPTIC_STUFF) & {"sky", "water", "window", "wall"} == {"sky", "water", "window", "wall"}
    assert (LIP[0], LIP[5], LIP[19]) == ("Background", "UpperClothes", "Right-shoe")


def test_ccp_groups_place_all_59_classes_once():
    groups = find_groups("ccp14")
    names = [name for members in groups.values() for name in members]
    assert len(groups) == 14
    assert len(names) == len(set(names)) == 59
    places = match_classes(["null", "t-shirt", "T_Shirt", "sunglasses", "wedges"], list(groups), "ccp14")
    assert [list(groups)[i] for i in places] == ["background", "upper", "upper", "glasses", "shoes"]


def test_classes_match_by_name_whatever_their_order():
    assert match_classes(["Sign_Symbol", "sky"], ["sky", "road", "sign symbol"]) == (2, 0)
    assert match_classes([], ["sky"]) == ()


def test_a_group_decides_before_the_name_and_the_name_without_one():
    groups = {"bag": ["wallet"], "other": ["glasses"]}
    assert match_classes(["glasses", "wallet", "bag"], ["glasses", "bag", "other"], groups) == (2, 1, 1)


@pytest.mark.parametrize(
    ("classes", "model", "groups", "message"),
    [
        (
            ["sky", "raod"],
            ["sky", "road"],
            None,
            r"no place for class 'raod' among the model's 2 classes; did you mean",
        ),
        (["hat"], ["hair", "skin"], {"head": ["hat"]}, r"no place for class 'hat'"),
        ([f"c{i}" for i in range(7)], ["sky"], None, r"'c4' and 2 more"),
        (["hat"], ["a", "b"], {"a": ["hat"], "b": ["Hat"]}, r"class 'Hat' stands in two groups, 'a' and 'b'"),
        (["hat"], ["hat"], "cpp14", r"unknown groups 'cpp14'; did you mean 'ccp14'"),
    ],
)
def test_classes_without_a_place_are_named(classes, model, groups, message):
    with pytest.raises(DataError, match=message):
        match_classes(classes, model, groups)


@pytest.mark.parametrize(("text", "index"), [("Tabby cat", 0), ("tabby_cat", 0), ("7", 1), ("2", 2), ("1", 1)])
def test_a_class_is_found_by_name_in_any_spelling_or_by_index(text, index):
    assert find_class(text, ("tabby-cat", "7", "rocket")) == index  # a name goes before an index


@pytest.mark.parametrize("text", ["3", "-1", "cat", "", "9" * 5000])
def test_what_is_no_class_is_named_in_short(text):
    with pytest.raises(ConfigError, match=f"the model has no class '{text[:80]}'"):
        find_class(text, ("tabby-cat", "7", "rocket"))


def test_mirror_pairs():
    assert mirror_pairs(["sky", "right arm", "Left-arm", "left over"]) == ((2, 1),)
    assert mirror_pairs(["sky", "road"]) == ()


@pytest.mark.parametrize(("n", "apart"), [(11, 50), (14, 50), (54, 25), (254, 10)])
def test_palette_colours_differ_and_begin_alike(n, apart):
    palette = make_palette([str(i) for i in range(n)])
    assert palette == make_palette([str(i) for i in range(255)])[:n]
    colours = np.array(palette)
    assert colours.min() >= 0
    assert colours.max() <= 255
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(n)
    assert distances.min() > apart


def test_background_is_black_and_nothing_else():
    palette = make_palette([*GROUPS["ccp14"]])
    assert palette[0] == (0, 0, 0)
    assert palette.count((0, 0, 0)) == 1
    assert palette[1:] == make_palette([str(i) for i in range(14)])[1:]
