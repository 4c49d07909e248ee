"""The tab "Steps & latents" as a person meets it, in a headless Chromium."""

import re

import pytest
from PIL import Image

from ui import latents

pytestmark = pytest.mark.page
WAIT = {"timeout": 60_000}


@pytest.fixture
def tab(visit):
    """The tab, opened on the example run of five steps."""
    page = visit()
    page.open("tab_latents")
    page.page.wait_for_selector("#latents .section[data-kind=run]", **WAIT)
    return page


def section(page, name: str) -> None:
    page.page.locator("#latents-sections").get_by_role("tab", name=name, exact=True).click()


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_moving_through_the_steps_asks_no_server_and_the_equation_holds(tab):
    p = tab.page
    assert p.locator("#latents .where").inner_text().startswith("Step 3 of 5, channel 1")
    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    slider = p.locator("#latents .step-line input")
    took = slider.evaluate(
        """bar => { const began = performance.now(); bar.value = 4; bar.dispatchEvent(new Event('input'));
        return performance.now() - began; }"""
    )
    assert took < 100, "from the slider to the new view"
    assert p.locator("#latents .where").inner_text().startswith("Step 5 of 5")
    p.locator("#latents .noisy canvas").nth(2).hover(position={"x": 10, "y": 40})
    where = p.locator("#latents .where").inner_text()
    assert "channel 3" in where and "row 9" not in where, "the square under the pointer"
    line = p.locator("#latents .formula span").last.inner_text()
    x, signal, x0, noise, eps = map(number, re.findall(r"[−\d.]+", line))
    assert x == pytest.approx(signal * x0 + noise * eps, abs=0.02)
    assert signal**2 + noise**2 == pytest.approx(1, abs=2e-3), "variance preserving"
    assert p.locator("#latents .changes canvas").first.is_visible()
    slider.focus()
    p.keyboard.press("Home")
    assert p.locator("#latents .changes canvas").first.is_hidden(), "nothing lies before the first step"
    p.locator("#latents .half").click()
    bar = number(re.search(r"ᾱ\s*= ([\d.]+)", p.locator("#latents .numbers").inner_text())[1])
    assert 0.2 < bar < 0.8
    assert not asked


def test_channels_are_decoded_on_demand(tab):
    p = tab.page
    p.locator("#latents .decode").click()
    p.wait_for_function("document.querySelectorAll('#latents-shifted figure').length === 5", **WAIT)
    assert "Channel 4: +1.5" in p.locator("#latents-shifted").inner_text()
    assert len({image.get_attribute("src") for image in p.locator("#latents-shifted img").all()}) == 5


def test_a_picture_goes_there_and_back_and_a_patch_is_changed(tab, tmp_path):
    p = tab.page
    section(tab, "VAE")
    p.wait_for_selector("#vae .section[data-kind=trip]", **WAIT)
    assert "48 times fewer numbers" in p.locator("#vae .verdict").inner_text()
    mask = p.locator("#vae .mask")
    mask.click(position={"x": 30, "y": 30})
    mask.click(position={"x": 130, "y": 130})
    assert p.locator("#vae .patch").inner_text() == "2 of 256 squares painted"
    p.locator("#vae .workshop .decode").click()
    p.wait_for_selector("#vae-edited >> text=2 of 256 squares changed", **WAIT)
    p.locator("#vae-mix").click()
    p.wait_for_function("document.querySelectorAll('#vae-way figure').length === 10", **WAIT)

    (tmp_path / "no.png").write_text("no picture")
    p.locator("#latents-sections input[type=file]").first.set_input_files(tmp_path / "no.png")
    p.wait_for_selector("text=This is not a PNG, JPEG or WebP picture", **WAIT)
    Image.new("RGB", (640, 480), "red").save(tmp_path / "red.png")
    p.locator("#latents-sections input[type=file]").first.set_input_files(tmp_path / "red.png")
    p.wait_for_selector("#vae >> text=3 × 112 × 144", **WAIT)


def test_two_schedulers_and_one_prediction(tab):
    p = tab.page
    section(tab, "Schedulers")
    p.wait_for_function("document.querySelectorAll('#schedulers-result .moment').length === 2", **WAIT)
    assert "What it missed" in p.locator("#schedulers-result").inner_text()
    p.locator("#schedulers-try").click()
    p.locator("#latents-sections").get_by_text("The same as numbers").click()
    p.wait_for_selector("#schedulers-numbers >> text=14.6146", **WAIT)
    p.locator("#schedulers-time input, #schedulers-time textarea").first.fill("1000")
    p.locator("#schedulers-predict").click()
    p.wait_for_selector("text=The time t is 1000; it must be a whole number from 0 to 999", **WAIT)


def test_a_run_is_forked_and_becomes_the_run_of_all_tabs(tab):
    p = tab.page
    section(tab, "Fork")
    p.wait_for_selector("#fork .section[data-kind=run]", **WAIT)
    assert p.locator("#fork-prompt textarea").input_value() == "a red apple"
    p.locator("#fork .cut-strip .cell").nth(3).click()
    assert "6 UNet passes saved" in p.locator("#fork .where").inner_text()
    p.locator("#fork-prompt textarea").fill("a green leaf")
    p.locator("#fork .go").click()
    p.wait_for_selector("#fork-result >> text=6 UNet passes saved, 4 made", **WAIT)
    p.locator("#fork-result [data-act=open]").click()
    p.wait_for_function("document.querySelector('#latents-run input').value.startsWith('a green leaf')", **WAIT)
    p.wait_for_function("document.querySelector('#fork-prompt textarea').value === 'a green leaf'", **WAIT)
    p.locator("#latents-run input").click()
    p.get_by_role("option", name=re.compile("a red apple")).click()
    p.wait_for_function("document.querySelector('#fork-prompt textarea').value === 'a red apple'", **WAIT)
    assert p.locator(".toast-body").count() == 0


def test_a_hidden_tab_costs_nothing(tab, monkeypatch):
    shown, view = [], latents.view
    monkeypatch.setattr(latents, "view", lambda trace, language: shown.append(len(trace)) or view(trace, language))
    p = tab.page
    p.get_by_role("tab", name="Prompt", exact=True).click()
    p.locator("#steps input[type=text]").fill("2")
    p.locator("#run").click()
    p.wait_for_function("document.querySelector('.viewer .said').textContent.includes('2 steps in')", **WAIT)
    p.wait_for_timeout(1500)
    assert not shown, "another run was chosen, and nobody looks"
    p.get_by_role("tab", name="Steps & latents", exact=True).click()
    p.wait_for_function("document.querySelector('#latents .where')?.textContent.includes('of 2,')", **WAIT)
    assert shown == [2]


@pytest.mark.parametrize("look", [{}, {"width": 390, "height": 844, "scheme": "dark"}])
def test_nothing_sticks_out_and_all_can_be_read(visit, look):
    page = visit(**look)
    p = page.page
    page.open("tab_latents")
    p.wait_for_selector("#latents .section[data-kind=run]", **WAIT)
    ready = {"Latents": "#latents h4", "VAE": "#vae h4", "Schedulers": "#schedulers-result h4", "Fork": "#fork .exact"}
    for name, part in ready.items():
        section(page, name)
        p.wait_for_selector(part, **WAIT)
        p.wait_for_timeout(300)
        assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        cut = p.evaluate(
            """() => [...document.querySelectorAll('#latents-sections :is(img, canvas, button, input)')].filter(e =>
            e.checkVisibility() && !e.closest('.cut-strip, [role=tablist], .tab-container') &&
            e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
        )
        assert not cut, f"{name}: cut off at the right"
        small = p.evaluate(
            """() => [...document.querySelectorAll('#latents-sections *')].filter(e =>
            e.checkVisibility() && !e.closest('sub, svg, canvas') &&
            [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) &&
            parseFloat(getComputedStyle(e).fontSize) < 16).map(e => e.outerHTML.slice(0, 120))"""
        )
        assert not small, f"{name}: text of less than 16 px"
