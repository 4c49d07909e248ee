"""The views of the tab "Steps & latents" as functions: the numbers they show, and every statement they make about them."""

import base64
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core import latents as core_latents
from core import schedulers as core_schedulers
from core.attention import Record
from core.engine import LocalEngine, Snapshot
from core.sampling import Request, denoise
from core.text import Edit
from core.trace import Trace
from ui import fork, latents, parts, schedulers, texts, vae

STYLE = (Path(__file__).parent.parent / "assets" / "style.css").read_text("utf-8")


@pytest.fixture(scope="module")
def trace(toy) -> Trace:
    return traced(toy, Request("a dog", seed=4, steps=6, guidance=3, model="toy"))


@pytest.fixture(scope="module")
def engine(toy):
    made = LocalEngine(lambda name: replace(toy, name=name), allowed=("toy",))
    yield made
    made.close()


def traced(sd, request: Request, keep: int | None = None) -> Trace:
    made = Trace.start(sd, request)
    for step in made.follow(denoise(sd, request, Record())):
        if keep and step.i + 1 == keep:
            made.stopped = True
            return made
    made.finish(sd, made.steps[-1].x_next)
    return made


def unpacked(sent: dict) -> np.ndarray:
    """What the script reads: parts.js, channels()."""
    whole = np.frombuffer(base64.b64decode(sent["data"]), "<i2").reshape(-1, sent["h"], sent["w"])
    return np.where(whole == -32768, np.nan, whole * sent["scale"])


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


# --- latents ----------------------------------------------------------------------------------------------------------------------


def test_the_latents_arrive_as_they_are(trace):
    view = latents.view(trace, "en")
    assert len(view["steps"]) == 6
    for sent, step in zip(view["steps"], trace, strict=True):
        assert (sent["t"], sent["sigma"], sent["alpha_bar"]) == (step.t, step.sigma, step.alpha_bar)
        for name, z in (("x", step.x_in), ("x0", step.x0)):
            assert np.abs(unpacked(sent[name]) - z[0].numpy()).max() <= z.abs().max() / 65_000
        # The equation that the page writes out for a square.
        x, x0, eps = unpacked(sent["x"]), unpacked(sent["x0"]), step.eps[0].numpy()
        bar = step.alpha_bar
        assert np.abs(x - (bar**0.5 * x0 + (1 - bar) ** 0.5 * eps)).max() < 1e-3


def test_one_scale_holds_for_all_steps(trace):
    view = latents.view(trace, "en")
    values = torch.cat([torch.cat([s.x_in, s.x0]) for s in trace]).abs()
    assert (values <= view["limit"]).float().mean() >= 0.99 and view["limit"] * 2 % 1 == 0
    moved = torch.cat([b - a for v in ([s.x_in for s in trace], [s.x0 for s in trace]) for a, b in pairwise(v)]).abs()
    assert (moved <= view["change"]).float().mean() >= 0.95


def test_a_run_of_one_step_and_another_size_is_shown_too(toy):
    view = latents.view(traced(toy, Request("", steps=1, guidance=1, width=128, height=64)), "ja")
    assert (view["steps"][0]["x"]["h"], view["steps"][0]["x"]["w"]) == (8, 16) and view["change"] > 0


def test_what_is_no_number_stays_none():
    z = torch.ones(1, 4, 2, 2)
    z[0, 1, 0, 1] = float("nan")
    seen = unpacked(parts.compact(z))
    assert np.isnan(seen[1, 0, 1]) and np.nansum(seen) == pytest.approx(15)
    assert parts.limit_of(z.numpy()) == 1.0


def test_a_shifted_channel_says_how_the_colours_moved():
    grey = torch.zeros(1, 3, 8, 8)
    redder = grey.clone()
    redder[:, 0] += 10 / 127.5
    redder[:, 2] -= 20 / 127.5
    said = plain(latents.shifted([grey, redder], 2, 1.5, "en"))
    assert said == "As it is clean latents of step 3, decoded Channel 1: +1.5 red +10, green +0, blue −20"


# --- VAE --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trip(toy) -> vae.Trip:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    return vae.travel(toy, picture)


def test_the_round_trip_is_the_vaes_own(toy, trip):
    assert torch.equal(trip.z, core_latents.encode(toy, trip.before)) and torch.equal(
        trip.after, core_latents.decode(toy, trip.z)
    )


def test_what_the_round_trip_says(trip):
    view = vae.view(trip, "en")
    error = (trip.before - trip.after).abs().mean(1)[0] * 127.5  # levels of 255
    assert view["pixels"] == "3 × 64 × 96 = 18,432" and view["numbers"] == "4 × 8 × 12 = 384"
    psnr = 10 * np.log10(4 / float((trip.before - trip.after).square().mean()))
    assert view["verdict"].startswith(f"48 times fewer numbers. PSNR {psnr:.1f} dB")
    assert f"off by {float(error.mean()):.1f} of 255" in view["verdict"]
    sent = np.frombuffer(base64.b64decode(view["error"]["data"]), np.float32).reshape(64, 96)
    assert np.abs(sent - error.numpy()).max() < 1e-4 and (view["error"]["low"], view["error"]["high"]) == (0, vae.SCALE)


def test_an_edit_says_what_it_changed(toy, trip):
    mask = vae.mask_of("1" * 12 + "0" * 84, trip.z)
    z = core_latents.edited(trip.z, "shift", 2.0, channel=1, mask=mask)
    picture = core_latents.decode(toy, z)
    said = plain(vae.changed(trip, z, picture, "en"))
    apart = (trip.after - picture).abs().mean(1)[0] * 127.5
    assert f"12 of 96 squares changed, {float(apart.mean()):.1f} levels on average" in said
    assert f"{100 * float((apart > 1).float().mean()):.0f} % of the pixels by more than 1" in said
    for wrong in ("1" * 95, "2" * 96):
        with pytest.raises(ValueError, match="another size than the latents"):
            vae.mask_of(wrong, trip.z)
    assert vae.mask_of("", trip.z) is None


def test_slerp_keeps_the_strength_that_a_straight_line_loses(toy, trip):
    a, b = (torch.randn(1, 4, 8, 8, generator=core_latents.generator(seed)) for seed in (1, 2))
    way = list(vae.between(toy, a, b, core_latents.slerp))
    assert torch.equal(way[0], core_latents.decode(toy, a)) and torch.allclose(way[-1], core_latents.decode(toy, b), atol=1e-5)
    page = plain(vae.between_html("pictures", a, b, way, way, "en"))
    strengths = [(float(s), float(t)) for s, t in re.findall(r"strength ([\d.]+) \(straight: ([\d.]+)\)", page)]
    assert len(strengths) == 5
    assert all(0.9 < slerp < 1.1 for slerp, _ in strengths), "noise stays as strong as noise"
    assert strengths[2][1] < 0.8, "halfway along the straight line it does not"


def test_between_two_runs_lies_what_they_began_with(toy, trace):
    other = Trace.start(toy, replace(trace.request, seed=trace.request.seed + 1, scheduler="LMS"))
    list(other.follow(denoise(toy, other.request)))
    *_, end = [part.value for part in vae.between_starts(trace, None, other, None)(toy)]
    a, b, way, straight = end
    h, w = trace.size
    for start, run in ((a, trace), (b, other)):
        noise = core_latents.noise(toy, 8 * h, 8 * w, core_latents.generator(run.request.seed))
        assert torch.allclose(start, noise, rtol=5e-3), "unit noise, in whatever coordinates the scheduler counts"
    half = [core_latents.slerp(a, b, 0.5), (a + b) / 2]
    for row, z in zip((way, straight), half, strict=True):
        assert len(row) == 5 and torch.allclose(row[2], core_latents.decode(toy, z), atol=1e-5)
    said = plain(vae.between_html("starts", *end, "en"))
    strengths = [(float(s), float(t)) for s, t in re.findall(r"strength ([\d.]+) \(straight: ([\d.]+)\)", said)]
    assert all(0.9 < slerp < 1.1 for slerp, _ in strengths) and strengths[2][1] < 0.8, "as strong as noise, and too weak"
    assert "Along a straight line" in said and "No run is made here" in said
    *_, end = [part.value for part in vae.between_starts(trace, None, None, None)(toy)]
    assert torch.equal(end[1], core_latents.noise(toy, 8 * h, 8 * w, core_latents.generator(1)))


def test_starts_that_do_not_fit_are_refused(toy, trace):
    with pytest.raises(ValueError, match="began with no noise that is known"):
        vae.between_starts(trace, None, None, parts.picture_for(toy, None, trace))
    other = Trace.start(toy, Request("a dog", steps=1, width=72, height=64))
    list(other.follow(denoise(toy, other.request)))
    with pytest.raises(ValueError, match="latents of different sizes"):
        vae.between_starts(trace, None, other, None)


def test_twice_the_side_is_sixteen_times_the_attention():
    said = plain(vae.costs(8, "en"))
    numbers = {int(n.replace(",", "")) for n in re.findall(r"[\d,]{2,}", said)}
    for side in vae.SIDES:
        assert {side**4, (side // 8) ** 4} <= numbers
    assert said.count("×16") == 2 * (len(vae.SIDES) - 1) and "costs 4,096 times less" in said


# --- schedulers --------------------------------------------------------------------------------------------------------------------


def test_the_curves_and_the_table_are_the_schedulers_own(toy):
    both = {name: schedulers.levels_of(toy.scheduler_config, name, 15) for name in ("LMS", "DDIM")}
    curves = schedulers.curves(both, "en")
    drawn = {what: json.loads(value)["lines"] for what, value in curves.items()}
    lms, ddim = drawn["sigma"]
    assert (lms["name"], ddim["name"]) == ("LMS", "DDIM") and (lms["colour"], ddim["colour"]) == schedulers.COLOURS
    assert lms["values"] == pytest.approx([level.sigma for level in both["LMS"]], abs=1e-5)
    assert drawn["alpha_bar"][1]["values"] == pytest.approx([level.alpha_bar for level in both["DDIM"]], abs=1e-5)
    assert [len(line["values"]) for line in drawn["t"]] == [15, 15], "at the end the UNet is not asked"
    said = plain(schedulers.table(both, "en"))
    for sigma in ("14.6146", "9.6826", "1.0097", "0.0292"):
        assert sigma in said, "the Deep Dive's numbers, as it prints them"
    assert said.endswith("16 end 0.0000 1.0000 end 0.0292 0.9991")


def test_the_curves_have_the_colours_that_the_menus_show():
    assert all(colour in STYLE for colour in schedulers.COLOURS)


def test_where_the_unet_is_asked(toy):
    config = toy.scheduler_config
    found = schedulers.moments(config, ("LMS", "DDIM"), 15, 10, None)
    levels = core_schedulers.levels(core_schedulers.make("LMS", config, 15))
    assert found[0] == ("LMS", levels[9].t, levels[9].alpha_bar) and found[1][0] == "DDIM"
    assert len(schedulers.moments(config, ("LMS", "LMS"), 15, 10, None)) == 1, "twice the same is one"
    (only,) = schedulers.moments(config, ("LMS", "DDIM"), 15, 10, 999)
    assert only[1] == 999 and core_schedulers.sigma_of(only[2]) == pytest.approx(14.6146, abs=2e-4)
    with pytest.raises(ValueError, match="step is 16; it must be a whole number from 1 to 15"):
        schedulers.moments(config, ("LMS", "DDIM"), 15, 16, None)
    with pytest.raises(ValueError, match="time t is 1000"):
        schedulers.moments(config, ("LMS", "DDIM"), 15, 3, 1000)
    with pytest.raises(ValueError, match="steps is 0"):
        schedulers.levels_of(config, "LMS", 0)


def test_what_one_prediction_says(toy, trace):
    picture = parts.picture_for(toy, None, trace)
    (name, t, bar), *_ = schedulers.moments(toy.scheduler_config, ("DDIM", "LMS"), 6, 3, None)
    seen = schedulers.look_once(toy, Request("a dog", seed=4), picture, name, t, bar)
    said = plain(schedulers.moment_html(seen, trace, "en"))
    guess = seen.guess
    miss = float((guess.eps - guess.true).square().mean().sqrt())
    psnr = core_latents.psnr(core_latents.pixels_of(picture), seen.clean)
    assert torch.equal(seen.noisy, core_latents.decode(toy, guess.x)) and said.startswith(f"DDIM · t = {t:.1f}")
    assert f"{bar**0.5:.3f} z + {(1 - bar) ** 0.5:.3f} ε" in said
    assert f"What it missed strength {miss:.2f}" in said and f"PSNR {psnr:.1f} dB" in said


# --- fork --------------------------------------------------------------------------------------------------------------------------


def going_on(engine, trace, start, *changes) -> Trace:
    request, at = fork.forked(trace, start, *changes)
    job = engine.submit_work("toy", fork.going_on(request, at), "me", "fork")
    list(engine.events(job))
    return engine.values(job)[-1]


def test_a_fork_left_as_it_was_is_the_same_picture(engine, trace):
    again = going_on(engine, trace, 4, "a dog", 3, 4)
    assert torch.equal(again.picture, trace.picture)


def test_a_fork_counts_what_it_saved_and_made(engine, trace):
    new = going_on(engine, trace, 4, "a house", 1, 4)
    assert [fork.passes(s) for s in new] == [2, 2, 2, 1, 1, 1]
    assert all(torch.equal(a.x, b.x) for a, b in zip(trace.steps[:4], new.steps[:4], strict=True))
    assert new.word_maps().shape == (77, 8, 8), "the words are looked up in the steps that read them"
    said = plain(fork.comparison(trace, new, 4, "its-id", "en"))
    assert said.startswith("6 UNet passes saved, 3 made: 3 instead of 9.")
    assert "after step 3 of: 'a dog', w 3, seed 4" in new.settings()["taken_up"], "its settings alone would not make it again"


def test_edits_go_with_the_words_that_they_belong_to(toy, engine, trace):
    edited = replace(trace.request, edits=(Edit("weight", 2, share=3.0),))
    run = traced(toy, edited)
    assert torch.equal(going_on(engine, run, 3, "a dog", 3, 4).picture, run.picture), "the same words keep them"
    other = going_on(engine, run, 3, "a house", 3, 4)
    assert other.request.edits == () and other.request.prompt == "a house"
    assert torch.equal(other.steps[1].eps, run.steps[1].eps), "what was made with them stays"
    unedited = next(iter(denoise(toy, replace(other.request, steps=6))))
    assert not torch.equal(other.steps[0].eps, unedited.eps)


def test_a_stopped_run_can_be_finished(engine, toy, trace):
    stopped = traced(toy, trace.request, keep=2)
    view = fork.view(stopped, "en")
    assert (view["count"], view["last"], len(view["x0"])) == (6, 3, 2)
    assert torch.equal(going_on(engine, stopped, 3, "a dog", 3, 4).picture, trace.picture)
    with pytest.raises(ValueError, match="first new step is 4; it must be a whole number from 1 to 3"):
        fork.forked(stopped, 4, "a dog", 3, 4)


@pytest.mark.parametrize("change", [("a", 31, 4), ("a", 3, None), ("a" * 3000, 3, 4)])
def test_what_no_request_can_have_is_refused(trace, change):
    with pytest.raises(ValueError):
        fork.forked(trace, 2, *change)


@pytest.mark.parametrize("scheduler, exact", [("DDIM", "nothing but the latents"), ("LMS", "remembers former steps")])
def test_it_says_whether_going_on_is_exact(toy, engine, scheduler, exact):
    request = Request("a dog", seed=4, steps=5, guidance=2, scheduler=scheduler, model="toy")
    run = traced(toy, request)
    assert exact in fork.view(run, "en")["exact"]
    assert torch.equal(going_on(engine, run, 3, "a dog", 2, 4).picture, run.picture), "as it says"
    if exact.startswith("remembers"):
        job = engine.submit_work("toy", fork.going_on(*fork.forked(run, 3, "a dog", 2, 5)), "me", "fork")
        assert [s.state for s in engine.events(job)][-1] == "failed", "the seed must stay"


# --- what they share ---------------------------------------------------------------------------------------------------------------


def test_a_picture_of_ones_own_comes_before_the_runs(toy, trace):
    own = Image.new("RGB", (640, 480), "red")
    assert parts.picture_for(toy, own, trace).size == (72, 56), "a 64 x 64 model's pixels, in the picture's own shape"
    assert parts.picture_for(toy, None, trace).size == (64, 64)
    stopped = traced(toy, trace.request, keep=2)
    guess = core_latents.decode(toy, stopped.steps[-1].x0)
    shown = core_latents.pixels_of(parts.picture_for(toy, None, stopped))
    assert (shown - guess).abs().max() < 0.005, "a stopped run's last guess"


def test_a_waiting_work_says_its_place():
    assert "2" in parts.waiting(Snapshot("x", "queued", place=2), "en")
    assert parts.waiting(Snapshot("x", "running", i=1, count=5), "ja") == "計算中：1 / 5 完了。"
    assert parts.waiting(Snapshot("x", "done"), "en") == ""


def test_titles_cannot_smuggle_html_in():
    assert "<b>x" not in parts.figures([("data:,", "<b>x", "<i>")]).replace("<figcaption><b>", "")


def test_what_is_refused_here_is_said_in_japanese_too(toy, trace, trip):
    lms = traced(toy, Request("a", steps=3, scheduler="LMS"))

    def other_seed():
        request, at = fork.forked(lms, 2, "a", 7.5, 9)
        return list(denoise(toy, request, fork=at))

    for refused in (
        lambda: vae.mask_of("1", trip.z),
        lambda: core_latents.edited(trip.z, "twist", 1),
        lambda: core_latents.edited(trip.z, "zero", 0, channel=7),
        lambda: schedulers.moments(toy.scheduler_config, ("LMS", "DDIM"), 15, 3, 1000),
        lambda: schedulers.moments(toy.scheduler_config, ("LMS", "DDIM"), 15, 30, None),
        lambda: fork.forked(trace, 20, "a", 3, 4),
        other_seed,
    ):
        with pytest.raises(ValueError) as error:
            refused()
        japanese = texts.sentence("ja", error.value)
        assert re.search("[ぁ-ん]", japanese) and not re.search(r"\bThe\b|[{}]", japanese), error.value
