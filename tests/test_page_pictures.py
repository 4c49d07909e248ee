"""What the tabs that start from a picture share, in a headless Chromium: the way from one to the next, and seeds."""

from copy import copy

import pytest

pytestmark = pytest.mark.page
WAIT = {"timeout": 60_000}
PIXELS = """async (one) => {
  const image = document.querySelector(one);
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""


def same(p, one: str, other: str) -> None:
    """Waits until two images have the same pixels."""
    p.wait_for_selector(other, **WAIT)
    wanted = p.evaluate(PIXELS, one)
    p.wait_for_function(f"async ([one, wanted]) => (await ({PIXELS})(one)) === wanted", arg=[other, wanted], **WAIT)


def test_what_is_sent_is_what_is_seen(visit):
    tab = visit()
    p = tab.page
    tab.open("tab_latents")
    p.wait_for_selector("#latents .section[data-kind=run]", **WAIT)
    p.locator("#latents-to-img2img").click()
    p.wait_for_selector("#img2img-picture img", **WAIT)

    # strength 0 is no run, and its picture goes on with the settings all the same
    tab.set("img2img-steps", 7)
    tab.set("img2img-strength", 0)
    p.locator("#img2img-go").click()
    p.wait_for_selector("#img2img-about >> text=At strength 0 no step ran", **WAIT)
    p.locator("#img2img-to-inpaint").click()
    p.wait_for_function("document.querySelector('#inpaint-steps-number')?.value === '7'", **WAIT)
    same(p, "#img2img-both img:last-of-type", "#inpaint-picture img")

    # an inpainting's blur may change after the run
    tab.set("inpaint-steps", 2)
    p.locator(".mask-editor .invert").click()  # of nothing painted: all of it
    p.locator("#inpaint-go").click()
    p.wait_for_selector(".inpaint-view[data-kind=run]", **WAIT)
    p.wait_for_selector("#inpaint-go", **WAIT)
    p.locator(".inpaint-view .which button", has_text="Composited").click()
    before = p.locator(".compare .over").get_attribute("src")
    tab.set("inpaint-blur", 0)
    p.wait_for_function("before => document.querySelector('.compare .over').src !== before", arg=before, **WAIT)
    p.locator("#inpaint-to-depth").click()
    same(p, ".compare .over", "#depth-picture img")


def test_two_windows_of_one_visitor_keep_what_is_theirs(visit):
    tab = visit()
    other = copy(tab)
    other.page = tab.context.new_page()
    other.page.goto(tab.page.url, wait_until="domcontentloaded")
    other.ready()
    for one, prompt in ((tab, "a fox"), (other, "a panda")):
        one.open("tab_img2img")
        one.page.wait_for_selector("#img2img .section[data-kind=card]", **WAIT)
        one.page.locator("#img2img-prompt textarea").fill(prompt)
        one.set("img2img-strength", 1)
        one.set("img2img-steps", 100)
    tab.page.locator("#img2img-go").click()
    tab.page.wait_for_selector("#img2img-viewer .viewer[data-kind=live]", **WAIT)
    other.open("tab_prompt")
    other.open("tab_img2img")
    other.page.wait_for_timeout(1500)
    assert other.value("img2img-prompt") == "a panda" and other.page.locator("#img2img-go").is_visible()
    assert other.page.locator("#img2img-stop").count() == 0, "the other window's run is not this one's to stop"
    tab.page.locator("#img2img-stop").click()
    tab.page.wait_for_selector("#img2img-go", **WAIT)


def test_a_result_names_its_model_and_a_seed_can_be_had_again(visit):
    tab = visit()
    p = tab.page
    tab.open("tab_img2img")
    p.wait_for_selector("#img2img .section[data-kind=card]", **WAIT)
    tab.set("img2img-steps", 4)
    tab.set("img2img-seed", 33)
    p.locator("#img2img-prompt textarea").fill("a red apple " * 40)
    p.locator("#img2img-go").click()
    p.wait_for_selector("#img2img-viewer .said >> text=2 steps in", **WAIT)
    by = p.locator("#img2img-viewer .made-with").inner_text()
    assert by.startswith("Made with Emoji (embedded, 128 px): emoji, revision ") and "Not read" in by and "apple" in by
    p.locator("#img2img-dice").click()
    p.wait_for_function("!['33', ''].includes(document.querySelector('#img2img-seed input').value)", **WAIT)
    p.locator("#img2img-reuse").click()
    p.wait_for_function("document.querySelector('#img2img-seed input').value === '33'", **WAIT)
