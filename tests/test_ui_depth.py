"""The Depth tab as plain functions: the map that is asked, the two runs, and every statement about numbers that the tab makes."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_model
from PIL import Image

from core import conditioning, latents
from core import depth as core_depth
from core.conditioning import Depth, Pixels, Source
from core.engine import LocalEngine, Snapshot
from core.sampling import Request, denoise
from core.trace import Trace, to_uint8
from ui import depth, texts, viewing

RANDOM = np.random.default_rng(5)
PICTURE = Image.fromarray(RANDOM.integers(0, 255, (64, 96, 3), np.uint8))
MAP = RANDOM.normal(size=(24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def toy_depth():
    return toy_model(kind="depth")


@pytest.fixture(scope="module")
def engine(toy, toy_depth):
    loaded = {"toy": replace(toy, name="toy"), "toy-depth": replace(toy_depth, name="toy-depth")}
    made = LocalEngine(lambda name: loaded[name], {"toy": "base", "toy-depth": "depth"})
    yield made
    made.close()


def sent(numbers=MAP, origin=depth.ESTIMATE, picture=PICTURE, **changes) -> str:
    """What the page holds, as its script leaves it."""
    value = depth.view(picture, numbers, origin, 8, "en")
    return json.dumps(value | changes)


def request(page: str | None = None, strength: object = "0.5", **changes) -> Request:
    settings = dict(prompt="a dog", negative="", guidance="3", steps="4", seed=7, scheduler="DDIM") | changes
    return depth.request_of(page, PICTURE, strength, "toy-depth", *settings.values())


# --- the map ----------------------------------------------------------------------------------------------------------------------------


def test_in_an_uploaded_map_light_is_near_and_what_does_not_fit_is_cut_off_around_the_middle():
    stripes = np.zeros((90, 300, 3), np.uint8)  # 300 wide for a picture of 96 x 64: 82.5 pixels go at either side
    stripes[:, :82] = 255
    stripes[:, 150:] = (255, 0, 0)
    near = depth.nearness(Image.fromarray(stripes), PICTURE)
    assert near.shape == (64, 96) and near.dtype == np.float32
    assert near[:, :44].max() == 0, "the white stripe is outside"
    assert near[:, 52:] == pytest.approx(0.299, abs=3e-3), "luminance of red, ITU-R 601"
    white = depth.nearness(Image.new("RGB", (64, 64), "white"), PICTURE)
    assert white.min() == 1, "white is nearest"


def test_what_the_page_shows_comes_back_to_the_bit():
    assert (depth.map_on(sent(), Pixels.of(PICTURE)).array == MAP).all()
    assert depth.map_on(sent(), Pixels.of(PICTURE.rotate(90))) is None, "estimated from another picture: core makes its own"
    for origin in (depth.UPLOAD, depth.BLANK, "map:1", "picture:1"):
        kept = depth.map_on(sent(np.abs(MAP), origin), Pixels.of(PICTURE.rotate(90)))
        assert kept is not None, "such a map stands for itself"
    for nothing in (None, "", "{}", json.dumps({"kind": "said", "status": ""})):
        assert depth.map_on(nothing, Pixels.of(PICTURE)) is None


def numbers(array: np.ndarray, **changes) -> dict:
    h, w = array.shape
    return {"data": base64.b64encode(array.astype(np.float32).tobytes()).decode(), "h": h, "w": w} | changes


@pytest.mark.parametrize(
    "forged",
    [
        "no json",
        "[]",
        sent(map={}),
        sent(map=None),
        sent(map=numbers(np.full((4, 4), np.nan))),
        sent(map=numbers(np.full((4, 4), np.inf))),
        sent(map=numbers(MAP, h=25)),
        sent(map=numbers(MAP, h=-24, w=-24)),
        sent(map=numbers(MAP, data="###")),
        sent(map=numbers(np.zeros((2000, 2)))),
        sent(map=numbers(np.zeros((1, 8)))),
    ],
    ids=range(11),  # what is sent holds the time: two workers would know the tests by other names
)
def test_a_forged_map_is_refused_with_a_sentence(forged):
    with pytest.raises(ValueError, match=r"^The depth map on the page cannot be read; choose again where it comes from\.$"):
        depth.map_on(forged, Pixels.of(PICTURE))


def test_the_unpainted_estimate_is_what_core_would_take_itself(engine, toy_depth):
    found = depth.estimated(engine, "toy-depth", PICTURE, "me")
    asked = request(sent(found))
    own = replace(asked.source, depth=None)
    assert torch.equal(conditioning.depth_channel(toy_depth, asked.source), conditioning.depth_channel(toy_depth, own))


def test_the_unet_sees_the_map_stretched_and_an_inverted_one_turned_round(toy_depth):
    seen = conditioning.depth_channel(toy_depth, request(sent()).source)
    assert seen.shape == (1, 1, 8, 12) and (seen.min(), seen.max()) == (-1, 1)
    value = json.loads(sent())
    assert value["seen"] == [8, 12]
    turned = value["map"]["low"] + value["map"]["high"] - MAP  # as depth.js has it
    turned = conditioning.depth_channel(toy_depth, request(sent(turned)).source)
    assert torch.allclose(turned, -seen, atol=1e-5)


def test_a_flat_map_can_be_painted_on_and_is_refused_as_it_is(engine):
    page = json.loads(sent(np.full((64, 96), 0.5, np.float32), depth.BLANK))
    assert (page["map"]["low"], page["map"]["high"]) == (0, 1)
    estimated = json.loads(sent(np.zeros((8, 8), np.float32)))["map"]
    assert estimated["low"] < 0 < estimated["high"], "a flat estimate too"
    with pytest.raises(ValueError, match="The depth map is the same everywhere"):
        engine.result(engine.submit(request(json.dumps(page))))


def test_every_origin_says_where_its_map_comes_from():
    said = {json.loads(sent(np.abs(MAP), origin))["said"] for origin in (*depth.SAID, "map:1", "picture:1")}
    assert len(said) == len(depth.SAID)
    assert "white is nearest" in json.loads(sent(np.abs(MAP), depth.UPLOAD))["said"]


def test_the_menu_of_origins(engine):
    drawn = engine.result(engine.submit(request(sent()), "me"))
    plain = engine.result(engine.submit(depth.without_depth(request(), "toy"), "me"))
    menu = depth.origins([("a", drawn), ("b", plain)], "b", False, "en")
    assert [origin for _, origin in menu] == ["estimate", "map:a", "picture:b", "blank"]
    assert depth.UPLOAD in dict(map(reversed, depth.origins([], "", True, "ja")))
    assert (drawn.request.source.depth.array == MAP).all(), "an earlier run's map is in its trace"


# --- the two runs -----------------------------------------------------------------------------------------------------------------------


def test_both_runs_are_alike_but_for_the_depth():
    asked = request(sent(), strength="0,5", seed=None)
    plain = depth.without_depth(asked, "toy")
    assert asked.source == Depth(Pixels.of(PICTURE), 0.5, Pixels.of(MAP))
    assert plain == replace(asked, model="toy", source=Source(Pixels.of(PICTURE), 0.5))
    larger = depth.without_depth(asked, "toy", PICTURE.resize((192, 128)))
    assert (larger.source.picture.width, larger.source.strength) == (192, 0.5)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"strength": "0"}, "The strength is 0; it must be a number above 0, up to 1."),
        ({"strength": "1.01"}, "The strength is 1.01; it must be"),
        ({"strength": "much"}, "The strength is much; it must be"),
        ({"steps": "0"}, "The number of steps is 0; it must be a whole number from 1 to 100."),
        ({"guidance": "31"}, "The guidance is 31"),
    ],
)
def test_wrong_values_meet_cores_own_sentence(changes, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        request(sent(), **changes)


def test_the_depth_of_both_results_is_estimated_again_and_compared(engine, toy_depth):
    asked = request(sent())
    traces = [engine.result(engine.submit(r, "me")) for r in (asked, depth.without_depth(asked, "toy"))]
    judged = depth.judge(engine, asked, traces, "me")
    assert torch.equal(judged.asked, torch.from_numpy(MAP.copy()))
    for trace, again, score in zip(traces, judged.again, judged.agreement, strict=True):
        pixels = trace.picture[None].float() / 127.5 - 1
        assert torch.equal(again, core_depth.estimate(toy_depth, pixels)[0])
        assert score == core_depth.agreement(judged.asked, again)
    same = replace(asked, source=replace(asked.source, depth=Pixels.of(judged.again[0].numpy())))
    assert depth.judge(engine, same, traces, "me").agreement[0] == pytest.approx(1), "1: both call the same places nearer"
    turned = replace(asked, source=replace(asked.source, depth=Pixels.of(-judged.again[0].numpy())))
    assert depth.judge(engine, turned, traces, "me").agreement[0] == pytest.approx(-1), "-1: near and far are swapped"
    estimated = depth.judge(engine, replace(asked, source=replace(asked.source, depth=None)), traces[:1], "me")
    assert estimated.asked.shape == judged.again[0].shape, "asked for none: the start picture's own"


def plain_text(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_the_board_says_what_was_found(engine):
    asked = request(sent())
    runs = [engine.submit(r, "me") for r in (asked, depth.without_depth(asked, "toy"))]
    traces = [engine.result(one) for one in runs]
    board = depth.Board(asked, depth.without_depth(asked, "toy"), "en")
    judged = depth.Judged(torch.from_numpy(MAP.copy()), (torch.rand(8, 8), torch.rand(8, 8)), (0.812, -0.104))
    page = board.page("done", [board.start(judged), *(board.done(k, runs[k], traces[k], judged) for k in (0, 1))], None, ("x",))
    said = plain_text(page)
    assert "agreement 0.81" in said and "agreement −0.10" in said and "strength 0.5" in said
    assert said.count("2 of 4 steps ran") == 2, "strength 0.5 runs half of the steps"
    assert page.count("<img") == 6 and page.count('data-act="open"') == 2
    assert board.verdict(judged)[0] == "The run with depth agrees more with the depth asked for: 0.81 against −0.10."
    assert board.verdict(replace(judged, agreement=(0.1, 0.4)))[0].startswith(
        "Here img2img agrees more with the depth asked for: 0.40"
    )
    assert board.verdict(replace(judged, agreement=(0.41, 0.4)))[0].startswith(
        "Both agree with the depth asked for about as much: 0.41"
    )
    assert board.verdict(replace(judged, agreement=(0.41, None))) == (), "one was stopped"


def test_a_run_that_goes_on_shows_its_newest_guess_and_a_stopped_one_its_last(toy, toy_depth):
    asked = request(sent())
    board = depth.Board(asked, depth.without_depth(asked, "toy"), "en")
    assert "<img" not in board.going(0, None)
    snapshot = Snapshot("a", "running", i=1, count=2, preview=torch.zeros(3, 8, 12, dtype=torch.uint8), seconds_left=3.2)
    assert "1 / 2" in board.going(0, snapshot)
    assert viewing.status_of(snapshot, "en") == "Step 1 of 2, 3.2 s left."
    stopped = Trace.start(toy_depth, asked)
    next(stopped.follow(denoise(toy_depth, asked)))
    assert "Stopped" in board.done(0, "a", stopped, None)


# --- what the tab says of strength 1 ------------------------------------------------------------------------------------------------------


def test_at_strength_1_the_words_decide_and_the_average_colour_shows_where_they_do_not(emoji):
    """ "At 1 hardly more than its average colour is left of it, which shows where the words name no colour." """
    blue = Pixels.of(Image.new("RGB", (128, 128), (40, 100, 220)))

    def corner(prompt: str, source: Source | None) -> torch.Tensor:
        *_, last = denoise(emoji, Request(prompt, seed=1, guidance=5.0, source=source))
        return to_uint8(latents.decode(emoji, last.x_next))[0, :, :12, :12].float().mean((1, 2))

    named = corner("a fox on a yellow background", Source(blue, 1.0))
    assert named[2] < named[0] and named[2] < named[1], "yellow, as the words say"
    unnamed, alone = corner("a fox", Source(blue, 1.0)), corner("a fox", None)
    assert unnamed[2] > unnamed[0] + 50, "blue, which no word said"
    assert alone[2] < alone[0] + 50, "without the start picture it is not"


def test_its_texts_are_there_in_both_languages():
    assert {key for key in texts.EN if key.startswith("depth_")} == {key for key in texts.JA if key.startswith("depth_")}
