"""What does guidance do to a prediction?

At each step the UNet predicts the noise twice: without the prompt, and with it. Guidance starts at the first and goes w times the way to
the second, so that past w = 1 it goes beyond. Any w can be tried here on the predictions that a run has kept, without running the model.
"""

import base64
import html
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import gradio as gr
import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from core import images, latents, losses, sampling
from core.attention import Record
from core.engine import ENDED, LocalEngine, Part, Snapshot, Work
from core.models import StableDiffusion
from core.sampling import Loss, Request, Step, check_number, denoise
from core.schedulers import SCHEDULERS, x0_of
from core.trace import Trace, to_uint8
from ui import common, render, texts
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n
from ui.pictures import send_row

TITLE = "tab_guidance"

WHOLE = 4_000_000  # bytes of predictions that a page is given at once; of a larger run it asks for the steps that are looked at


# --- guidance taken apart: what the page's script is given ------------------------------------------------------------------------


def anatomy(trace: Trace, job: str, language: str) -> dict:
    """A run's predictions, whole, so that any w can be tried in the page."""
    h, w = trace.size
    whole = len(trace) * 3 * 4 * h * w * 4 <= WHOLE
    lengths = [d for s in trace if (d := difference(s)) is not None]  # (4, h, w) each
    high = [max((float(np.linalg.norm(d, axis=0).max()) for d in lengths), default=1.0)]
    high += [max((float(np.abs(d[c]).max()) for d in lengths), default=1.0) for c in range(4)]
    return {
        "kind": "run",
        "job": job,
        "count": trace.steps[0].count,
        "first": len(trace) // 4,  # the step that is shown first
        "guidance": trace.request.guidance,
        "h": h,
        "w": w,
        "preview": render.numbers(trace.preview).tolist(),
        "high": high,  # of |cond - uncond| over all steps: of all four channels, then of each
        "steps": [facts(s) | ({"data": predictions(s)} if whole else {}) for s in trace],
        "texts": texts.of(language, "guidance_"),
    }


def difference(s: Step) -> np.ndarray | None:
    """cond - uncond, (4, h, w); None in a step that made one prediction only."""
    if s.eps_uncond is None or s.eps_cond is None:
        return None
    return render.numbers(s.eps_cond)[0] - render.numbers(s.eps_uncond)[0]


def facts(s: Step) -> dict:
    apart = difference(s)
    return {
        "w": s.w,
        "alpha_bar": s.alpha_bar,
        "uncond": s.eps_uncond is not None,
        "cond": s.eps_cond is not None,
        "apart": None if apart is None else render.strength(apart),
    }


def predictions(s: Step) -> str:
    """The UNet's input and the predictions that were made, in this order, as base64 of float32."""
    there = [render.numbers(z)[0] for z in (s.x_in, s.eps_uncond, s.eps_cond) if z is not None]
    return base64.b64encode(np.ascontiguousarray(np.stack(there), np.float32).tobytes()).decode()


def clean(s: Step, w: float) -> Tensor | None:
    """x0 as this step's predictions make it under w, (1, 4, h, w); None where w needs one that was not made."""
    if (w != 1 and s.eps_uncond is None) or (w != 0 and s.eps_cond is None):
        return None
    eps = sampling.guide(None if w == 1 else s.eps_uncond, None if w == 0 else s.eps_cond, w)
    return x0_of(s.x_in, eps, s.alpha_bar)


def decoded(engine: LocalEngine, trace: Trace, i: int, w: float, owner: str) -> list[str | None]:
    """The pictures that step i points to under 0, 1 and w, decoded by the VAE, as `data:` addresses."""
    found = [clean(trace.steps[i], scale) for scale in (0, 1, w)]
    there = torch.cat([z for z in found if z is not None])

    def ask(sd: StableDiffusion) -> Tensor:
        return to_uint8(latents.decode(sd, there.to(sd.device))).cpu()

    pictures = iter(engine.ask(trace.request.model, ask, owner))
    return [None if z is None else render.uri(render.picture(next(pictures)).image) for z in found]


# --- guidance by a loss -----------------------------------------------------------------------------------------------------------

KINDS = ("blue", "colour", "brightness", "symmetry", "likeness")
NOTEBOOK = {"guidance": 8.0, "steps": 50, "seed": 32, "scheduler": "LMS"}  # of the Deep Dive, with a scale of 200 at 512 px
NOTEBOOK_SCALE, NOTEBOOK_SIDE = 200.0, 512
NEAR = 0.05  # a loss that leaves little to lower


def scale_for(height: int, width: int) -> float:
    """What the notebook's scale is worth at another size: a loss is a mean over all pixels, so in a small picture each weighs more."""
    return round(NOTEBOOK_SCALE * height * width / NOTEBOOK_SIDE**2, 2)


@dataclass(frozen=True)
class Aim:
    """What the page's controls say the picture should be."""

    kind: str  # one of KINDS
    level: float = 0.9  # of blue, or of brightness
    colour: str = "#1f4fd1"
    picture: str | None = None  # a file

    def measure(self, height: int, width: int) -> losses.Measure:
        """Raises ValueError with one sentence if it cannot be measured."""
        if self.kind == "blue":
            check_number("level of blue", self.level, 0, 1)
            return losses.blue(self.level)
        if self.kind == "colour":
            return losses.colour(colour_of(self.colour))
        if self.kind == "brightness":
            check_number("brightness", self.level, 0, 1)
            return losses.brightness(self.level)
        if self.kind == "symmetry":
            return losses.symmetry()
        if self.kind != "likeness":
            raise ValueError("This loss is not in the menu; choose one of those in it.")
        if not self.picture:
            raise ValueError("There is no picture to be like yet; choose one.")
        fitted = ImageOps.fit(images.open_picture(self.picture), (width, height))
        return losses.likeness(torch.from_numpy(np.array(fitted)).movedim(-1, 0)[None] / 255)

    def __str__(self) -> str:
        return {"blue": f"blue {self.level:g}", "colour": self.colour, "brightness": f"brightness {self.level:g}"}.get(
            self.kind, self.kind
        )


def colour_of(text: object) -> tuple[float, ...]:
    """ "#1f4fd1" or "rgba(31, 79, 209, 1)", as a browser says it -> (red, green, blue), 0 .. 1."""
    said = str(text).strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", said):
        parts = [int(said[k : k + 2], 16) for k in (1, 3, 5)]
    else:
        parts = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", said)[:3]] if re.match(r"rgba?\(", said) else []
    if len(parts) != 3 or max(parts) > 255:
        raise ValueError("This is no colour; choose one again.")
    return tuple(part / 255 for part in parts)


@dataclass(frozen=True)
class Frame:
    """One step of the run with the loss, or of the same run without it."""

    guided: bool
    i: int
    loss: float  # of the picture that this step points to
    sigma: float
    push: float  # scale * sigma^2 where the loss acted, else 0
    picture: Tensor  # (3, h, w) uint8, x0's preview

    @property
    def nbytes(self) -> int:
        return self.picture.nbytes


@dataclass(frozen=True)
class Outcome:
    """Both runs, finished, and what the loss says of their pictures."""

    plain: Trace
    guided: Trace
    losses: tuple[float, float]

    @property
    def nbytes(self) -> int:
        return self.plain.nbytes + self.guided.nbytes


def pair(request: Request, loss: Loss, about: str, plain: Trace | None = None) -> Work:
    """The work of drawing a picture without a loss and with it. plain: the run without it, if there is one already.

    Its parts are Frames, a step each, and at the end an Outcome. `about` says in the guided run's settings what guided it.
    """

    def work(sd: StableDiffusion) -> Iterator[Part]:
        without, with_loss = plain or Trace.start(sd, request), Trace.start(sd, request)
        with_loss.made_by["loss"] = about
        n = 0
        runs = (
            (without, without if plain else without.follow(denoise(sd, request, Record()))),
            (with_loss, with_loss.follow(denoise(sd, request, Record(), loss=loss))),
        )
        for trace, steps in runs:
            began = time.perf_counter()
            for step in steps:
                value = losses.value(sd, loss.measure, step.x0) if step.loss is None else step.loss
                push = loss.scale * step.sigma**2 if trace is with_loss and step.i % loss.every == 0 else 0.0
                preview = to_uint8(latents.preview(sd, step.x0.to(sd.device)))[0].cpu()
                yield Part(n, 2 * step.count + 1, Frame(trace is with_loss, step.i, value, step.sigma, push, preview))
                n += 1
            if trace is not plain:
                trace.finish(sd, trace.steps[-1].x_next.to(sd.device))
                trace.seconds = time.perf_counter() - began
        ends = [losses.value(sd, loss.measure, t.steps[-1].x_next) for t in (without, with_loss)]
        yield Part(n, n + 1, Outcome(without, with_loss, (ends[0], ends[1])))

    return work


def plain_of(kept: Sequence[tuple[str, Trace]], request: Request) -> Trace | None:
    """The finished run of this very request, if one is still kept: not one that something else guided or changed."""
    runs = (t for _, t in kept if t.request == request and t.picture is not None and common.same_from_request(t))
    return next(runs, None)


# --- the same, as the page shows it -----------------------------------------------------------------------------------------------


def name_of(guided: bool, language: str) -> str:
    return texts.say(language, "loss_with" if guided else "loss_without")


def curve(values: Sequence[Frame | Outcome], language: str) -> str:
    """The loss of the picture that each step points to, without the loss and with it, marked where it pushed."""
    lines = []
    for guided, colour in ((False, "var(--x-t)"), (True, "var(--guided)")):
        frames = [f for f in values if isinstance(f, Frame) and f.guided is guided]
        if frames:
            shown = {"values": [round(f.loss, 5) for f in frames], "marks": [f.i for f in frames if f.push]}
            lines.append({"name": name_of(guided, language), "colour": colour, **shown})
    keys = {"title": "loss_curve", "said": "loss_curve_said", "across": "loss_axis_step"}
    return common.curves(lines, **{word: texts.say(language, key) for word, key in keys.items()}) if lines else common.NO_CURVES


def apart(plain: Trace, guided: Trace, language: str) -> str:
    """Where the two finished pictures differ, mean over red, green and blue, white where most, as HTML."""
    assert plain.picture is not None and guided.picture is not None
    gap = (guided.picture.float() - plain.picture.float()).abs().mean(0)  # (H, W), levels of 255
    most = float(gap.max())
    grey = (gap / max(most, 1) * 255).round().to(torch.uint8)[None].repeat(3, 1, 1)
    name = html.escape(texts.say(language, "loss_apart"))
    line = texts.say(language, "loss_apart_line", mean=f"{float(gap.mean()):.1f}", most=f"{most:.0f}")
    return (
        f'<figure class="apart"><figcaption>{name}</figcaption><div class="frame">'
        f'<img src="{render.uri(render.picture(grey).image)}" alt="{name}"></div><p class="strength">{line}</p></figure>'
    )


def board(snapshot: Snapshot | None, values: Sequence[Frame | Outcome], plain: Trace | None, language: str) -> str:
    """Both pictures side by side, what the loss says of them, and its equation with the numbers of the last push, as HTML."""
    outcome = next((v for v in values if isinstance(v, Outcome)), None)
    frames = [v for v in values if isinstance(v, Frame)]
    last = {guided: next((f for f in reversed(frames) if f.guided is guided), None) for guided in (False, True)}
    figures = []
    for guided in (False, True):
        name = name_of(guided, language)
        image, number = "", ""
        if outcome:
            trace = outcome.guided if guided else outcome.plain
            image = f'<img src="{render.png_uri(trace)}" alt="{html.escape(name, quote=True)}">'
            number = texts.say(language, "loss_of_picture", loss=f"{outcome.losses[guided]:.3f}")
        elif frame := last[guided]:
            source = render.uri(render.picture(frame.picture).image)
            image = f'<img class="pixels" src="{source}" alt="{html.escape(name, quote=True)}">'
            number = texts.say(language, "loss_of_step", i=frame.i + 1, loss=f"{frame.loss:.3f}")
        elif plain is not None and plain.picture is not None and not guided:
            image = f'<img src="{render.png_uri(plain)}" alt="{html.escape(name, quote=True)}">'
        blank = "" if image else f"<p>{texts.say(language, 'loss_blank' if guided else 'loss_blank_plain')}</p>"
        figures.append(
            f'<figure class="{"with" if guided else "without"}"><figcaption>{name}</figcaption>'
            f'<div class="frame">{image}{blank}</div><p class="strength">{number}</p></figure>'
        )
    if outcome:
        figures.append(apart(outcome.plain, outcome.guided, language))
    said = status(snapshot, outcome, frames, language)
    pushes = [f for f in frames if f.push]
    ended = snapshot is not None and snapshot.state in ENDED
    share = snapshot.i / snapshot.count if snapshot and snapshot.count and not ended else 0
    return (
        f'<div class="board"><p class="said" role="status">{said}</p><div class="meter"><i style="width:{100 * share:.0f}%"></i></div>'
        f'<div class="both">{"".join(figures)}</div>{forming(frames, language) if ended else ""}{equation(pushes, language)}</div>'
    )


def forming(frames: Sequence[Frame], language: str) -> str:
    """Both pictures at every step, one row each; where the loss pushed, the picture is framed."""
    rows = []
    for guided, kind in ((False, "without"), (True, "with")):
        cells = [
            f'<li{" class=pushed" if f.push else ""} title="{texts.say(language, "loss_of_step", i=f.i + 1, loss=f"{f.loss:.3f}")}">'
            f'<img class="pixels" src="{render.uri(render.picture(f.picture).image)}" alt=""></li>'
            for f in frames
            if f.guided is guided
        ]
        rows.append(f'<ol class="{kind}">{"".join(cells)}</ol>')
    most = max((f.i + 1 for f in frames), default=1)
    return f'<div class="forming" style="--cells:{most}">{"".join(rows)}</div>'


def status(snapshot: Snapshot | None, outcome: Outcome | None, frames: Sequence[Frame], language: str) -> str:
    if snapshot is None:
        return texts.say(language, "loss_ready")
    if outcome:
        before, after = outcome.losses
        said = texts.say(language, "loss_higher" if after > before else "loss_done", before=f"{before:.3f}", after=f"{after:.3f}")
        return f"{said} {texts.say(language, 'loss_near')}" if before < min(NEAR, after) else said
    if snapshot.state in ENDED:
        return texts.say(language, "loss_stopped", i=snapshot.i)
    if snapshot.state == "queued":
        return texts.say(language, "status_queued", place=snapshot.place)
    if snapshot.state == "loading":
        return texts.say(language, "status_loading")
    left = f"{snapshot.seconds_left or 0:.0f}"
    which = name_of(bool(frames) and frames[-1].guided, language)
    return texts.say(language, "loss_running", which=which, i=frames[-1].i + 1 if frames else 0, seconds=left)


def equation(pushes: Sequence[Frame], language: str) -> str:
    """x0 moves down the slope, with the numbers of the last push, and where the loss acted."""
    signs = (
        '<var class="x0">x̂<sub>0</sub></var> ← <var class="x0">x̂<sub>0</sub></var> − {scale} · {sigma} · '
        '<var>∇</var><var class="mask">L</var>(<var>D</var>(<var class="x0">x̂<sub>0</sub></var>))'
    )
    if not pushes:
        line = signs.format(scale="<var>s</var>", sigma="<var>σ</var>²")
        note = texts.say(language, "loss_equation")
    else:
        last = pushes[-1]
        line = signs.format(scale=f"<b>{last.push / last.sigma**2:g}</b>", sigma=f"<b>{last.sigma:.2f}</b>²")
        note = texts.say(
            language,
            "loss_pushed",
            steps=", ".join(str(f.i + 1) for f in pushes),
            i=last.i + 1,
            push=f"{last.push:,.0f}" if last.push >= 100 else f"{last.push:.3g}",
            loss=f"{last.loss:.3f}",
        )
    return f'<p class="formula">{line}</p><p class="note">{note}</p>'


# --- the page ---------------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine = shared.engine
    common.heading("guidance")
    menu = common.run_menu(shared, tab, "guidance")
    view = gr.HTML(
        common.packed({"kind": "none"}),
        html_template=common.script("guidance.html"),
        js_on_load=common.script("guidance.js"),
        apply_default_css=False,
        elem_id="anatomy",
        answer="",
    )
    send_row(shared, "guidance", shared.shown)
    seen = gr.State("")  # the run in the view

    def look(stored: str | None, shown: str, now: str, request: gr.Request) -> dict:
        """The tab is opened, or another run chosen in its menu. What is there already is not sent again."""
        language, owner = common.language(request), common.owner_of(stored)
        if shown and shown == now:
            return {view: gr.skip()}
        try:
            trace = shared.trace_of(shown, owner)
        except ValueError:  # no run yet, or one that is no longer kept
            return {view: common.packed({"kind": "empty", "texts": texts.of(language, "guidance_")}), seen: shown}
        return {view: common.packed(anatomy(trace, shown, language)), seen: shown} | settle(trace, language)

    def pick(stored: str | None, event: gr.EventData, request: gr.Request) -> dict:
        """What the view's script asks for: a step of a large run, or the three x0 decoded."""
        owner = common.owner_of(stored)
        act, one, i, w = (common.event_value(event, name) for name in ("act", "job", "i", "w"))
        try:
            trace = shared.trace_of(one, owner)
            k = int(i) if i.isdecimal() and int(i) < len(trace) else 0
            if act == "step":
                answer = {"kind": "step", "data": predictions(trace.steps[k])}
            else:
                scale = common.number_of(w)
                check_number("guidance", scale, 0, 30)
                answer = {"kind": "pictures", "w": scale, "pictures": decoded(engine, trace, k, scale, owner)}
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        return {view: gr.update(answer=common.packed({**answer, "job": one, "i": k}))}

    # --- guidance by a loss ---

    common.heading("loss")
    with gr.Row(elem_classes="tab-body", elem_id="loss"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            kind = gr.Radio(list(KINDS), value="brightness", label=i18n("loss_kind"), elem_id="loss-kind")
            with gr.Column(min_width=0) as level_in:
                level = common.number(0.1, 0, 1, 0.05, "loss_level", "loss-level")
            colour = gr.ColorPicker(Aim.colour, label=i18n("loss_colour"), visible="hidden", elem_id="loss-colour")
            picture = gr.Image(
                label=i18n("loss_picture"),
                type="filepath",
                sources=["upload"],
                height=160,
                buttons=[],
                visible="hidden",
                elem_id="loss-picture",
            )
            scale = common.number(150, 0, 600, 0.5, "loss_scale", "loss-scale")
            every = common.number(2, 1, 20, 1, "loss_every", "loss-every")
            draw_it = gr.Button(i18n("loss_draw"), variant="primary", elem_id="loss-draw", elem_classes="run")
            stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id="loss-stop")
            notebook = gr.Button(i18n("loss_notebook"), elem_id="loss-notebook")
            hint("loss_notebook_info")
            with gr.Accordion(i18n("loss_under"), open=False, elem_id="loss-under"):
                prompt = gr.Textbox(label=i18n("prompt"), lines=2, max_lines=6, elem_id="loss-prompt")
                guidance = gr.Number(7.5, label=i18n("guidance"), step=0.1, elem_id="loss-guidance")
                steps = gr.Number(20, label=i18n("steps"), elem_id="loss-steps")
                seed = gr.Number(0, label=i18n("seed"), elem_id="loss-seed")
                scheduler = gr.Dropdown(
                    list(SCHEDULERS), value="DDIM", label=i18n("scheduler"), filterable=False, elem_id="loss-scheduler"
                )
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            pictures = gr.HTML(elem_id="loss-board", apply_default_css=False)
            plot = common.curve("loss-curve")
            keep = gr.Button(i18n("loss_keep"), visible=False, elem_id="loss-keep", size="md")
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("loss_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("loss_try_button"), elem_id="loss-try", scale=0, min_width=96)

    job = gr.State("")  # the work that Stop stops
    under = [prompt, guidance, steps, seed, scheduler]
    aims = [kind, level, colour, picture, scale, every]
    busy = {draw_it: gr.update(visible=False), stop: gr.update(visible=True), keep: gr.update(visible=False)}
    idle = {draw_it: gr.update(visible=True), stop: gr.update(visible=False)}

    def settle(trace: Trace, language: str) -> dict:
        """The run that is looked at lends its settings, and its picture as the one without a loss."""
        r = trace.request
        page = dict(zip(under, [r.prompt, r.guidance, r.steps, r.seed, r.scheduler], strict=True))
        nothing = {plot: common.NO_CURVES, keep: gr.update(visible=False)}
        return page | nothing | {pictures: board(None, [], trace, language)}

    def draw(request: gr.Request, stored: str | None, shown: str, *values) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(stored)
        (kind, level, colour, picture, scale, every), settings = values[: len(aims)], values[len(aims) :]
        try:
            base = shared.trace_of(shown, owner)
            names = ("prompt", "guidance", "steps", "seed", "scheduler")
            wanted = common.reworded(base.request, **dict(zip(names, settings, strict=True)))
            aim = Aim(kind, common.number_of(level), colour, picture)
            loss = Loss(aim.measure(*sides(base)), common.number_of(scale), common.number_of(every))
            about = f"{aim}, scale {loss.scale:g}, every {loss.every} steps"
            plain = plain_of(shared.kept(owner), wanted)
            one = engine.submit_work(wanted.model, pair(wanted, loss, about, plain), owner, "loss")
        except ValueError as error:
            raise common.refusal(language, error) from None
        common.warn_of_edits(base.request, wanted, language)
        yield {shared.owner: owner}
        yield from watch(one, language)

    def watch(one: str, language: str) -> Iterator[dict]:
        yield busy | {job: one}
        values: list = []
        try:
            for snapshot in engine.events(one, rate=4):
                values = engine.values(one)
                yield {pictures: board(snapshot, values, None, language), plot: curve(values, language)}
        except ValueError as error:
            yield idle
            raise common.refusal(language, error) from None
        yield idle | {keep: gr.update(visible=bool(values) and isinstance(values[-1], Outcome))}

    def resume(stored: str | None, one: str, request: gr.Request) -> Iterator[dict]:
        """A page that was loaded again finds the work that still goes on."""
        going = [k for k in engine.mine(common.owner_of(stored), "loss") if (s := engine.snapshot(k)) and s.state not in ENDED]
        if going and not one:
            yield from watch(going[-1], common.language(request))
        else:
            yield {job: one}

    def halt(one: str) -> None:
        with suppress(ValueError):  # none yet, or one that is long over
            engine.cancel(one)

    def look_into(stored: str | None, one: str, request: gr.Request) -> dict:
        """Makes the guided run the one that all tabs look at."""
        language, owner = common.language(request), common.owner_of(stored)
        try:
            if one not in engine.mine(owner, "loss"):
                raise ValueError("This run is no longer kept; make it again from its settings.")
            outcome = engine.values(one)[-1]
        except ValueError as error:
            raise common.refusal(language, error) from None
        new = engine.keep(outcome.guided, owner)
        page = {shared.shown: new, seen: new, view: common.packed(anatomy(outcome.guided, new, language))}
        return page | {keep: gr.update(visible=False)}

    def choose(kind: str) -> dict:
        return {
            level_in: gr.update(visible=shows(kind in ("blue", "brightness"))),
            colour: gr.update(visible=shows(kind == "colour")),
            picture: gr.update(visible=shows(kind == "likeness")),
        }

    def names(request: gr.Request) -> dict:
        """The losses' names, in the visitor's language."""
        said = ("loss_blue", "loss_one_colour", "loss_brightness", "loss_symmetry", "loss_likeness")
        return gr.update(choices=[(texts.say(common.language(request), key), k) for k, key in zip(KINDS, said, strict=True)])

    def of_notebook(stored: str | None, shown: str, request: gr.Request) -> dict:
        try:
            size = sides(shared.trace_of(shown, common.owner_of(stored)))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        n = NOTEBOOK
        page = {guidance: n["guidance"], steps: n["steps"], seed: n["seed"], scheduler: n["scheduler"]}
        return page | {kind: "blue", level: "0.9", every: "5", scale: f"{scale_for(*size):g}"} | choose("blue")

    def overdo(typed: str) -> str:
        now = common.number_of(typed)
        return f"{min(4 * now, 10_000):g}" if isinstance(now, int | float) and math.isfinite(now) else typed

    filled = [view, seen, *under, pictures, plot, keep]
    opened = tab.select(look, [shared.owner, shared.shown, seen], filled, **LOOK)
    tab.select(names, None, kind, **QUICK)
    menu.input(look, [shared.owner, menu, seen], filled, **LOOK)
    view.pick(pick, shared.owner, view, **LOOK)
    watched = [pictures, plot, draw_it, stop, keep, job, shared.owner]
    inputs = [shared.owner, shared.shown, *aims, *under]
    opened.success(resume, [shared.owner, job], watched, **WATCH)
    draw_it.click(draw, inputs, watched, **WATCH)
    stop.click(halt, job, None, **QUICK)
    keep.click(look_into, [shared.owner, job], [shared.shown, seen, view, keep], **LOOK)
    kind.change(choose, kind, [level_in, colour, picture], **QUICK)
    preset = [guidance, steps, seed, scheduler, kind, level, every, scale, level_in, colour, picture]
    notebook.click(of_notebook, [shared.owner, shared.shown], preset, **LOOK)
    attempt.click(overdo, scale, scale, **QUICK).success(draw, inputs, watched, **WATCH)


def shows(wanted: bool) -> bool | str:
    """Out of sight, but still in the page: what is taken out and put back has forgotten its value."""
    return True if wanted else "hidden"


def sides(trace: Trace) -> tuple[int, int]:
    """Height and width of a run's picture in pixels."""
    h, w = trace.size
    return 8 * h, 8 * w
