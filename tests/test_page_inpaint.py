"""The Inpaint tab as a person meets it, in a headless Chromium."""

import base64
import io

import numpy as np
import pytest
from conftest import canvas_pixels
from PIL import Image

from core import conditioning, images
from core.conditioning import Inpaint

pytestmark = pytest.mark.page
WAIT = {"timeout": 120_000}


@pytest.fixture
def tab(visit):
    """The tab, opened on the example run's picture."""
    page = visit()
    page.open("tab_inpaint")
    page.page.wait_for_selector(".mask-editor[data-kind=run]", **WAIT)
    page.page.locator("#inpaint-steps input").first.fill("3")
    return page


def on_canvas(p) -> np.ndarray:
    """The mask as it is seen, (H, W) bool."""
    return canvas_pixels(p, ".mask-editor .painted")[..., 3] > 0


def drag(p, *points: tuple[float, float]) -> None:
    p.locator(".mask-editor .painted").scroll_into_view_if_needed()
    box = p.locator(".mask-editor .painted").bounding_box()
    places = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in points]
    p.mouse.move(*places[0])
    p.mouse.down()
    for place in places:
        p.mouse.move(*place, steps=3)
    p.mouse.up()


def picture(p, name: str) -> np.ndarray:
    """One of the three in the result's view."""
    p.locator(".inpaint-view .which button", has_text=name).click()
    uri = p.locator(".compare .over").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def newest(engine) -> Inpaint:
    with engine._changed:
        runs = [job for job in engine._jobs.values() if job.request and isinstance(job.request.source, Inpaint)]
    return runs[-1].request.source


def run(p) -> None:
    p.locator("#inpaint-go").click()
    p.wait_for_selector("#inpaint-stop", **WAIT)
    p.wait_for_selector("#inpaint-go", **WAIT)


def test_what_is_on_the_canvas_when_run_is_pressed_is_what_runs_and_changes(tab, page_engine):
    p = tab.page
    p.locator("#inpaint-go").click()
    p.get_by_text(images.UNPAINTED).first.wait_for(**WAIT)

    drag(p, (0.3, 0.3), (0.7, 0.3))
    stroke = on_canvas(p)
    assert stroke[38, 40:88].all() and not stroke[70:].any(), "the line, and nothing below it"
    p.locator(".mask-editor .eraser").click()
    drag(p, (0.5, 0.1), (0.5, 0.5))
    erased = on_canvas(p)
    assert not erased[38, 60:68].any() and erased[38, 45] and erased.sum() < stroke.sum()
    p.locator(".mask-editor .undo").click()
    assert np.array_equal(on_canvas(p), stroke)
    p.locator(".mask-editor .redo").click()
    assert np.array_equal(on_canvas(p), erased)
    p.locator(".mask-editor .invert").click()
    assert np.array_equal(on_canvas(p), ~erased)
    p.locator(".mask-editor .undo").click()
    p.locator(".mask-editor .undo").click()
    run(p)  # at once: Gradio's own editor sent the old mask half a second after Undo
    source = newest(page_engine)
    assert np.array_equal(source.hard, stroke)

    p.wait_for_selector(".inpaint-view[data-kind=run]", **WAIT)
    original, raw, mixed = (picture(p, name) for name in ("Original", "Raw", "Composited"))
    outside = conditioning.soft(stroke, source.blur) == 0
    assert np.array_equal(mixed[outside], original[outside]), "to the bit"
    assert conditioning.change(original, mixed)[stroke].mean() > 2 and not np.array_equal(raw[outside], original[outside])
    assert "Mean 0.00, at most 0 of 255" in p.locator(".composited p").inner_text()
    assert p.locator(".honest-view .known canvas").count() == 5 and p.locator(".honest-view .x-in canvas").count() == 4
    before = uri_of(p)  # now: the answer may come faster than the next line
    p.locator("#inpaint-blur input").first.fill("0")
    p.wait_for_function("before => document.querySelector('.compare .over').src !== before", arg=before, **WAIT)
    assert np.array_equal(picture(p, "Composited")[~stroke], original[~stroke]), "no blur: the mask itself"

    # a plain model, and only the part around the mask
    p.locator("#inpaint-area label").nth(1).click()
    p.get_by_text("The framed").first.wait_for(**WAIT)
    choose(p, "inpaint-model", "Emoji (embedded")
    p.get_by_text("the legacy way").first.wait_for(**WAIT)
    assert np.array_equal(on_canvas(p), stroke), "another model of this size leaves the mask as it is"
    run(p)
    source = newest(page_engine)
    assert source.padding == 16 and source.box != (0, 0, 128, 128) and np.array_equal(source.hard, stroke)
    p.get_by_text("Four channels").first.wait_for(**WAIT)
    assert p.locator(".honest-view .known").is_hidden()

    # the run in the other tabs
    tab.open("tab_latents")
    p.wait_for_selector("#latents .section[data-kind=run]", **WAIT)
    assert "of 3" in p.locator("#latents .where").inner_text()
    tab.open("tab_inpaint")
    assert np.array_equal(on_canvas(p), stroke), "strokes stay while another tab is open"


def uri_of(p) -> str:
    return p.locator(".compare .over").get_attribute("src")


def choose(p, menu: str, line: str) -> None:
    p.locator(f"#{menu} input").click()
    p.get_by_role("option", name=line).first.click()


def test_masks_come_from_words_files_the_keyboard_and_the_attention_tab(tab, tmp_path):
    p = tab.page
    p.locator(".mask-editor .chips button", has_text="apple").click()
    p.wait_for_function("!document.querySelector('.mask-editor .clear').disabled", **WAIT)
    half = on_canvas(p)
    with p.expect_download() as download:
        p.locator(".mask-editor .keep").click()
    download.value.save_as(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png").convert("L")) == 255, half), "white on black"
    p.locator(".mask-editor .clear").click()
    assert not on_canvas(p).any()
    with p.expect_file_chooser() as chooser:
        p.locator("#inpaint-load").click()
    chooser.value.set_files(tmp_path / "mask.png")
    p.wait_for_function("!document.querySelector('.mask-editor .clear').disabled", **WAIT)
    assert np.array_equal(on_canvas(p), half)
    p.locator(".mask-editor .clear").click()
    p.locator(".mask-editor .painted").focus()
    for key in ("ArrowRight", " ", "ArrowDown", " ", "Control+z"):
        p.keyboard.press(key)
    assert 150 < on_canvas(p).sum() < 250, "one dab of 16 px is left"

    tab.open("tab_attention")
    p.locator("#attention details").first.wait_for(**WAIT)
    p.evaluate("document.querySelectorAll('#attention details').forEach(d => (d.open = true))")
    p.wait_for_selector("#attention .hand img[src^=data]", **WAIT)
    before = p.locator(".mask-editor .part").inner_text()
    p.locator("#attention .take").click()
    p.wait_for_selector("#inpaint-mask .board", state="visible", **WAIT)
    p.wait_for_function("before => document.querySelector('.mask-editor .part').textContent !== before", arg=before, **WAIT)
    shown = p.locator("#attention .hand img").get_attribute("src")
    handed = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).convert("L")) == 255
    assert handed.any() and np.array_equal(on_canvas(p), handed), "the mask that the Attention tab showed"


def test_what_is_sent_to_one_tab_leaves_the_others_whole(tab):
    """Gradio loses the properties of a number in a tab that was never opened, if an event only leaves it alone."""
    p = tab.page
    tab.set("inpaint-steps", 2)
    p.locator("#inpaint-try").click()
    p.locator("#inpaint-to-depth").click(**WAIT)
    p.wait_for_selector("#depth-strength input", **WAIT)
    tab.open("tab_img2img")
    p.wait_for_selector("#img2img-strength input", **WAIT)
    assert p.locator("text=Error rendering").count() == 0
