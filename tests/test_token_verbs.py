"""The command line's lineage, query and report."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import vtviz
from vtviz.cli import main
from vtviz.explain.lineage import lineage
from vtviz.explain.query import query

QUICK = ("--method", "gradient_x_token")


@pytest.fixture
def run(run, tiny_checkpoint, photo):
    """Runs a verb on the photo with a small model: exit code, stdout, stderr."""

    def call(verb, *options, photo=photo):
        model = () if "--model" in options else ("--model", "tiny")
        return run(verb, photo, *model, "--device", "cpu", "--size", "64", *options)

    return call


@pytest.fixture
def photo(tmp_path, chelsea):
    path = tmp_path / "cat.png"
    Image.fromarray(chelsea[:120, :160]).save(path)
    return path


@pytest.fixture
def maps(tiny_checkpoint, photo):
    return vtviz.extract_tokens(photo, "tiny", size=64, device="cpu")


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (("query", "--at", "3,3"), "query.png"),
        (("lineage",), "lineage.png"),
        (("attribute", "--method", "grad_cam"), "attributions.png"),
        (("compare", "--model", "tiny", "--model", "tiny"), "compare_block0.png"),
        (("extract",), "panel/panel.png"),
        (("report",), "image/image.png"),
    ],
)
def test_no_verb_writes_over_the_image_that_it_looks_at(run, photo, tmp_path, monkeypatch, verb, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    photo.replace(mine)
    before = mine.read_bytes()
    folder = tmp_path if verb[0] == "extract" else mine.parent
    if verb[0] == "report":  # the only picture that a report removes is an earlier extraction's
        (folder / "manifest.json").write_text('{"format": "vtviz token maps"}')
    code, out, err = run(*verb, "--out", folder, photo=mine)
    assert (code, out) == (2, "")
    assert err == f"error: {mine} is one of the images and would be lost: choose another folder\n"
    assert mine.read_bytes() == before
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_lineage_says_who_comes_from_whom(run):
    code, out, err = run("lineage")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "block0: 16 from learned filters",
        "block1: 8 from filters made of tokens 0 to 7 of the layer before (T_a), 8 kept from its tokens 8 to 15 (T_b)",
    ]


def test_lineage_json_is_what_the_api_says(run, maps, photo, tmp_path):
    code, out, err = run("lineage", "--json", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    stated = json.loads(out)
    files = stated.pop("files")
    assert stated == {"image": str(photo), "model": "tiny"} | json.loads(json.dumps(lineage(maps).to_dict()))
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(files)
    with Image.open(files["lineage.png"]) as picture:
        assert picture.width > 1000
    assert "files" not in json.loads(run("lineage", "--json")[1])


def test_lineage_of_a_vt_fpn(run, tiny_segmenter):
    code, out, _ = run("lineage", "--model", tiny_segmenter)
    assert (code, out) == (0, "p2, p3, p4, p5: 32 tokens from learned filters meet in one transformer\n")


def test_query_names_the_strongest_tokens_both_ways(run, maps):
    code, out, err = run("query", "--at", "20,30")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    layer = query(maps, at=(20, 30)).layers[0]
    best, read = layer.read_by[0].argmax(), layer.reads.mean(axis=0).argmax()
    assert first.startswith(f"block0: read by token {best} ({layer.read_by[0].max():.1f}×), token ")
    assert f"; reads token {read} ({16 * layer.reads.mean(axis=0).max():.1f}×), token " in first
    assert second.startswith("block1: read by token ")
    assert "reads" not in second


def test_query_json_is_what_the_api_says(run, maps, tmp_path):
    code, out, err = run("query", "--box", "10,20,60,70", "--json", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    stated = json.loads(out)
    files = stated.pop("files")
    assert stated == query(maps, box=(10, 20, 60, 70)).to_dict()
    assert json.loads((tmp_path / "out" / "query.json").read_text()) == stated
    with Image.open(files["query.png"]) as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a query needs either --at X,Y or --box X0,Y0,X1,Y1"),
        (["--at", "1,2", "--box", "1,2,3,4"], "either --at"),
        (["--at", "1"], "--at must be whole numbers such as 120,80, got '1'"),
        (["--at", "1,b"], "--at must be whole numbers"),
        (["--box", "1,2,3"], "--box must be whole numbers such as 0,0,120,80, got '1,2,3'"),
        (["--at", "160,0"], "the pixel 160, 0 is outside the image of 160 x 120 pixels"),
        (["--at", "0,60", "--crop", "center"], "the model did not see the pixel 0, 60"),
        (["--box", "4,4,4,8"], "is empty or not within"),
    ],
)
def test_a_bad_place_is_one_line_and_exit_code_2(run, options, message):
    code, out, err = run("query", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_report_writes_a_page_and_its_arrays(run, maps, photo, tmp_path):
    code, out, err = run("report", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out == f"{photo} -> {tmp_path / 'out' / 'report.html'}\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "maps.npz", "manifest.json"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cat.png" in page
    assert "Model card" in page
    saved = vtviz.TokenMaps.load(tmp_path / "out")
    assert np.array_equal(saved.layers[1].coefficients, maps.layers[1].coefficients)


def test_report_packs_a_segmentation_models_too(run, tiny_segmenter, tmp_path):
    code, out, err = run("report", "--model", tiny_segmenter, "--out", tmp_path / "out", "--zip", "--json")
    assert (code, err) == (0, "")
    files = json.loads(out)["files"]
    assert set(files) == {"report.html", "maps.npz", "manifest.json", "report.zip"}
    with zipfile.ZipFile(files["report.zip"]) as archive:
        assert b"rgb(255, 0, 0)" in archive.read("report.html")  # the card's palette


def test_report_takes_finished_analyses_in(run, tmp_path):
    assert run("ablate", "--out", tmp_path / "out")[0] == 0
    assert run("query", "--at", "9,9", "--out", tmp_path / "out")[0] == 0
    added = [word for name in ("ablation", "query") for word in ("--add", tmp_path / "out" / f"{name}.json")]
    assert run("report", "--out", tmp_path / "out", *added)[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Ablation</h2>" in page
    assert "absent probability" in page
    assert '<h2>Query</h2><figure><img src="data:image/png' in page  # query.png lies beside query.json


def test_report_refuses_what_was_found_of_another_photo_or_model(run, photo, tmp_path, chelsea, tiny_segmenter):
    """Or else a page would show it as this photo's. Nothing is written, and what is right stays right."""
    other = tmp_path / "other" / "cat.png"
    other.parent.mkdir()
    Image.fromarray(chelsea[100:220, 40:200]).save(other)  # of the same name and size
    assert run("ablate", "--out", tmp_path, photo=other)[0] == 0
    code, out, err = run("report", "--out", tmp_path / "out", "--add", tmp_path / "ablation.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {tmp_path}/ablation.json: its image is ")
    assert f"{str(other)!r}, that of the report {str(photo)!r}" in err
    assert run("ablate", "--out", tmp_path)[0] == 0
    for options, said in (
        (("--model", tiny_segmenter), "its model is 'tiny'"),
        (("--size", "96"), "its input size is"),
    ):
        code, out, err = run("report", "--out", tmp_path / "out", "--add", tmp_path / "ablation.json", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    path = tmp_path / "ablation.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"weights": "0" * 64}))
    assert "its weights are '0000" in run("report", "--out", tmp_path / "out", "--add", path)[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [("ablate",), ("lineage",), ("query", "--at", "30,30"), ("attribute", *QUICK)])
def test_report_refuses_what_was_found_of_another_crop_or_photo(run, tmp_path, chelsea, verb):
    """Also where the model's input is as large."""
    for name, pixels in (("one", chelsea[:90, :90]), ("two", chelsea[90:180, :90])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert run(*verb, "--crop", "center", "--out", tmp_path / "found", photo=one)[0] == 0
    (path,) = (tmp_path / "found").glob("*.json")
    assert json.loads(path.read_text())["input"] == [64, 64]
    for options, other, said in (
        ((), one, "its resized size is [73, 73], that of the report [64, 64]"),
        (("--crop", "center"), two, "its image is"),
    ):
        code, out, err = run("report", "--out", tmp_path / "out", "--add", path, *options, photo=other)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert run("report", "--out", tmp_path / "out", "--add", path, "--crop", "center", photo=one)[0] == 0


def test_report_says_where_a_file_does_not_tell_what_it_is_of(run, tmp_path):
    assert run("query", "--at", "9,9", "--out", tmp_path)[0] == 0
    (tmp_path / "mine.json").write_text('{"mean": 3}')
    for name, silent in (("mine", True), ("query", False)):
        assert run("report", "--out", tmp_path / "out", "--add", tmp_path / f"{name}.json")[0] == 0
        assert ("does not say of which photo" in (tmp_path / "out" / "report.html").read_text()) == silent


def test_report_takes_a_comparison_with_another_photo(run, photo, tmp_path, chelsea):
    others = [tmp_path / f"{name}.png" for name in ("one", "two")]
    for path in others:
        Image.fromarray(chelsea[:90, :90]).save(path)
    for first, code in ((photo, 0), (others[0], 2)):
        assert run("compare", others[1], "--out", tmp_path, photo=first)[0] == 0
        found = run("report", "--out", tmp_path / "out", "--add", tmp_path / "compare.json")
        assert found[0] == code
    assert "its image is " in found[2]
    assert "does not say of which photo" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON"),
        (b"[" * 100_000, "not a JSON"),
    ],
    ids=["none", "half", "list", "deep"],
)
def test_an_analysis_that_is_none_is_one_line(run, tmp_path, content, message):
    path = tmp_path / "finding.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("report", "--out", tmp_path / "out", "--add", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", [".", "/"])
def test_an_analysis_that_is_a_folder_without_a_name_is_one_line(run, tmp_path, folder):
    code, out, err = run("report", "--out", tmp_path / "out", "--add", folder)
    assert (code, out, err) == (2, "", f"error: {folder}: cannot be read: Is a directory\n")


@pytest.mark.parametrize("verb", ["lineage", "query", "report"])
def test_help_teaches_by_example(capsys, verb):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert not exit_.value.code
    assert f"vtviz {verb} cat.jpg" in capsys.readouterr().out
