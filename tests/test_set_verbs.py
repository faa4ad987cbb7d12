"""The verbs that look at more than one image: dissect, compare, video."""

import json

import numpy as np
import pytest
from PIL import Image

from vtviz import checkpoints
from vtviz.explain.atlas_file import load_atlas, read_atlas
from vtviz.film import write_webm
from vtviz.predictor import Predictor
from vtviz.train.probe import write_probe


@pytest.fixture
def run(run, tiny_checkpoint):
    """Runs a command with the checkpoint "tiny": exit code, and what stdout and stderr got, of FFmpeg too."""

    def call(*args, model=("tiny",)):
        models = [part for name in model for part in ("--model", str(name))]
        return run(*args, *models, "--device", "cpu")

    return call


@pytest.fixture
def photos(tmp_path, chelsea, coffee):
    """Three photos in class folders, and the same again as a set with masks: left and right halves."""
    root = tmp_path / "data"
    for i, (name, photo) in enumerate(
        {"cat": chelsea[:120, :160], "cup": coffee[:160, :100], "saucer": coffee[200:, :200]}.items()
    ):
        for folder in (
            root / "folders" / "val" / name[:3],
            root / "masked" / "val" / "images",
            root / "masked" / "val" / "masks",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / "folders" / "val" / name[:3] / f"{i}.png")
        Image.fromarray(photo).save(root / "masked" / "val" / "images" / f"{i}.png")
        mask = np.zeros(photo.shape[:2], np.uint8)
        mask[:, photo.shape[1] // 2 :] = 1
        Image.fromarray(mask).save(root / "masked" / "val" / "masks" / f"{i}.png")
    (root / "masked" / "classes.txt").write_text("left\nright\n")
    return root


# --- dissect


def test_dissect_writes_an_atlas_and_sheets(run, photos, tmp_path, tiny_checkpoint):
    out = tmp_path / "out"
    code, text, err = run(
        "dissect", "--data", photos / "folders", "--masks", photos / "masked", "--out", out, "--size", 64
    )
    assert (code, err) == (0, "")
    assert {p.name for p in out.iterdir()} == {"atlas.json", "sheet_block0.png", "sheet_block1.png"}
    assert text.splitlines()[0].startswith("tiny on 3 photos of folders")
    assert "two tokens share" in text
    assert "untrained" in text
    assert "shuffled" in text
    assert "left" in text or "right" in text
    atlas = read_atlas(out / "atlas.json")
    assert {peak.file for peak in atlas.layers[0].photos[0]} == {"val/cat/0.png", "val/cup/1.png", "val/sau/2.png"}
    assert atlas.masks.classes == ("left", "right")
    (out / "atlas.json").rename(tiny_checkpoint.with_name("tiny.atlas.json"))
    assert load_atlas("tiny").to_dict() == atlas.to_dict()


def test_dissect_prints_json(run, photos, tmp_path):
    options = ("--size", 64, "--n", 2, "--photos", 1, "--seed", 4, "--threshold", 2, "--json")
    code, text, err = run("dissect", "--data", photos / "folders", "--out", tmp_path / "out", *options)
    assert (code, err) == (0, "")
    stated = json.loads(text)
    files = stated.pop("files")
    assert stated == read_atlas(files["atlas.json"]).to_dict()
    assert (stated["data"]["n"], stated["seed"], stated["threshold"], stated["masks"]) == (2, 4, 2, None)
    assert all(len(token) == 1 for layer in stated["layers"] for token in layer["photos"])
    assert set(files) == {"atlas.json", "sheet_block0.png", "sheet_block1.png"}


def test_dissect_says_what_is_wrong_in_one_line(run, photos, tmp_path):
    code, text, err = run("dissect", "--data", photos / "nowhere", "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert err.startswith("error: no data folder at")
    assert err.count("\n") == 1


@pytest.mark.parametrize("within", ["", "out", "../folders/val/out"])
def test_dissect_puts_no_pictures_among_the_photos(run, photos, within):
    before = sorted(photos.rglob("*"))
    code, text, err = run("dissect", "--data", photos / "folders", "--out", photos / "folders" / within)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "its pictures would be photos the next time" in err
    assert sorted(photos.rglob("*")) == before


# --- compare


def test_compare_two_images(run, photos, tmp_path):
    images = sorted((photos / "masked" / "val" / "images").iterdir())[:2]
    out = tmp_path / "out"
    code, text, err = run("compare", *images, "--out", out, "--size", 64)
    assert (code, err) == (0, "")
    assert {p.name for p in out.iterdir()} == {"compare.json", "compare_block0.png", "compare_block1.png"}
    lines = text.splitlines()
    assert lines[0] == "0.png and 1.png"
    assert lines[1].startswith("block0: 16 pairs share ")
    assert "by chance" in lines[1]
    stated = json.loads((out / "compare.json").read_text())
    assert stated["labels"] == ["0.png", "1.png"]
    assert sorted(p["second"] for p in stated["layers"][0]["pairs"]) == list(range(16))


def test_compare_tells_two_files_of_one_name_apart(run, photos, tmp_path):
    first, second = (photos / "masked" / "val" / folder / "0.png" for folder in ("images", "masks"))
    for pair, labels in (
        ((first, second), ["images/0.png", "masks/0.png"]),
        ((first, first), ["0.png", "0.png"]),
    ):
        code, text, err = run("compare", *pair, "--out", tmp_path / "out", "--size", 64, "--json")
        assert (code, err) == (0, "")
        stated = json.loads(text)
        assert stated["labels"] == labels
        assert [side["image"] for side in stated["sides"]] == [str(path) for path in pair]
        assert [side["model"] for side in stated["sides"]] == ["tiny", "tiny"]


def test_compare_two_models(run, photos, tmp_path, tiny_model, tiny_card):
    model = tiny_model("vt_fpn_resnet18")
    palette = ((0, 0, 0),) * 5
    other = tmp_path / "other.safetensors"
    checkpoints.save(other, model, tiny_card(model, model="vt_fpn_resnet18", task="segmentation", palette=palette))
    image = photos / "masked" / "val" / "images" / "0.png"
    options = ("--size", 64, "--scale", "0,5", "--cmap", "viridis", "--json")
    code, text, err = run("compare", image, "--out", tmp_path / "out", *options, model=("tiny", other))
    assert (code, err) == (0, "")
    stated = json.loads(text)
    assert stated["labels"] == ["tiny", "other.safetensors"]
    assert [layer["names"] for layer in stated["layers"]] == [["block0", "p2"], ["block1", "p3"]]
    assert set(stated["files"]) == {"compare.json", "compare_block0_p2.png", "compare_block1_p3.png"}


def test_compare_two_epochs(run, tmp_path, tiny_model, tiny_card, chelsea):
    folder = tmp_path / "run"
    checkpoints.save(folder / "last.safetensors", tiny_model(), tiny_card(tiny_model()))
    for epoch in (1, 2):
        write_probe(folder, Predictor(tiny_model()), np.ascontiguousarray(chelsea[:100, :100]), epoch)
    code, text, err = run("compare", "--epochs", "1,2", "--out", tmp_path / "out", model=(folder,))
    assert (code, err) == (0, "")
    assert text.splitlines()[:2] == [
        "epoch 1 and epoch 2",
        "block0: 16 pairs share 100% of their mass (by chance "
        + text.split("by chance ")[1].split("%")[0]
        + "%); 0 & 0 100%, 1 & 1 100%, 2 & 2 100%, 3 & 3 100%",
    ]
    code, _, err = run("compare", "--epochs", "1,7", "--out", tmp_path / "out", model=(folder,))
    assert code == 2
    assert "no token maps of epoch 7" in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((), "compare takes one image and two --model, two images, or"),
        (("a.png",), "got 1 images and 1 models"),
        (("a.png", "b.png", "c.png"), "got 3 images"),
        (("--epochs", "1"), "--epochs must be two whole numbers such as 1,30, got '1'"),
        (("--epochs", "1,2", "a.png"), "--epochs compares one run on its own photo"),
        (("a.png", "b.png", "--scale", "0,x"), "--scale must be"),
        (("a.png", "b.png"), "no such image file"),
    ],
)
def test_compare_says_what_is_wrong_in_one_line(run, tmp_path, args, reason):
    code, text, err = run("compare", *args, "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


# --- video


def test_video_writes_a_film_and_its_arrays(run, photos, tmp_path):
    source = photos / "masked" / "val" / "images"
    code, text, err = run("video", source, "--out", tmp_path / "out", "--size", 64, "--frames", 2)
    assert (code, err) == (0, "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"images.webm", "images.npz", "images.json"}
    assert text.startswith(f"{source} -> {tmp_path / 'out' / 'images.webm'}: 2 frames, of 3: --frames says how many; ")
    assert "16 tokens of block0, colours 0 to " in text


def test_video_takes_options_and_prints_json(run, photos, tmp_path):
    source = photos / "masked" / "val" / "images"
    options = ("--tokens", "1,-1", "--layer", "-1", "--every", 2, "--format", "webp", "--scale", "0,4", "--fps", 2)
    code, text, err = run("video", source, "--out", tmp_path / "out", "--size", 64, "--cell", 40, "--json", *options)
    assert (code, err) == (0, "")
    stated = json.loads(text)
    assert (stated["layer"], stated["tokens"], stated["scale"], stated["fps"]) == ("block1", [1, 7], [0, 4], 2)
    assert [frame["name"] for frame in stated["frames"]] == ["0.png", "2.png"]
    assert stated == json.loads((tmp_path / "out" / "images.json").read_text())
    with Image.open(stated["files"]["images.webp"]) as film:
        assert film.n_frames == 2


@pytest.mark.parametrize(
    ("name", "data", "args", "reason"),
    [
        ("a.mp4", b"", (), "nor a folder of frames: it is empty"),
        ("a.webm", b"\x1a\x45\xdf\xa3" + b"broken" * 99, (), "damaged, or of a codec"),
        ("a.webm", b"", ("--tokens", "x"), "--tokens must be whole numbers such as 0,3,5, got 'x'"),
        ("a.webm", b"", ("--format", "gif"), "unknown kind of film 'gif'"),
    ],
)
def test_video_says_what_is_wrong_in_one_line(run, tmp_path, name, data, args, reason):
    (tmp_path / name).write_bytes(data)
    code, text, err = run("video", tmp_path / name, "--out", tmp_path / "out", *args)
    assert (code, text) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_video_never_overwrites_its_source(run, tmp_path, chelsea, monkeypatch):
    source = tmp_path / "a.webm"
    write_webm(source, iter([np.ascontiguousarray(chelsea[:80, :120])]), (80, 120), 5)
    before = source.read_bytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (source, "~/a.webm"):
        code, _, err = run("video", given, "--out", tmp_path)
        assert code == 2
        assert err == f"error: {source} is one of the images and would be lost: choose another folder\n"
        assert source.read_bytes() == before


def test_video_names_its_film_after_the_folder_that_a_tilde_means(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos / "masked" / "val" / "images"))
    code, _, err = run("video", "~", "--out", tmp_path / "out", "--size", 64, "--frames", 1)
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "images.webm").exists()
    code, _, err = run("video", "~nosuchuser/a.mp4", "--out", tmp_path / "out")
    assert code == 2
    assert err == "error: '~nosuchuser/a.mp4' is not a path: Could not determine home directory.\n"
