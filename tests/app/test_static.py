"""The browser's arithmetic against Python's: decoding, geometry, colours."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from app.canvas import SCRIPTS
from app.payload import encode_array, encode_shares
from vtviz import geometry, render
from vtviz.explain.lineage import lineage
from vtviz.explain.query import query

pytestmark = pytest.mark.browser
LAYER = "new vtviz.Layer({stride: %d, shape: [%d, %d, %d, %d], coefficients: data, statistics: []}, 0)"
FLOATS = "(values) => btoa([...new Uint8Array(values.buffer)].map((byte) => String.fromCharCode(byte)).join(''))"


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page()
    for script in SCRIPTS:
        page.add_script_tag(content=script.read_text())
    yield page
    page.close()


def run(page, body: str, data: object = None) -> np.ndarray:
    """A Float32Array that ``body`` returns, exactly."""
    text = page.evaluate(f"(data) => ({FLOATS})((() => {{ {body} }})())", data)
    return np.frombuffer(base64.b64decode(text), "<f4")


def coefficients(shape, seed=0):
    values = np.random.default_rng(seed).random(shape, dtype=np.float32) ** 4
    return values / values.sum(axis=(2, 3), keepdims=True)


def test_floats_arrive_bit_for_bit(page):
    values = np.array([0, -0.0, 1e-45, 1 / 3, 3.4e38, np.inf, -np.inf], np.float32)
    assert run(page, "return vtviz.decodeFloats(data)", encode_array(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("head", [-1, 0, 2])
def test_a_map_is_in_times_uniform(page, head):
    values = coefficients((3, 4, 5, 7))
    got = run(page, f"return {LAYER % (16, 3, 4, 5, 7)}.map(2, {head})", encode_array(values))
    expected = (values.mean(axis=0) if head < 0 else values[head])[2] * 35
    np.testing.assert_allclose(got, expected.ravel(), rtol=1e-6)


@pytest.mark.parametrize("align", geometry.ALIGNMENTS)
@pytest.mark.parametrize(
    ("original", "crop", "stride"),
    [
        ((300, 451), None, 16),
        ((300, 451), "center", 16),
        ((90, 31), "center", 8),
        ((1, 1), None, 16),
        ((3, 900), None, 32),
    ],
)
def test_maps_are_drawn_where_python_draws_them(page, original, crop, stride, align):
    fitted = geometry.fit(original, crop=crop, multiple=32)
    cells = [-(-side // stride) for side in fitted.input]
    values = np.random.default_rng(1).random(cells, dtype=np.float32) * 9
    expected = geometry.upsample(values, fitted, stride=stride, align=align)
    layer = f"{{stride: {stride}, h: {cells[0]}, w: {cells[1]}}}"
    data = {"map": encode_array(values), "geometry": fitted.to_dict()}
    setup = f"const map = vtviz.decodeFloats(data.map), layer = {layer}, g = data.geometry;"
    size = f"{original[0]}, {original[1]}"
    got = run(page, f"{setup} return vtviz.resample(map, layer, g, {size}, '{align}')", data).reshape(original)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(got, expected, atol=2e-5)
    y, x = original[0] // 2, original[1] // 2
    at = run(page, f"{setup} return new Float32Array([vtviz.valueAt(map, layer, g, {y}, {x}, '{align}')])", data)
    np.testing.assert_allclose(at[0], expected[y, x], atol=2e-5)


@pytest.fixture(scope="module")
def own(shelf, coffee):
    return {crop: shelf.get("own").extract(coffee, crop=crop) for crop in (None, "center")}


@pytest.mark.parametrize("crop", [None, "center"])
@pytest.mark.parametrize("head", [-1, 1])
@pytest.mark.parametrize("box", [(300, 200, 301, 201), (250, 30, 420, 333), (0, 0, 600, 400)])
def test_a_place_is_asked_as_python_asks_it(page, own, crop, head, box):
    maps = own[crop]
    expected = query(maps, box=box)
    for layer, answer in zip(maps.layers, expected.layers, strict=True):
        if head >= layer.num_heads:
            continue
        data = {
            "layer": {
                "stride": layer.stride,
                "shape": list(layer.coefficients.shape),
                "coefficients": encode_array(layer.coefficients),
                "statistics": [],
                "projector": encode_shares(None if layer.projector is None else layer.projector.mean(axis=0)),
            },
            "geometry": maps.geometry.to_dict(),
            "box": box,
        }
        script = f"""(data) => vtviz.query(
            new vtviz.Layer(data.layer, 0), data.geometry, data.box, 'receptive_field', {head})"""
        got = page.evaluate(script, data)
        by = answer.read_by.mean(axis=0) if head < 0 else answer.read_by[head]
        np.testing.assert_allclose(got["readBy"], by, rtol=1e-4, atol=1e-4)
        if answer.reads is None:
            assert got["reads"] is None
        else:
            reads = answer.reads.mean(axis=0) * answer.reads.shape[1]
            np.testing.assert_allclose(got["reads"], reads, atol=1e-3)


def test_a_place_that_was_cut_off_has_no_answer(page, own):
    layer = own["center"].layers[0]
    made = LAYER % (16, *layer.coefficients.shape)
    script = f"([data, geometry]) => vtviz.query({made}, geometry, [0, 5, 9, 9], 'resize', -1)"
    assert page.evaluate(script, [encode_array(layer.coefficients), own["center"].geometry.to_dict()]) is None


def test_lines_of_descent_keep_their_row(page, own):
    descent = lineage(own[None])
    data = descent.to_dict()
    rows, path, slot = page.evaluate(
        """(data) => {
            const descent = new vtviz.Descent(data);
            return [descent.rows(), [...descent.path(1, 11)].sort(), descent.slot(1, 3)];
        }""",
        data,
    )
    for link in descent.links:
        assert rows[link.layer][link.slot] == rows[link.layer - 1][link.origin]
    assert sorted(rows[1]) == list(range(16))
    assert slot == 11  # eight are kept
    assert path == [f"0/{descent.tokens[1][11].origin}", "1/11"]


@pytest.mark.parametrize("head", [-1, 2])
def test_attention_is_in_times_uniform(page, own, head):
    layer = own[None].layers[1]
    data = {"shape": list(layer.coefficients.shape), "coefficients": encode_array(layer.coefficients), "statistics": []}
    data["attention"] = encode_shares(layer.attention)
    got = page.evaluate(f"(data) => vtviz.attentionRow(new vtviz.Layer(data, 1), 5, {head})", data)
    expected = layer.attention.mean(axis=0) if head < 0 else layer.attention[head]
    np.testing.assert_allclose(got, expected[5] * 16, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "shift", "expected"),
    [
        ("ArrowLeft", False, [5, 6]),
        ("ArrowRight", True, [5, 17]),
        ("ArrowRight", False, [5, 8]),
        ("ArrowUp", True, [0, 7]),
        ("ArrowDown", True, [8, 7]),
        ("Enter", True, [5, 7]),
        ("a", False, None),
    ],
)
def test_keys_lead_to_pixels_of_the_picture(page, key, shift, expected):
    event = {"key": key, "shiftKey": shift}
    assert page.evaluate("(event) => vtviz.pixelAfter(event, [5, 7], [9, 20])", event) == expected


def test_a_box_holds_the_pixels_of_both_its_corners(page):
    corners = [[0.99, 0.1], [0.0, 1.0]]
    for ends in (corners, corners[::-1]):
        assert page.evaluate("(ends) => vtviz.boxBetween(...ends, [10, 20])", ends) == [2, 0, 20, 10]
    assert page.evaluate("vtviz.boxBetween([1, 1], [1, 1], [10, 20])") == [19, 9, 20, 10]


def test_labels_of_a_narrow_bar_do_not_touch(page):
    assert page.evaluate("vtviz.ticks(0, 10, 0.2)") == [1, 4, 6, 8, 10]  # no 0: uniform stands there
    narrow = page.evaluate("vtviz.marks(0, 10, 0.25)")
    assert (np.diff([value for value, _ in narrow]) >= 2.5).all()
    assert narrow[-1] == [10, "10×+"]


def test_links_are_read_as_they_are_written(page):
    scene = (
        """{ payload: { link: { photo: 'cat', model: 'a b', crop: '' } }, layers: [{ tokens: 16 }, { tokens: 8 }] }"""
    )
    written = page.evaluate(f"vtviz.writeLink('?__theme=dark&photo=old', {scene}, {{ layer: 1, token: 7 }}, 'pixel')")
    assert written == "?__theme=dark&photo=cat&model=a+b&layer=1&token=7&view=pixel"
    wanted = page.evaluate("(text) => vtviz.readLink(text)", written)
    assert wanted == {"photo": "cat", "model": "a b", "layer": "1", "token": "7", "view": "pixel"}
    assert page.evaluate("vtviz.readLink('?__theme=dark')") is None
    assert page.evaluate(f"(wanted) => vtviz.isLinked({scene}.payload, wanted)", wanted)
    assert not page.evaluate(f"vtviz.isLinked({scene}.payload, {{ photo: 'dog' }})")
    assert (
        page.evaluate("vtviz.writeLink('?photo=cat&layer=1', { payload: { link: null }, layers: [] }, {}, 'x')") == ""
    )


@pytest.mark.parametrize(
    ("wanted", "patch", "line"),
    [
        ({"layer": "1", "token": "7", "view": "pixel"}, {"layer": 1, "token": 7, "view": "pixel"}, ""),
        ({"token": "15"}, {"layer": 0, "token": 15}, ""),
        ({"layer": "1"}, {"layer": 1, "token": 0}, ""),
        ({"layer": "1", "token": "8"}, {"layer": 1, "token": 0}, 'There is no token "8" here'),
        ({"layer": "-1", "view": "<b>"}, {}, 'There is no layer "-1" and no view "<b>" here'),
        ({"layer": "1e9"}, {}, 'There is no layer "1e9"'),
    ],
)
def test_a_link_falls_back_where_it_leads_nowhere(page, wanted, patch, line):
    got = page.evaluate("(wanted) => vtviz.followLink(wanted, { layers: [{ tokens: 16 }, { tokens: 8 }] })", wanted)
    assert got["patch"] == patch
    assert got["line"].startswith(line)
    assert bool(got["line"]) == bool(line)


VIEW = """(make) => {
    const Thumb = vtviz.Thumb;
    vtviz.Thumb = class { canvas = document.createElement("canvas"); draw() {} };
    const scene = (id, layers) => {
        const tokens = Array.from({ length: layers }, (_, layer) => [0, 1].map(
            (slot) => ({ gathered: [layer, slot], kind: "static", slot, map: slot, layer, origin: null })));
        return {
            payload: { id, classes: ["cat", "dog"], prediction: [{ index: 0 }], lineage: { tokens } },
            descent: new vtviz.Descent({ joint: layers > 2, tokens, links: [] }),
            layers: tokens.map((_, index) => ({ index, name: `p${index}`, attention: null })),
            segments: null, results: {}, luts: { jet: [] },
        };
    };
    const state = { layer: 0, token: 0, reader: -1, order: "grid", label: 0, measure: "probability", colormap: "jet" };
    try { return (BODY)(scene, state); } finally { vtviz.Thumb = Thumb; }
}"""
"""Runs a function of (scene, state), where scene(id, layers) makes a scene of two tokens a layer, not drawn."""


def test_does_it_matter_shows_the_example_s_new_bars_when_one_comes_back_to_it(page):
    body = """(scene, state) => {
        const view = new vtviz.AblationView(() => {}, () => {});
        const show = (id, ...change) => {
            const shown = scene(id, 1);
            view.load(shown);
            view.draw(shown, state);
            if (!change.length) return null;
            const effects = { absent: { probability: change } };
            effects.random = effects.gaussian = effects.absent;
            shown.results.ablation = { target: null, top1: { index: 0 }, layers: [{ effects }] };
            view.draw(shown, state);
            return [...view.list.children].map((row) => row.querySelector("[data-mode=absent] span").textContent);
        };
        return [show("cat", -0.1, -0.2), show("rocket"), show("cat", 0.77, 0.88)];
    }"""
    assert page.evaluate(VIEW.replace("BODY", body)) == [["−10", "−20"], None, ["77", "88"]]


def test_another_model_s_lineage_is_drawn_though_the_pointer_rests_on_the_last_one_s_token(page):
    body = """(scene, state) => {
        const view = new vtviz.LineageView(() => {});
        const lit = () => view.nodes.flatMap(({ button }, i) => button.classList.contains("vtx-lit") ? [i] : []);
        const show = (shown) => { view.load(shown); view.draw(shown, state); return lit(); };
        const found = [show(scene("fpn", 4))];
        const { button } = view.nodes[7];
        button.onpointerenter({ pointerType: "mouse" });
        found.push(lit(), show(scene("resnet", 2)));
        view.load({ ...scene("plain", 1), descent: null });
        button.onpointerleave(); // the view that is left says nothing of a scene that is gone
        return found;
    }"""
    assert page.evaluate(VIEW.replace("BODY", body)) == [[0], [7], [0]]


def test_the_time_left_does_not_count_the_queue(page):
    body = """(scene, state) => {
        let time = 0;
        performance.now = () => time;
        try {
            const job = new vtviz.Job("Try", "analyse", () => {}, () => {});
            job.ask({});
            time = 120_000;
            vtviz.hear({ job: job.id, done: 0, total: 1 });
            time += 2000;
            vtviz.hear({ job: job.id, done: 10, total: 100 });
            return job.told.textContent;
        } finally {
            delete performance.now;
        }
    }"""
    assert page.evaluate(VIEW.replace("BODY", body)) == "10 %, about 18 s left"


@pytest.mark.parametrize("name", render.COLORMAPS)
def test_colours_are_those_of_python(page, name):
    values = np.linspace(-1, 12, 999, dtype=np.float32)
    script = """([values, lut]) => {
        const rgba = new Uint8ClampedArray(4 * 999);
        vtviz.colorize(vtviz.decodeFloats(values), vtviz.decodeBytes(lut), 0, 10, rgba);
        return [...rgba];
    }"""
    got = page.evaluate(script, [encode_array(values), encode_array(render.COLORMAPS[name])])
    got = np.array(got, np.uint8).reshape(-1, 4)
    expected = render.colorize(values[None], name, 0, 10)[0]
    different = (got[:, :3] != expected).any(axis=1)
    assert different.mean() < 0.01  # a rounding apart at the border of two colours
    assert (got[:, 3] == 255).all()


def test_outside_of_the_crop_nothing_is_coloured(page):
    script = """() => {
        const rgba = new Uint8ClampedArray(8);
        vtviz.colorize(Float32Array.of(NaN, 1), new Uint8Array(768), 0, 2, rgba);
        return [rgba[3], rgba[7]];
    }"""
    assert page.evaluate(script) == [0, 255]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 9.37, [0, 1, 2, 4, 6, 8, 9.37]), (0, 2, [0, 0.5, 1, 1.5, 2]), (0, 38, [1, 10, 20, 30, 38]), (3, 3, [3])],
)
def test_the_colour_bar_says_where_uniform_is(page, low, high, expected):
    assert page.evaluate(f"vtviz.ticks({low}, {high})") == pytest.approx(expected)


def png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).convert("P").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_every_index_of_a_label_map_arrives(page):
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    got = page.evaluate(
        "async (data) => { const png = await vtviz.decodeBytePng(data);"
        " return [png.width, png.height, [...png.values]]; }",
        png(values),
    )
    assert got == [32, 8, list(range(256))]


COLOURS = ((200, 10, 20), (0, 0, 0), (20, 200, 255))


def painted(page, labels, size, line=0, *, opacity=0.5, hidden=(), lit=None) -> np.ndarray:
    """What the browser makes of a label map, (H, W, 4)."""
    height, width = size
    script = """([data, colours, options, width, height, line]) => {
        const values = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const rgba = new Uint8ClampedArray(4 * width * height);
        const classes = colours.map((colour, index) => ({ colour, index }));
        const labels = { values, width: options.w, height: options.h };
        vtviz.paint(labels, classes, options, width, height, line, rgba);
        return [...rgba];
    }"""
    options = {"opacity": opacity, "hidden": list(hidden), "lit": lit, "h": labels.shape[0], "w": labels.shape[1]}
    got = page.evaluate(script, [encode_array(labels), COLOURS, options, width, height, line])
    return np.array(got, np.uint8).reshape(height, width, 4)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    values = np.random.default_rng(5).integers(0, 3, (12, 17)).astype(np.uint8)
    values[2:6, 3:9] = 255
    return values


@pytest.mark.parametrize("size", [(12, 17), (40, 55), (5, 3), (1, 1)])
def test_classes_are_painted_crisp_and_unseen_pixels_not_at_all(page, labels, size):
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, labels.shape, strict=True))
    expected = labels[np.ix_(rows, columns)]
    got = painted(page, labels, size)
    seen = expected != 255
    np.testing.assert_array_equal(got[seen][:, :3], np.array(COLOURS)[expected[seen]])
    assert set(got[seen][:, 3]) <= {128}
    assert (got[~seen][:, 3] == 0).all()


def test_hidden_classes_are_left_out_and_one_can_stand_alone(page, labels):
    alpha = painted(page, labels, (12, 17), hidden=[1])[..., 3]
    assert set(alpha[labels == 1]) == {0}
    assert set(alpha[labels == 2]) == {128}
    alpha = painted(page, labels, (12, 17), lit=2)[..., 3]
    assert set(alpha[labels == 2]) == {128}
    assert set(alpha[labels == 0]) == {19}  # 15 % of that
    alpha = painted(page, labels, (12, 17), lit=1, hidden=[1])[..., 3]  # a hidden class lights nothing
    assert (set(alpha[labels == 1]), set(alpha[labels == 0])) == ({0}, {128})


@pytest.mark.parametrize("line", [1, 2])
def test_outlines_lie_within_each_class_along_its_borders(page, line):
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 10:22] = 2
    alpha = painted(page, labels, (20, 30), line, opacity=0)[..., 3]
    inside = np.zeros((20, 30), bool)
    inside[5:15, 10:22] = True
    core = np.zeros_like(inside)
    core[5 + line : 15 - line, 10 + line : 22 - line] = True
    assert (alpha[inside & ~core] == 255).all()
    assert (alpha[core] == 0).all()
    assert alpha[5 - line : 5, 10:22].min() == 255  # the other class's side
    assert alpha[: 5 - line].max() == alpha[:, : 10 - line].max() == 0
    only = painted(page, labels, (20, 30), line, opacity=0, hidden=[0])[..., 3]
    np.testing.assert_array_equal(only == 255, inside & ~core)
