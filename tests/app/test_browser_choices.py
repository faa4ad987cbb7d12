"""What is chosen and what is shown agree, also for quick hands, in a real browser."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest

from app.examples import load_examples

pytestmark = pytest.mark.browser


def frame(page) -> None:
    """Let a scheduled drawing happen."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def state(page) -> dict:
    return page.evaluate("document.querySelector('.vtx').view.state")


def shown(page, key: str, value: str) -> None:
    """Wait until what is drawn says so of itself."""
    page.wait_for_function(
        """([key, value]) => { const { payload } = document.querySelector('.vtx').view.scene;
        return document.querySelector('.vtx').dataset.ready === payload.id
            && (key === 'model' ? payload.model : payload.link?.[key]) === value; }""",
        arg=[key, value],
    )


def choose(page, model: str) -> None:
    page.get_by_label("Model").click()
    page.get_by_role("option", name=model, exact=True).click()
    shown(page, "model", model)


def test_the_last_of_two_photos_is_shown(visit, settle):
    page = visit()
    settle(page)
    page.route("**/queue/join*", lambda route: (time.sleep(0.4), route.continue_()))  # a server that takes its time
    page.evaluate("""() => { const all = document.querySelectorAll('.vtx-thumb');
        all[1].click();
        return new Promise((done) => setTimeout(() => done(all[2].click()), 80)); }""")
    shown(page, "photo", list(load_examples())[2])


def test_a_click_back_to_the_photo_that_is_shown_counts(visit):
    page = visit()
    ready = page.get_attribute(".vtx", "data-ready")
    page.evaluate("""async () => { const { view } = document.querySelector('.vtx');
        const { payload } = view.scene;
        const other = view.load({ ...payload, id: 'other' });
        await view.load(payload); // while the other is being decoded
        await other; }""")
    frame(page)
    assert page.get_attribute(".vtx", "data-ready") == ready


def test_the_class_control_names_the_class_that_is_shown(visit, settle):
    page = visit("/?view=ablation")
    settle(page)
    ask = """(stop) => { const sheet = document.querySelector('.vtx-sheet:not([hidden])');
        const control = sheet.querySelector('select');
        sheet.querySelector('.vtx-go').click();
        control.selectedIndex = 2; // while it runs
        control.dispatchEvent(new Event('change', { bubbles: true }));
        if (stop) sheet.querySelector('.vtx-busy button').click();
        return [control.selectedIndex, control.options[2].text]; }"""
    assert page.evaluate(ask, True)[0] == 0  # cancelled before there was a result
    _, name = page.evaluate(ask, False)
    page.wait_for_function("(name) => document.querySelector('.vtx-told')?.textContent.startsWith(name)", arg=name)
    asked = """() => { const sheet = document.querySelector('.vtx-sheet:not([hidden])');
        const control = sheet.querySelector('select');
        control.selectedIndex = 1;
        control.dispatchEvent(new Event('change', { bubbles: true }));
        sheet.querySelector('.vtx-busy button').click();
        return control.options[control.selectedIndex].text; }"""
    assert page.evaluate(asked) == name  # cancelled: the last result stays, and its class


def test_the_focus_stays_where_arrows_and_buttons_go_on(visit, settle):
    page = visit("/?view=ablation&layer=0&token=2")
    settle(page)
    page.get_by_role("button", name="Try every token").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('.vtx-asking') !== null")
    page.locator(".vtx-change").first.wait_for(timeout=90_000)
    assert page.evaluate("document.activeElement.innerText") == "Try every token"
    page.locator(".vtx-change .vtx-node").nth(2).focus()
    for key, layer in (("ArrowDown", 1), ("ArrowUp", 0)):
        page.keyboard.press(key)
        frame(page)
        assert state(page)["layer"] == layer
        assert page.evaluate("document.activeElement.matches('.vtx-node[aria-current=true]')")


def test_controls_are_wide_enough_for_a_hand(visit):
    page = visit(width=390)
    page.get_by_text("Display options and downloads").click()
    widths = page.locator(".vtx-options .vtx-field:visible :is(select, input)").evaluate_all(
        "(all) => all.filter((each) => each.type !== 'checkbox' && each.clientWidth).map((each) => each.clientWidth)"
    )
    assert len(widths) >= 4
    assert min(widths) > 90


def test_the_address_is_true_again_after_a_link_that_led_nowhere(visit, settle):
    page = visit("/?photo=unicorn&layer=1&token=3")
    settle(page)
    page.get_by_role("button", name="Coffee").click()
    shown(page, "photo", "coffee")
    frame(page)
    assert parse_qs(urlsplit(page.url).query)["photo"] == ["coffee"]


def test_a_look_at_a_plain_model_loses_no_choice(visit, settle):
    page = visit("/?layer=1&token=3")
    settle(page)
    page.evaluate("document.querySelector('.vtx').view.set({ head: 1 })")
    report = page.get_by_role("button", name="Report (ZIP)")
    assert report.is_visible()
    choose(page, "plain")
    assert report.is_hidden()  # there is nothing that it could hold
    choose(page, "own")
    assert [state(page)[key] for key in ("layer", "token", "head")] == [1, 3, 1]
    assert page.get_by_label("Heads", exact=True).input_value() == "1"


def test_a_report_is_of_the_photo_for_which_it_was_asked(visit):
    page = visit()
    page.evaluate("""async () => { const { view } = document.querySelector('.vtx');
        view.trigger = () => {}; // as if the server were busy with another's
        view.report.trigger = () => {};
        view.report.ask({});
        await view.load({ ...view.scene.payload, id: 'other' }); }""")
    assert page.locator(".vtx-files .vtx-fault").inner_text() == "Another photo came before the report's turn."


def test_what_is_no_scale_is_not_left_standing(visit):
    page = visit()
    page.get_by_label("Scale", exact=True).select_option("fixed")
    top = page.get_by_label("Top of the fixed scale")
    top.fill("0")
    top.blur()
    frame(page)
    assert (top.input_value(), state(page)["fixed"]) == ("10", 10)


def test_photos_are_taken_from_the_hand_in_the_tab_that_shows_them(visit, settle):
    page = visit()
    settle(page)
    ready = page.get_attribute(".vtx", "data-ready")
    hand_in = """async ([event, name, type]) => {
        const canvas = document.createElement('canvas');
        const blob = await new Promise((done) => canvas.toBlob(done));
        const data = new DataTransfer();
        data.items.add(new File([blob], name, { type }));
        const at = event === 'drop' ? document.querySelector('#explore .vtx') : document;
        const options = { bubbles: true, cancelable: true };
        const made = event === 'drop' ? new DragEvent(event, { ...options, dataTransfer: data })
            : new ClipboardEvent(event, { ...options, clipboardData: data });
        return !at.dispatchEvent(made); }"""
    page.get_by_role("tab", name="Video", exact=True).click()
    assert not page.evaluate(hand_in, ["paste", "photo.png", "image/png"])
    page.get_by_role("tab", name="Explore", exact=True).click()
    assert page.get_attribute(".vtx", "data-ready") == ready
    assert page.evaluate(hand_in, ["drop", "photo.heic", ""])  # a browser would open it in the page's place
    page.get_by_text("Invalid file type").first.wait_for()
    assert page.evaluate(hand_in, ["drop", "photo.png", "image/png"])
    page.wait_for_function("(before) => document.querySelector('.vtx').dataset.ready !== before", arg=ready)
