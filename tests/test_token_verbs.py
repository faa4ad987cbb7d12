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


@pytest.fixture
def run(capsys, tiny_checkpoint, photo):
    """Runs a verb on the photo with a small model: exit code, stdout, stderr."""

    def call(verb, *options):
        model = () if "--model" in options else ("--model", "tiny")
        with pytest.raises(SystemExit) as exit_:
            main([verb, str(photo), *model, "--device", "cpu", "--size", "64", *map(str, options)])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.fixture
def photo(tmp_path, chelsea):
    path = tmp_path / "cat.png"
    Image.fromarray(chelsea[:120, :160]).save(path)
    return path


@pytest.fixture
def maps(tiny_checkpoint, photo):
    return vtviz.extract_tokens(photo, "tiny", size=64, device="cpu")


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


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"{", "not a JSON object"), (b"[1]", "not a JSON")],
)
def test_an_analysis_that_is_none_is_one_line(run, tmp_path, content, message):
    path = tmp_path / "finding.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("report", "--out", tmp_path / "out", "--add", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["lineage", "query", "report"])
def test_help_teaches_by_example(capsys, verb):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert not exit_.value.code
    assert f"vtviz {verb} cat.jpg" in capsys.readouterr().out
