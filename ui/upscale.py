"""Where does the detail come from when a picture is enlarged?

Nearest repeats each pixel, bicubic lays a smooth surface through them: both know this picture alone. The x4 upscaler denoises as ever,
with the small picture as three more channels of its UNet, and puts in the detail that such pictures usually have. The noise level says
how far it may leave the small picture.
"""

import html
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import gradio as gr
import numpy as np
import torch
from gradio.components.api_component import Api
from PIL import Image
from scipy.ndimage import uniform_filter

from core import conditioning, images, latents, room, schedulers, sweep, tiles
from core.catalog import CATALOG
from core.conditioning import Pixels, Upscale
from core.engine import ENDED, LocalEngine, Snapshot
from core.models import StableDiffusion
from core.sampling import Request, check_whole
from core.sweep import Meter, Sweep
from core.trace import Trace, to_uint8
from ui import common, parts, pictures, render, texts, viewing
from ui.common import LOOK, QUICK, Shared, i18n

TITLE = "tab_upscale"  # a key of ui/texts.py
SCALE = 4
SIDES = (64, 512)  # pixels of the small picture's long side; its short side is at least a quarter of that
SHORTEST = SIDES[0] // images.ASPECT  # a run's small picture comes back here as it was
SIDE, LEVEL, GUIDANCE = 128, 0, 1.0  # truest with the embedded upscaler: docs/decisions.md
TRY = 200  # the noise level of the suggestion
PROBE = 64  # pixels a side of the picture that a model's speed is measured with
SHRINK = Image.Resampling.BICUBIC  # Pillow's, antialiased: how the embedded upscaler's small pictures were made in training


# --- the handler: plain Python, nothing of gradio -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """The picture that goes in."""

    image: Image.Image
    was: tuple[int, int]  # width and height of the picture in the box
    notices: tuple[str, ...]  # what was done to it on its way in


@lru_cache(maxsize=32)  # Gradio names an upload by its content; what is kept is small
def small_of(path: str | None, side: object) -> Small:
    """The picture in the box with a long side of at most `side` pixels, its shape kept, never enlarged.

    Raises ValueError if there is none, it is refused, or the side is no whole number of SIDES.
    """
    check_whole("small picture's long side", side, *SIDES)
    assert isinstance(side, int)
    if not path:
        raise ValueError("There is no picture to start from; choose one first.")
    opened = images.look_in(path, SHORTEST)
    width, height = opened.image.size
    share = min(1.0, side / max(width, height))
    image = opened.image.resize((round(width * share), round(height * share)), SHRINK) if share < 1 else opened.image
    return Small(image, (width, height), opened.notices)


def request_of(small: Small, level: object, model: str, *controls) -> Request:
    """The controls' values as a request. Nothing is rounded or clamped."""
    source = Upscale(Pixels.of(small.image), noise_level=common.number_of(level))  # pyright: ignore[reportArgumentType]
    return pictures.request_of(source, model, *controls)


def source_of(request: Request) -> Upscale:
    assert isinstance(request.source, Upscale)
    return request.source


def enlarged(small: Image.Image) -> Image.Image:
    return small.resize((SCALE * small.width, SCALE * small.height), Image.Resampling.BICUBIC)


def fidelity(small: Image.Image, large: Image.Image) -> float:
    """How near an enlargement, shrunk again, comes to the picture that it was made of: PSNR in decibels."""
    return latents.psnr(latents.pixels_of(small), latents.pixels_of(large.resize(small.size, SHRINK)))


def noised(sd: StableDiffusion, request: Request) -> Image.Image:
    """The small picture as the UNet of this very run sees it: with the noise of its level, drawn from its seed."""
    seen = conditioning.noised(sd, source_of(request), latents.generator(request.seed))
    return render.picture(to_uint8(seen)[0]).image


def lively(small: Image.Image) -> tuple[int, int]:
    """Where the picture changes most, as a pixel of the enlarged one: there the lens begins."""
    down, across = np.gradient(np.asarray(small.convert("L"), np.float32))
    change = uniform_filter(np.hypot(down, across), 16, mode="constant")
    y, x = np.unravel_index(int(change.argmax()), change.shape)
    return SCALE * int(x), SCALE * int(y)


def tiles_of(sd: StableDiffusion, request: Request) -> list[tiles.Tile]:
    picture = source_of(request).picture
    return tiles.cut(picture.height, picture.width, tiles.side_of(sd))


def assembled(sd: StableDiffusion, request: Request, made: Mapping[int, np.ndarray], seconds: float) -> Trace:
    """The picture of tiles as far as they are made, with everything that made it; bicubic where there is none yet."""
    cut = tiles_of(sd, request)
    trace = Trace.start(sd, request)
    under = np.asarray(enlarged(source_of(request).picture.image))
    trace.picture = torch.from_numpy(tiles.blend(cut, made, under)).movedim(-1, 0)
    trace.made_by["tiles"] = f"{len(cut)} of {cut[0].width} x {cut[0].height} pixels, each with the seed + its number"
    trace.stopped = len(made) < len(cut)
    trace.seconds = seconds
    return trace


def passes(sd: StableDiffusion, request: Request) -> int:
    return sweep.cost(sd, Sweep(request, (request.guidance,))).passes


@dataclass
class Speed:
    """How fast this device is with a model: measured on a small picture, set right by every whole run."""

    meter: Meter
    factor: float = 1.0

    @classmethod
    def measured(cls, sd: StableDiffusion, request: Request) -> "Speed":
        source = source_of(request)
        probe = replace(source, picture=Pixels.of(source.picture.image.resize((PROBE, PROBE))))
        return cls(sweep.measure(sd, Sweep(replace(request, source=probe), (request.guidance,))))

    @classmethod
    def of_run(cls, sd: StableDiffusion, trace: Trace) -> "Speed":
        """From a whole run, decoding included: all that is known of a model that is too large to try out."""
        picture = source_of(trace.request).picture
        return cls(Meter(passes(sd, trace.request), trace.seconds * PROBE**2 / (picture.width * picture.height)))

    def seconds(self, sd: StableDiffusion, request: Request) -> float:
        """What a run takes. UNet and decoder take as much longer as their picture is larger."""
        picture = source_of(request).picture
        return self.factor * (self.meter.seconds(passes(sd, request), 1) or 0) * picture.width * picture.height / PROBE**2

    def learn(self, sd: StableDiffusion, trace: Trace) -> None:
        self.factor *= trace.seconds / self.seconds(sd, trace.request)


# --- what the page shows ------------------------------------------------------------------------------------------------------


def seconds_of(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 100e9 else f"{size / 1e9:.0f}"


def cost(sd: StableDiffusion, request: Request, speed: Speed | None, language: str, tiled: bool = False) -> str:
    """What the run takes, in sentences, before it runs: size, memory, seconds, and the same in tiles; as HTML. tiled: only that."""
    picture, cut = source_of(request).picture, tiles_of(sd, request)
    one = tiles.requests(request, cut[:1])[0]
    need, there = room.needed(sd, request), room.free(sd.device)
    facts = {
        "width": SCALE * picture.width,
        "height": SCALE * picture.height,
        "need": gigabytes(need),
        "free": gigabytes(there),
        "count": len(cut),
        "side": f"{cut[0].width} × {cut[0].height}",
        "overlap": tiles.OVERLAP,
        "one": gigabytes(room.needed(sd, one)),
        "seconds": seconds_of(speed.seconds(sd, request)) if speed else "",
        "in_tiles": seconds_of(len(cut) * speed.seconds(sd, one)) if speed else "",
    }
    too_large = "upscale_too_large" if room.needed(sd, one) <= there else "upscale_too_large_for_tiles"
    tiled = tiled and len(cut) > 1 and room.needed(sd, one) <= there
    lines = [("upscale_fits_tiled" if tiled else "upscale_fits", "") if tiled or need <= there else (too_large, "cut")]
    if need <= there and not tiled:
        lines.append(("upscale_seconds" if speed else "upscale_not_measured", ""))
    lines.append(("upscale_one_tile" if len(cut) == 1 else "upscale_in_tiles", ""))
    if speed and len(cut) > 1:
        lines.append(("upscale_tiles_seconds", ""))
    said = "".join(f'<li class="{kind}">{html.escape(texts.say(language, key, **facts))}</li>' for key, kind in lines)
    return f"<ul>{said}</ul>"


def card(sd: StableDiffusion, request: Request, small: Small, speed: Speed | None, language: str, tiled: bool = False) -> str:
    """The small picture, the same with its noise, and what enlarging it takes, as HTML."""
    bar = float(schedulers.training_bars(sd.low_res_config or {})[source_of(request).noise_level])
    width, height = small.image.size
    size = {"width": width, "height": height, "was_width": small.was[0], "was_height": small.was[1]}
    went_in = texts.say(language, "upscale_shrunk" if small.was != small.image.size else "upscale_as_it_is", **size)
    share = texts.say(language, "upscale_share", signal=f"{bar**0.5:.3f}", noise=f"{(1 - bar) ** 0.5:.3f}")
    level = texts.say(language, "upscale_noised", level=source_of(request).noise_level)
    shown = [
        (render.uri(small.image, "PNG"), texts.say(language, "upscale_small"), went_in),
        (render.uri(noised(sd, request), "PNG"), level, share),
    ]
    notices = "".join(f"<li>{html.escape(texts.sentence(language, notice))}</li>" for notice in small.notices)
    lines = cost(sd, request, speed, language, tiled) + (f"<ul>{notices}</ul>" if notices else "")
    return f'<div class="card-of-upscale"><div class="figures">{parts.figures(shown)}</div><div>{lines}</div></div>'


def said(sentence: str) -> str:
    """The card where there is nothing to show, and why."""
    return f'<p class="note">{html.escape(sentence)}</p>'


def wrong(error: ValueError, language: str) -> str:
    return f'<p class="cut">{html.escape(texts.sentence(language, error))}</p>'


def lens(small: Image.Image, language: str, status: str = "") -> dict:
    """The picture under the lens, enlarged by nearest (which the page does by itself) and bicubic; the third is still to come."""
    return {
        "kind": "lens",
        "status": status,
        "name": Pixels.of(small).name,
        "width": small.width,
        "height": small.height,
        "scale": SCALE,
        "at": lively(small),
        "small": render.uri(small, "PNG"),
        "bicubic": render.uri(enlarged(small), "PNG"),
        "texts": texts.of(language, "lens_"),
    }


def going(status: str, picture: str = "") -> dict:
    """A run that goes on, and what its picture looks like so far, as an address."""
    return {"kind": "live", "status": status, "made": picture}


def finished(trace: Trace, language: str, status: str) -> dict:
    """All three under the lens, and how true two of them stay to the picture that went in."""
    small = source_of(trace.request).picture.image
    large = pictures.result_of(trace)
    made, bicubic = (f"{fidelity(small, one):.1f}" for one in (large, enlarged(small)))
    return lens(small, language, status) | {
        "made": render.png_uri(trace),
        "file": "" if trace.stopped else viewing.file_name(trace).replace(".png", f"-x{SCALE}.png"),
        "fidelity": texts.say(language, "upscale_fidelity", made=made, bicubic=bicubic),
    }


def tile_status(snapshot: Snapshot, turns: list[tiles.Turn], language: str) -> str:
    if snapshot.state != "running" or not turns:
        return parts.waiting(snapshot, language)
    turn, left = turns[-1], seconds_of(snapshot.seconds_left or 0)
    place = {"tile": turn.tile + 1, "tiles": turn.tiles, "i": turn.i + 1, "count": turn.count}
    return texts.say(language, "upscale_tile", **place, seconds=left)


# --- the page -----------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine = shared.engine
    example = shared.example.request.prompt if shared.example else ""
    first = Request(example, seed=1, guidance=GUIDANCE)
    speeds: dict[str, Speed] = {}  # of the models, as far as they are known
    measuring: set[str] = set()

    common.heading("upscale")
    with gr.Row(elem_classes="tab-body", elem_id="upscale-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            picture = pictures.box("upscale")
            level = common.number(LEVEL, 0, conditioning.MAX_NOISE_LEVEL, 1, "upscale_level", "upscale-level")
            common.hint("upscale_level_says")
            prompt, negative = pictures.words("upscale", first)
            in_tiles = gr.Checkbox(False, label=i18n("upscale_tiled"), elem_id="upscale-tiled")
            run, stop = pictures.panel_buttons("upscale")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            side = common.number(SIDE, *SIDES, 1, "upscale_side", "upscale-side")
            common.hint("upscale_side_says")
            guidance, steps, seed, scheduler = pictures.settings(shared, "upscale", first)
            model = pictures.model_menu(shared, "upscale", ["upscale"])
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            before = gr.HTML("", apply_default_css=False, elem_id="upscale-before")
            glass = viewing.view("lens", "upscale-lens")
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("upscale_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("upscale_try_button"), elem_id="upscale-try", scale=0, min_width=96)
            panel = pictures.panel(shared, "upscale", run, stop)
            of_tiles = gr.State(
                None
            )  # a pictures.Made: tiles are a run each, so their picture has no steps of its own to look into
            pictures.send_row(shared, "upscale", panel.mine, of_tiles)

    under = gr.State("")  # the name of the small picture under the lens
    controls = pictures.Controls(prompt, negative, guidance, steps, seed, scheduler, of_upscaler=True)
    inputs = [picture, side, level, model, *controls.all]

    def light(name: str) -> bool:
        return name in CATALOG and CATALOG[name].embedded

    def consider(
        request: gr.Request, owner: str | None, now: str, tiled: bool, path, wide, noise, name, *settings
    ) -> Iterator[dict]:
        """What a run would be, while its settings change. A wrong one is told in the card; Run refuses it with the same sentence."""
        language = common.language(request)
        if not path:
            yield {before: said(texts.say(language, "upscale_no_picture"))}
            return
        if engine.loaded(name) is None and not light(name):
            yield {before: said(texts.say(language, "status_loading"))}
        try:
            sd = engine.model(name)
            small = small_of(path, common.number_of(wide))
            wanted = request_of(small, noise, name, *settings)
            found = {before: card(sd, wanted, small, speeds.get(name), language, tiled)}
            if now != (name_now := source_of(wanted).picture.name):
                found |= {glass: common.packed(lens(small.image, language)), under: name_now}
            yield found
            if light(name) and name not in speeds and name not in measuring:
                measuring.add(name)
                try:
                    speeds[name] = engine.ask(name, lambda sd: Speed.measured(sd, wanted), common.owner_of(owner))
                except ValueError:
                    return  # the queue is full: the next run tells
                finally:
                    measuring.discard(name)
                yield {before: card(sd, wanted, small, speeds[name], language, tiled)}
        except ValueError as error:
            yield {before: wrong(error, language)}

    def asked(tiled: bool, path: str | None, wide: str, *values) -> Request | None:
        return None if tiled else request_of(small_of(path, common.number_of(wide)), *values)

    def pieces(owner: str, language: str, tiled: bool, path: str | None, wide: str, *values) -> Iterator[dict]:
        """The picture tile by tile, and as far as it is made."""
        wanted = request_of(small_of(path, common.number_of(wide)), *values)
        yield {panel.mine: "", panel.viewer: common.packed(viewing.empty(language, said="upscale_tiles_viewer")), of_tiles: None}
        began, made, sd, partly = time.perf_counter(), {}, None, ""
        for one, snapshot, turns in parts.works(shared, wanted.model, tiles.work(wanted), owner, "upscale"):
            new = {turn.tile: turn.picture for turn in turns if turn.picture is not None}
            if len(new) > len(made):
                made, sd = new, engine.model(wanted.model)
                partly = render.uri(pictures.result_of(assembled(sd, wanted, made, 0)), "PNG")
            if snapshot.state not in ENDED:
                yield {panel.job: one, glass: common.packed(going(tile_status(snapshot, turns, language), partly))}
        if sd is None:
            yield {glass: common.packed(going(texts.say(language, "status_stopped_early")))}
            return
        trace = assembled(sd, wanted, made, time.perf_counter() - began)
        facts = {"done": len(made), "tiles": len(tiles_of(sd, wanted)), "seconds": seconds_of(trace.seconds)}
        status = texts.say(language, "upscale_tiles_stopped" if trace.stopped else "upscale_tiles_done", **facts)
        shown = {} if trace.stopped else {of_tiles: pictures.made_of(trace)}
        told = finished(trace, language, status)
        told["fidelity"] = " ".join([told["fidelity"], *common.made_with(trace, language)])  # no viewer says it for tiles
        yield {glass: common.packed(told), under: source_of(wanted).picture.name} | shown

    def live(value: dict) -> dict:
        return {glass: common.packed(going(value["status"], value.get("x0", "")))}

    def enlargement(trace: Trace, language: str) -> dict:
        sd, name = engine.model(trace.request.model), trace.request.model
        speeds.setdefault(name, Speed.of_run(sd, trace)).learn(sd, trace)
        r = trace.request
        status = texts.say(language, "status_done", count=len(trace), seconds=seconds_of(trace.seconds), seed=r.seed)
        return {glass: common.packed(finished(trace, language, status)), under: source_of(r).picture.name}

    def restored(r: Request) -> dict:
        source = source_of(r)
        return {level: f"{source.noise_level}", side: f"{max(source.picture.width, source.picture.height, SIDES[0])}"}

    drawn = pictures.wire(
        shared,
        panel,
        asked,
        [in_tiles, *inputs],
        enlargement,
        [glass, under, of_tiles],
        tab=tab,
        name="upscale",
        instead=pieces,
        during=live,
    )
    told = [consider, [shared.owner, under, in_tiles, *inputs], [before, glass, under]]
    changes = [one.change for one in (in_tiles, picture, side, level, guidance, steps, seed, scheduler, model)]
    gr.on([tab.select, *changes], *told, trigger_mode="always_last", **LOOK)
    drawn.success(*told, **LOOK)  # how long it takes is known better now
    press = "() => document.querySelector('#upscale-go')?.click()"
    attempt.click(lambda: f"{TRY}", None, level, **QUICK).success(None, None, None, js=press, api_visibility="private")
    pictures.fill(shared, tab, picture, controls, "upscale", restored, [level, side], with_words=True)
    endpoint(engine)


def endpoint(engine: LocalEngine) -> None:
    """The tab's one public endpoint. Its values come raw, so that a wrong one meets core's own sentence."""

    names = engine.for_role("upscale")
    default = next(iter(names), "")

    @pictures.public
    def upscale(
        picture, prompt, noise_level, side, negative, seed, steps, guidance, scheduler, in_tiles, model, request: gr.Request
    ):
        """Enlarges a picture (PNG, JPEG or WebP) four times, of its long side at most `side` pixels; in_tiles: piece by piece. Answers
        with the picture, its settings in a text chunk of the PNG, and with everything that made it as JSON."""
        small = small_of(picture, side)
        wanted = request_of(small, noise_level, pictures.known(model, names), prompt, negative, guidance, steps, seed, scheduler)
        trace = pieced(wanted, pictures.caller(request)) if in_tiles else pictures.drawn(engine, wanted, request)
        return render.signed(trace), trace.settings() | {"notices": list(small.notices)}

    def pieced(wanted: Request, owner: str) -> Trace:
        began = time.perf_counter()
        job = engine.submit_work(wanted.model, tiles.work(wanted), owner, "upscale")
        for _ in engine.events(job):
            pass
        made = {turn.tile: turn.picture for turn in engine.values(job) if turn.picture is not None}
        return assembled(engine.model(wanted.model), wanted, made, time.perf_counter() - began)

    raw = [
        Api("", {"type": "string"}),
        Api(LEVEL, {"type": "integer"}),
        Api(SIDE, {"type": "integer"}),
        Api("", {"type": "string"}),
        Api(0, {"type": "integer"}),
        Api(20, {"type": "integer"}),
        Api(GUIDANCE, {"type": "number"}),
        Api("DDIM", {"type": "string"}),
        Api(False, {"type": "boolean"}),
        Api(default, {"type": "string"}),
    ]
    with gr.Row(visible=False):
        file = gr.File(label="picture", type="filepath")
        answer = [gr.Image(format="png", label="picture"), gr.JSON(label="settings")]
        lane = {"concurrency_id": "watch", "concurrency_limit": common.WATCHERS}
        gr.Button().click(upscale, [file, *raw], answer, api_name="upscale", **lane)
