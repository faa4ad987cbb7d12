import base64
import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from vtviz.errors import ConfigError, DataError
from vtviz.explain.origin import origin
from vtviz.export import write_extraction
from vtviz.html_report import Section, report
from vtviz.predictor import Predictor
from vtviz.render import COLORMAPS
from vtviz.segmentation import from_maps
from vtviz.tokens import TokenMaps

HOSTILE = "'\"></script><script>alert('x')</script><img src=x onerror=\"alert(1)\"> & {name}"


@dataclass
class Finding:
    data: dict

    def to_dict(self):
        return self.data


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, markup: str):
        super().__init__()
        self.tags, self.raw, self.text = [], {"script": [], "style": []}, ""
        self._inside = None
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag if tag in self.raw else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside].append(data)
        else:
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea):
    return replace(Predictor(tiny_model()).extract(chelsea, size=96), source="photos/cat.jpg")


@pytest.fixture(scope="module")
def levels(tiny_model, chelsea):
    return Predictor(tiny_model("vt_fpn_resnet18")).extract(chelsea, size=64)


@pytest.fixture
def write(tmp_path):
    def call(maps, **options):
        paths = report(maps, tmp_path / "out", **options)
        return Page(paths["report.html"].read_text(encoding="utf-8"))

    return call


def embedded(page: Page) -> dict:
    (data,) = [text for text in page.raw["script"] if text.startswith("{")]
    return json.loads(data)


def test_it_holds_the_arrays_bit_for_bit(write, maps, tmp_path):
    data = embedded(write(maps))
    for stated, layer in zip(data["layers"], maps.layers, strict=True):
        array = np.frombuffer(base64.b64decode(stated["coefficients"]), "<f4").reshape(stated["shape"])
        assert np.array_equal(array, layer.coefficients)
        assert (stated["name"], stated["stride"], stated["kept"]) == (layer.name, layer.stride, layer.kept)
    assert data["geometry"] == maps.geometry.to_dict()
    colours = np.frombuffer(base64.b64decode(data["colormaps"]["viridis"]), np.uint8).reshape(256, 3)
    assert np.array_equal(colours, COLORMAPS["viridis"])
    assert set(data["colormaps"]) == set(COLORMAPS)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.html", "maps.npz", "manifest.json"}
    saved = TokenMaps.load(tmp_path / "out")
    assert all(np.array_equal(a.coefficients, b.coefficients) for a, b in zip(saved.layers, maps.layers, strict=True))


def test_it_asks_for_nothing_and_its_policy_forbids_to(write, maps):
    page = write(maps)
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "action", "data") if key in a]
    assert {address for address in addresses if not address.startswith("data:image/")} == {"maps.npz", "manifest.json"}
    assert page.of("link") == page.of("iframe") == page.of("base") == []
    (policy,) = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    assert (rules.pop("base-uri"), rules.pop("form-action")) == ("'none'", "'none'")

    def hashes(texts):
        return {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts}

    assert set(rules.pop("style-src").split()) == hashes(page.raw["style"])
    assert set(rules.pop("script-src").split()) == hashes(t for t in page.raw["script"] if not t.startswith("{"))
    assert rules == {}
    assert not any(key == "style" or key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_hostile_names_stay_text(write, maps, tiny_model, tiny_card):
    classes = tuple(f"{HOSTILE} {i}" for i in range(5))
    card = tiny_card(
        tiny_model(), name=HOSTILE, classes=classes, notes=HOSTILE, data={HOSTILE: HOSTILE}, licence=HOSTILE
    )
    layers = tuple(replace(layer, name=f"{layer.name}{HOSTILE}") for layer in maps.layers)
    hostile = replace(
        maps, layers=layers, source=f"folder/{HOSTILE.replace('/', '')}.jpg", model=HOSTILE, classes=classes
    )
    picture = np.zeros((4, 4, 3), np.uint8)
    section = Section(HOSTILE, Finding({HOSTILE: [{"name": HOSTILE, "x": [1, 2]}]}), HOSTILE, [picture])
    page, clean = write(hostile, card=card, sections=[section]), write(maps)
    scripts = len(clean.of("script"))
    assert len(page.of("script")) == scripts == 2
    assert all("onerror" not in image and image["src"].startswith("data:image/") for image in page.of("img"))
    assert page.raw["script"][1] == clean.raw["script"][1]
    assert embedded(page)["layers"][1]["name"] == layers[1].name
    assert page.text.count("alert('x')") > 10


def test_hostile_classes_of_a_segmentation_stay_text(write, levels):
    hostile = tuple(f"{HOSTILE} {i}" for i in range(5))
    page, clean = write(replace(levels, classes=hostile)), write(levels)
    assert [name for name, _ in page.tags] == [name for name, _ in clean.tags]
    assert page.text.count("alert('x')") == 5


def test_it_is_named_after_the_file_and_tells_of_no_folder(write, maps):
    assert "cat.jpg: visual tokens" in (text := write(maps).text)
    assert "photos" not in text
    assert "image: visual tokens" in write(replace(maps, source=None)).text


def test_it_says_what_the_model_saw_of_the_photo(write, tiny_model, chelsea):
    text = write(Predictor(tiny_model()).extract(chelsea, size=96, crop="center")).text
    assert "451 × 300 pixels, seen as 96 × 96" in text
    for fact in ("photo (height, width)300 × 451", "resized to110 × 165", "seen by the model96 × 96"):
        assert fact in text


def test_it_begins_with_the_token_that_peaks_most_within_the_photo(write, maps):
    def start(*places):
        values = np.full((1, len(places), 5, 6), 1e-3, np.float32)
        for token, (y, x, value) in enumerate(places):
            values[0, token, y, x] = value
        layer = replace(maps.layers[0], name="alone", coefficients=values)
        return embedded(write(replace(maps, layers=(layer,))))["start"]

    assert start((2, 3, 0.2), (1, 4, 0.4), (3, 1, 0.3)) == 1
    assert start((2, 3, 0.2), (1, 5, 0.4), (0, 1, 0.5), (3, 1, 0.3)) == 3  # not one that looks at the rim
    assert start((0, 3, 0.2), (1, 5, 0.4)) == 1  # unless all do


def test_the_answer_of_a_classifier(write, maps, tiny_model, tiny_card):
    page = write(maps, card=tiny_card(tiny_model()))
    best = maps.topk()[0]
    assert f"{best.label}{best.probability:.1%}" in page.text
    assert float(page.of("meter")[0]["value"]) == pytest.approx(best.probability, abs=1e-4)
    assert "Not trained" not in page.text
    assert "Not trained" in write(maps, card=tiny_card(tiny_model(), trained=False)).text


def test_a_segmentation_comes_with_its_legend(write, levels):
    colours = [(1, 2, 3), (255, 0, 0), (0, 128, 0), (0, 0, 255), (250, 250, 250)]
    segmentation = from_maps(levels, colours)
    page = write(levels, segmentation=segmentation)
    assert {each["fill"] for each in page.of("rect")} >= {f"rgb{colour}" for colour in colours}
    shares = [float(share) for share in re.findall(r"([\d.]+)%", page.text)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert "Prediction" not in page.text
    assert "one transformer" in page.text
    assert "Classes" in write(levels).text  # in colours of its own


def test_lineage_is_there_where_all_layers_are(write, maps):
    assert "Lineage" in write(maps).text
    assert "Lineage" not in write(replace(maps, layers=maps.layers[1:])).text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dynamic": False}, "(T_a) end"),
        ({"transformer": False}, "(T_a) become filters"),
        ({"blocks": 1}, "1× would be"),
    ],
)
def test_what_it_says_of_the_lineage_is_so(write, tiny_model, chelsea, options, told):
    text = write(Predictor(tiny_model(**options)).extract(chelsea, size=64)).text
    assert told in text
    assert ("how much it reads" in text) == ("transformer" not in options)


def test_sections_show_note_pictures_and_numbers(write, maps):
    data = {"image": "/album/mine/cat.jpg", "method": "deletion", "auc": 0.4321, "curve": [1.0, 0.5, 0.25]}
    pictures = [np.full((20, 30, 3), 77, np.uint8)] * 2
    page, plain = write(maps, sections=[Section("Faithfulness", Finding(data), "How fast.", pictures)]), write(maps)
    for text in ("Faithfulness", "How fast.", "deletion", "0.432", "0.25"):
        assert text in page.text
    assert "/album" not in page.text
    assert len(page.of("img")) - len(plain.of("img")) == 2


def of(maps, **other):
    """What an analysis of the same photo and model says of itself, but for some of it."""
    return Finding({**origin(maps), "auc": 0.4321, **other})


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"image": "photos/dog.jpg"}, "its image is 'photos/dog.jpg', that of the report 'photos/cat.jpg'"),
        ({"image": 7}, "its image is 7"),
        ({"model": "another"}, "its model is 'another'"),
        ({"weights": "0" * 64}, "its weights are '0000"),
        ({"size": [9, 9]}, "its image size is [9, 9]"),
        ({"input": [224, 224]}, "its input size is [224, 224]"),
        ({"resized": [90, 96]}, "its resized size is [90, 96]"),
        ({"offset": [0, 9]}, "its crop's offset is [0, 9], that of the report [0, 0]"),
    ],
)
def test_an_analysis_of_something_else_is_refused_in_one_line(write, maps, tmp_path, other, line):
    maps = replace(maps, weights="a" * 64)
    write(maps, sections=[Section("Its own", of(maps))])
    (tmp_path / "out" / "report.html").unlink()
    with pytest.raises(DataError) as refusal:
        write(maps, sections=[Section("Its own", of(maps)), Section("Another", of(maps, **other))])
    assert str(refusal.value).startswith(f"Another: {line}")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "report.html").exists()


def test_one_side_of_a_comparison_must_be_the_reports(write, maps):
    ours, others = ({**origin(maps), "model": name} for name in (maps.model, "another"))
    for sides in ([ours, others], [others, ours], [], 7, [7]):
        text = write(maps, sections=[Section("One", Finding({"sides": sides, "auc": 0.4321}))]).text
        assert "0.432" in text
        assert "photos/cat.jpg" not in text
    with pytest.raises(DataError, match="One: its model is 'another', that of the report"):
        write(maps, sections=[Section("One", Finding({"sides": [others, others | {"size": [9, 9]}]}))])


def test_what_an_analysis_does_not_know_of_itself_is_not_held_against_it(write, maps):
    """On the page a photo has no file, and a model that is being made has no weights' hash yet."""
    unknown = {"image": None, "weights": ""}
    assert "0.432" in write(replace(maps, weights="a" * 64), sections=[Section("One", of(maps, **unknown))]).text
    assert "0.432" in write(replace(maps, source=None), sections=[Section("One", of(maps, weights="b" * 64))]).text


def test_an_image_is_the_same_by_whichever_path(write, maps, tmp_path, monkeypatch):
    """And another one where both are there, though both have the name."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cat.jpg").write_bytes(folder.encode())
    monkeypatch.chdir(tmp_path)
    here = replace(maps, source="one/cat.jpg")
    for path in (
        tmp_path / "one" / "cat.jpg",
        "two/../one/cat.jpg",
        "/gone/cat.jpg",
        "x" * 5000 + "/cat.jpg",
        "\0/cat.jpg",
    ):
        write(here, sections=[Section("One", of(here, image=str(path)))])
    with pytest.raises(DataError, match=r"its image is 'two/cat\.jpg'"):
        write(here, sections=[Section("One", of(here, image="two/cat.jpg"))])


def test_an_analysis_of_many_images_is_held_to_its_model_alone(write, maps):
    many = {"model": maps.model, "weights": "", "input": [640, 480], "size": 448, "n": 100}
    text = write(maps, sections=[Section("Many", Finding(many))]).text
    assert "448" in text  # theirs, and not what the report says of this image
    with pytest.raises(DataError, match="its model is 'another'"):
        write(maps, sections=[Section("Many", Finding(many | {"model": "another"}))])


def test_the_zip_holds_all_three(maps, tmp_path):
    paths = report(maps, tmp_path, pack=True)
    with zipfile.ZipFile(paths["report.zip"]) as archive:
        assert sorted(archive.namelist()) == ["manifest.json", "maps.npz", "report.html"]
        assert all(archive.read(name) == paths[name].read_bytes() for name in archive.namelist())


def test_an_earlier_extraction_is_replaced_and_other_files_stay(maps, tmp_path):
    write_extraction(maps, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    report(maps, tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"report.html", "maps.npz", "manifest.json", "notes.txt"}


def test_what_cannot_be_written_is_one_line_and_leaves_what_was_there(maps, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="do not hold their image"):
        report(replace(maps, image=None), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        report(maps, tmp_path / "file")
    before = {name: path.read_bytes() for name, path in report(maps, tmp_path / "out").items()}

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenMaps, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        report(replace(maps, model="other"), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
