import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

from vtviz.drawing import Group, Picture
from vtviz.errors import ConfigError, DataError
from vtviz.explain.lineage import Lineage, LineageToken, lineage, slot_names
from vtviz.explain.lineage_picture import lineage_figure, lineage_png, lineage_svg, save_lineage
from vtviz.predictor import Predictor

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def extract(tiny_model, chelsea):
    def call(name="vt_resnet18", **options):
        return Predictor(tiny_model(name, **options)).extract(chelsea, size=96)

    return call


@pytest.fixture(scope="module")
def maps(extract):
    return extract()


def test_the_second_half_is_kept_and_the_first_makes_filters(maps):
    found = lineage(maps)
    assert found.layers == ("block0", "block1")
    assert found.tokens[0] == tuple(LineageToken(0, i, "static", i, None, (0, i)) for i in range(16))
    assert found.tokens[1] == (
        *(LineageToken(1, s, "kept", None, 8 + s, (0, 8 + s)) for s in range(8)),
        *(LineageToken(1, 8 + j, "made", j, j, (1, j)) for j in range(8)),
    )
    assert [(link.layer, link.origin, link.slot, link.kind) for link in found.links] == [
        *((1, 8 + s, s, "kept") for s in range(8)),
        *((1, j, 8 + j, "made") for j in range(8)),
    ]


@pytest.mark.parametrize("slot", [2, 11])
def test_links_are_what_the_model_does(tiny_model, chelsea, slot):
    """A change of one output token of block0 shows in exactly the token and map that it is linked with."""
    predictor = Predictor(tiny_model())
    found = lineage(predictor.extract(chelsea, size=96))
    (link,) = [link for link in found.links if link.origin == slot]
    block0, block1 = predictor.model.stage.blocks
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = block0(predictor.model.backbone(x)[-1])
        before = block1.tokenizer(first.feature, first.tokens)
        tokens = first.tokens.clone()
        tokens[:, :, slot] += 1
        after = block1.tokenizer(first.feature, tokens)
    changed = (before.tokens != after.tokens).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == [link.slot]
    maps = (before.coefficients != after.coefficients).flatten(3).any(dim=3).any(dim=1)[0]
    here = found.tokens[1][link.slot]
    assert maps.nonzero().flatten().tolist() == ([] if here.kind == "kept" else [here.map])


def test_three_blocks_pass_tokens_on_first_in_first_out(extract):
    found = lineage(extract(blocks=3))
    kept = [token for token in found.tokens[2] if token.kind == "kept"]
    assert [token.gathered for token in kept] == [(1, j) for j in range(8)]  # all that block1 made, and no other
    made = [token for token in found.tokens[2] if token.kind == "made"]
    assert [(token.origin, token.gathered) for token in made] == [(j, (2, j)) for j in range(8)]
    assert [found.tokens[1][token.origin].gathered for token in made] == [(0, 8 + j) for j in range(8)]


@pytest.mark.parametrize("options", [{"blocks": 3}, {"blocks": 3, "dynamic": False}, {"blocks": 1}])
def test_a_slot_is_named_by_the_map_that_gathered_its_token(extract, options):
    maps = extract(**options)
    names = slot_names([(layer.name, layer.kept, layer.num_tokens) for layer in maps.layers])
    for index, (tokens, said) in enumerate(zip(lineage(maps).tokens, names, strict=True)):
        for token, name in zip(tokens, said, strict=True):
            layer, number = token.gathered
            assert name == (f"kept {number}" if token.kind == "kept" else str(number))
            assert layer == index - (token.kind == "kept")


def test_without_the_layer_before_a_kept_token_has_no_number():
    assert slot_names([("block1", 2, 1), ("block2", 1, 1)]) == [["kept", "kept", "0"], ["kept 0", "0"]]
    assert slot_names([("block0", 0, 4), ("block2", 2, 2)]) == [list("0123"), ["kept", "kept", "0", "1"]]
    assert slot_names([("first", 0, 4), ("second", 2, 2)]) == [list("0123"), ["kept", "kept", "0", "1"]]


def test_without_dynamic_tokenizers_half_is_kept_and_the_rest_ends(extract):
    found = lineage(extract(blocks=3, dynamic=False))
    assert [len(tokens) for tokens in found.tokens] == [16, 24, 28]
    assert {link.kind for link in found.links} == {"kept"}
    assert [(link.origin, link.slot) for link in found.links if link.layer == 2] == [(12 + s, s) for s in range(12)]
    assert [token.map for token in found.tokens[1] if token.kind == "static"] == list(range(16))
    assert all(token.origin is None for tokens in found.tokens for token in tokens if token.kind == "static")


def test_attention_is_that_of_the_maps(maps, extract):
    for ours, layer in zip(lineage(maps).attention, maps.layers, strict=True):
        assert np.array_equal(ours, layer.attention)
    assert lineage(extract(transformer=False)).attention == (None, None)


def test_a_vt_fpn_has_one_transformer_and_no_descent(extract):
    maps = extract("vt_fpn_resnet18")
    found = lineage(maps)
    assert found.joint
    assert found.links == ()
    assert [[token.kind for token in tokens] for tokens in found.tokens] == [["static"] * 8] * 4
    (attention,) = found.attention
    assert attention.shape == (4, 32, 32)
    np.testing.assert_allclose(attention.sum(axis=2), 1, atol=1e-5)
    assert np.array_equal(attention[:, 16:24], maps.layers[2].attention)


@pytest.mark.parametrize(
    ("name", "layers"), [("vt_resnet18", [1]), ("vt_resnet18", [0, 0]), ("vt_fpn_resnet18", [0, 2])]
)
def test_some_layers_are_not_enough(tiny_model, chelsea, name, layers):
    maps = Predictor(tiny_model(name)).extract(chelsea, size=64, layers=layers)
    with pytest.raises(ConfigError, match=f"all layers, got those of {maps.layers[0].name}"):
        lineage(maps)
    with pytest.raises(ConfigError, match="got those of none"):
        lineage(replace(maps, layers=()))


def test_it_is_saved_as_json_and_arrays(maps, tmp_path):
    found = lineage(maps)
    paths = found.save(tmp_path / "new" / "folder")
    stated = json.loads(paths["lineage.json"].read_text())
    assert stated == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [LineageToken(**t | {"gathered": tuple(t["gathered"])}) for t in stated["tokens"][1]] == list(
        found.tokens[1]
    )
    np.testing.assert_allclose(stated["attention"][1], maps.layers[1].attention.mean(axis=0), rtol=1e-6)
    with np.load(paths["attention.npz"]) as arrays:
        assert sorted(arrays) == ["block0", "block1"]
        assert np.array_equal(arrays["block1"], maps.layers[1].attention)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        found.save(tmp_path / "file")


# --- pictures


def rows(figure) -> dict[str, list[Picture]]:
    """Pictures (maps and rows of matrices) by the line of descent that they are drawn in."""
    found: dict[str, list[Picture]] = {}
    for part in figure.parts:
        if isinstance(part, Group) and part.title:
            found.setdefault(part.classes.split()[-1], []).extend(p for p in part.parts if isinstance(p, Picture))
    return found


def test_a_line_of_descent_is_one_straight_row(maps):
    lines = rows(lineage_figure(maps))
    assert sorted(lines) == sorted(f"vl-{i}" for i in range(16))
    for number, pictures in lines.items():
        assert len({picture.y for picture in pictures}) == 1, number
        assert len(pictures) == 4  # map and attention, twice
    map0, _, map1, _ = lines["vl-12"]
    assert np.array_equal(map0.pixels, map1.pixels)  # kept
    map0, _, map1, _ = lines["vl-3"]
    assert not np.array_equal(map0.pixels, map1.pixels)


def test_rows_of_the_matrix_are_in_the_order_of_the_drawing(maps):
    """block1's kept tokens, slots 0 to 7, stand below those made."""
    layout = {name: pictures[3].pixels for name, pictures in rows(lineage_figure(maps)).items()}
    mean = maps.layers[1].attention.mean(axis=0)
    order = [*range(8, 16), *range(8)]  # slot of each row
    for row in (0, 5, 15):
        values = mean[order[row]][order]
        shades = layout[f"vl-{row}"][0].astype(int).sum(axis=1)  # magma grows brighter
        assert (np.diff(shades[np.argsort(values)]) >= 0).all()
        assert len(set(shades)) > 4


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("vt_resnet18", {"blocks": 1}, 16),
        ("vt_resnet18", {"dynamic": False}, 32),
        ("vt_resnet18", {"transformer": False}, 16),
        ("vt_fpn_resnet18", {}, 32),
    ],
)
def test_every_model_has_a_picture(extract, name, options, lines):
    maps = extract(name, **options)
    figure = lineage_figure(maps)
    assert len(rows(figure)) == lines
    picture = lineage_png(maps)
    assert picture.shape == (round(2 * figure.height), round(2 * figure.width), 3)
    assert (picture[:8] == 255).all()
    assert (picture[:, -8:] == 255).all()


def test_the_svg_tells_each_token_and_lights_up_lines(maps):
    root = ET.fromstring(lineage_svg(maps))
    tokens = [g for g in root.iter(f"{SVG}g") if "vl-token" in g.get("class")]
    titles = [token.find(f"{SVG}title").text for token in tokens]
    assert len(titles) == 32
    assert titles[0].startswith("block0 token 0, gathered with a learned filter. It reads most of block")
    assert any(t.startswith("block1 token 3, gathered with the filter that block0 token 3 became.") for t in titles)
    assert any(t.startswith("block0 token 12, kept in block1.") for t in titles)
    style = root.find(f"{SVG}style").text
    assert all(f".vl:has(.vl-{row}:is(" in style for row in range(16))
    assert ".vl-16:" not in style


def test_pictures_and_data_are_saved_together(maps, tmp_path):
    paths = save_lineage(maps, lineage(maps), tmp_path)
    assert set(paths) == {"lineage.png", "lineage.svg", "lineage.json", "attention.npz"}
    assert {p.name for p in tmp_path.iterdir()} == set(paths)
    with pytest.raises(ConfigError, match="do not hold their image"):
        save_lineage(replace(maps, image=None), lineage(maps), tmp_path / "other")


def test_a_lineage_is_frozen(maps):
    found = lineage(maps)
    assert isinstance(found, Lineage)
    with pytest.raises(AttributeError):
        found.joint = True
