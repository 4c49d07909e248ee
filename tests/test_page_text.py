"""The Text tab in a browser: a token followed through the views, edits drawn beside the unedited picture, a file, two prompts."""

import pytest
import torch

from core import text

pytestmark = pytest.mark.page


@pytest.fixture
def opened(visit):
    def opened(**how):
        visited = visit(**how)
        visited.open("tab_text")
        page = visited.page
        page.wait_for_selector("#text-lens .text-view[data-kind=lens]", timeout=120_000)
        page.wait_for_selector("#text-cosine .text-view[data-kind=cosine]", timeout=120_000)
        return page

    return opened


def choose(page, kind: str) -> None:
    page.locator("#text-kind input").click()
    page.locator("#text-kind [role=option]", has_text=kind).click()


def shows(page, selector: str, words: str) -> None:
    page.locator(selector, has_text=words).first.wait_for(timeout=60_000)


def test_a_token_is_followed_through_the_views_without_the_server(opened):
    page = opened()
    prompt = page.locator("#text-lens .strip-of[data-branch=prompt]")
    assert prompt.locator(".one").count() == 77 and prompt.locator(".one.padding").count() == 72
    assert prompt.locator(".one:not(.padding)").all_inner_texts()[3].split() == ["3", "apple", "3055"]
    asked = []
    page.on("request", lambda request: "queue/join" in request.url and asked.append(request.url))
    prompt.locator(".one").nth(2).hover()
    shows(page, "#text-lens .chosen", "position 2, “red”, id 736")
    shows(page, "#text-lens .bars h4", "“red” reads")
    shows(page, "#text-cosine .closest", "Closest to “red”")
    before = page.locator("#text-lens .stages .norm").all_inner_texts()
    page.mouse.move(0, 0)
    page.locator("#text-lens .layers .choice").nth(3).click()
    page.locator("#text-lens .heads .choice").nth(2).click()
    shows(page, "#text-lens .layers .choice[aria-pressed=true]", "4")
    page.locator("#text-cosine select").select_option("0")
    assert not asked, "looking needs no server"
    prompt.locator(".one").nth(2).click()
    page.keyboard.press("ArrowRight")
    shows(page, "#text-lens .chosen", "position 3, “apple”")
    assert page.locator("#text-lens .stages .norm").all_inner_texts() != before
    page.wait_for_function("document.querySelector('#text-token input').value === '3 · apple'", timeout=60_000)
    page.locator("#text-lens .strip-of[data-branch=negative] .one").first.click()
    shows(page, "#text-lens .chosen", "Negative prompt, position 0")


def test_edits_are_drawn_beside_the_unedited_picture(opened, tmp_path, page_engine):
    page = opened()
    page.locator("#text-edits [data-remove='0']").click()  # the suggestion
    shows(page, "#text-edits .sentence", "No edit yet")
    page.locator("#text-draw").click()
    shows(page, ".toast-body", "There is no edit yet")
    page.locator("#text-word input, #text-word textarea").first.fill("flooble")
    page.locator("#text-add").click()
    shows(page, ".toast-body", "is 2 tokens (floo, ble)")

    choose(page, "Weigh")
    page.locator("#text-lens .one").nth(3).click()
    page.wait_for_function("document.querySelector('#text-token input').value === '3 · apple'", timeout=60_000)
    page.locator("#text-weight input").first.fill("2")
    page.locator("#text-add").click()
    shows(page, "#text-edits .sentence", "1 of the 77 vectors moved")

    width = page_engine.model("emoji").text_encoder.config.hidden_size
    (tmp_path / "other.safetensors").write_bytes(text.inversion_file("<bird>", torch.zeros(1, 768)))
    (tmp_path / "bird.safetensors").write_bytes(text.inversion_file("<bird>", torch.ones(1, width)))
    choose(page, "Textual inversion")
    for name, selector, words in [
        ("other", ".toast-body", f"is 768 wide, this model's text encoder {width}"),
        ("bird", "#text-edits .list", "<bird>"),
    ]:
        with page.expect_file_chooser() as chooser:
            page.locator("#text-file").click()
        chooser.value.set_files(tmp_path / f"{name}.safetensors")
        shows(page, selector, words)
    assert page.locator("#text-edits .list li").count() == 2
    shows(page, "#text-edits .sentence", "Positions 0 to 2 moved by 0. All 74 from 3 to 76 moved")

    page.locator("#text-draw").click()
    page.wait_for_selector("#text-edits figure:nth-child(2).done", timeout=120_000)
    left, right = (image.get_attribute("src") for image in page.locator("#text-edits .pictures img").all())
    assert left != right and page.locator("#text-edits figure.done").count() == 2
    page.wait_for_function("document.querySelector('#text-run input').value.includes('edited text')", timeout=60_000)
    assert page.locator("#text-edits .list li").count() == 2, "the edited run has become the run, with its edits"


def test_two_prompts_and_the_suggestion(opened):
    page = opened(width=390, height=844, locale="ja-JP", scheme="dark")
    page.locator("#text-second textarea").fill("a red star")
    shows(page, "#text-cosine .across", "star")
    page.locator("#text-try").click()
    page.wait_for_selector("#text-edits figure:nth-child(2).done", timeout=120_000)
    shows(page, "#text-edits .sentence", "位置 0 から 1 までの動きは 0 です")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
