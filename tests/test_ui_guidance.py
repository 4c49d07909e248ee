"""The Guidance tab's views as plain Python: the numbers that the page is given, and both runs of a loss."""

import base64
import io
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import toy_model
from PIL import Image

from core import latents, losses
from core.attention import Record
from core.engine import LocalEngine, Snapshot
from core.sampling import Fork, Loss, Request, denoise
from core.trace import Trace, to_uint8
from ui import common, guidance, render, texts

REQUEST = Request("a dog", "a cat", seed=3, steps=6, guidance=5, interval=(1, 4), model="toy")


def trace_of(sd, request):
    kept = Trace.start(sd, request)
    *_, last = kept.follow(denoise(sd, request, Record()))
    kept.finish(sd, last.x_next)
    return kept


@pytest.fixture(scope="module")
def run(toy):
    return trace_of(toy, REQUEST)


@pytest.fixture(scope="module")
def engine(toy):
    made = LocalEngine(lambda name: toy, allowed=("toy",))
    yield made
    made.close()


# --- guidance taken apart -----------------------------------------------------------------------------------------------------


def test_the_page_is_given_the_predictions_to_the_bit(run):
    view = guidance.anatomy(run, "abc", "en")
    for said, step in zip(view["steps"], run, strict=True):
        sent = np.frombuffer(base64.b64decode(said["data"]), np.float32).reshape(-1, 4, 8, 8)
        there = [z for z in (step.x_in, step.eps_uncond, step.eps_cond) if z is not None]
        assert np.array_equal(sent, torch.cat(there).numpy())
        assert (said["uncond"], said["cond"], said["w"]) == (step.eps_uncond is not None, True, step.w)
        assert said["alpha_bar"] == step.alpha_bar
    assert [s["uncond"] for s in view["steps"]] == [False, True, True, True, False, False], "w is 1 outside the interval"
    assert view["guidance"] == 5 and (view["h"], view["w"], view["count"]) == (8, 8, 6)


def test_how_far_apart_and_the_ends_of_its_scale(run):
    view = guidance.anatomy(run, "abc", "en")
    apart = [(s.eps_cond - s.eps_uncond)[0] for s in run.steps[1:4]]
    strengths = [pytest.approx(d.square().mean().sqrt().item(), abs=1e-4) for d in apart]
    assert [s["apart"] for s in view["steps"]] == [None, *strengths, None, None]
    assert view["high"][0] == pytest.approx(max(d.norm(dim=0).max().item() for d in apart), rel=1e-5)
    assert view["high"][1:] == pytest.approx([max(d[c].abs().max().item() for d in apart) for c in range(4)])


def test_a_run_of_one_prediction_a_step_has_no_difference(toy):
    for w, there in ((0, (True, False)), (1, (False, True))):
        view = guidance.anatomy(trace_of(toy, replace(REQUEST, guidance=w, interval=None)), "abc", "en")
        assert all((s["uncond"], s["cond"], s["apart"]) == (*there, None) for s in view["steps"])
        assert view["high"] == [1.0] * 5


def test_x0_under_any_w_follows_from_the_kept_predictions(run, toy):
    step = run.steps[2]
    assert torch.equal(guidance.clean(step, 5), step.x0), "the run's own"
    for w in (0, 1, 0.5, 30):
        eps = step.eps_uncond + w * (step.eps_cond - step.eps_uncond)
        wanted = (step.x_in - (1 - step.alpha_bar) ** 0.5 * eps) / step.alpha_bar**0.5
        assert torch.allclose(guidance.clean(step, w), wanted, atol=1e-4)
    first = run.steps[0]  # w was 1
    assert torch.equal(guidance.clean(first, 1), first.x0)
    assert guidance.clean(first, 0) is None and guidance.clean(first, 2) is None


def test_the_first_steps_any_w_is_what_a_run_with_that_w_predicts(toy):
    """Not an approximation: at the first step, where all runs of a seed stand at the same latents, it is that run's own x0."""
    mine = trace_of(toy, replace(REQUEST, interval=None))
    other = next(denoise(toy, replace(REQUEST, interval=None, guidance=12.5)))
    assert torch.equal(guidance.clean(mine.steps[0], 12.5), other.x0)


def test_decoding_gives_the_vaes_pictures(run, toy, engine):
    found = guidance.decoded(engine, run, 2, 8.0, "someone")
    wanted = to_uint8(latents.decode(toy, torch.cat([guidance.clean(run.steps[2], w) for w in (0, 1, 8)])))
    assert found == [render.uri(render.picture(p).image) for p in wanted]
    one = guidance.decoded(engine, run, 0, 8.0, "someone")
    assert one[0] is None and one[2] is None and one[1].startswith("data:image/")


def test_a_large_run_is_asked_for_step_by_step(run, monkeypatch):
    monkeypatch.setattr(guidance, "WHOLE", 1000)
    view = guidance.anatomy(run, "abc", "en")
    assert all("data" not in s for s in view["steps"])
    assert (
        guidance.predictions(run.steps[1])
        == base64.b64encode(
            torch.cat([run.steps[1].x_in, run.steps[1].eps_uncond, run.steps[1].eps_cond]).numpy().tobytes()
        ).decode()
    )


# --- guidance by a loss -------------------------------------------------------------------------------------------------------


def test_the_notebooks_scale_at_other_sizes():
    assert guidance.scale_for(512, 512) == 200
    assert guidance.scale_for(128, 128) == 12.5
    n = guidance.NOTEBOOK
    assert (n["guidance"], n["steps"], n["seed"], n["scheduler"]) == (8, 50, 32, "LMS")
    said = texts.EN["loss_notebook_info"]
    assert all(number in said for number in ("0.9", "5th", "w 8", "50 steps of LMS", "seed 32", "scale 200 at 512", "12.5"))


def frames_and_outcome(sd, loss, plain=None):
    parts = list(guidance.pair(REQUEST, loss, "dark, as the test says", plain)(sd))
    assert [p.i for p in parts] == list(range(13)) and {p.count for p in parts} == {13}
    return [p.value for p in parts[:-1]], parts[-1].value


def test_both_runs_of_a_loss(toy, run):
    loss = Loss(losses.brightness(0.1), scale=20, every=2)
    frames, outcome = frames_and_outcome(toy, loss)
    assert [f.guided for f in frames] == [False] * 6 + [True] * 6
    assert torch.equal(outcome.plain.picture, run.picture), "without the loss, it is the plain run"
    assert outcome.plain.steps[3].loss is None and "loss" not in outcome.plain.made_by
    *_, last = denoise(toy, REQUEST, loss=loss)
    assert torch.equal(outcome.guided.steps[-1].x_next, last.x_next)
    assert outcome.guided.settings()["loss"] == "dark, as the test says"
    for trace, some in ((outcome.plain, frames[:6]), (outcome.guided, frames[6:])):
        assert [f.loss for f in some] == pytest.approx([losses.value(toy, loss.measure, s.x0) for s in trace], abs=1e-5)
    pushed = [f.push for f in frames[6:]]
    assert [p > 0 for p in pushed] == [True, False] * 3 and pushed[0] > pushed[2] > pushed[4], "early pushes are large"
    assert pushed[2] == pytest.approx(20 * outcome.guided.steps[2].sigma ** 2)
    assert outcome.losses == pytest.approx(
        [losses.value(toy, loss.measure, t.steps[-1].x_next) for t in (outcome.plain, outcome.guided)]
    )


def test_a_run_that_is_kept_is_not_drawn_again(toy, run):
    loss = Loss(losses.blue(), scale=1, every=3)
    calls = []
    hook = toy.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        _, outcome = frames_and_outcome(toy, loss, run)
    finally:
        hook.remove()
    assert len(calls) == 6 and outcome.plain is run


def test_only_a_plain_finished_run_of_the_same_settings_stands_in(toy, run):
    assert guidance.plain_of([("a", run)], REQUEST) is run
    assert guidance.plain_of([("a", run)], replace(REQUEST, seed=4)) is None
    assert guidance.plain_of([("a", replace(run, picture=None))], REQUEST) is None, "stopped"
    for mark in ("loss", "taken_up"):
        assert guidance.plain_of([("a", replace(run, made_by={**run.made_by, mark: "x"}))], REQUEST) is None


def test_stop_acts_within_one_step():
    sd = toy_model()
    sd.unet.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    engine = LocalEngine(lambda _: sd, allowed=("toy",))
    try:
        loss = Loss(losses.blue(), scale=1)
        job = engine.submit_work("toy", guidance.pair(replace(REQUEST, steps=60), loss, "x"), "someone", "loss")
        for snapshot in engine.events(job, rate=1000):
            if snapshot.i >= 3:
                engine.cancel(job)
                at = engine.snapshot(job).i
                break
        *_, last = engine.events(job)
        values = engine.values(job)
        assert last.state == "stopped" and len(values) <= at + 1
        html = guidance.board(last, values, None, "en")
        assert f"Stopped after {len(values)} steps" in html and html.count("<img") == 1 + len(values), "what was drawn stays"
    finally:
        engine.close()


def test_the_board_says_what_happened(toy, run):
    loss = Loss(losses.brightness(0.1), scale=20, every=2)
    frames, outcome = frames_and_outcome(toy, loss, run)
    job = "abc"
    ready = guidance.board(None, [], run, "en")
    assert render.png_uri(run) in ready and ready.count("will appear here") == 1
    cut = guidance.board(None, [], replace(run, picture=None), "en")
    assert cut.count("will appear here") == 1 and "stopped before it had a picture" in cut
    midway = guidance.board(Snapshot(job, "running", i=9, count=13, seconds_left=4.0), frames[:9], None, "en")
    assert (
        "Drawing with the loss: step 3, 4 s left" in midway
        and "Pushed at steps 1, 3 (framed)." in midway
        and "forming" not in midway
    )
    assert f"step 6: loss {frames[5].loss:.3f}" in midway and f"step 3: loss {frames[8].loss:.3f}" in midway
    assert f"<b>20</b> · <b>{frames[8].sigma:.2f}</b>²" in midway
    done = guidance.board(Snapshot(job, "done", i=13, count=13), [*frames, outcome], None, "en")
    before, after = outcome.losses
    assert f"The loss of the picture is {after:.3f} instead of {before:.3f}" in done
    assert render.png_uri(outcome.plain) in done and render.png_uri(outcome.guided) in done
    assert [bool(m) for m in re.findall("<li( class=pushed)?", done)] == [False] * 6 + [True, False] * 3, (
        "every step, pushes framed"
    )
    assert all(f'title="step {f.i + 1}: loss {f.loss:.3f}"' in done for f in frames)
    for language in texts.LANGUAGES:
        plain, guided = json.loads(guidance.curve([*frames, outcome], language))["lines"]
        assert [plain["name"], guided["name"]] == [texts.say(language, "loss_without"), texts.say(language, "loss_with")]
        assert plain["values"] + guided["values"] == pytest.approx([f.loss for f in frames], abs=1e-4)
        assert plain["marks"] == [] and guided["marks"] == [0, 2, 4], "a ring at each push"
    assert guidance.curve([], "en") == common.NO_CURVES


def test_where_the_two_pictures_differ(toy, run):
    other = replace(run, picture=run.picture.clone())
    other.picture[:, 3, 5] = torch.where(run.picture[:, 3, 5] < 128, run.picture[:, 3, 5] + 60, run.picture[:, 3, 5] - 60)
    page = guidance.apart(run, other, "en")
    assert f"{60 / run.picture[0].numel():.1f} of 255 levels on average; white is 60" in page
    seen = np.array(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1]))).convert("L"))
    assert seen[3, 5] == 255 and seen.astype(int).sum() == 255, "black where they are the same"


def test_a_loss_that_ends_higher_is_said_to(run):
    def said(before, after):
        return guidance.status(Snapshot("a", "done", i=13, count=13), guidance.Outcome(run, run, (before, after)), [], "en")

    assert "ended higher than without it: 0.035 instead of 0.022" in said(0.022, 0.035) and "nearly there already" in said(
        0.022, 0.035
    )
    assert "ended higher" in said(0.2, 0.3) and "nearly there" not in said(0.2, 0.3)
    assert said(0.2, 0.1) == "Finished. The loss of the picture is 0.100 instead of 0.200."


def test_a_symmetric_picture_gets_less_symmetric_and_the_less_the_smaller_the_scale(emoji):
    """What the tab says of it, on the example that the page opens with."""
    example = Trace.open(common.EXAMPLE)
    before = losses.value(emoji, losses.symmetry(), example.steps[-1].x_next)
    after = []
    for scale in (150, 300):
        *_, last = denoise(emoji, example.request, loss=Loss(losses.symmetry(), scale=scale, every=2))
        after.append(losses.value(emoji, losses.symmetry(), last.x_next))
    assert before < guidance.NEAR and before < after[0] < after[1]


def test_a_push_is_as_strong_near_the_goal_as_far_from_it():
    for measure in (losses.colour((0.5, 0.5, 0.5)), losses.brightness(0.5), losses.symmetry()):
        slopes = []
        for far in (0.4, 0.01):
            picture = torch.full((1, 3, 8, 8), 0.5)
            picture[..., :4] += far
            picture.requires_grad_()
            slopes.append(torch.autograd.grad(measure(picture), picture)[0])
        assert torch.allclose(*slopes)


def test_what_the_controls_aim_at(tmp_path):
    picture = torch.rand(1, 3, 64, 72)
    Image.new("RGB", (144, 200), (255, 128, 0)).save(tmp_path / "a.png")
    pairs = [
        (guidance.Aim("blue", 0.9), losses.blue(0.9)),
        (guidance.Aim("colour", colour="#ff8000"), losses.colour((1, 128 / 255, 0))),
        (guidance.Aim("colour", colour="rgba(255, 128.0, 0, 1)"), losses.colour((1, 128 / 255, 0))),
        (guidance.Aim("brightness", 0.2), losses.brightness(0.2)),
        (guidance.Aim("symmetry"), losses.symmetry()),
        (guidance.Aim("likeness", picture=str(tmp_path / "a.png")), losses.colour((1, 128 / 255, 0))),
    ]
    for aim, measure in pairs:
        assert aim.measure(64, 72)(picture).item() == pytest.approx(measure(picture).item(), abs=1e-6), aim
    assert str(pairs[0][0]) == "blue 0.9" and str(pairs[1][0]) == "#ff8000" and str(pairs[4][0]) == "symmetry"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda sd: guidance.Aim("blue", 2).measure(8, 8),
        lambda sd: guidance.Aim("brightness", "dark").measure(8, 8),
        lambda sd: guidance.Aim("colour", colour="url(x)").measure(8, 8),
        lambda sd: guidance.Aim("likeness").measure(8, 8),
        lambda sd: guidance.Aim("magic").measure(8, 8),
        lambda sd: Loss(losses.blue(), scale=1e9),
        lambda sd: Loss(losses.blue(), every=0),
        lambda sd: next(denoise(sd, REQUEST, loss=Loss(lambda p: p.sum() * torch.inf))),
        lambda sd: next(
            denoise(sd, REQUEST, fork=Fork(REQUEST, tuple(denoise(sd, REQUEST, loss=Loss(losses.blue(), scale=0)))[:1]))
        ),
    ],
)
def test_a_wrong_value_is_answered_in_the_visitors_language(toy, wrong):
    with pytest.raises(ValueError) as error:
        wrong(toy)
    said = texts.sentence("ja", error.value)
    assert re.search("[ぁ-ん]", said), f"no Japanese for: {error.value}"
    assert not re.search(r"\bThe\b|[{}]", said)
