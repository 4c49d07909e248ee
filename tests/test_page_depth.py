"""The tab "Depth" as a person meets it, in a headless Chromium."""

import json

import numpy as np
import pytest
from conftest import canvas_pixels
from PIL import Image, ImageDraw

from core.conditioning import Depth

pytestmark = pytest.mark.page
WAIT = {"timeout": 60_000}


@pytest.fixture
def tab(visit):
    page = visit()
    page.open("tab_depth")
    page.page.wait_for_selector("#depth-easel [data-kind=map]", **WAIT)
    return page


def greys(p, figure: str) -> np.ndarray:
    """What a canvas shows, 0 .. 255."""
    return canvas_pixels(p, f"#depth-easel .{figure} canvas")[..., 0].astype(int)


def says(p, text: str) -> None:
    p.wait_for_selector(f"#depth-easel .note >> text={text}", **WAIT)


def newest(engine):
    """The newest depth run, whoever's."""
    return next(job.trace for job in reversed(engine._jobs.values()) if job.trace and isinstance(job.trace.request.source, Depth))


def test_what_is_painted_is_what_runs(tab, page_engine):
    p = tab.page
    first = greys(p, "map")
    canvas = p.locator("#depth-easel .map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    p.mouse.move(box["x"] + 20, box["y"] + 20)
    p.mouse.down()
    p.mouse.move(box["x"] + 90, box["y"] + 30, steps=6)
    p.mouse.up()
    painted = greys(p, "map")
    changed = np.argwhere(painted != first)
    assert (painted >= first).all() and len(changed) > 20, "nearer, nowhere farther"
    assert changed.max(0)[0] < first.shape[0] / 2, "in the upper part alone"
    p.locator("#depth-easel .undo").click()
    assert (greys(p, "map") == first).all()
    p.locator("#depth-easel .invert").click()
    assert abs(greys(p, "map") + first - 255).max() <= 1

    tab.set("depth-steps", 5)
    p.locator("#depth-go").click()
    p.wait_for_selector("#depth-board .verdict", timeout=120_000)
    seen = newest(page_engine).steps[0].channels[0, 0].numpy()
    assert abs(greys(p, "seen") - (seen + 1) * 127.5).max() <= 1, "the page's bicubic is torch's"
    board = p.locator("#depth-board").inner_text()
    assert board.count("4 of 5 steps ran") == 2 and board.count("agreement ") == 2
    assert abs(greys(p, "map") + first - 255).max() <= 1, "the map stays as it was painted"
    p.locator("#depth-board section").nth(2).get_by_role("button").click()  # img2img
    p.wait_for_selector("#depth-viewer .viewer[data-kind=run]", **WAIT)
    p.locator("#depth-viewer .restore").click()
    p.wait_for_selector("#img2img-picture", **WAIT)  # its settings belong to its own tab
    tab.open("tab_depth")
    p.locator("#depth-origin input").click()
    p.get_by_role("option", name="the map of the run").first.click()
    says(p, "The map that this earlier run was asked for")
    assert abs(greys(p, "map") + first - 255).max() <= 1, "taken from a trace"


def test_a_run_from_the_strip_comes_back_to_the_board(tab):
    p = tab.page
    for steps in (4, 2):
        tab.set("depth-steps", steps)
        p.locator("#depth-go").click()
        p.wait_for_selector(f"#depth-board >> text=of {steps} steps ran", timeout=120_000)
        p.wait_for_selector("#depth-go", **WAIT)
    tab.open("tab_prompt")
    cards = p.locator(".runs .card", has_text="4 steps")
    assert "Depth" in cards.last.inner_text() and "Image to image" in cards.first.inner_text(), "each says its tab"
    p.locator(".runs .card", has_text="Depth").filter(has_text="4 steps").first.locator(".open").click()
    p.wait_for_selector(".runs .card.shown >> text=4 steps", **WAIT)
    tab.open("tab_depth")
    p.wait_for_selector("#depth-board >> text=3 of 4 steps ran", **WAIT)
    assert p.locator("#depth-board").inner_text().count("3 of 4 steps ran") == 2, "with its partner"
    p.locator("#depth-origin input").click()
    p.get_by_role("option", name="a flat map").click()
    says(p, "The map is the same everywhere")
    p.locator("#depth-go").click()
    p.wait_for_selector(".toast-body >> text=The depth map is the same everywhere", **WAIT)
    p.wait_for_selector("#depth-go", **WAIT)
    assert p.locator("#depth-board").inner_text().count("3 of 4 steps ran") == 2, "a refusal leaves the board as it was"


def test_an_uploaded_map_and_what_is_refused(tab, tmp_path):
    p = tab.page
    upload = p.locator("#depth-sources input[type=file]")
    (tmp_path / "no.png").write_text("no picture")
    upload.set_input_files(tmp_path / "no.png")
    p.wait_for_selector("text=This is not a PNG, JPEG or WebP picture", **WAIT)
    disc = Image.new("RGB", (200, 200))
    ImageDraw.Draw(disc).ellipse((50, 50, 150, 150), "white")
    disc.save(tmp_path / "disc.png")
    upload.set_input_files(tmp_path / "disc.png")
    says(p, "Your uploaded map: white is nearest")
    shown = greys(p, "map")
    assert shown[64, 64] == 255 and shown[5, 5] == 0
    p.locator("#depth-origin input").click()
    p.get_by_role("option", name="a flat map").click()
    says(p, "The map is the same everywhere")
    p.locator("#depth-go").click()
    p.wait_for_selector(".toast-body >> text=The depth map is the same everywhere", **WAIT)
    p.wait_for_selector("#depth-go", **WAIT)
    p.locator("#depth-easel .map canvas").focus()
    p.keyboard.press("Enter")
    says(p, "A flat map: paint near and far into it")
    tab.set("depth-strength", "1.01")
    p.locator("#depth-go").click()
    p.wait_for_selector(".toast-body >> text=The strength is 1.01; it must be a number above 0, up to 1", **WAIT)


def test_stop_ends_both_runs(tab, page_engine):
    p = tab.page
    tab.set("depth-steps", 100)
    p.locator("#depth-go").click()
    p.wait_for_function("/Step/.test(document.querySelector('#depth-board .said')?.textContent)", **WAIT)
    p.locator("#depth-stop").click()
    p.wait_for_selector("#depth-board >> text=Stopped. What there is can be looked at.", **WAIT)
    p.wait_for_selector("#depth-go", **WAIT)
    assert newest(page_engine).stopped and not page_engine.busy()


@pytest.mark.parametrize("look", [{}, {"width": 390, "height": 844, "scheme": "dark"}])
def test_nothing_sticks_out_and_all_can_be_read(visit, look):
    page = visit(**look)
    p = page.page
    page.open("tab_depth")
    p.wait_for_selector("#depth-easel [data-kind=map]", **WAIT)
    page.set("depth-steps", 2)
    p.locator("#depth-try").click()
    p.wait_for_selector("#depth-board .verdict", timeout=120_000)
    assert page.value("depth-strength") == "1"
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = p.evaluate(
        """() => [...document.querySelectorAll('#depth-body *')].filter(e =>
        e.checkVisibility() && !e.closest('sub, svg, canvas, #depth-slider') &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) &&
        parseFloat(getComputedStyle(e).fontSize) < 16).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not small, f"text of less than 16 px: {json.dumps(small)}"


def test_the_endpoint_takes_files(address, tmp_path):
    from gradio_client import Client, handle_file

    from core.images import read_settings

    rows = np.linspace(0, 255, 96, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(rows, (96, 120, 3)).copy()).save(tmp_path / "slope.png")
    picture = handle_file(tmp_path / "slope.png")
    client = Client(address, verbose=False)
    common = ("", 1.0, 3, 4, 2.5, "DDIM")
    made, followed, settings = client.predict(picture, picture, True, "a fox", *common, api_name="/depth")
    given, turned = (np.asarray(Image.open(one).convert("L"), float) for one in (tmp_path / "slope.png", followed))
    assert np.corrcoef(np.asarray(Image.fromarray(given).resize((144, 112))).ravel(), turned.ravel())[0, 1] < -0.95, (
        "the map, inverted"
    )
    assert settings["start"]["kind"] == "depth" and settings["model"] == "emoji-depth" and settings["seed"] == 3
    assert -1 <= settings["depth_agreement"] <= 1
    assert settings["notices"] == [
        "120 × 96 pixels, worked on at 144 × 112; 1.3 pixels are cut off at the top, and as many at the bottom."
    ]
    assert read_settings(made)["start"] == settings["start"]
    with pytest.raises(Exception, match="The strength is 2; it must be a number above 0, up to 1"):
        client.predict(picture, None, False, "a fox", "", 2, *common[2:], api_name="/depth")
    with pytest.raises(Exception, match="There is no model 'emoji' for this; choose one of emoji-depth"):
        client.predict(picture, None, False, "a fox", *common, "emoji", api_name="/depth")
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(Exception, match="This is not a PNG, JPEG or WebP picture"):
        client.predict(handle_file(tmp_path / "no.png"), None, False, "a fox", *common, api_name="/depth")
