import json
from dataclasses import replace

import numpy as np
import pytest

from vtviz.errors import CheckpointError, DataError
from vtviz.explain import atlas_file
from vtviz.explain.atlas import Atlas, ClassOverlap, LayerAtlas, Peak, Seen, TokenMeans, mean_of_pairs
from vtviz.explain.atlas_file import find_atlas, load_atlas, parse_atlas, read_atlas, save_atlas

TOKENS, CLASSES = 3, ("sky", "road", 'a "quoted" {"name":')


def make_atlas(seed: int = 0, masks: bool = True) -> Atlas:
    rng = np.random.default_rng(seed)

    def means() -> TokenMeans:
        return TokenMeans(rng.uniform(1, 9, TOKENS), rng.uniform(size=TOKENS), rng.uniform(size=(TOKENS, TOKENS)))

    def layer(name: str) -> LayerAtlas:
        photos = tuple(
            tuple(Peak(f"val/n0{token}/photo {i}: é.webp", 9.0 - i, 0.25, 1.0) for i in range(token))
            for token in range(TOKENS)
        )
        overlaps = (rng.uniform(size=(TOKENS, len(CLASSES))) for _ in range(3))
        return LayerAtlas(
            name,
            means(),
            means(),
            rng.uniform(size=(TOKENS, TOKENS)),
            photos,
            ClassOverlap(*overlaps) if masks else None,
        )

    return Atlas(
        model="tiny",
        weights="ab12",
        data=Seen("in109", "val", 24),
        masks=Seen("camvid", "val", 7, CLASSES, (0.5, 0.25, 0.25)) if masks else None,
        skipped=2,
        size=224,
        threshold=1.0,
        seed=3,
        layers=(layer("block0"), layer("block1")),
    )


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_saved_is_read_again_to_4_decimals(tmp_path, masks):
    atlas = make_atlas(masks=masks)
    path = save_atlas(tmp_path / "new" / "tiny.atlas.json", atlas)
    assert [p.name for p in path.parent.iterdir()] == ["tiny.atlas.json"]
    again = read_atlas(path)
    assert again.to_dict() == atlas.to_dict()
    for name in ("model", "weights", "data", "masks", "skipped", "size", "threshold", "seed"):
        assert getattr(again, name) == getattr(atlas, name)
    for ours, theirs in zip(again.layers, atlas.layers, strict=True):
        assert (ours.name, ours.photos) == (theirs.name, theirs.photos)
        np.testing.assert_allclose(ours.trained.peak, theirs.trained.peak, atol=5e-5)
        np.testing.assert_allclose(ours.untrained.overlap, theirs.untrained.overlap, atol=5e-5)
        if masks:
            np.testing.assert_allclose(ours.classes.shuffled, theirs.classes.shuffled, atol=5e-5)
    assert save_atlas(path, again).read_bytes() == path.read_bytes()


def test_a_token_is_named_by_what_it_covers_better_than_chance():
    iou, shuffled = (
        np.array([[0.5, 0.3, 0], [0.5, 0.2, 0], [0, 0, 0]]),
        np.array([[0.5, 0.1, 0], [0.4, 0.2, 0], [0, 0, 0]]),
    )
    atlas = make_atlas()
    layer = replace(atlas.layers[0], classes=ClassOverlap(iou, iou, shuffled))
    atlas = replace(atlas, layers=(layer,))
    assert atlas.token_names(0) == ("road", "sky", None)
    assert atlas.token_names(-1, margin=0.15) == ("road", None, None)
    assert make_atlas(masks=False).token_names(0) == (None,) * TOKENS


def test_redundancy_is_of_different_tokens():
    assert mean_of_pairs(np.array([[1, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])) == pytest.approx(0.4)
    assert mean_of_pairs(np.ones((1, 1))) == 0
    assert TokenMeans(np.array([1.4, 1.6]), np.ones(2), np.eye(2)).dead == (0,)


def test_an_atlas_is_found_beside_its_checkpoint(tiny_checkpoint):
    path = tiny_checkpoint.with_name("tiny.atlas.json")
    assert find_atlas("tiny") == find_atlas(tiny_checkpoint) == path
    with pytest.raises(CheckpointError, match=r"no atlas at .*tiny\.atlas\.json; vtviz dissect makes one"):
        load_atlas("tiny")
    save_atlas(path, make_atlas())
    with pytest.raises(CheckpointError, match="made with other weights than tiny has now"):
        load_atlas("tiny")
    weights = json.loads(tiny_checkpoint.with_suffix(".json").read_text())["sha256"]
    save_atlas(path, replace(make_atlas(), weights=weights))
    assert load_atlas("tiny").weights == weights
    with pytest.raises(CheckpointError, match="no checkpoint named 'tinny'"):
        load_atlas("tinny")


def test_it_stays_small(tmp_path, monkeypatch):
    path = save_atlas(tmp_path / "a.atlas.json", make_atlas())
    monkeypatch.setattr(atlas_file, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="keep fewer photos a token"):
        save_atlas(tmp_path / "b.atlas.json", make_atlas())
    assert not (tmp_path / "b.atlas.json").exists()
    with pytest.raises(CheckpointError, match="more than the"):
        read_atlas(path)


def test_a_disk_that_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        save_atlas(tmp_path / "file" / "a.atlas.json", make_atlas())


def changed(path: str, value: object) -> dict:
    """The data of an atlas with one thing in it replaced, or removed where it is ``...``."""
    data = json.loads(json.dumps(make_atlas().to_dict()))
    *way, last = (int(step) if step.isdecimal() else step for step in path.split("."))
    inner = data
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("format", "vtviz atlas 9", "expected the format"),
        ("format", ..., "lacks the field 'format'"),
        ("model", 5, "model must be text"),
        ("seed", True, "seed must be a whole number"),
        ("skipped", -1, "skipped must be a whole number from 0"),
        ("threshold", float("nan"), "threshold must be numbers"),
        ("threshold", 10**400, "threshold must be numbers"),
        ("layers", [], "has no layers"),
        ("layers", {}, "must be a list"),
        ("layers.0", 7, "must be a JSON object, got int"),
        ("layers.0.name", None, "name must be text"),
        ("layers.1.trained.peak", [1.0, 2.0], r"peak must be numbers of shape \(3,\)"),
        ("layers.1.trained.entropy", [0.5, 1.5, 0.5], "from 0 to 1"),
        ("layers.1.trained.overlap", [[1, 0], [0, 1, 2]], "overlap must be numbers"),
        ("layers.0.untrained.peak.1", "9", "peak must be numbers"),
        ("layers.0.shuffled_overlap", [[True] * 3] * 3, "shuffled_overlap must be numbers"),
        ("layers.0.classes", None, "must be a JSON object, got NoneType"),
        ("layers.0.classes.iou", [[0.1, 0.2]] * 3, r"iou must be numbers of shape \(3, 3\)"),
        ("masks.classes.0", 3, "classes must be a list of names"),
        ("masks.share", [0.5, 0.5], r"share must be numbers of shape \(3,\)"),
        ("data.n", 2.5, "n must be a whole number"),
        ("layers.0.photos.1.0", ["a.jpg", 1, 2], r"must hold \[file, peak, y, x\]"),
        ("layers.0.photos.1.0.2", 1.01, "y and x from 0 to 1"),
        ("layers.0.photos.1.0.1", float("inf"), "must hold"),
        ("layers.0.photos.1.0.1", 10**400, "must hold"),
        ("layers.0.photos.1", "abc", "must be a list"),
    ],
)
def test_nothing_that_is_read_is_trusted(path, value, reason):
    with pytest.raises(CheckpointError, match=reason) as raised:
        parse_atlas(changed(path, value))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


OUTSIDE = ("../a.jpg", "/etc/passwd", "a/../../b", "C:\\a.jpg", "\\\\host\\a", "a\\..\\b", "", "a\0b")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_name_leads_out_of_the_data_folder(name):
    with pytest.raises(CheckpointError, match="must lie below the data folder"):
        parse_atlas(changed("layers.0.photos.1.0.0", name))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": NaN}', "\xff"])
def test_what_is_no_json_object_is_one_line(tmp_path, text):
    path = tmp_path / "x.atlas.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"x\.atlas\.json: ") as raised:
        read_atlas(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="cannot read: No such file"):
        read_atlas(tmp_path / "nix.atlas.json")
