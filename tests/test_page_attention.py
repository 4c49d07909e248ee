"""The Attention tab as a person meets it: look, scrub, paint, compare, look again; and what it shows is what was recorded."""

import base64
import io
import re

import numpy as np
import pytest

pytestmark = pytest.mark.page


def opened(visit, **how):
    page = visit(**how)
    page.open("tab_attention")
    page.page.wait_for_selector(".microscope[data-kind=run]", timeout=60_000)
    settled(page.page)
    return page, page.page


def settled(p) -> None:
    p.wait_for_function(
        "document.querySelector('.word-card') && !document.querySelector('.ground').classList.contains('waiting')", timeout=60_000
    )


def paint(p) -> None:
    """A stroke over the middle of the picture."""
    p.locator(".paint").click()
    box = p.locator(".slide-of").first.bounding_box()
    p.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    p.mouse.down()
    for k in range(6):
        p.mouse.move(box["x"] + (0.3 + 0.08 * k) * box["width"], box["y"] + (0.4 + 0.1 * (k % 2)) * box["height"])
    p.mouse.up()
    p.wait_for_selector(".scores .table canvas", timeout=20_000)


def test_look_scrub_and_read_the_recorded_numbers(visit, page_example):
    from core.trace import Trace
    from ui import attention

    _, p = opened(visit)
    run = Trace.open(page_example)
    assert p.locator(".word-card .label").all_inner_texts() == ["start", "a", "red", "apple", "end", "padding × 72"]
    assert p.locator(".shot").count() == 5 and p.locator("#attention .all i").count() == 77
    assert p.locator(".levels .layer").count() == len(run.layers)
    assert "add up to 1.00" in p.locator(".formula").inner_text()
    p.wait_for_timeout(2000)  # the other layers' maps come at leisure

    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    p.locator(".levels .level.up .layer").first.click()
    p.locator(".drive input").focus()
    p.keyboard.press("Home")
    p.keyboard.press("ArrowRight")
    p.locator(".word-card", has_text="red").click()
    p.locator(".slide-of").first.click(position={"x": 30, "y": 30})
    p.wait_for_function("document.querySelector('.chosen').textContent.startsWith('red · Step 2 of 5 · up')")
    layer = p.locator(".levels .level.up .layer").first.get_attribute("title")
    maps = attention.maps_of(run, [1], layer, "cond", attention.gather_of([[2]]))[0, 0]
    x, y, shown = re.search(r"spot (\d+), (\d+): (\S+)", p.locator(".ground .told").inner_text()).groups()
    assert float(shown) == pytest.approx(float(maps[int(y), int(x)]), rel=0.06), "the recorded number, to two digits"
    assert not asked, "moving through steps, words, layers and spots needs no server"

    p.locator("#attention .all i").nth(40).click()
    p.wait_for_function("document.querySelector('.chosen').textContent.startsWith('padding (40)')", timeout=20_000)
    p.locator(".branches .uncond").click()
    p.wait_for_function("document.querySelectorAll('.word-card').length === 3", timeout=20_000)
    p.locator(".suggest button").click()
    p.wait_for_function("document.querySelector('#attention .now').textContent === 'Step 5 of 5'", timeout=20_000)


def test_paint_a_mask_take_the_map_as_one_and_compare(visit):
    from PIL import Image

    page, p = opened(visit)
    p.locator(".duel summary").click()
    p.wait_for_selector(".hand img[src^=data]", timeout=20_000)
    png = Image.open(io.BytesIO(base64.b64decode(p.locator(".keep").get_attribute("href").split(",")[1])))
    assert png.size == (128, 128) and set(np.unique(np.asarray(png))) == {0, 255}
    p.locator(".take").click()
    p.wait_for_selector("#tab_inpaint", timeout=20_000)  # it lies on the picture there
    page.open("tab_attention")

    paint(p)
    assert re.search(r"IoU [01]\.\d\d", p.locator(".best").inner_text())
    assert p.locator(".row-names span").count() == 8, "all layers and each"
    p.locator(".go-best").click()
    p.locator(".microscope .undo").click()
    p.wait_for_selector(".scores", state="hidden", timeout=20_000)

    p.locator(".pair summary").click()
    p.wait_for_function("/overlap by \\d+ %/.test(document.querySelector('.pair .result').textContent)", timeout=20_000)
    assert p.locator(".pair .panel").count() == 3
    p.locator(".runs-pair summary").click()
    p.wait_for_function("document.querySelector('.runs-pair .result').textContent.includes('no other run')", timeout=20_000)


def test_single_heads_and_self_attention_on_demand(visit):
    _, p = opened(visit)
    p.locator(".again summary").click()
    assert p.locator(".head-of").count() == 0
    p.locator(".again .ask").click()
    p.wait_for_selector(".head-of canvas", timeout=60_000)
    assert p.locator(".head-row").count() == 7 and p.locator(".head-row").first.locator(".head-of").count() == 4
    assert p.locator(".again .panel").count() == 1
    p.locator(".head-of").nth(2).click()
    p.wait_for_function("document.querySelector('.chosen').textContent.includes('Step 3 of 5 · head 3 of down')")
    p.locator(".drive input").focus()
    p.keyboard.press("ArrowRight")
    p.wait_for_function("document.querySelector('.chosen').textContent.includes('Step 4 of 5 · head 3 of down')", timeout=60_000)


def test_it_follows_the_run_that_is_looked_at(visit):
    page, p = opened(visit)
    p.get_by_role("tab", name="Prompt", exact=True).click()
    page.set("guidance", 1)
    page.set("steps", 20)
    p.locator("#run").click()
    page.started()
    page.finished()
    p.get_by_role("tab", name="Attention", exact=True).click()
    p.wait_for_function("document.querySelectorAll('.shot').length === 20", timeout=60_000)
    settled(p)
    assert p.locator(".branches .uncond").is_disabled() and "w = 1" in p.locator(".branch-note").inner_text()
    p.locator(".runs-pair summary").click()
    p.wait_for_function("/overlaps by \\d+ %/.test(document.querySelector('.runs-pair .result').textContent)", timeout=20_000)


LOOKS = {"dark": dict(scheme="dark"), "phone": dict(width=390, height=844), "japanese": dict(locale="ja-JP")}


@pytest.mark.parametrize("look", LOOKS)
def test_looks(visit, look, tmp_path_factory):
    _, p = opened(visit, **LOOKS[look])
    for part in p.locator("#attention details > summary").all():
        part.click()
    p.wait_for_selector(".pair .panel", timeout=20_000)
    paint(p)
    p.locator(".again .ask").click()
    p.wait_for_selector(".head-of canvas", timeout=60_000)
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    small = p.evaluate(
        """() => [...document.querySelectorAll('#attention *')].filter(e => e.checkVisibility() && !e.closest('sub, sup') &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) &&
        parseFloat(getComputedStyle(e).fontSize) < 16).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not small, "text of less than 16 px"
    path = tmp_path_factory.mktemp("attention") / f"{look}.png"
    p.screenshot(path=path, full_page=True)
    print(f"screenshot: {path}")
