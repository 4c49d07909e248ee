"""How much of a picture comes through the noise?

Image to image starts not from noise alone but from the latents of your picture, with noise on them. Strength says how much noise, and
with it how many of the steps are left to run: the more noise, the less of the picture is left for the words to work around.
"""

import html
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import gradio as gr
from gradio.components.api_component import Api
from PIL import Image
from torch import Tensor

from core import conditioning, latents, schedulers
from core.attention import Record
from core.conditioning import Pixels, Source
from core.engine import LocalEngine, Part, Work
from core.models import StableDiffusion
from core.sampling import Request, check_whole, denoise
from core.schedulers import Level
from core.trace import Trace, to_uint8
from ui import common, parts, pictures, render, texts, viewing
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n

TITLE = "tab_img2img"  # a key of ui/texts.py
FIRST = Request("a tiger on a green background", seed=1, steps=20, guidance=5)
STRENGTH = 0.5
ROW = "0, 0.2, 0.4, 0.6, 0.8, 1"
MOST = 6  # strengths in a row; of a person's runs eight are kept


# --- what a strength means --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run of some strength will do."""

    steps: int  # of the schedule
    start: int  # start_step: so many of them are skipped
    turns: int  # calls of the UNet's loop that run; a second-order scheduler makes two a step
    of: int  # turns of the whole schedule
    level: Level  # the noise that the first of them meets


def plan(config: dict, scheduler: str, steps: int, strength: float) -> Plan:
    """config: the model's scheduler's. Raises ValueError if no step would run."""
    made = schedulers.make(scheduler, config, steps)
    first = conditioning.first_turn(made, steps, strength)
    of = len(made.timesteps)
    return Plan(steps, conditioning.skipped(steps, strength), of - first, of, schedulers.levels(made)[first])


def steps_of(steps: object, strength: float, exactly: bool) -> int:
    """The steps to ask for. Raises ValueError for what is no number of steps, or cannot be had at this strength."""
    check_whole("number of steps", steps, 1, 100)
    assert isinstance(steps, int)
    return conditioning.steps_for(steps, strength) if exactly else steps


def request_of(picture: Image.Image, strength: object, exactly: bool, model: str, *settings) -> Request:
    """The controls' values as a request. settings: as pictures.request_of's, from the prompt on."""
    source = Source(Pixels.of(picture), common.number_of(strength))  # pyright: ignore[reportArgumentType]
    words, (steps, *others) = settings[:3], settings[3:]
    return pictures.request_of(source, model, *words, steps_of(common.number_of(steps), source.strength, exactly), *others)


def is_zero(strength: object) -> bool:
    """Strength 0 runs no step, so it is no run: the picture goes through the VAE and back."""
    number = common.number_of(strength)
    return isinstance(number, int | float) and number == 0


def there_and_back(sd: StableDiffusion, picture: Image.Image, seed: int) -> tuple[Image.Image, float]:
    """The picture encoded and decoded again, with the same draw from the posterior as a run would begin with; and the PSNR of that."""
    pixels = Pixels.of(picture).tensor()
    back = latents.decode(sd, latents.encode(sd, pixels, latents.generator(seed))).cpu()
    return render.picture(to_uint8(back)[0]).image, latents.psnr(pixels, back)


# --- the card ---------------------------------------------------------------------------------------------------------------------


def begin(sd: StableDiffusion, picture: Image.Image, seed: int) -> tuple[Tensor, Tensor]:
    """What every strength mixes: the picture's latents and the noise, (1, 4, h, w) each, drawn as a run of this seed draws them."""
    random = latents.generator(seed)
    z = latents.encode(sd, Pixels.of(picture).tensor(), random)
    return z.cpu(), latents.noise(sd, picture.height, picture.width, random).cpu()


def card(config: dict, scheduler: str, steps: int, exactly: int | None, mixed: dict, seeded: bool, language: str) -> dict:
    """All that ui/img2img.js needs to follow the strength by itself. exactly: as many steps are to run; mixed: see `mixture`."""
    made = schedulers.make(scheduler, config, steps)
    levels = [[level.t, level.sigma, level.alpha_bar] for level in schedulers.levels(made)[:-1]]
    return mixed | {
        "kind": "card",
        "steps": steps,
        "exactly": exactly,
        "order": made.order,
        "levels": levels,
        "scheduler": scheduler,
        "seeded": seeded,
        "texts": texts.of(language, "img2img_"),
    }


def mixture(picture: Image.Image, z: Tensor, noise: Tensor, preview: Tensor) -> dict:
    """The picture, its latents and the noise for the page."""
    numbers = {"z": parts.compact(z), "noise": parts.compact(noise), "preview": render.numbers(preview).tolist()}
    return {"picture": render.uri(picture, "PNG"), "w": picture.width, "h": picture.height, **numbers}


# --- a row of strengths -----------------------------------------------------------------------------------------------------------


def strengths_of(text: str) -> list[float]:
    """Strengths from 0 to 1, divided by commas. Raises ValueError for anything else, or too many."""
    found = []
    for piece in filter(None, (piece.strip() for piece in text.replace("、", ",").replace(";", ",").split(","))):
        try:
            found.append(float(piece))
        except ValueError:
            found.append(float("nan"))
        if not 0 <= found[-1] <= 1:
            raise ValueError(f"The strength {piece[:20]!r} is no number from 0 to 1; give some, as in 0.2, 0.5, 0.8.")
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"There are {len(found)} strengths; a row takes 1 to {MOST}: give some, as in 0.2, 0.5, 0.8.")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Cell:
    """One strength of a row."""

    strength: float
    line: str = ""  # what it means, or does now
    picture: Image.Image | None = None
    run: str = ""  # its id, once it is finished


def row(engine: LocalEngine, owner: str, requests: list[Request | float], picture: Image.Image, seed: int) -> Work:
    """One run after the other, each kept as soon as it is finished. Parts: (which, preview of x0), then (which, run id); for strength 0,
    which is no run, (which, (picture, PSNR))."""

    def work(sd: StableDiffusion) -> Iterator[Part]:
        plans = [
            plan(sd.scheduler_config, r.scheduler, r.steps, r.source.strength) if isinstance(r, Request) else None
            for r in requests
        ]
        count, done = sum(p.turns + 1 if p else 1 for p in plans), 0
        for k, r in enumerate(requests):
            if not isinstance(r, Request):
                yield Part(done, count, (k, there_and_back(sd, picture, seed)))
                done += 1
                continue
            trace, last, began = Trace.start(sd, r), None, time.perf_counter()
            for last in trace.follow(denoise(sd, r, Record())):
                yield Part(done, count, (k, render.latent(trace, last.x0).image))
                done += 1
            assert last is not None
            trace.finish(sd, last.x_next)
            trace.seconds = time.perf_counter() - began
            yield Part(done, count, (k, engine.keep(trace, owner)))
            done += 1

    return work


def row_html(cells: list[Cell], language: str) -> str:
    """A row of strengths as HTML; what is finished opens by a click."""
    made = []
    for cell in cells:
        title = html.escape(texts.say(language, "img2img_strength_is", strength=f"{cell.strength:g}"))
        shown = "<span class='blank'></span>"
        if cell.picture:
            shown = f"<img class='pixels' src='{render.uri(cell.picture, 'PNG')}' alt='{title}'>"
        inside = f"{shown}<b>{title}</b><span>{html.escape(cell.line)}</span>"
        if cell.run:
            inside = f"<button type='button' data-act='open' data-job='{cell.run}'>{inside}</button>"
        made.append(f"<li>{inside}</li>")
    return f"<ul>{''.join(made)}</ul>"


# --- the page ---------------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine, model = shared.engine, shared.model
    common.heading("img2img")
    with gr.Row(elem_classes="tab-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            start = pictures.box("img2img")
            pictures.note(shared, "img2img", start, model)
            prompt, negative = pictures.words("img2img", FIRST)
            strength = common.number(STRENGTH, 0, 1, 0.01, "strength_label", "img2img-strength")
            hint("img2img_strength_info")
            run, stop = pictures.panel_buttons("img2img")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            guidance, steps, seed, scheduler = pictures.settings(shared, "img2img", FIRST)
            pictures.off("img2img", strength, scheduler)
            exactly = gr.Checkbox(False, label=i18n("img2img_exactly"), elem_id="img2img-exactly")
            hint("img2img_exactly_info")
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            strength_card = parts.live("img2img")
            panel = pictures.panel(shared, "img2img", run, stop)
            with gr.Column(visible=False, elem_id="img2img-after") as comparison:
                about = gr.HTML(apply_default_css=False, elem_id="img2img-about")
                slider = gr.ImageSlider(show_label=False, interactive=False, buttons=[], format="png", elem_id="img2img-both")
                back = gr.State(None)  # of strength 0, which is no run: a pictures.Made
                pictures.send_row(shared, "img2img", panel.mine, back)
            with gr.Column(elem_id="img2img-row"):
                parts.heading("img2img_row")
                with gr.Row(elem_classes="try"):
                    row_of = gr.Textbox(ROW, label=i18n("img2img_strengths"), elem_id="img2img-strengths", min_width=200)
                    draw_row = gr.Button(i18n("img2img_draw_row"), elem_id="img2img-draw-row", scale=0, min_width=160)
                    stop_row = gr.Button(
                        i18n("stop"), variant="stop", visible=False, elem_id="img2img-stop-row", scale=0, min_width=160
                    )
                status = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="img2img-status")
                row_board = gr.HTML(
                    "",
                    html_template="<div>${value}</div>",
                    js_on_load=common.script("runs.js"),
                    apply_default_css=False,
                    elem_id="img2img-found",
                )

    controls = pictures.Controls(prompt, negative, guidance, steps, seed, scheduler)
    known = gr.State(None)  # (of what, mixture): the latents and the noise that the card mixes
    row_job = gr.State("")
    inputs = [start, strength, exactly, model, *controls.all]

    def asked(path: str | None, strength: object, exactly: bool, model: str, *settings) -> Request | None:
        picture = pictures.fitted(path, engine.model(model).size).image
        return None if is_zero(strength) else request_of(picture, strength, exactly, model, *settings)

    def zero(owner: str, language: str, path: str, strength: object, exactly: bool, model: str, *settings) -> Iterator[dict]:
        picture = pictures.fitted(path, engine.model(model).size).image
        image, psnr = engine.ask(model, lambda sd: there_and_back(sd, picture, settings[4] or 0), owner)
        said = texts.say(language, "img2img_zero", psnr=f"{psnr:.1f}")
        bare = common.packed(viewing.empty(language, said="img2img_zero_viewer"))
        made = pictures.Made(Pixels.of(image), request_of(picture, STRENGTH, exactly, model, *settings))
        yield {panel.viewer: bare, panel.mine: "", back: made, **compared(picture, image, said)}

    def compared(before: Image.Image, after: Image.Image, said: str) -> dict:
        return {slider: (before, after), about: f"<p>{html.escape(said)}</p>", comparison: gr.update(visible=True)}

    def finished(trace: Trace, language: str) -> dict:
        source = trace.request.source
        assert source is not None
        said = texts.say(language, "img2img_after", strength=f"{source.strength:g}")
        return compared(source.picture.image, pictures.result_of(trace), said)

    def look(owner: str | None, now: tuple | None, request: gr.Request, *values) -> Iterator[dict]:
        """The card: at once what needs no model, and then what does."""
        language, owner = common.language(request), common.owner_of(owner)
        path, strength, exactly, model, *settings = values
        seed, scheduler = settings[4:]
        try:
            sd = engine.model(model)
            picture = pictures.fitted(path, sd.size).image
            number = common.number_of(strength)
            count = common.number_of(settings[3])
            can = exactly and isinstance(number, int | float) and 0 < number <= 1
            steps = steps_of(count, number if can else 1.0, can)

            def value(mixed: dict) -> str:
                return common.packed(
                    card(sd.scheduler_config, scheduler, steps, count if exactly else None, mixed, seed is not None, language)
                )

            of = path, sd.size, model, seed
            if now is None or now[0] != of:
                z, noise = engine.ask(model, lambda sd: begin(sd, picture, seed or 0), owner)
                now = of, mixture(picture, z, noise, sd.preview)
            yield {strength_card: value(now[1]), known: now}
        except ValueError as error:
            yield {strength_card: parts.said(texts.sentence(language, error))}

    def draw_all(owner: str | None, text: str, request: gr.Request, *values) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        path, _, exactly, model, *settings = values
        settings[4] = random.randrange(2**32) if settings[4] is None else settings[4]  # one for the whole row
        idle = {draw_row: gr.update(visible=True, interactive=True), stop_row: gr.update(visible=False), status: ""}
        busy = {draw_row: gr.update(visible=False), stop_row: gr.update(visible=True)}
        yield {draw_row: gr.update(interactive=False), shared.owner: owner}  # there is nothing to stop yet
        try:
            sd = engine.model(model)
            picture = pictures.fitted(path, sd.size).image
            strengths = strengths_of(text)
            wanted = [request_of(picture, s, exactly, model, *settings) if s else 0.0 for s in strengths]
            cells = [Cell(s, line_of(sd, r, language)) for s, r in zip(strengths, wanted, strict=True)]
            taken = 0
            for job, snapshot, made in parts.works(
                shared, model, row(engine, owner, wanted, picture, settings[4]), owner, "strengths"
            ):
                for k, value in made[taken:]:
                    cells[k] = told(cells[k], value, owner, language)
                taken = len(made)
                yield busy | {row_job: job, status: parts.waiting(snapshot, language), row_board: row_html(cells, language)}
            yield idle | {status: texts.say(language, "img2img_row_stopped") if snapshot.state == "stopped" else ""}
        except ValueError as error:
            yield idle
            raise common.refusal(language, error) from None

    def told(cell: Cell, value: object, owner: str, language: str) -> Cell:
        """A cell, with what the work has just handed over."""
        if isinstance(value, str):
            return Cell(cell.strength, cell.line, pictures.result_of(shared.trace_of(value, owner)), value)
        if isinstance(value, tuple):
            return Cell(cell.strength, texts.say(language, "img2img_row_zero", psnr=f"{value[1]:.1f}"), value[0])
        assert isinstance(value, Image.Image)
        return Cell(cell.strength, cell.line, value)

    def line_of(sd: StableDiffusion, wanted: Request | float, language: str) -> str:
        if not isinstance(wanted, Request) or wanted.source is None:
            return ""
        p = plan(sd.scheduler_config, wanted.scheduler, wanted.steps, wanted.source.strength)
        return texts.say(language, "img2img_row_line", left=p.steps - p.start, steps=p.steps, t=f"{p.level.t:.0f}")

    def halt(job: str) -> None:
        with suppress(ValueError):
            engine.cancel(job)

    def open_run(owner: str | None, event: gr.EventData, request: gr.Request) -> tuple[str, float]:
        return common.event_value(event, "job"), time.time()

    def again(r: Request) -> dict:
        assert r.source is not None
        mine = r.model in engine.for_role("base") or r.model.startswith(
            "dreambooth-"
        )  # a run is its owner's, and so is what it trained
        chosen = {model: r.model} if mine else {}
        return {strength: f"{r.source.strength:g}", exactly: False} | chosen

    pictures.wire(
        shared,
        panel,
        asked,
        inputs,
        finished,
        [slider, about, comparison, back],
        tab=tab,
        name="img2img",
        instead=zero,
        unfinished=lambda _: {comparison: gr.update(visible=False)},
    )
    pictures.fill(shared, tab, start, controls, "img2img", again, [strength, exactly, model], strength=strength, model=model)
    changed = [c.change for c in (start, model, seed, scheduler, steps, exactly)]
    strength_card.want(look, [shared.owner, known, *inputs], [strength_card, known], trigger_mode="always_last", **WATCH)
    gr.on(changed, look, [shared.owner, known, *inputs], [strength_card, known], trigger_mode="always_last", **WATCH)
    draw_row.click(
        draw_all,
        [shared.owner, row_of, *inputs],
        [draw_row, stop_row, status, row_board, row_job, shared.owner],
        **WATCH,
    )
    stop_row.click(halt, row_job, None, **QUICK)
    row_board.pick(open_run, shared.owner, panel.look, **LOOK)
    api(engine, shared.default)


def api(engine: LocalEngine, default: str) -> None:
    """The tab's public endpoint. Its values come raw, so that a wrong one meets core's own sentence."""

    @pictures.public
    def img2img(picture, prompt, negative, strength, seed, steps, guidance, scheduler, exactly, model, request: gr.Request):
        """Draws from a picture; answers with the result, its settings in a text chunk of the PNG, and with everything that made it as
        JSON, notices of what was done to the picture among it. exactly: run as many steps as asked, at any strength. At strength 0 no
        step runs: the picture comes back through the VAE, with no settings in its PNG, and the notices say what that changed."""
        model = pictures.known(model, names)
        start = pictures.fitted(picture, engine.model(model).size)
        notices = [start.said("en"), *start.notices]
        zero = is_zero(strength)
        settings = prompt, negative, guidance, steps, seed, scheduler
        wanted = request_of(start.image, 1 if zero else strength, bool(exactly), model, *settings)
        if zero:
            back, psnr = engine.ask(model, lambda sd: there_and_back(sd, start.image, wanted.seed), pictures.caller(request))
            said = texts.say("en", "img2img_zero", psnr=f"{psnr:.1f}")
            return back, {"strength": 0, "seed": wanted.seed, "notices": [*notices, said]}
        trace = pictures.drawn(engine, wanted, request)
        return render.signed(trace), trace.settings() | {"notices": notices}

    f, names = FIRST, engine.for_role("base")
    kinds = {
        "strength": "number",
        "seed": "integer",
        "steps": "integer",
        "guidance": "number",
        "scheduler": "string",
        "exactly": "boolean",
        "model": "string",
    }
    first = [STRENGTH, 0, f.steps, f.guidance, f.scheduler, False, default]
    raw = [Api(None, {"type": "string"}), Api("", {"type": "string"})]
    raw += [Api(value, {"type": kind}) for value, kind in zip(first, kinds.values(), strict=True)]
    with gr.Row(visible=False):
        file = pictures.as_files(gr.Image(type="filepath", image_mode=None, label="picture"))
        answer = [gr.Image(format="png", label="picture"), gr.JSON(label="settings")]
        gr.Button().click(
            img2img, [file, *raw], answer, api_name="img2img", concurrency_id="watch", concurrency_limit=common.WATCHERS
        )
