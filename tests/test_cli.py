"""The verbs extract and segment, as a program and as it is used in a shell."""

import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vtviz
from vtviz.console import find_images


@pytest.fixture
def photos(tmp_path, chelsea, coffee):
    """photos/cat.png, photos/cup.jpg, a broken picture and no picture at all."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(chelsea[:120, :160]).save(folder / "cat.png")
    Image.fromarray(coffee[:160, :100]).save(folder / "cup.JPG")
    Image.fromarray(coffee[:50, :50]).save(folder / "deep" / "cat.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def extract(run, tiny_checkpoint, tmp_path):
    def call(*args):
        return run("extract", *args, "--model", "tiny", "--device", "cpu", "--size", "64", "--out", tmp_path / "out")

    return call


# --- extract


def test_extract_writes_a_folder_for_each_image_and_says_what_it_saw(extract, photos, tmp_path):
    code, out, err = extract(photos / "cat.png", photos / "cup.JPG")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{photos / 'cat.png'} -> {tmp_path / 'out' / 'cat'}: class ")
    assert first.count("%") == 3
    assert "cup" in second
    for name, (width, height) in {"cat": (160, 120), "cup": (100, 160)}.items():
        folder = tmp_path / "out" / name
        assert {p.name for p in folder.iterdir()} == {"maps.npz", "manifest.json", "panel.png", "overlays"}
        overlays = sorted(folder.glob("overlays/*.png"))
        assert len(overlays) == 16 + 8
        assert Image.open(overlays[0]).size == (width, height)


def test_json_is_what_the_api_says(extract, photos, tmp_path):
    code, out, err = extract(photos / "cat.png", "--json")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)
    maps = vtviz.extract_tokens(photos / "cat.png", "tiny", size=64, device="cpu")
    assert result["image"] == str(photos / "cat.png")
    assert [(p["index"], p["label"], p["probability"]) for p in result["predictions"]] == [
        (p.index, p.label, p.probability) for p in maps.topk()
    ]
    assert result["input"] == list(maps.geometry.input)
    for stated, layer in zip(result["layers"], maps.layers, strict=True):
        statistics = layer.statistics()
        assert stated["name"] == layer.name
        assert (stated["heads"], stated["tokens"], *stated["cells"]) == layer.coefficients.shape
        assert (stated["peak"], stated["dead"], stated["error"]) == (statistics.peak, statistics.dead, layer.error)
    saved = vtviz.TokenMaps.load(result["folder"])
    assert saved.source == str(photos / "cat.png")
    for ours, theirs in zip(saved.layers, maps.layers, strict=True):
        assert np.array_equal(ours.coefficients, theirs.coefficients)
    assert set(result["files"]) >= {"maps.npz", "manifest.json", "panel.png", "overlays/block1_token07.png"}
    assert all((tmp_path / "out" / "cat" / name).samefile(path) for name, path in result["files"].items())


def test_a_bad_image_gives_one_line_and_exit_code_2_and_the_others_are_done(extract, photos, tmp_path):
    code, out, err = extract(photos, tmp_path / "missing.jpg", "--json", "--no-pictures")
    assert code == 2
    results = json.loads(out)
    assert [r["image"] for r in results if "folder" in r] == [str(photos / "cat.png"), str(photos / "cup.JPG")]
    assert {r["image"]: r["error"] for r in results if "error" in r}.keys() == {
        str(photos / "broken.png"),
        str(tmp_path / "missing.jpg"),
    }
    broken, missing = err.splitlines()
    assert broken.startswith("error: ")
    assert "broken.png" in broken
    assert "missing.jpg" in missing
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cat", "cup"}


def test_images_of_one_name_get_folders_of_their_own(extract, photos, tmp_path):
    code, _, _ = extract(str(photos / "**" / "cat.*"), "--no-pictures")
    assert code == 0
    shapes = [vtviz.TokenMaps.load(tmp_path / "out" / name).geometry.original for name in ("cat", "cat-2")]
    assert shapes == [(120, 160), (50, 50)]


def test_options_reach_the_maps_and_the_pictures(extract, photos, tmp_path):
    def overlay(*options):
        code, _, err = extract(photos / "cat.png", *options)
        assert (code, err) == (0, "")
        return Image.open(tmp_path / "out" / "cat" / "overlays" / "block1_token00.png").tobytes()

    pictures = [
        overlay(*options)
        for options in (
            [],
            ["--align", "resize"],
            ["--cmap", "magma"],
            ["--scale", "map"],
            ["--scale", "0,8"],
            ["--crop", "center"],
        )
    ]
    assert len(set(pictures)) == len(pictures)
    assert vtviz.TokenMaps.load(tmp_path / "out" / "cat").geometry.input == (64, 64)
    extract(photos / "cat.png", "--layers", "-1")
    assert [layer.name for layer in vtviz.TokenMaps.load(tmp_path / "out" / "cat").layers] == ["block1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0,x"], "--layers must be whole numbers such as 0,1 or -1, got '0,x'"),
        (["--layers", "7"], "there is no layer 7"),
        (["--scale", "1,2,3"], "--scale must be shared, map, or two numbers such as 0,8, got '1,2,3'"),
        (["--scale", "5,1"], "low < high"),
        (["--scale", "shard"], "unknown scale 'shard'; did you mean 'shared'?"),
        (["--cmap", "virids"], "unknown colour map 'virids'; did you mean 'viridis'?"),
        (["--align", "centre"], "'centre'"),
        (["--crop", "left"], "'left'"),
        (["--size", "-3"], "-3"),
        (["--device", "gpu"], "cannot use device 'gpu'"),
        (["--device", "meta"], "cannot use device 'meta'"),
        (["--model", "tinny"], "did you mean 'tiny'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_exit_code_2(run, tiny_checkpoint, photos, tmp_path, options, message):
    defaults = {"--model": "tiny", "--device": "cpu", "--size": "64"}
    defaults.pop(options[0], None)
    rest = [part for pair in defaults.items() for part in pair]
    code, out, err = run("extract", photos / "cat.png", "--out", tmp_path / "out", *rest, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_output_that_is_a_file_is_one_line(run, tiny_checkpoint, photos):
    code, _, err = run("extract", photos / "cat.png", "--model", "tiny", "--out", photos / "notes.txt")
    assert code == 2
    assert err.count("\n") == 1
    assert "notes.txt" in err


def test_a_model_without_tokens_is_one_line(run, tmp_path, tiny_model, tiny_card, photos):
    from vtviz import checkpoints

    model = tiny_model("resnet18")
    checkpoints.save(tmp_path / "plain.safetensors", model, tiny_card(model, name="plain", model="resnet18"))
    code, _, err = run(
        "extract", photos / "cat.png", "--model", tmp_path / "plain.safetensors", "--out", tmp_path / "out"
    )
    assert code == 2
    assert "plain is a model without tokens" in err


def test_find_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    found, failures = find_images(["deep", "cat.png", "*.JPG", "cat.png", "."])
    assert [p.as_posix() for p in found] == ["deep/cat.png", "cat.png", "cup.JPG", "broken.png"]
    assert failures == []
    Image.new("RGB", (4, 4)).save("odd[1].png")
    assert [p.name for p in find_images(["odd[1].png"])[0]] == ["odd[1].png"]  # a file, not a pattern
    (tmp_path / "empty").mkdir()
    found, failures = find_images(["../empty", "no*.png", "~nosuchuser/cat.jpg", "x" * 5000])
    assert found == []
    assert [f["error"] for f in failures][:3] == [
        "../empty: no images in this folder",
        "no*.png: no file matches this pattern",
        "~nosuchuser/cat.jpg: Could not determine home directory.",
    ]
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_that_stdout_has_no_letters_for_is_printed_all_the_same(extract, photos, monkeypatch, encoding):
    odd = (photos / "cat.png").rename(photos / "\N{CAT}caf\udce9.png")
    for options, said in (((), f"{photos}/"), (("--json",), "[\n")):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stdout)
        assert extract(odd, "--no-pictures", *options)[0] == 0
        stdout.seek(0)
        out = stdout.read()
        assert out.startswith(said)
    assert json.loads(out)[0]["image"] == str(odd)


def test_module_runs_and_control_c_exits_130(photos, tiny_checkpoint, tmp_path):
    for i in range(200):
        (photos / f"cat{i}.png").write_bytes((photos / "cat.png").read_bytes())
    command = [sys.executable, "-m", "vtviz", "extract", str(photos), "-m", "tiny", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert " -> " in process.stdout.readline()
        for _ in range(10):  # Python drops an interrupt that falls into a destructor: people press again
            process.send_signal(signal.SIGINT)
            try:
                _, err = process.communicate(timeout=20)
                break
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 130
    assert "Traceback" not in err
    done = list((tmp_path / "out").iterdir())
    assert 0 < len(done) < 200
    leftovers = [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]
    assert leftovers == []


# --- segment


@pytest.fixture
def segment(run, tiny_segmenter, tmp_path):
    def call(*args):
        model = () if "--model" in args else ("--model", "segmenter")
        return run("segment", *args, *model, "--device", "cpu", "--size", "64", "--out", tmp_path / "out")

    return call


def test_segment_writes_three_files_for_each_image_and_says_what_it_saw(segment, photos, tmp_path, chelsea):
    code, out, err = segment(photos / "cat.png", photos / "cup.JPG")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{photos / 'cat.png'} -> {tmp_path / 'out' / 'cat.png'}: class ")
    assert "cup" in second
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{name}{ending}" for name in ("cat", "cup") for ending in (".png", "_overlay.png", ".json")
    }
    found = vtviz.segment(photos / "cat.png", "segmenter", size=64, device="cpu")
    with Image.open(tmp_path / "out" / "cat.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.array(labels), found.labels)
        assert np.array_equal(np.array(labels.convert("RGB")), np.array(found.palette, np.uint8)[found.labels])
    with Image.open(tmp_path / "out" / "cat_overlay.png") as overlay:
        assert np.array_equal(np.array(overlay), vtviz.label_overlay(found))
    assert json.loads((tmp_path / "out" / "cat.json").read_text()) == found.to_dict()


def test_segment_json_is_what_the_api_says(segment, photos, tmp_path):
    code, out, err = segment(photos / "cat.png", "--json", "--opacity", "1", "--crop", "center")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)
    found = vtviz.segment(photos / "cat.png", "segmenter", size=64, crop="center", device="cpu")
    files = result.pop("files")
    assert result == found.to_dict()
    assert result["unseen"] > 0
    assert [(tmp_path / "out" / name).samefile(path) for name, path in files.items()] == [True] * 3
    with Image.open(files["cat_overlay.png"]) as overlay:
        assert np.array_equal(np.array(overlay), vtviz.label_overlay(found, opacity=1))


def test_segment_does_the_others_where_an_image_is_bad(segment, photos, tmp_path):
    code, out, err = segment(photos, tmp_path / "missing.jpg", "--json")
    assert code == 2
    assert [("error" in r, r["image"].rsplit("/", 1)[1]) for r in json.loads(out)] == [
        (False, "cat.png"), (False, "cup.JPG"), (True, "broken.png"), (True, "missing.jpg"),
    ]  # fmt: skip
    assert len(err.splitlines()) == 2
    assert {p.stem for p in (tmp_path / "out").glob("*.json")} == {"cat", "cup"}


def test_segment_never_writes_over_an_image_that_it_was_given(segment, photos, tmp_path):
    (tmp_path / "out").mkdir()
    photo = tmp_path / "out" / "cat.png"
    photo.write_bytes((photos / "cat.png").read_bytes())
    code, out, err = segment(photos / "cup.JPG", photo)
    assert (code, out) == (2, "")
    assert err == f"error: {photo} is one of the images and would be lost: choose another folder\n"
    assert photo.read_bytes() == (photos / "cat.png").read_bytes()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cat.png"]


def test_segment_keeps_the_results_of_like_names_apart(segment, photos, tmp_path):
    for name in ("cat_overlay.jpg", "cat.jpg"):
        Image.open(photos / "cat.png").save(photos / name)
    code, _, _ = segment(photos / "cat.png", photos / "cat_overlay.jpg", photos / "cat.jpg")
    assert code == 0
    assert {p.stem for p in (tmp_path / "out").glob("*.json")} == {"cat", "cat_overlay-2", "cat-2"}
    assert len(list((tmp_path / "out").iterdir())) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opacity", "2"], "opacity must be from 0 to 1, got 2.0"),
        (["--model", "tiny"], "tiny is a classifier: it does not segment"),
        (["--model", "segmentor"], "did you mean 'segmenter'?"),
        (["--crop", "left"], "'left'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_segment_says_in_one_line_what_is_wrong(segment, tiny_checkpoint, photos, tmp_path, options, message):
    code, out, err = segment(photos / "cat.png", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list((tmp_path / "out").glob("*"))


def test_extract_takes_a_segmentation_model(run, tiny_segmenter, photos, tmp_path):
    command = ("extract", photos / "cat.png", "-m", "segmenter", "--size", "64", "-o", tmp_path / "out", "--json")
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    (result,) = json.loads(out)
    assert [layer["name"] for layer in result["layers"]] == ["p2", "p3", "p4", "p5"]
    assert result["predictions"] is None
    assert len(list((tmp_path / "out" / "cat" / "overlays").iterdir())) == 32
