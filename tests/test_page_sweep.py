"""The sweep tab in a headless Chromium: draw a grid, go through its steps, choose, save, hand a cell to the other tabs, stop, reload."""

import copy
import json

import pytest
from PIL import Image

from core.images import SETTINGS

pytestmark = pytest.mark.page


def opened(visit, **how):
    page = visit(**how)
    page.page.set_default_timeout(120_000)
    page.open("tab_sweep")
    page.page.wait_for_selector(".sweep-view[data-kind=grid]")
    return page, page.page


def ask(p, scales: str, steps: int) -> None:
    p.locator("#sweep-scales :is(input, textarea)").fill(scales)
    p.locator("#sweep-steps input").first.fill(str(steps))


def test_a_grid_is_drawn_looked_into_saved_and_handed_on(visit, tmp_path):
    page, p = opened(visit)
    said = p.locator(".sweep-view .said")
    assert "One scale so far" in said.inner_text() and p.locator(".tile:enabled").count() == 1
    p.wait_for_function("document.querySelector('#sweep-price').innerText.includes('116 UNet passes instead of 160')")
    ask(p, "0, 1, 6", 4)
    p.wait_for_function("document.querySelector('#sweep-price').innerText.includes('14 UNet passes instead of 24')")
    p.locator("#sweep-run").click()  # over in a second: going on is seen in the longer one below
    p.wait_for_function("document.querySelector('.sweep-view .said').innerText.startsWith('3 pictures with 14 UNet passes')")
    assert p.locator(".tile:enabled").count() == 3 and p.locator("#sweep-run").is_visible()

    # Steps, by keyboard; the server is not asked.
    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    p.locator(".along input").press("Home")
    assert p.locator(".sweep-view .when").inner_text() == "Step 1 of 4"
    assert p.locator(".tile .strip-of:visible").count() == 3
    p.wait_for_function("document.querySelector('#sweep-ways .lines b')?.textContent === '0.000'")
    assert not asked

    # Another cell: its equation has one term, its curves begin there.
    p.locator(".tile").nth(2).focus()
    p.keyboard.press("ArrowLeft")
    assert p.locator(".sweep-view .name").inner_text() == "w = 1"
    assert p.locator(".sweep-view .sum .uncond").count() == 0 and p.locator(".sweep-view .sum .cond").count() == 1
    p.wait_for_function("document.querySelector('#sweep-ways .note').textContent.includes('the chosen ones, w = 1')")

    with p.expect_download() as saved:
        p.locator(".sweep-view .sheet").click()
    saved.value.save_as(tmp_path / "sheet.png")
    assert saved.value.suggested_filename == "an-oil-painting-of-a-dog-in-a-top-hat-sweep.png"
    assert json.loads(Image.open(tmp_path / "sheet.png").text[SETTINGS])["sweep"]["guidances"] == [0, 1, 6]

    # A second window of the same visitor finds this sweep and draws one of its own, which is not the first window's.
    other = copy.copy(page)
    other.page = page.context.new_page()
    other.page.goto(p.url, wait_until="domcontentloaded")
    other.ready()
    other.open("tab_sweep")
    other.page.wait_for_selector(".tile:enabled >> nth=2")
    ask(other.page, "2, 3", 2)
    other.page.locator("#sweep-run").click()
    other.page.wait_for_function("document.querySelector('.sweep-view .said').innerText.startsWith('2 pictures')")
    other.page.close()
    page.open("tab_latents")
    page.open("tab_sweep")
    p.wait_for_timeout(1500)
    assert p.locator(".tile:enabled").count() == 3 and page.value("sweep-steps") == "4"

    p.locator(".tile").nth(2).click()
    p.locator(".acts [data-act=look]").click()
    p.wait_for_selector("text=All tabs look at this picture’s run now")
    p.locator(".acts [data-act=restore]").click()
    p.wait_for_function("document.querySelector('#prompt textarea').value === 'an oil painting of a dog in a top hat'")
    p.wait_for_function("document.querySelector('#guidance input').value === '6'")
    assert p.locator("#prompt").is_visible() and page.value("steps") == "4"
    p.wait_for_function("document.querySelectorAll('.viewer .cell').length === 5")


def test_stop_keeps_what_is_done_and_a_reload_finds_the_sweep_again(visit):
    page, p = opened(visit, width=390, height=844)
    ask(p, "0, 7 of them", 20)
    p.wait_for_selector("#sweep-price .cut")
    p.locator("#sweep-run").click()
    p.wait_for_selector("text=is no guidance scale")
    ask(p, "1-16", 100)
    p.locator("#sweep-run").click()
    p.wait_for_function("/^([1-9]|1[0-5]) of 16/.test(document.querySelector('.sweep-view .said').textContent)")
    page.leaving = True
    p.reload(wait_until="domcontentloaded")
    page.ready()
    page.open("tab_sweep")
    p.wait_for_selector(".sweep-view[data-kind=live] .tile:not(.going) img[src]")
    page.leaving = False
    p.locator("#sweep-stop").click()
    p.wait_for_selector(".sweep-view[data-state=stopped]")
    assert "of 16 pictures are finished" in p.locator(".sweep-view .said").inner_text()
    assert 0 < p.locator(".tile:enabled").count() < 16 and p.locator(".tile").count() == 16
    assert page.value("sweep-steps") == "100", "the controls are as they were"
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
