"""The section Schedulers: how fast each of them takes the noise away, and what the UNet makes of any amount of it."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
from PIL import Image
from torch import Tensor

from core import forward, latents, schedulers
from core.engine import Part
from core.forward import Guess
from core.models import StableDiffusion
from core.sampling import Request, check_whole
from core.schedulers import SCHEDULERS, Level
from core.trace import Trace
from ui import common, parts, render, texts
from ui.common import LOOK, WATCH, Shared, i18n

COLOURS = ("#1b8a9c", "#c2571a")  # of the two schedulers, as in assets/style.css; the palette's own colours mean other things
PLOTS = {"alpha_bar": "schedulers_bars", "sigma": "schedulers_sigmas", "t": "schedulers_times"}  # of a Level, each with its title
PLACES = {"alpha_bar": 3, "sigma": 4, "t": 0}  # decimals
PRESET = ("LMS", "DDIM", 15)  # the Deep Dive's scheduler and steps, beside the one that most papers use


# --- two schedulers over their steps ----------------------------------------------------------------------------------------------


def levels_of(config: dict, name: str, steps: int) -> list[Level]:
    """Raises ValueError for a scheduler that is not in the menu, or a number of steps that it cannot make."""
    check_whole("number of steps", steps, 1, 100)
    return schedulers.levels(schedulers.make(name, config, steps))


def left_out(trace: Trace, levels: list[Level]) -> int:
    """How many steps of its schedule a run did not make, because it began from a picture."""
    return len(levels) - 1 - trace.steps[0].count


def curves(both: dict[str, list[Level]], language: str, begins: dict[str, int] | None = None) -> dict[str, str]:
    """alpha_bar, sigma and t at each step, counted from 1; the end comes one after the last, and is told to no UNet. begins: of a
    scheduler, the step (from 0) at which the run began that did not begin at the first; it gets a ring."""
    drawn = {}
    for what, title in PLOTS.items():
        lines = []
        for (name, levels), colour in zip(both.items(), COLOURS, strict=False):
            values = [round(v, 5) for level in levels if (v := getattr(level, what)) is not None]
            lines.append(
                {"name": name, "colour": colour, "values": values, "marks": [k] if (k := (begins or {}).get(name)) else []}
            )
        words = {"title": texts.say(language, title), "said": "", "across": texts.say(language, "schedulers_step")}
        drawn[what] = common.curves(lines, of="schedulers", places=PLACES[what], **words)
    return drawn


def table(both: dict[str, list[Level]], language: str) -> str:
    """The same as numbers, as HTML."""
    heads = "".join(f'<th colspan="3" scope="colgroup" style="--tone:{c}">{n}</th>' for n, c in zip(both, COLOURS, strict=False))
    names = "<th>t</th><th>σ</th><th>ᾱ</th>" * len(both)
    lines = []
    for k in range(max(map(len, both.values()))):
        cells = ""
        for levels in both.values():
            if k < len(levels):
                end = levels[k].t is None
                t = texts.say(language, "schedulers_end") if end else f"{levels[k].t:.2f}".rstrip("0").rstrip(".")
                cells += f"<td>{t}</td><td>{levels[k].sigma:.4f}</td><td>{levels[k].alpha_bar:.4f}</td>"
            else:
                cells += "<td></td><td></td><td></td>"
        lines.append(f'<tr><th scope="row">{k + 1}</th>{cells}</tr>')
    corner = texts.say(language, "schedulers_step")
    return (
        f"<table><thead><tr><td></td>{heads}</tr><tr><th>{corner}</th>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


# --- one prediction -----------------------------------------------------------------------------------------------------------------


def moments(config: dict, names: tuple[str, str], steps: int, step: int, t: int | None) -> list[tuple[str, float, float]]:
    """Where to look: (name, t, alpha_bar) at one step of each scheduler, or at one time of the training schedule.

    Raises ValueError for a step that a scheduler does not have or a t outside 0 .. 999.
    """
    if t is not None:
        check_whole("time t", t, 0, 999)
        return [("", float(t), float(schedulers.training_bars(config)[t]))]
    found = []
    for name in dict.fromkeys(names):
        levels = levels_of(config, name, steps)
        check_whole("step", step, 1, len(levels) - 1)
        level = levels[step - 1]
        assert level.t is not None
        found.append((name, level.t, level.alpha_bar))
    return found


@dataclass(frozen=True)
class Moment:
    """One prediction, and what it looks like: pictures (1, 3, H, W) in [-1, 1] on the CPU."""

    name: str  # of the scheduler; "" for a time that was typed
    guess: Guess
    picture: Tensor
    noisy: Tensor  # the noisy latents, decoded
    clean: Tensor  # the guessed clean latents, decoded


def look_once(sd: StableDiffusion, request: Request, picture: Image.Image, name: str, t: float, alpha_bar: float) -> Moment:
    """The picture's latents noised, and the UNet asked once."""
    pixels = latents.pixels_of(picture)
    found = forward.guess(sd, request, latents.encode(sd, pixels), t, alpha_bar)
    return Moment(name, found, pixels, latents.decode(sd, found.x).cpu(), latents.decode(sd, found.x0).cpu())


def moment_html(seen: Moment, trace: Trace, language: str) -> str:
    """One moment as a row of pictures, the noise among them in the colours of the trace's preview."""
    g = seen.guess

    def noise(z: Tensor) -> str:
        return render.uri(render.latent(trace, z, difference=True).image)

    def strong(z: Tensor) -> str:
        return texts.say(language, "guidance_strength", strength=f"{render.strength(z):.2f}")

    signal, share = g.alpha_bar**0.5, (1 - g.alpha_bar) ** 0.5
    quality = latents.psnr(seen.picture, seen.clean)
    row = parts.figures(
        [
            (parts.picture_uri(seen.picture), texts.say(language, "schedulers_picture"), "z"),
            (parts.picture_uri(seen.noisy), texts.say(language, "schedulers_x"), f"{signal:.3f} z + {share:.3f} ε"),
            (noise(g.true), texts.say(language, "schedulers_true"), strong(g.true)),
            (noise(g.eps), texts.say(language, "schedulers_eps"), strong(g.eps)),
            (noise(g.eps - g.true), texts.say(language, "schedulers_miss"), strong(g.eps - g.true)),
            (parts.picture_uri(seen.clean), texts.say(language, "schedulers_x0"), f"PSNR {quality:.1f} dB"),
        ]
    )
    sigma = schedulers.sigma_of(g.alpha_bar)
    facts = f"t = {g.t:.1f}, σ = {sigma:.3f}, ᾱ = {g.alpha_bar:.3f}"
    title = f"{html.escape(seen.name)} · {facts}" if seen.name else facts
    return f'<section class="moment"><h4>{title}</h4><div class="figures">{row}</div></section>'


def build(shared: Shared, own: gr.State) -> None:
    """own: a picture of the visitor's own. The curves need the model's config alone, one prediction the model itself."""
    request = shared.example.request if shared.example else Request("", seed=1)
    parts.heading("schedulers")
    with gr.Row(elem_classes="section-controls"):
        menu = {"choices": list(SCHEDULERS), "filterable": False, "min_width": 160}
        first = gr.Dropdown(**menu, value=request.scheduler, label=i18n("schedulers_first"), elem_id="schedulers-first")
        second = gr.Dropdown(**menu, value="DPM++ 2M Karras", label=i18n("schedulers_second"), elem_id="schedulers-second")
        steps = common.number(request.steps, 1, 100, 1, "steps", "schedulers-steps")
    with gr.Row(elem_classes="try"):
        gr.HTML(i18n("schedulers_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
        preset = gr.Button(i18n("schedulers_try_button"), elem_id="schedulers-try", scale=0, min_width=96)
    opened = parts.live("schedulers")
    with gr.Row(elem_classes="plots"):
        plots = {what: common.curve(title) for what, title in PLOTS.items()}
    with gr.Accordion(i18n("schedulers_numbers"), open=False):
        numbers = gr.HTML(apply_default_css=False, elem_id="schedulers-numbers")
    gr.HTML(i18n("schedulers_once"), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="section-question")
    gr.HTML(i18n("schedulers_once_says"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")
    with gr.Row(elem_classes="section-controls"):
        step = gr.Number(request.steps // 2, label=i18n("schedulers_at"), elem_id="schedulers-at", min_width=120)
        time = gr.Textbox(  # gr.Number makes 0 of nothing
            "", label=i18n("schedulers_t"), placeholder=i18n("schedulers_t_empty"), elem_id="schedulers-time", min_width=120
        )
        words = gr.Textbox(request.prompt, label=i18n("prompt"), elem_id="schedulers-prompt", min_width=240, scale=2)
        w = common.number(1, 0, 30, 0.1, "guidance", "schedulers-guidance")
    with gr.Row(elem_classes="section-controls"):
        predict = gr.Button(i18n("schedulers_predict"), variant="primary", elem_id="schedulers-predict", min_width=160)
        chosen = parts.upload(own, "schedulers")
    status = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="schedulers-status")
    result = gr.HTML(
        "", html_template="<div>${value}</div>", js_on_load=None, apply_default_css=False, elem_id="schedulers-result"
    )

    def settings(trace: Trace, owner: str, language: str) -> dict:
        """The section is opened: with the run's own scheduler, steps and words."""
        r, said = trace.request, ""
        out = begin(trace).get(r.scheduler, 0)
        middle = out + trace.steps[0].count // 2 if out else r.steps // 2
        if out:
            said = texts.say(language, "schedulers_left_out", first=out + 1, count=trace.steps[0].count, out=out)
        fields = {first: r.scheduler, steps: f"{r.steps}", step: max(middle, 1), time: "", words: r.prompt}
        return {opened: parts.said(said), result: "", status: ""} | fields

    def begin(trace: Trace) -> dict[str, int]:
        """Where in its schedule a run from a picture began."""
        r = trace.request
        out = left_out(trace, levels_of(shared.engine.model(r.model).scheduler_config, r.scheduler, r.steps)) if r.source else 0
        return {r.scheduler: out} if out else {}

    def draw(owner: str | None, shown: str, one: str, other: str, count: str, request: gr.Request) -> dict:
        language = common.language(request)
        try:
            trace = shared.trace_of(shown, owner) if shown else None
            model = trace.request.model if trace else shared.default
            config = shared.engine.model(model).scheduler_config
            both = {name: levels_of(config, name, common.number_of(count)) for name in dict.fromkeys((one, other))}
            begins = begin(trace) if trace and common.number_of(count) == trace.request.steps else {}
        except ValueError as error:
            raise common.refusal(language, error) from None
        return {plots[what]: drawn for what, drawn in curves(both, language, begins).items()} | {numbers: table(both, language)}

    def once(owner: str | None, shown: str, request: gr.Request, *values) -> Iterator[dict]:
        one, other, count, at, t, text, scale, mine = values
        language, owner = common.language(request), common.owner_of(owner)
        try:
            trace = shared.trace_of(shown, owner)
            asked = Request(text, seed=trace.request.seed, guidance=common.number_of(scale), model=trace.request.model)
            config = shared.engine.model(asked.model).scheduler_config
            places = moments(config, (one, other), common.number_of(count), at, common.number_of(t) if t.strip() else None)

            def work(sd: StableDiffusion) -> Iterator[Part]:
                picture = parts.picture_for(sd, mine, trace)
                for k, (name, at_time, bar) in enumerate(places):
                    yield Part(k, len(places), look_once(sd, asked, picture, name, at_time, bar))

            for _, snapshot, made in parts.works(shared, asked.model, work, owner, "predict"):
                rows = "".join(moment_html(seen, trace, language) for seen in made)
                yield {status: parts.waiting(snapshot, language), result: rows}
        except ValueError as error:
            yield {status: ""}
            raise common.refusal(language, error) from None

    def once_quick(owner: str | None, shown: str, request: gr.Request, *values) -> Iterator[dict]:
        """The section is never empty, unless filling it takes a large model."""
        if parts.quick(shared, owner, shown):
            yield from once(owner, shown, request, *values)

    choice = [first, second, steps]
    drawn = [*plots.values(), numbers]
    asked_once = [shared.owner, shared.shown, *choice, step, time, words, w, own]
    known = parts.on_demand(shared, opened, "schedulers", settings, [first, steps, step, time, words, result, status])
    known.success(draw, [shared.owner, shared.shown, *choice], drawn, **LOOK)
    gr.on([c.change for c in choice], draw, [shared.owner, shared.shown, *choice], drawn, trigger_mode="always_last", **LOOK)
    preset.click(lambda: (PRESET[0], PRESET[1], str(PRESET[2])), None, choice, **common.QUICK)
    predict.click(once, asked_once, [status, result], **WATCH)
    known.success(once_quick, asked_once, [status, result], **WATCH)
    for change in chosen:
        change.success(once, asked_once, [status, result], **WATCH)
