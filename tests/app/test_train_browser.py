"""The tab Train in a browser: what a run costs; a run started, watched, cancelled and resumed."""

import json
import re
import time

import pytest

from app.page import build_page
from app.train import Train
from vtviz.train.jobs import REQUEST


@pytest.mark.browser
def test_the_cost_is_that_of_the_form_as_it_is_now(browser, serving, train, monkeypatch):
    """An answer that took long does not replace the answer to a later question."""
    asked, answered = [], []

    def cost(self, *form):
        asked.append(form)
        time.sleep(0.1 if form[3] == 7 else 3)
        answered.append(form)
        return real(self, *form)

    real = Train.cost
    monkeypatch.setattr(Train, "cost", cost)
    url = serving(build_page(train.shelf, train))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_role("tab", name="Train").click()
    page.get_by_text("12 photos of 2 classes").wait_for()
    for label, text in (("Batch size", "4"), ("Epochs", "7")):
        page.get_by_label(label, exact=True).fill(text)
        page.wait_for_timeout(500)
    while len(answered) < len(asked) or not any(form[3:5] == (7, 4) for form in asked):
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)  # the answers arrive
    assert "7 epochs, 21 steps of 4" in page.locator("#train-cost").inner_text()
    page.context.close()


@pytest.mark.browser
@pytest.mark.slow
def test_a_run_is_started_watched_cancelled_resumed_and_deleted(browser, serving, train, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    url = serving(build_page(train.shelf, train))
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    faults, hosts = [], set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
    page.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^:/]+)?", request.url)[0]))
    page.set_default_timeout(180_000)
    heading, state = page.locator(".vtx-job p").first, page.locator(".vtx-jobs .vtx-state")

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

    page.goto(url)
    page.get_by_role("tab", name="Train").click()
    page.get_by_text("12 photos of 2 classes").wait_for()
    page.get_by_label("Model").last.click()
    page.get_by_role("option", name="resnet18, from scratch", exact=True).click()
    page.get_by_label("Crop size").fill("32")
    page.get_by_label("Batch size").fill("4")
    page.get_by_label("Epochs", exact=True).fill("200")
    page.get_by_label("Name").fill("first")
    page.get_by_text("200 epochs, 600 steps of 4").wait_for()
    press("Start")
    page.locator("#train-curves .js-plotly-plot .scatterlayer").first.wait_for()
    page.get_by_text(re.compile("epoch [2-9] of 200 .* left .* best top-1")).wait_for()
    assert state.inner_text() == "running"
    # Gradio gives up a poll that a newer one overtakes, and says so in the console
    assert [fault for fault in faults if not fault.startswith("AbortError")] == []
    page.reload()  # the page forgets; the job does not
    page.get_by_role("tab", name="Train").click()
    page.get_by_text(re.compile(r"running · resnet18 on colours")).wait_for()
    faults.clear()  # the reload cut polls off, which Gradio says too
    press("Cancel")
    page.get_by_text(re.compile(r"cancelled · resnet18 on colours")).wait_for()
    done = len((train.jobs.root / "first" / "metrics.csv").read_text().splitlines()) - 1
    assert done >= 1

    file = train.jobs.root / "first" / REQUEST  # leave one epoch to do
    request = json.loads(file.read_text())
    request["training"]["recipe"]["epochs"] = done + 1
    file.write_text(json.dumps(request))
    press("Resume")
    page.get_by_text(re.compile(r"done · resnet18 on colours")).wait_for()
    page.get_by_role("tab", name="Explore").click()
    page.get_by_label("Model").first.click()
    page.get_by_role("option", name="runs/first", exact=True).click()
    page.locator(".vtx-plain").wait_for()  # a ResNet has no tokens
    page.get_by_role("tab", name="Train").click()
    press("Delete …")
    page.get_by_text("Delete first, its weights and everything else in its folder?").wait_for()
    press("Keep")
    assert (train.jobs.root / "first").is_dir()
    press("Delete …")
    press("Delete for good")
    page.get_by_text("No runs yet.").wait_for()
    assert not (train.jobs.root / "first").exists()
    assert heading.count() == 0
    assert [fault for fault in faults if not fault.startswith("AbortError")] == []
    assert hosts <= {"http://127.0.0.1", "data:", "blob:"}
    context.close()
