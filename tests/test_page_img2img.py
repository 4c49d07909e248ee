"""The tab Image to image as a person meets it, in a headless Chromium, and as a program does."""

import json
import re

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from core import images
from ui import img2img

pytestmark = pytest.mark.page
WAIT = {"timeout": 60_000}
CARD = "#img2img .section[data-kind=card]"


@pytest.fixture
def tab(visit):
    """The tab, opened with the example's picture."""
    page = visit()
    page.open("tab_img2img")
    page.page.wait_for_selector(CARD, **WAIT)
    return page


def said(p) -> str:
    return p.locator("#img2img .said").inner_text()


def test_strength_is_followed_before_any_run_and_asks_nobody(tab, emoji):
    p = tab.page
    assert "nothing is cut off" in p.locator("#img2img-note").inner_text()
    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    seen = set()
    for strength in (0.13, 0.3, 0.58, 1):
        tab.set("img2img-strength", strength)
        plan = img2img.plan(emoji.scheduler_config, "DDIM", 20, strength)
        assert f"{plan.turns} of 20 steps will run" in said(p) or ("All 20 steps will run" in said(p) and strength == 1)
        assert f"t = {plan.level.t:.0f} on" in said(p)
        share = re.search(r"\d+", p.locator("#img2img .share .signal").inner_text())[0]
        assert int(share) == round(100 * plan.level.alpha_bar)
        assert f"= {plan.start}, t = {plan.level.t:.0f}" in p.locator("#img2img code").text_content()
        seen.add(p.locator("#img2img .x canvas").evaluate("canvas => canvas.toDataURL()"))
    assert len(seen) == 4, "the noised picture follows"
    p.locator("#img2img .schedule i").nth(15).click()
    assert tab.value("img2img-strength") == "0.25" and "5 of 20" in said(p)
    for strength, sentence in {"0": "No step will run", "0.01": "at least 0.05", "much": "from 0 to 1"}.items():
        tab.set("img2img-strength", strength)
        assert sentence in said(p)
    assert not asked, "worked out in the page"
    tab.set("img2img-strength", 0.3)
    p.locator("#img2img-exactly input").click()
    p.wait_for_function("document.querySelector('#img2img .said').textContent.includes('exactly 20')", **WAIT)
    assert "67 steps" in said(p)


def test_a_run_its_row_and_the_way_on(tab):
    p = tab.page
    tab.set("img2img-steps", 4)
    p.locator("#img2img-go").click()
    p.wait_for_selector("#img2img-viewer .said >> text=2 steps in", **WAIT)
    assert "strength 0.5 made of it" in p.locator("#img2img-about").inner_text()
    p.locator("#img2img-strengths textarea, #img2img-strengths input").first.fill("0, 0.3, 0.8")
    p.locator("#img2img-draw-row").click()
    p.wait_for_function("document.querySelectorAll('#img2img-found button').length === 2", **WAIT)
    p.locator("#img2img-found button").last.click()
    p.wait_for_function("document.querySelector('#img2img-about').textContent.includes('strength 0.8')", **WAIT)
    tab.open("tab_latents")
    p.wait_for_function("document.querySelector('#latents .where')?.textContent.includes('of 3,')", **WAIT)
    tab.open("tab_prompt")
    p.wait_for_selector("#runs .card >> text=from a picture, strength 0.3", **WAIT)
    p.locator("#runs .card", has_text="strength 0.3").get_by_text("Use settings").click()
    p.wait_for_selector("#img2img-go", **WAIT)
    p.wait_for_function("document.querySelector('#img2img-strength-number').value === '0.3'", **WAIT)
    tab.open("tab_prompt")
    p.locator("#runs .card .open").last.click()
    p.wait_for_selector("#runs .card.shown >> text=a red apple", **WAIT)
    p.locator("#prompt-to-img2img").click()
    p.wait_for_function("document.querySelector('#img2img-prompt textarea').value === 'a red apple'", **WAIT)
    assert p.locator(".toast-body").count() == 0


def test_what_is_wrong_is_said_and_the_tab_goes_on(tab, tmp_path):
    p = tab.page
    tab.set("img2img-strength", "1.01")
    p.locator("#img2img-go").click()
    p.wait_for_selector("text=The strength is 1.01; it must be a number above 0, up to 1", **WAIT)
    (tmp_path / "no.png").write_text("no picture")
    p.locator("#img2img-picture button[aria-label]").first.click()
    p.locator("#img2img-picture input[type=file]").set_input_files(tmp_path / "no.png")
    p.wait_for_selector("#img2img-note >> text=This is not a PNG, JPEG or WebP picture", **WAIT)
    p.locator("#img2img-picture button[aria-label]").first.click()
    Image.new("CMYK", (640, 480)).save(tmp_path / "a.jpg")
    p.locator("#img2img-picture input[type=file]").set_input_files(tmp_path / "a.jpg")
    p.wait_for_selector("#img2img-note >> text=The picture was CMYK and is RGB now", **WAIT)
    for place in (
        "#img2img-row",
        "#img2img-picture",
    ):  # anywhere on the page, or on the box itself: over the picture that is there
        size = 200 if place == "#img2img-row" else 300
        p.evaluate(
            """async ([place, size]) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
            const blob = await new Promise((done) => canvas.toBlob(done));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
            const from = document.querySelector(place).querySelector("*:last-child");
            from.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer })); }""",
            [place, size],
        )
        p.wait_for_selector(f"#img2img-note >> text={size} × {size} pixels", **WAIT)
    tab.set("img2img-strength", "0")
    p.locator("#img2img-go").click()
    p.wait_for_selector("#img2img-about >> text=At strength 0 no step ran", **WAIT)


def test_a_program_draws_from_a_picture_too(address, tmp_path):
    client = Client(address, verbose=False, download_files=str(tmp_path))
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (35.0, 40.0, 12.0)}  # where it was taken
    Image.effect_noise((640, 480), 80).save(tmp_path / "a.jpg", exif=exif)
    file = handle_file(str(tmp_path / "a.jpg"))
    path, made_by = client.predict(file, "a red apple", "", 0.5, 7, 4, 5, "DDIM", False, api_name="/img2img")
    with Image.open(path) as image:
        assert image.size == (144, 112) and not image.getexif()
    settings = images.read_settings(path)
    assert settings["start"]["strength"] == 0.5 and settings == {k: v for k, v in made_by.items() if k != "notices"}
    assert "11.4 pixels are cut off" in made_by["notices"][0] and "GPS" not in json.dumps(made_by)
    path, made_by = client.predict(file, "", "", 0, 7, 4, 5, "DDIM", False, api_name="/img2img")
    assert made_by["strength"] == 0 and "no step ran" in made_by["notices"][-1]
    assert "11.4 pixels are cut off" in made_by["notices"][0]
    for strength, why in (("much", "The strength is much"), (1.01, "The strength is 1.01"), (0.1, "none of 4 steps runs")):
        with pytest.raises(Exception, match=why):
            client.predict(file, "", "", strength, 7, 4, 5, "DDIM", False, api_name="/img2img")
    with pytest.raises(Exception, match="choose one first"):
        client.predict(None, "", "", 0.5, 7, 4, 5, "DDIM", False, api_name="/img2img")


@pytest.mark.parametrize("look", [{}, {"width": 390, "height": 844, "scheme": "dark", "locale": "ja"}])
def test_nothing_sticks_out(visit, look):
    page = visit(**look)
    p = page.page
    page.open("tab_img2img")
    p.wait_for_selector(CARD, **WAIT)
    p.locator("#img2img summary").click()
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = p.evaluate(
        """() => [...document.querySelectorAll('#img2img :is(img, canvas, p, .schedule, pre), #img2img-row *')].filter(e =>
        e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not cut
    sizes = p.locator("#img2img .mix canvas").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert len(sizes) == 3 and min(sizes) > 60, "the pictures keep their size"
