"""The page as a person meets it, in a headless Chromium: type, draw, watch, stop, scrub, restore, compare, reload, and nothing leaves."""

import io
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.page

WATCH = """() => { window.seen = new Set(); const image = document.querySelector('.guess .frame img.pixels');
new MutationObserver(() => document.querySelector('.viewer').dataset.kind === 'live' && window.seen.add(image.src))
.observe(image, {attributes: true, attributeFilter: ['src']}); }"""


def test_it_opens_with_a_finished_run_and_its_settings(visit):
    page = visit()
    assert page.value("prompt") == "a red apple" and page.value("seed") == "3"
    assert page.page.locator("#prompt-tokens .token").count() == 5
    assert page.page.locator(".cell").count() == 6, "five steps and the finished picture"
    assert page.page.locator(".words .chip").all_inner_texts() == ["a", "red", "apple"]
    assert page.page.locator("h1").count() == 1
    page.page.wait_for_timeout(1500)
    assert page.page.locator(".toast-body").count() == 0, "nothing to complain of"


def test_type_draw_watch_scrub_restore(visit, tmp_path):
    page = visit()
    p = page.page
    p.locator("#prompt textarea").fill("a panda on a blue background")
    p.wait_for_function("document.querySelectorAll('#prompt-tokens .token').length === 8")
    page.set("steps", 30)
    page.set("seed", 5)
    p.evaluate(WATCH)
    p.locator("#prompt textarea").press("Enter")
    page.started()
    page.finished()
    assert p.evaluate("window.seen.size") >= 3, "the picture was seen to form"
    assert "30 steps" in page.said() and "Seed 5" in page.said()
    assert p.locator(".cell").count() == 31

    # Scrub: by keyboard, by pointer, played; the server is not asked.
    asked = []
    p.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    final = page.pictures()
    p.locator(".scrub input[type=range]").focus()
    p.keyboard.press("ArrowLeft")
    assert page.step() == "Step 30 of 30" and page.pictures() != final
    p.keyboard.press("Home")
    first = page.pictures()
    assert page.step() == "Step 1 of 30" and first[0] != first[1]
    assert p.locator(".equation .piece").count() == 3
    p.locator(".cell").nth(9).click()
    assert page.step() == "Step 10 of 30" and page.pictures() != first
    assert not asked
    p.locator(".play").click()
    p.wait_for_function("document.querySelector('.viewer .where').textContent === 'Finished'", timeout=20_000)
    assert page.pictures() == final
    p.locator(".words .chip", has_text="panda").click()
    assert p.locator(".veil").is_visible()

    # Save the PNG, change everything, drop the file on the page: the settings are back.
    with p.expect_download() as saved:
        p.locator(".save").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    assert path.name == "a-panda-on-a-blue-background-5.png"
    p.locator("#prompt textarea").fill("something else")
    page.set("steps", 3)
    page.set("seed", 99)
    drop_on_the_page(p, path)
    p.wait_for_function("document.querySelector('#prompt textarea').value === 'a panda on a blue background'", timeout=20_000)
    assert page.value("seed") == "5" and p.locator("#steps input[type=text]").input_value() == "30"


def drop_on_the_page(p, path: Path) -> None:
    data = p.evaluate_handle(
        """([bytes, name]) => { const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'})); return carried; }""",
        [list(path.read_bytes()), path.name],
    )
    p.dispatch_event(".question h2", "drop", {"dataTransfer": data})


def test_a_wrong_file_and_a_wrong_value_are_answered_with_a_sentence(visit, tmp_path):
    from PIL import Image

    page = visit()
    p = page.page
    plain = tmp_path / "plain.png"
    Image.new("RGB", (64, 64)).save(plain)
    drop_on_the_page(p, plain)
    p.wait_for_selector("text=carries no settings of this app", timeout=20_000)
    page.set("seed", 2.5)
    p.locator("#run").click()
    p.wait_for_selector("text=it must be a whole number from 0 to 4294967295", timeout=20_000)
    assert p.locator("#run").is_visible(), "and one can go on"


def test_a_number_beyond_its_slider_is_refused_and_stays_as_it_was_typed(visit):
    page = visit()
    p = page.page
    box = p.locator("#guidance input[type=text]")
    for typed, answer in (("99", "The guidance is 99;"), ("much", "The guidance is much;"), ("", "The guidance is empty;")):
        page.set("guidance", typed)
        p.locator("#run").click()
        p.wait_for_selector(f"text={answer}", timeout=20_000)
        assert box.input_value() == typed and box.get_attribute("aria-invalid") == "true"
        assert p.locator(".card").count() == 1, "nothing ran"
    page.set("guidance", "7,5")
    assert box.get_attribute("aria-invalid") == "false", "a decimal comma is a point"
    box.press("ArrowUp")
    assert box.input_value() == "7.6"
    bar = p.locator("#guidance input[type=range]").bounding_box()
    p.mouse.click(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    assert 14.5 < float(box.input_value()) < 15.5


def test_a_held_picture_shows_the_step_before(visit):
    page = visit()
    p = page.page
    p.locator(".scrub input[type=range]").press("Home")
    first = page.pictures()
    p.locator(".scrub input[type=range]").press("ArrowRight")
    second = page.pictures()
    box = p.locator(".guess .frame").bounding_box()
    p.mouse.move(box["x"] + 20, box["y"] + 20)
    p.mouse.down()
    assert page.pictures() == first
    p.mouse.up()
    assert page.pictures() == second and page.step() == "Step 2 of 5"


def test_my_runs_can_be_forgotten(visit):
    page = visit()
    p = page.page
    page.set("steps", 20)
    p.locator("#run").click()
    page.started()
    page.finished()
    p.wait_for_selector(".card >> nth=1")
    p.locator("[data-act=forget]").click()
    p.wait_for_function("document.querySelectorAll('.card').length === 1", timeout=20_000)
    assert p.locator("[data-act=forget]").count() == 0 and page.value("prompt") == "a red apple"
    page.leaving = True
    p.reload(wait_until="domcontentloaded")
    page.ready()
    page.leaving = False
    assert p.locator(".card").count() == 1, "not found again either"


def test_stop_acts_at_once_and_shows_no_finished_picture(visit):
    page = visit()
    p = page.page
    page.set("steps", 100)
    p.locator("#run").click()
    page.started()
    p.wait_for_function("/Step [1-9]/.test(document.querySelector('.viewer .said').textContent)", timeout=60_000)
    began = time.perf_counter()
    p.locator("#stop").click()
    page.finished()
    took = time.perf_counter() - began
    assert page.said().startswith("Stopped after step")
    assert took < 5, "one step, and the rendering of what there is"
    assert p.locator(".save").is_hidden() and p.locator(".cell.last").count() == 0
    assert 0 < p.locator(".cell").count() < 100
    p.locator(".scrub input[type=range]").press("Home")
    assert page.step() == "Step 1 of 100"


def test_a_double_click_draws_once_to_the_end(visit):
    page = visit()
    p = page.page
    page.set("steps", 40)
    box = p.locator("#run").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    p.mouse.move(x, y)
    for count in (1, 2):
        p.mouse.down(click_count=count)
        p.mouse.up(click_count=count)
        if count == 1:
            p.wait_for_selector("#stop")  # stands where Run was when the second click comes
    page.finished()
    assert p.locator(".card").count() == 2 and "Stopped" not in page.said() and "40" in page.said()


def test_a_reload_midway_finds_the_run_again(visit):
    page = visit()
    p = page.page
    page.set("steps", 100)
    page.set("seed", 77)
    p.locator("#run").click()
    page.started()
    p.wait_for_function("/Step [1-9]/.test(document.querySelector('.viewer .said').textContent)", timeout=60_000)
    page.leaving = True
    p.reload(wait_until="domcontentloaded")
    p.wait_for_selector(".viewer[data-kind=live], .viewer[data-kind=run]", timeout=60_000)
    assert p.locator("#steps input[type=text]").input_value() == "100", "with the settings of what goes on"
    page.finished()
    page.leaving = False
    assert "100 steps" in page.said() and "Seed 77" in page.said()
    assert p.locator(".card").count() == 2, "the run and the example"
    stranger = visit()
    assert stranger.page.locator(".card").count() == 1, "another visitor sees the example alone"


def test_earlier_runs_are_compared_and_restored(visit):
    page = visit()
    p = page.page
    p.locator("#try").click()
    p.wait_for_selector("#compare .difference", timeout=60_000)
    assert "Guidance scale" in p.locator(".difference").inner_text() and p.locator("#both img").count() == 2
    assert p.locator("#guidance input[type=text]").input_value() == "1"
    assert p.locator(".toast-body").count() == 0
    p.locator(".card", has_text="Example").locator("[data-act=restore]").click()
    p.wait_for_function("document.querySelector('#guidance input[type=text]').value === '7.5'", timeout=20_000)
    p.locator("#close").click()
    p.wait_for_selector("#compare", state="detached", timeout=20_000)


def test_the_language_switch_is_kept(visit):
    page = visit()
    p = page.page
    assert p.locator(".question h2").first.inner_text() == "How does noise become a picture?"
    page.leaving = True
    p.locator("[data-language=ja]").click()
    p.wait_for_selector("text=ノイズはどうやって絵になるの", timeout=60_000)
    page.ready()
    page.leaving = False
    assert "トークン" in p.locator("#prompt-tokens").inner_text() and "完成済み" in page.said()


LOOKS = {
    "light": dict(),
    "dark": dict(scheme="dark"),
    "phone": dict(width=390, height=844),
    "narrow": dict(width=360, height=740, scheme="dark", locale="ja-JP"),
    "japanese": dict(locale="ja-JP"),
    "wall": dict(width=1920, height=1080),
}


@pytest.mark.parametrize("look", LOOKS)
def test_looks(visit, look, tmp_path_factory):
    from PIL import Image

    page = visit(**LOOKS[look])
    p = page.page
    if look == "wall":
        p.locator("[data-projector]").click()
    p.wait_for_timeout(500)
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert p.evaluate("(v => v.scrollWidth <= v.clientWidth && v.clientWidth <= innerWidth)(document.querySelector('.viewer'))")
    small = p.evaluate(
        """() => [...document.querySelectorAll('.gradio-container *')].filter(e => e.checkVisibility() &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.closest('sub, sup') &&
        parseFloat(getComputedStyle(e).fontSize) < 16).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not small, "text of less than 16 px"
    picture = p.screenshot(full_page=True)
    path = tmp_path_factory.mktemp("looks") / f"{look}.png"
    path.write_bytes(picture)
    print(f"screenshot: {path}")  # pytest -rP shows where
    assert len(Image.open(io.BytesIO(picture)).convert("RGB").getcolors(10_000_000) or []) > 50
