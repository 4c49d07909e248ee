"""The tab DreamBooth as a person meets it, in a headless Chromium, and as a program does: with a trainer that really trains."""

import time
import zipfile

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from core import images, lane
from core.subjects import SAMPLES
from ui import texts

pytestmark = pytest.mark.page
WAIT = {"timeout": 240_000}
QUICK = {"steps": 60, "class_images": 0, "batch": 1, "preview_every": 4, "checkpoint_every": 4}


def open_tab(page):
    page.open("tab_dreambooth")
    page.page.wait_for_selector(".flight:not([data-kind=none])", **WAIT)
    page.page.wait_for_selector("#dreambooth-crops img", **WAIT)


def set_up(page, **settings):
    """Types settings, those behind the preset too."""
    p = page.page
    if not p.locator("#dreambooth-rank input").is_visible():
        p.locator("#dreambooth-settings button").first.click()
    for name, value in settings.items():
        p.locator(f"#dreambooth-{name} input").first.fill(str(value))
        p.locator(f"#dreambooth-{name} input").first.blur()


def state(p) -> str:
    return p.locator(".flight").get_attribute("data-state")


def until(p, *states):
    p.wait_for_function("states => states.includes(document.querySelector('.flight').dataset.state)", arg=list(states), **WAIT)


def test_a_training_from_the_first_click_to_a_picture(visit, page_trainings, tmp_path):
    for settings in page_trainings.home.glob("*/settings.json"):  # of a try before this one
        page_trainings.forget(settings.parent.name, None)
    page = visit()
    p = page.page
    open_tab(page)
    p.wait_for_selector(".flight[data-kind=example]", **WAIT)  # never empty
    assert p.locator(".flight .use").is_hidden()
    p.locator("#dreambooth-samples [data-job=violin]").click()
    p.wait_for_function(
        "document.querySelector('#dreambooth-class input, #dreambooth-class textarea').value === 'a guitar'", **WAIT
    )
    assert page.value("dreambooth-instance") == "a sks guitar" and p.locator("#dreambooth-crops li").count() == 7
    assert "id 48136" in p.locator("#dreambooth-name").inner_text()
    set_up(page, **QUICK)
    p.locator("#dreambooth-prompts textarea").fill("a sks guitar")
    p.locator("#dreambooth-start").dblclick()
    until(p, "training")
    first = page_trainings.home.glob("*/settings.json")
    assert len(list(first)) == 1, "a double click starts one training"
    p.wait_for_function(
        "document.querySelectorAll('.flight .strip .head[data-k]').length >= 3", **WAIT
    )  # the base model's, and two
    p.locator(".flight .strip .head[data-k='0']").click()
    assert "model as it was" in p.locator(".learning .verdict").inner_text()
    p.keyboard.press("ArrowRight")
    assert p.locator(".flight .strip .head[aria-pressed=true]").inner_text().startswith("4")
    p.locator("#dreambooth-start").click()
    p.wait_for_selector("text=You have a training going on already", **WAIT)

    page.leaving = True
    p.reload()  # it is found again
    page.ready()
    page.leaving = False
    open_tab(page)
    p.wait_for_selector(".flight[data-kind=flight]", **WAIT)
    assert "violin" in p.locator(".flight .what").inner_text()
    p.locator(".acts [data-act=pause]").click()
    until(p, "paused", "done")
    step = page_trainings.status(running(page_trainings), None).step
    if state(p) == "paused":
        p.locator(".acts [data-act=go_on]").click()
        until(p, "training", "done")
    if state(p) == "training":
        p.locator(".acts [data-act=stop]").click()
    until(p, "stopped", "done")
    assert page_trainings.status(running(page_trainings), None).step >= step

    with p.expect_download(**WAIT) as lora:
        p.locator(".take [data-act=lora]").click()
    assert lora.value.suggested_filename.endswith(".safetensors")
    with p.expect_download(**WAIT) as whole:
        p.locator(".take [data-act=folder]").click()
    with zipfile.ZipFile(whole.value.path()) as archive:
        assert any(name.endswith("model_index.json") for name in archive.namelist())
    p.locator(".take [data-act=use]").click()
    p.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('a sks guitar')", **WAIT)
    page.set("steps", 12)
    p.wait_for_function("document.querySelector('#model input').value.includes('violin')", **WAIT)
    p.locator("#run").click()
    page.started()
    page.finished()
    assert "violin" in p.locator("#model input").input_value()
    page.open("tab_inpaint")
    p.locator("#inpaint-model input").click()
    assert p.locator("#inpaint-model [role=option]", has_text="violin").count()

    other = visit()
    open_tab(other)
    assert other.page.locator(".flight[data-kind=example]").count() == 1, "nobody else sees it"
    assert other.page.locator(".flight .which option").count() == 0
    other.page.locator("#model input").click()
    assert other.page.locator("#model [role=option]", has_text="violin").count() == 0


def running(trainings) -> str:
    return next(path.parent.name for path in trainings.home.glob("*/settings.json"))


def test_a_hidden_tab_asks_for_nothing_and_an_ended_training_neither(visit):
    page = visit()
    asked = []
    page.page.on("request", lambda r: "queue/join" in r.url and asked.append(r.post_data))
    page.page.wait_for_timeout(2500)
    assert not [data for data in asked if data and '"at"' in data], "before the tab was opened"
    open_tab(page)
    page.page.wait_for_timeout(4000)
    assert len([data for data in asked if data and '"at"' in data]) <= 1


def test_what_is_wrong_is_said_and_the_tab_goes_on(visit, tmp_path):
    page = visit()
    p = page.page
    open_tab(page)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    for k in range(2):
        Image.effect_noise((300, 200), 60 + k).convert("RGB").save(tmp_path / f"{k}.jpg")
    box = p.locator(".start-picture input[type=file]:visible, #dreambooth-body .start-picture input[type=file]").first
    box.set_input_files([tmp_path / "phone.heic", tmp_path / "0.jpg", tmp_path / "1.jpg"])
    p.wait_for_selector("text=phone.heic: This is a HEIC file", **WAIT)
    p.wait_for_function("document.querySelectorAll('#dreambooth-crops li').length === 2", **WAIT)
    assert "33 % is cut off" in p.locator("#dreambooth-crops").inner_text()
    p.locator("#dreambooth-start").click()
    p.wait_for_selector("text=There are 2 pictures; give 3 to 30", **WAIT)
    p.locator("#dreambooth-crops [data-act=remove]").first.click()
    p.wait_for_function("document.querySelectorAll('#dreambooth-crops li').length === 1", **WAIT)
    p.locator("#dreambooth-samples [data-job=pear]").click()
    p.wait_for_function("document.querySelectorAll('#dreambooth-crops li').length === 7", **WAIT)
    p.locator("#dreambooth-class :is(input, textarea)").first.fill("")
    p.locator("#dreambooth-start").click()
    p.wait_for_selector("text=The class prompt is empty; say what the photos show", **WAIT)
    p.locator("#dreambooth-instance :is(input, textarea)").first.fill("an apple")
    p.locator("#dreambooth-class :is(input, textarea)").first.fill("an apple")
    p.wait_for_selector("#dreambooth-name >> text=put a name before the class", **WAIT)


def test_an_estimate_goes_with_what_it_was_made_for(visit):
    page = visit()
    p = page.page
    open_tab(page)
    p.locator("#dreambooth-check").click()
    p.wait_for_selector("#dreambooth-checked >> text=220 steps will take about", **WAIT)
    p.wait_for_timeout(5000)  # the tab's own look ahead has ended too; an answer names the steps that it is for
    p.locator("#dreambooth-steps input").fill("60")
    p.wait_for_function("!document.querySelector('#dreambooth-checked').innerText.includes('will take')", **WAIT)
    p.locator("#dreambooth-preset input").click()
    p.locator("#dreambooth-preset [role=option]", has_text="hackathon").click()  # this app has the embedded model alone
    p.wait_for_function("document.querySelector('#dreambooth-steps input').value === '400'", **WAIT)


def test_what_started_is_in_sight_and_the_film_follows_on_a_narrow_page(visit, page_trainings):
    page = visit(width=390, height=844)
    p = page.page
    open_tab(page)
    ticks = p.locator(".rates svg text[text-anchor=end]").all_text_contents()
    assert len(set(ticks)) == len(ticks) > 2, ticks
    p.locator(".flight .strip .head[data-k='0']").click()
    for _ in range(4):
        p.keyboard.press("ArrowRight")
    seen = p.evaluate(
        """() => [".strip", ".strip .head.now"].map(s => document.querySelector(".flight " + s).getBoundingClientRect())
        .map(box => [box.left, box.right])"""
    )
    assert seen[0][0] <= seen[1][0] and seen[1][1] <= seen[0][1] + 1, seen
    p.set_viewport_size({"width": 1280, "height": 700})
    p.locator("#dreambooth-samples [data-job=pear]").click()
    set_up(page, **QUICK)
    p.locator("#dreambooth-checkpoint_every input").scroll_into_view_if_needed()
    before = {path.parent.name for path in page_trainings.home.glob("*/settings.json")}
    p.evaluate("document.querySelector('#dreambooth-start').click()")  # its head lies above the page's edge now
    until(p, "waiting", "preparing", "training")
    p.wait_for_function("document.querySelector('.flight .said').getBoundingClientRect().top >= 0", **WAIT)
    for one in {path.parent.name for path in page_trainings.home.glob("*/settings.json")} - before:
        page_trainings.forget(one, None)


def test_a_program_trains_and_follows_too(address, tmp_path, page_trainings):
    client = Client(address, verbose=False, download_files=str(tmp_path))
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (35.0, 40.0, 12.0)}
    for k, picture in enumerate(SAMPLES["taxi"].pictures()[:3]):
        picture.save(tmp_path / f"{k}.jpg", exif=exif)
    files = [handle_file(str(tmp_path / f"{k}.jpg")) for k in range(3)]
    settings = {**QUICK, "preview_every": 0, "checkpoint_every": 2}
    del settings["steps"]
    one = client.predict(files, "a sks car", "a car", "embedded", 2, settings, api_name="/train")
    for _ in range(240):
        said = client.predict(one, api_name="/train_status")
        if said["state"] in lane.ENDED:
            break
        time.sleep(0.5)
    assert (said["state"], said["step"], said["checkpoints"]) == ("done", 2, [2]), said
    for path in page_trainings.photos(one, None):
        assert not images.Image.open(path).getexif()
    wrong = {
        "There are 2 pictures": (files[:2], "a sks car", "a car", "embedded", 2, {}),
        "The class prompt is empty": (files, "a sks car", "", "embedded", 2, {}),
        "There is no preset 'magic'": (files, "a sks car", "a car", "magic", 2, {}),
        "The number of steps is 0": (files, "a sks car", "a car", "embedded", 0, {}),
        "The learning rate is 7": (files, "a sks car", "a car", "embedded", 2, {"rate": 7}),
        "There is no preset": (files, "a sks car", "a car", ["embedded"], 2, {}),
        "There is no setting 'rats'": (files, "a sks car", "a car", "embedded", 2, {"rats": 1}),
        "DreamBooth does not teach the model emoji-inpaint": (
            files,
            "a sks car",
            "a car",
            "embedded",
            2,
            {"model": "emoji-inpaint"},
        ),
    }
    for why, values in wrong.items():
        with pytest.raises(Exception, match=why):
            client.predict(*values, api_name="/train")
    with pytest.raises(Exception, match="This training is no longer kept"):
        client.predict("0" * 32, api_name="/train_status")


@pytest.mark.parametrize("look", [{}, {"width": 390, "height": 844, "scheme": "dark", "locale": "ja"}])
def test_nothing_sticks_out(visit, look):
    page = visit(**look)
    open_tab(page)
    p = page.page
    assert p.evaluate("document.documentElement.scrollWidth <= innerWidth")
    said = texts.say("ja" if look else "en", "dreambooth_example")
    p.wait_for_function("said => document.querySelector('.flight .said').textContent === said", arg=said, **WAIT)
    cut = p.evaluate(
        """() => [...document.querySelectorAll('.flight *, #dreambooth-samples *, #dreambooth-crops *')].filter(e =>
        e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not cut
