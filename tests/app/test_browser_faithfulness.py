"""The maps of Attribution put to the test on the photo that is shown, in a real browser, as a person does it."""

import zipfile
from collections.abc import Iterator

import pytest

from app.analyses import encode_faithfulness
from app.examples import load_examples
from vtviz.explain.curves import STEPS as SHARES
from vtviz.explain.explainer import METHODS, STEPS
from vtviz.explain.faithfulness import BASELINES, measure_faithfulness

pytestmark = [pytest.mark.browser, pytest.mark.slow]
pytest.importorskip("captum")


@pytest.fixture(scope="module")
def expected(shelf) -> dict:
    photo = load_examples()["cat"].image
    return encode_faithfulness(measure_faithfulness(shelf.get("own"), [photo], steps=STEPS, randomize=False))


@pytest.fixture
def page(browser, address, settle) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1280, "height": 844}, accept_downloads=True)
    page = context.new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address.rstrip("/") + "/?view=attribution")
    page.wait_for_selector(".vtx[data-ready]")
    settle(page)
    yield page
    assert page.faults == []
    context.close()


def attribute(page) -> None:
    page.get_by_role("button", name="Ask all methods").click()
    page.locator(".vtx-methods figure").first.wait_for(timeout=120_000)


def colours(page, of: str, style: str) -> dict[str, str]:
    found = page.locator(f".vtx-test {of}").evaluate_all(
        f"(all) => all.map((e) => [e.closest('[data-method]').dataset.method, getComputedStyle(e).{style}])"
    )
    return dict(found)


def test_maps_are_tested_beside_baselines_and_the_report_holds_it(page, expected):
    test = page.get_by_role("button", name="Test them")
    assert test.is_hidden()  # there are no maps yet
    attribute(page)
    test.click()
    rows = page.locator(".vtx-test tbody tr")
    rows.first.wait_for(timeout=120_000)
    told = expected["methods"]
    assert rows.evaluate_all("(all) => all.map((row) => row.dataset.method)") == [*METHODS, *BASELINES]
    for row, each in zip(rows.all(), told, strict=True):
        assert row.locator("th").inner_text().startswith(each["title"])
        assert ("baseline" in row.locator("th").inner_text()) == each["baseline"]
        values = [float(text) for text in row.locator("td").all_inner_texts()]
        assert values == pytest.approx([each["deletion"], each["insertion"]], abs=6e-4)
    bold = page.locator(".vtx-test .vtx-first").all_inner_texts()
    ours = [each for each in told if not each["baseline"]]
    assert f"{min(each['deletion'] for each in ours):.3f}" in bold
    assert f"{max(each['insertion'] for each in ours):.3f}" in bold
    lines = page.locator(".vtx-panels polyline")
    assert lines.count() == 2 * len(told)
    assert {len(each.get_attribute("points").split()) for each in lines.all()} == {SHARES + 1}
    assert colours(page, "polyline", "stroke") == colours(page, "tbody i", "borderTopColor")  # the table is the legend
    for caption, falls in (("Hidden", True), ("Shown", False)):
        figure = page.locator(".vtx-panels figure", has_text=f"{caption}, highest first")
        curve = figure.locator("polyline[data-method=random]").get_attribute("points").split()
        first, last = (float(curve[i].split(",")[1]) for i in (0, -1))  # y grows downwards
        assert (first < last) == (falls == (expected["probability"] > expected["probability_blurred"]))
    section = page.inner_text(".vtx-test")
    assert "This is one photo, so there is no interval" in section
    assert "vtviz faithfulness --data DIR" in section
    page.locator(".vtx-test").get_by_role("button", name="What is deletion?").focus()
    assert page.locator(".vtx-test .vtx-bubble:visible").inner_text().startswith("Area under the class's probability")
    with page.expect_download(timeout=120_000) as download:
        page.get_by_role("button", name="Report (ZIP)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "Do the maps point at what counts?" in archive.read("report.html").decode()
    page.locator(".vtx-sheet:visible").get_by_label("Class", exact=True).select_option("1")
    page.wait_for_function("document.querySelector('.vtx').view.scene.results.attribution.target.index === 1")
    page.locator(".vtx-test table").wait_for(state="hidden")  # what was tested were other maps
    assert test.is_visible()


def test_a_test_can_be_cancelled(page, shelf):
    attribute(page)
    page.evaluate("""() => { // at once: this small model is done in seconds
        document.querySelector('.vtx-test .vtx-go').click();
        document.querySelector('.vtx-test .vtx-busy button').click();
    }""")
    assert page.inner_text(".vtx-test .vtx-fault") == "Cancelled."
    page.get_by_role("button", name="Test them").click()
    page.wait_for_function("document.querySelector('.vtx-test progress').value > 0")
    page.locator(".vtx-test").get_by_role("button", name="Cancel").click()
    assert page.inner_text(".vtx-test .vtx-fault") == "Cancelled."
    assert page.locator(".vtx-test table").count() == 0
    assert page.locator(".vtx-methods figure").count() == 5  # they stay


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_and_every_control_has_a_name(browser, address, expected, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(address.rstrip("/") + "/?view=attribution")
    page.wait_for_selector(".vtx[data-ready]")
    page.evaluate(
        """(found) => {
        const { attribution, scene } = document.querySelector('.vtx').view;
        const maps = { target: { index: 0, label: 'tabby cat', probability: 0.5 }, methods: [], agreement: [] };
        scene.results.attribution = maps;
        attribution.shares.build = attribution.shares.draw = () => {};
        attribution.test.receive(found);
    }""",
        expected,
    )
    page.locator(".vtx-test table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.locator(".vtx-test").evaluate("""(e) => [...e.querySelectorAll('table, svg, p, figure')]
        .filter((each) => each.getBoundingClientRect().right > e.getBoundingClientRect().right + 1)
        .map((each) => each.tagName)""")
    assert wide == []
    nameless = page.locator(".vtx-test button").evaluate_all(
        "(all) => all.filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert page.locator(".vtx-panels svg").evaluate_all("(all) => all.every((e) => e.getAttribute('aria-label'))")
    page.close()
