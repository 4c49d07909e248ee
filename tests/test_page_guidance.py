"""The Guidance tab as a person meets it, in a headless Chromium: any w at once, numbers under the pointer, a loss that guides."""

import re

import numpy as np
import pytest

from core.trace import Trace
from ui import guidance, render

pytestmark = pytest.mark.page


def opened(page):
    page.open("tab_guidance")
    page.page.wait_for_selector("#anatomy .anatomy[data-kind=run]", timeout=60_000)
    return page.page


def shot(p, folders, name: str) -> None:
    path = folders.mktemp("looks") / f"{name}.png"
    p.screenshot(full_page=True, path=path)
    print(f"screenshot: {path}")  # pytest -rP shows where


def numbers(p) -> list[list[float]]:
    """The four lines at the spot: guided, uncond, w, cond, uncond."""
    lines = p.locator("#anatomy .line .sum").all_inner_texts()
    return [[float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", line.replace("−", "-").replace("- ", " "))] for line in lines]


PIXELS = """(s) => { const c = document.querySelector(s);
return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data); }"""
SLIDE = """() => { const w = document.querySelector("#anatomy .w"), times = [];
for (let k = 0; k < 20; k++) { const began = performance.now(); w.value = k;
w.dispatchEvent(new Event("input")); times.push(performance.now() - began); }
return times.sort((a, b) => a - b)[18]; }"""


def pixels(p, selector: str) -> np.ndarray:
    return np.array(p.evaluate(PIXELS, selector), np.uint8).reshape(16, 16, 4)[..., :3]


def test_any_w_is_worked_out_in_the_page(visit, page_example):
    page = visit()
    p = opened(page)
    trace = Trace.open(page_example)
    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    p.locator("#anatomy .at").press("Home")
    p.locator("#anatomy .at").press("ArrowRight")
    p.locator("#anatomy .w-typed").fill("12.5")
    assert p.locator("#anatomy .where").inner_text() == "Step 2 of 5"
    canvas = p.locator("#anatomy .four .cond canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 3.5 / 16, "y": box["height"] * 9.5 / 16})
    assert "row 10, column 4" in p.locator("#anatomy .at-spot h3").inner_text()
    step = trace.steps[1]
    u, c = (z[0, :, 9, 3].tolist() for z in (step.eps_uncond, step.eps_cond))
    for line, a, b in zip(numbers(p), u, c, strict=True):
        assert line == pytest.approx([a + 12.5 * (b - a), a, 12.5, b, a], abs=6e-4)

    # The pictures are those of the Python side, for the chosen w and for 0 and 1.
    for name, w in (("uncond", 0), ("cond", 1), ("guided", 12.5)):
        wanted = np.array(render.latent(trace, guidance.clean(step, w)).image).astype(int)
        assert np.abs(pixels(p, f"#anatomy .three .{name} canvas") - wanted).max() <= 1

    # One channel: the scale is fixed, the line of the channel is the chosen one.
    p.locator("#anatomy .channels button", has_text="Channel 3").click()
    assert p.locator("#anatomy .line.chosen small").inner_text() == "3"
    assert "−3" in p.locator("#anatomy .scales").inner_text()
    p.locator("#anatomy .w-typed").fill("99")
    assert p.locator("#anatomy .w-typed").get_attribute("aria-invalid") == "true"
    p.locator("#anatomy .w-typed").blur()
    assert p.locator("#anatomy .w-typed").input_value() == "12.5", "w stays what it was"
    p.locator("#anatomy .own").click()
    assert p.locator("#anatomy .w").input_value() == "7.5"
    took = p.evaluate(SLIDE)
    print(f"view_ms: {took:.1f}")
    assert took < 100
    assert not asked, "no server was asked for any of this"

    p.locator("#anatomy .decode").click()
    p.wait_for_selector("#anatomy .three .guided img:visible", timeout=60_000)
    assert p.locator("#anatomy .three img:visible").count() == 3
    p.locator("#anatomy .at").press("ArrowRight")
    assert p.locator("#anatomy .three img:visible").count() == 0, "another step has other pictures"


def test_a_large_run_is_fetched_step_by_step(visit, monkeypatch, page_example):
    monkeypatch.setattr(guidance, "WHOLE", 0)
    p = opened(visit())
    step = Trace.open(page_example).steps[2]
    p.wait_for_selector("#anatomy .line b", timeout=60_000)
    p.locator("#anatomy .at").press("Home")
    p.locator("#anatomy .at").press("ArrowRight")
    p.locator("#anatomy .at").press("ArrowRight")
    strength = f"strength {render.strength(step.eps_cond):.3f}"
    p.wait_for_function(f"document.querySelector('#anatomy .four .cond .strength').textContent === '{strength}'", timeout=60_000)


def test_a_loss_guides_a_run(visit, tmp_path_factory):
    page = visit()
    p = opened(page)
    assert p.locator("#loss-board img").count() == 1, "the picture without a loss is there"
    p.locator("#loss-scale input").first.fill("-5")
    p.locator("#loss-draw").click()
    p.wait_for_selector("text=it must be a number from 0 to 10000", timeout=60_000)
    p.locator("#loss-scale input").first.fill("100")
    p.locator("#loss-draw").click()
    p.wait_for_selector("#loss-keep", timeout=120_000)
    after, before = map(float, re.search(r"is (\S+) instead of (\S+)\.", p.locator("#loss-board .said").inner_text()).groups())
    assert after < before
    assert p.locator("#loss-board .both img").count() == 3 and p.locator("#loss-board .forming li").count() == 10
    lines = p.locator("#loss-curve polyline").evaluate_all("all => all.map(one => one.points.length)")
    assert lines == [5, 5] and p.locator("#loss-curve circle.mark").count() == 3, "a line for each run, a ring for each push"
    shot(p, tmp_path_factory, "loss")

    # The guided run can be looked into, here and in the other tabs; then back to the first one.
    p.locator("#loss-keep").click()
    p.wait_for_function("document.querySelector('#guidance-run input').value.includes('with the loss')", timeout=60_000)
    p.locator("#guidance-run input").click()
    p.get_by_role("option").last.click()
    p.wait_for_function("document.querySelectorAll('#loss-board .both img').length === 1", timeout=60_000)
    assert p.locator("#loss-curve").is_hidden() and p.locator("#loss-keep").is_hidden()

    # The run underneath lends its settings, the notebook has its own.
    p.locator("#loss-under button").first.click()
    values = {
        name: p.locator(f"#loss-{name} input").first for name in ("guidance", "steps", "seed", "scheduler", "scale", "level")
    }
    assert [values[n].input_value() for n in ("guidance", "steps", "seed", "scheduler")] == ["7.5", "5", "3", "DDIM"]
    p.locator("#loss-notebook").click()
    p.wait_for_function("document.querySelector('#loss-steps input').value === '50'", timeout=60_000)
    assert [v.input_value() for v in values.values()] == ["8", "50", "32", "LMS", "12.5", "0.9"]
    p.locator("#loss-kind label").last.click()
    p.locator("#loss-picture").wait_for(timeout=60_000)
    assert p.locator("#loss-level").is_hidden()


def test_a_run_with_w_1_says_what_is_missing(visit):
    page = visit()
    page.set("guidance", 1)
    page.set("steps", 20)
    page.page.locator("#run").click()
    page.started()
    page.finished()
    p = opened(page)
    assert "only w = 1 can be shown" in p.locator("#anatomy .missing").inner_text()
    assert p.locator("#anatomy .four .absent").count() == 2 and p.locator("#anatomy .three .absent").count() == 1


@pytest.mark.parametrize(
    "look", [{}, {"scheme": "dark"}, {"width": 390, "height": 844, "locale": "ja-JP"}], ids=["light", "dark", "phone"]
)
def test_looks(visit, look, tmp_path_factory):
    p = opened(visit(**look))
    p.wait_for_timeout(500)
    shot(p, tmp_path_factory, look.get("scheme") or look.get("locale") or "light")
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    small = p.evaluate(
        """() => [...document.querySelectorAll('.gradio-container *')].filter(e => e.checkVisibility() &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.closest('sub, sup') &&
        parseFloat(getComputedStyle(e).fontSize) < 16).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not small, "text of less than 16 px"
