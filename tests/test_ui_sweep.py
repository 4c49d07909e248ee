"""The sweep tab as plain functions: what it reads, what it says it costs, what the board holds, its curves, and the sheet."""

import base64
import io
import json
import re
import time

import numpy as np
import pytest
from conftest import toy_model
from PIL import Image

from core import sweep as sweeping
from core.engine import LocalEngine
from core.images import read_settings
from core.sampling import Request, denoise
from core.sweep import Meter, Sweep
from core.trace import Trace
from ui import common, prompt, sweep, texts

REQUEST = Request("a dog in a hat", steps=4, seed=3, model="toy")


@pytest.fixture(scope="module")
def engine(toy):
    made = LocalEngine(lambda _: toy, allowed=("toy",))
    yield made
    made.close()


@pytest.fixture(scope="module")
def tiles(toy):
    return [part.value for part in sweeping.work(Sweep(REQUEST, (0, 1, 2, 10), "seed", ("3", "4")))(toy)]


def controls(**changes) -> dict:
    values = dict(prompt="a dog in a hat", negative="", scales="0, 1-3", axis="none", values="", names=[], steps="4", seed=3)
    return values | dict(scheduler="DDIM", width="", height="", model="toy") | changes


# --- what is typed ----------------------------------------------------------------------------------------------------------------


def test_controls_become_a_grid():
    assert sweep.sweep_of(**controls()) == Sweep(REQUEST, (0, 1, 2, 3))
    assert sweep.sweep_of(**controls(axis="swap", values="dog -> cat")).values == ("dog", "dog -> cat")
    assert sweep.sweep_of(**controls(axis="scheduler", values="x", names=["Euler", "LMS"])).values == ("Euler", "LMS")
    assert sweep.sweep_of(**controls(axis="negative", negative="red", values="blue, or\ngreen")).values == (
        "red",
        "blue, or",
        "green",
    )
    assert sweep.sweep_of(**controls(seed=None)).request.seed in range(2**32)
    assert sweep.sweep_of(**controls(width="96")).request.width == 96


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(axis="seed", values="1-3", scales="0.5, 1-9 (+2)"),
        dict(axis="steps", values="3, 5", width="96", height="64"),
        dict(axis="scheduler", names=["Euler", "LMS"]),
        dict(axis="negative", negative="grey", values="red, or\nblue"),
        dict(axis="negative", values="red"),
        dict(axis="swap", values="dog -> cat, dog -> fox"),
    ],
)
def test_a_grid_goes_back_into_its_controls(changes):
    grid = sweep.sweep_of(**controls(**changes))
    typed = sweep.typed_of(grid)
    assert sweep.sweep_of(**typed) == grid and list(typed) == list(controls())


WRONG = {
    "no scales": dict(scales=""),
    "a word": dict(scales="a lot"),
    "a range": dict(scales="9-1"),
    "too strong": dict(scales="31"),
    "no values": dict(axis="seed", values=""),
    "no number": dict(axis="seed", values="one"),
    "steps": dict(axis="steps", values="0"),
    "no schedulers": dict(axis="scheduler", names=[]),
    "no such word": dict(axis="swap", values="fox -> cat"),
    "too many": dict(scales="0-12", axis="seed", values="1-9"),
    "no steps": dict(steps=""),
    "width": dict(width="wide"),
    "axis": dict(axis="colour"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_refused_in_both_languages(name):
    with pytest.raises(ValueError) as error:
        sweep.sweep_of(**controls(**WRONG[name]))
    japanese = texts.sentence("ja", error.value)
    assert re.search("[ぁ-ん]", japanese), f"no Japanese for: {error.value}"
    assert not re.search(r"\bThe\b|[{}]", japanese)


def test_the_price_is_the_core_s_with_its_formula_and_its_seconds(toy):
    nine = Sweep(Request("a dog", steps=20), tuple(range(9)))
    clock = Meter(passes=10, unet=1.0, pictures=2, decoding=1.0)
    said = sweep.price_html(toy, nine, clock, "en")
    assert "9 pictures: 306 UNet passes instead of 360, 54 saved" in re.sub("<.*?>", "", said)
    assert "2 + (T − 1)(2N − k) = 2 + 19 × (18 − 2) = 306" in said and "About 35 s" in said  # 306 / 10 + 9 / 2
    assert 2 + 19 * (18 - 2) == 306
    assert "known once" in sweep.price_html(toy, nine, None, "en")
    for other in (Sweep(REQUEST, (0, 5), "seed", ("1", "2")), Sweep(Request("", steps=4), (0, 5))):
        assert "2N" not in sweep.price_html(toy, other, None, "en"), "the formula is for one row whose branches differ"
    assert "2 + 6 × (4 − 1)" in sweep.price_html(toy, Sweep(Request("a", steps=4, scheduler="Heun"), (0, 5)), None, "en")


# --- the board --------------------------------------------------------------------------------------------------------------------


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")


def test_the_board_holds_every_step_and_the_finished_pictures(tiles):
    shown = sweep.board(tiles, "en", "said")
    assert shown["columns"] == ["w = 0", "w = 1", "w = 2", "w = 10"] and shown["rows"] == ["seed 3", "seed 4"]
    assert len(set(shown["colours"])) == 4 and len(shown["cells"]) == 8
    assert json.loads(common.packed(shown)) == shown
    for cell in shown["cells"]:
        mine = [t for t in tiles if (t.row, t.column) == (cell["row"], cell["column"])]
        assert cell["count"] == len(cell["steps"]) == 4 and cell["kept"]
        strip = np.array(image_of(cell["strip"]))
        assert strip.shape == (4 * 8, 8, 3)
        assert all((strip[8 * t.i : 8 * t.i + 8] == t.preview.movedim(0, -1).numpy()).all() for t in mine)
        assert (np.array(image_of(cell["picture"])) == mine[-1].trace.picture.movedim(0, -1).numpy()).all(), "to the bit"
        uncond, cond, pull, eps = cell["steps"][2]
        assert (uncond is None, cond is None, pull is None) == (cell["w"] == 1, cell["w"] == 0, cell["w"] in (0, 1))
        assert eps == pytest.approx(mine[2].strengths.eps, abs=1e-4)


def test_a_run_is_a_grid_of_one_and_one_that_was_stopped_shows_its_steps(toy):
    trace = Trace.start(toy, REQUEST)
    for step in trace.follow(denoise(toy, REQUEST)):
        if step.i == 1:
            break
    trace.stopped = True
    (cell,) = sweep.board(sweeping.tiles_of(trace), "en", "said", "run")["cells"]
    assert cell["picture"] is None and len(cell["steps"]) == 2 and cell["count"] == 4
    assert len(sweep.pulls(sweeping.tiles_of(trace), 0)[0]) == 2


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_sweep_is_followed_from_its_place_in_the_queue_to_its_board(engine, language):
    grid = Sweep(REQUEST, (1, 2))
    job = engine.submit_work("toy", sweeping.work(grid, batch=1), "me", "sweep")
    *before, last = sweep.follow(engine, job, language, grid)
    assert {value["kind"] for value in before} <= {"live"} and all(len(value["columns"]) == 2 for value in before)
    assert last["state"] == "done" and len(last["cells"]) == 2
    assert f"{sweeping.cost(engine.model('toy'), grid).passes} " in last["status"]
    assert engine.mine("me", "sweep")[-1] == job and not engine.mine("you", "sweep")


@pytest.fixture
def slow():
    """20 ms a step, so that a test can act in the middle."""
    sd = toy_model()
    sd.unet.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    made = LocalEngine(lambda _: sd, allowed=("toy",))
    yield made
    made.close()


def test_stop_keeps_the_finished_pictures_and_every_change_was_told(slow):
    job = slow.submit_work(
        "toy", sweeping.work(Sweep(Request("a dog", steps=8, model="toy"), (2, 3, 4, 5)), batch=1), "me", "sweep"
    )
    finished, stopped = set(), False
    for value in sweep.follow(slow, job, "en"):
        if value["kind"] == "live":
            finished |= {cell["column"] for cell in value["cells"] if cell["picture"]}
            assert all(cell["x0"] for cell in value["cells"]) and 0 <= value["share"] <= 1
            if len(finished) == 2 and not stopped:
                slow.cancel(job)
                stopped = True
    columns = {cell["column"] for cell in value["cells"]}
    assert value["state"] == "stopped" and finished <= columns < {0, 1, 2, 3}
    assert value["status"].startswith(f"Stopped: {len(columns)} of 4")


def test_one_that_is_stopped_before_its_first_picture_shows_nothing(slow):
    job = slow.submit_work("toy", sweeping.work(Sweep(Request("a dog", steps=50, model="toy"), (2, 3)), batch=1), "me", "sweep")
    slow.cancel(job)
    *_, last = sweep.follow(slow, job, "en")
    assert last == {"kind": "none"}


def test_words_that_people_type_do_no_harm(toy, engine):
    grid = Sweep(Request("<script>alert(1)</script> dog", steps=1, model="toy"), (2,), "swap", ("dog", "dog -> <img src=x>"))
    shown = sweep.board([part.value for part in sweeping.work(grid)(toy)], "en", "said")
    assert "<" not in common.packed(shown)
    assert "<script" not in sweep.price_html(toy, grid, None, "en")


# --- curves -----------------------------------------------------------------------------------------------------------------------


def test_the_norm_curve_is_that_of_each_step_and_begins_at_one_value_for_a_row(tiles):
    curves = sweep.pulls(tiles, 0)
    assert list(curves) == [2, 3], "scales 0 and 1 make one prediction only"
    trace = next(t.trace for t in tiles if t.trace is not None and (t.row, t.column) == (0, 3))
    assert curves[3] == pytest.approx([float((s.eps_cond - s.eps_uncond).square().mean().sqrt()) for s in trace])
    assert curves[2][0] == curves[3][0] and curves[2][1:] != curves[3][1:]
    assert sweep.pulls(tiles, 1)[3][0] != curves[3][0], "another seed, another noise"
    said = sweep.pull_said(curves, tiles[0].sweep, "en")
    assert "At w = 10" in said and f"from {curves[3][0]:.3f} at step 1 to {curves[3][3]:.3f} at step 4" in said
    drawn = json.loads(sweep.chart(curves, tiles[0].sweep, 1, title="a", said="b", across="c"))
    assert [line["name"] for line in drawn["lines"]] == ["w = 2", "w = 10"] and drawn["first"] == 1
    assert drawn["lines"][1]["values"] == pytest.approx(curves[3], abs=1e-5)
    assert [line["colour"] for line in drawn["lines"]] == sweep.board(tiles, "en", "")["colours"][2:], "one scale, one colour"


def test_the_ways_begin_at_zero_and_part_by_w(tiles):
    curves = sweep.ways(tiles, (1, 2))
    assert list(curves) == [0, 1, 3] and all(curve[0] == 0 and len(curve) == 5 for curve in curves.values())
    assert [curves[c][1] / curves[1][1] for c in (0, 1, 3)] == pytest.approx([2, 1, 8], rel=1e-2)
    runs = {t.column: t.trace for t in tiles if t.trace is not None and t.row == 1}
    apart = (runs[3].steps[-1].x_next - runs[2].steps[-1].x_next).square().mean().sqrt()
    assert curves[3][-1] == pytest.approx(float(apart))
    said = sweep.ways_said(curves, tiles[0].sweep, (1, 2), "en")
    far = max(curves, key=lambda c: curves[c][-1])
    half = next(k for k in range(5) if curves[far][k] >= curves[far][-1] / 2)
    assert "the chosen ones, w = 2 " in said and f"at {curves[far][-1]:.2f}" in said and f"after {half} of 4 steps" in said


def test_where_there_is_nothing_to_draw_the_curves_say_why(toy):
    tiles = [part.value for part in sweeping.work(Sweep(REQUEST, (1,)))(toy)]
    assert sweep.pulls(tiles, 0) == {} == sweep.ways(tiles, (0, 0)) == sweep.ways(tiles, (9, 9))
    assert "only one of the two" in sweep.pull_said({}, tiles[0].sweep, "en")
    assert "two finished pictures" in sweep.ways_said({}, tiles[0].sweep, (0, 0), "en")
    assert '"lines":[]' in sweep.chart({}, tiles[0].sweep, 1, title="", said="", across="") and sweep.first_place(tiles) == (0, 0)


def test_the_curves_are_seen_on_white_and_on_black():
    def light(colour):  # WCAG 2.2, relative luminance
        c = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    for paper in ("#fafaf8", "#12151a"):
        for colour in sweep.shades(9):
            low, high = sorted((light(paper), light(colour)))
            assert (high + 0.05) / (low + 0.05) >= 3, (paper, colour)


# --- the sheet --------------------------------------------------------------------------------------------------------------------


def test_the_sheet_holds_every_picture_in_its_place_and_restores_the_settings(tiles):
    made = sweep.finished_of(tiles)
    grid = tiles[0].sweep
    file = sweep.sheet_png(grid, made, "en")
    image = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
    at = {}
    for place, trace in made.items():
        picture = Image.fromarray(trace.picture.movedim(0, -1).numpy())
        large = np.array(picture.resize((256, 256), Image.Resampling.LANCZOS))
        rows, columns = np.where((image[:-255, :-255] == large[0, 0]).all(-1))
        at[place] = next((y, x) for y, x in zip(rows, columns, strict=True) if (image[y : y + 256, x : x + 256] == large).all())
    tops, lefts = ({at[row, 0][0] for row in (0, 1)}, [at[0, column][1] for column in range(4)])
    assert all(at[row, column] == (at[row, 0][0], lefts[column]) for row, column in made), "rows and columns"
    assert len(tops) == 2 and at[0, 0][0] < at[1, 0][0] and len(set(np.diff(lefts))) == 1 and lefts[1] - lefts[0] > 256
    carried = read_settings(file)
    assert carried["sweep"] == {"guidances": [0, 1, 2, 10], "axis": "seed", "values": ["3", "4"]}
    assert prompt.settings_of(carried, ("toy",)) == (REQUEST, "")
    some = {place: trace for place, trace in made.items() if place != (0, 0)}
    assert Image.open(io.BytesIO(sweep.sheet_png(grid, some, "ja"))).size == image.shape[1::-1], "a stopped one has a gap"
    with pytest.raises(ValueError, match="no finished picture"):
        sweep.sheet(grid, {}, "en")


def test_long_labels_are_wrapped_between_words_and_long_words_within():
    font = sweep.font_for("a", 16)
    lines = sweep.wrapped("a very long negative prompt with many words", font, 100)
    assert len(lines) > 2 and all(font.getlength(line) <= 100 for line in lines)
    assert " ".join(lines) == "a very long negative prompt with many words"
    assert "".join(sweep.wrapped("x" * 80, font, 100)) == "x" * 80
    assert sweep.wrapped("", font, 100) == [""]


@pytest.mark.parametrize(
    ("axis", "values", "labels"),
    [
        ("none", ("",), [""]),
        ("steps", ("5",), ["5 steps"]),
        ("scheduler", ("Euler a",), ["Euler a"]),
        ("negative", ("", "red"), ["no negative prompt", "red"]),
        ("swap", ("dog", "dog -> cat"), ["dog", "dog → cat"]),
    ],
)
def test_rows_are_named_by_what_tells_them_apart(axis, values, labels):
    assert sweep.rows(Sweep(REQUEST, (2,), axis, values), "en") == labels


def test_the_preset_is_the_course_s_figure():
    from core.sweep import parse_scales

    assert (
        parse_scales(sweep.PRESET["scales"]) == (0, 1, 2, 10)
        and sweep.PRESET["prompt"] == "an oil painting of a dog in a top hat"
    )
