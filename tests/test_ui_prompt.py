"""The Prompt tab's handlers as plain Python, and its one public endpoint through Gradio."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from conftest import toy_model

from core.attention import Record
from core.engine import LocalEngine
from core.images import read_settings
from core.sampling import Request
from core.text import tokenize
from ui import common, prompt, viewing


@pytest.fixture(scope="module")
def engine(toy):
    def load(name):
        if name == "broken":
            raise ValueError("The model broken is not on this machine.")
        return replace(toy, name=name)

    made = LocalEngine(load, allowed=("toy", "broken"))
    yield made
    made.close()


@pytest.fixture
def slow_engine():
    """A model of its own that takes 20 ms a step, so that a test can act in the middle."""
    sd = toy_model()
    sd.unet.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    made = LocalEngine(lambda _: sd, allowed=("toy",))
    yield made
    made.close()


def ask(text="a red apple", **changes) -> Request:
    return replace(Request(text, steps=4, guidance=4.0, model="toy"), **changes)


def controls(**changes) -> dict:
    values = dict(
        prompt="a", negative="", seed=1, steps=4, guidance=2, scheduler="DDIM", width=None, height=None, first=None, last=None
    )
    return values | {"model": "toy"} | changes


# --- from controls to a request -----------------------------------------------------------------------------------------------


def test_controls_reach_the_request_as_they_are():
    assert prompt.request_of(**controls()) == Request("a", seed=1, steps=4, guidance=2, model="toy")
    assert prompt.request_of(**controls(seed=None)).seed in range(2**32), "an empty seed is a new one"


@pytest.mark.parametrize(
    "name, value", [("steps", 2.5), ("seed", 1.5), ("guidance", 31), ("width", 130), ("scheduler", ["DDIM"]), ("prompt", None)]
)
def test_nothing_is_rounded_or_clamped(name, value):
    with pytest.raises(ValueError, match=name):
        prompt.request_of(**controls(**{name: value}))


@pytest.mark.parametrize(
    "typed, read", [("7.5", 7.5), (" 7,5 ", 7.5), ("20", 20), ("2.5", 2.5), ("much", "much"), ("", ""), (3, 3)]
)
def test_what_is_typed_is_read_and_never_mended(typed, read):
    assert common.number_of(typed) == read and type(common.number_of(typed)) is type(read)


def test_the_page_counts_steps_from_one():
    assert prompt.interval_of(None, None) is None
    assert prompt.interval_of(1, 5) == (0, 5)
    assert prompt.interval_of(3, None) == (2, 200)
    assert prompt.interval_of(None, 3) == (0, 3)
    for wrong in (0, 2.5, 201):
        with pytest.raises(ValueError, match="interval"):
            prompt.interval_of(wrong, None)


# --- following a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_run_is_followed_to_its_picture(engine, language):
    job = engine.submit(ask(), "someone", Record())
    *before, last = viewing.follow(engine, job, language)
    assert {value["kind"] for value in before} <= {"live"} and last["kind"] == "run"
    assert (last["state"], last["count"], len(last["steps"])) == ("done", 4, 4)
    assert last["png"].startswith("data:image/png") and last["file"] == "a-red-apple-0.png"
    assert [w["word"] for w in last["words"]] == ["a", "red", "apple"]
    assert json.loads(common.packed(last)) == last


def test_a_stopped_run_shows_its_steps_and_never_a_picture(slow_engine):
    engine = slow_engine
    job = engine.submit(ask(steps=100), "someone")
    values = viewing.follow(engine, job, "en")
    for value in values:
        if value["kind"] == "live" and value["i"]:
            engine.cancel(job)
            break
    *_, last = values
    assert last["state"] == "stopped" and 0 < len(last["steps"]) < 100
    assert last["png"] is None and last["end"] is None
    assert "Stopped" in last["status"]


def test_a_run_stopped_while_it_waits_says_so(slow_engine):
    engine = slow_engine
    long, short = engine.submit(ask(steps=100), "someone"), engine.submit(ask(), "someone")
    engine.cancel(short)
    *_, last = viewing.follow(engine, short, "en")
    engine.cancel(long)
    assert last["kind"] == "empty" and "before its first step" in last["status"]


def test_a_run_that_failed_says_why(engine):
    job = engine.submit(ask(model="broken"), "someone")
    with pytest.raises(ValueError, match="broken is not on this machine"):
        list(viewing.follow(engine, job, "en"))


# --- settings, tokens, runs ---------------------------------------------------------------------------------------------------


def test_settings_make_the_same_request_again(engine):
    request = ask(interval=(1, 3), width=64, negative="blue", scheduler="Euler a")
    trace = engine.result(engine.submit(request, "someone"))
    carried = json.loads(json.dumps(trace.settings()))
    assert prompt.settings_of(carried, engine.allowed) == (request, "")
    assert prompt.settings_of(carried | {"model": "elsewhere"}, engine.allowed)[1] == "elsewhere"


@pytest.mark.parametrize(
    "forged",
    [{}, {"prompt": 3}, {"prompt": "a", "steps": 1e9}, {"prompt": "a", "interval": 5}, {"prompt": "a", "interval": [{}, []]}],
)
def test_forged_settings_are_refused(forged):
    with pytest.raises(ValueError):
        prompt.settings_of(forged, ("toy",))


def test_tokens_are_counted_coloured_and_cut(toy):
    strip = prompt.tokens_html(tokenize(toy, "a picture of a puppy"), "en")
    assert "7 of 77 tokens" in strip and all(f"<small>{i}</small>" in strip for i in (49406, 320, 1674, 539, 6829, 49407))
    long = prompt.tokens_html(tokenize(toy, "very " * 80 + "<b>big</b>"), "en")
    assert "77 of 77" in long and "&lt;b&gt;big" in long and "<b>big" not in long
    assert prompt.tokens_html(tokenize(toy, ""), "en") == ""


def test_the_strip_of_runs_escapes_what_people_type(engine):
    trace = engine.result(engine.submit(ask("<script>alert(1)</script>"), "someone"))
    strip = prompt.runs_html([("abc", trace)], "", "en")
    assert "<script" not in strip and "&lt;script" in strip and 'data-act="compare"' in strip
    assert 'data-act="compare"' not in prompt.runs_html([("abc", trace)], "abc", "en"), "not with itself"
    assert "<script" not in common.packed(viewing.finished(trace, "abc", "en"))


def test_a_comparison_names_what_differs(engine):
    left, right = (engine.result(engine.submit(ask(guidance=w), "someone")) for w in (1.0, 7.5))
    assert "Guidance scale w" in prompt.difference(left, right, "en") and "Seed" not in prompt.difference(left, right, "en")
    assert "The same settings" in prompt.difference(left, left, "en")


def test_a_visitor_s_name_is_never_empty_and_never_chosen():
    mine = common.owner_of(None)
    assert common.owner_of(mine) == mine and len({mine, *(common.owner_of(x) for x in ("", "abc", 5, None, mine.upper()))}) == 6


# --- through Gradio -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(engine):
    import app

    demo = app.make_app(engine, "toy")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH)
    yield url
    demo.close()


def call(url: str, data: str) -> str:
    """One call by hand, so that no client tidies the values."""
    question = urllib.request.Request(
        f"{url}gradio_api/call/generate", f'{{"data": {data}}}'.encode(), {"content-type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(question, timeout=30))["event_id"]
    return urllib.request.urlopen(f"{url}gradio_api/call/generate/{event}", timeout=60).read().decode()


def test_generate_answers_with_the_picture_and_what_made_it(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    picture, made_by = client.predict("a red apple", "", 3, 4, 2.5, "Euler", api_name="/generate")
    assert read_settings(picture) == made_by
    assert (made_by["seed"], made_by["guidance"], made_by["model"], made_by["stopped"]) == (3, 2.5, "toy", False)
    public = ["/generate", "/img2img", "/inpaint", "/depth", "/upscale"]
    public += ["/train", "/train_status"]
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == public, "nothing else is public"


WRONG = {
    "steps 0": ('["a", "", 1, 0, 7.5, "DDIM"]', "whole number from 1 to 100"),
    "steps -1": ('["a", "", 1, -1, 7.5, "DDIM"]', "whole number from 1 to 100"),
    "steps 2.5": ('["a", "", 1, 2.5, 7.5, "DDIM"]', "whole number from 1 to 100"),
    "steps 101": ('["a", "", 1, 101, 7.5, "DDIM"]', "whole number from 1 to 100"),
    "steps text": ('["a", "", 1, "20", 7.5, "DDIM"]', "whole number from 1 to 100"),
    "guidance NaN": ('["a", "", 1, 4, NaN, "DDIM"]', "number from 0 to 30"),
    "guidance infinite": ('["a", "", 1, 4, Infinity, "DDIM"]', "number from 0 to 30"),
    "guidance -1": ('["a", "", 1, 4, -1, "DDIM"]', "number from 0 to 30"),
    "seed -1": ('["a", "", -1, 4, 7.5, "DDIM"]', "whole number from 0 to 4294967295"),
    "seed 2^64": ('["a", "", 18446744073709551616, 4, 7.5, "DDIM"]', "whole number from 0 to 4294967295"),
    "seed null": ('["a", "", null, 4, 7.5, "DDIM"]', "whole number from 0 to 4294967295"),
    "10 MB prompt": ('["' + "a" * 10_000_000 + '", "", 1, 4, 7.5, "DDIM"]', "10,000,000 characters"),
    "NUL": ('["a\\u0000", "", 1, 4, 7.5, "DDIM"]', "U+0000"),
    "lone surrogate": ('["a\\ud800", "", 1, 4, 7.5, "DDIM"]', "U+D800"),
    "no text": ('[null, "", 1, 4, 7.5, "DDIM"]', "not text"),
    "unknown scheduler": ('["a", "", 1, 4, 7.5, "magic"]', "no scheduler 'magic'"),
    "forged scheduler": ('["a", "", 1, 4, 7.5, {"a": ["DDIM"]}]', "no scheduler"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_meet_their_sentence_and_the_app_goes_on(address, name):
    data, words = WRONG[name]
    answer = call(address, data)
    assert "event: error" in answer and words in answer and "Traceback" not in answer
    assert "event: complete" in call(address, '["a", "", 1, 1, 1, "DDIM"]')


def test_a_phones_photo_can_be_sent_and_not_much_more(address):
    def send(megabytes: int) -> int:
        body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(megabytes * 1_000_000)
        question = urllib.request.Request(f"{address}gradio_api/upload", body + b"\r\n--x--\r\n")
        question.add_header("content-type", "multipart/form-data; boundary=x")
        try:
            return urllib.request.urlopen(question, timeout=60).status
        except urllib.error.HTTPError as error:
            return error.code

    assert (send(15), send(22)) == (200, 413)


def test_what_made_a_picture_beside_its_request_is_named(engine):
    plain = engine.result(engine.submit(ask(), "someone"))
    led = replace(plain, made_by={**plain.made_by, "loss": "blue, scale 12.5"})
    assert common.beside(plain.settings()) == [] and common.same_from_request(plain)
    assert common.beside(led.settings()) == ["loss"] and not common.same_from_request(led)
    said = prompt.difference(plain, led, "en")
    assert "Guided by a loss" in said and "blue, scale 12.5" in said
    assert "with the loss" in common.run_name("x", led, "en")
