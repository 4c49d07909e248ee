"""How is one part of a picture made anew?

Paint over it, and say what should be there. The rest is kept: a UNet with nine channels sees your mask and the picture without it; any
other is held in place after each step.
"""

import base64
import html
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gradio as gr
import numpy as np
import torch
from gradio.components.api_component import Api
from PIL import Image

from core import attention, conditioning, images
from core.catalog import CATALOG
from core.conditioning import FILLS, Inpaint, Pixels
from core.engine import LocalEngine
from core.sampling import Request
from core.trace import Trace
from ui import common, parts, pictures, render, texts, viewing
from ui.common import LOOK, QUICK, Handed, Shared, hint, i18n

TITLE = "tab_inpaint"
ROLES = ("inpaint", "base")  # of models: those made for it first
LARGEST = 1024  # pixels of the canvas' longer side
SIDE = 512  # pixels, of what a model draws that is not loaded yet: true of all real ones that are made for inpainting
MAPPED = 512  # pixels of a map of changes; beyond, each square shows its largest
MOMENTS = 12  # steps whose x_in the panel shows
PART, WHOLE = "part", "whole"
FILL_KEYS = ("inpaint_fill_original", "inpaint_fill_noise", "inpaint_fill_blur")  # of conditioning.FILLS
BLUR = 4  # pixels, to begin with: enough to hide the seam
TRY_SHARE = 0.4  # of a word's map, for "Try it"
SMALL_WORDS = {"a", "an", "the", "in", "on", "of", "and", "with", "to", "at", "its"}


# --- what is on the canvas: plain Python, nothing of gradio -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """The picture in the editor. All of it goes into the run; what did not fit the model's shape was cut off before."""

    picture: Pixels  # (H, W, 3)
    width: int  # that the model draws it at; H and W are a whole multiple of it
    height: int
    run: str = ""  # the id of the run that made the picture
    kept: tuple[float, ...] = (0, 0)  # where the picture begins in the one that came, left and top, and where it ends
    mask: Pixels | None = None  # (H, W), that comes with the picture: it is laid on it with it
    path: str = ""  # the file that stands in the box: another model may lay it anew at its own size


def canvas_of(image: Image.Image, side: int, run: str = "") -> Canvas:
    """A picture for a model of `side` x `side` pixels: as much of its own resolution as is left."""
    width, height = images.size_for(image, side)
    times = max(1, min(image.width // width, image.height // height, LARGEST // max(width, height)))
    picture, kept = images.fitted(image, width * times, height * times)
    return Canvas(Pixels.of(picture), width, height, run, kept)


def fit_of(image: Image.Image, canvas: Canvas, language: str) -> str:
    """What was cut off of a picture on its way to the canvas, and the size that it has there."""
    return pictures.fit_said(image.size, canvas.kept, (canvas.picture.width, canvas.picture.height), language)


def came_from(image: Image.Image, runs: list[tuple[str, Trace]]) -> tuple[str, Trace] | None:
    """The run that made this picture, pixel by pixel, if it is one of these: also of a PNG that was saved and comes back."""
    for one, trace in runs:
        if trace.picture is not None and np.array_equal(np.asarray(pictures.result_of(trace)), np.asarray(image)):
            return one, trace
    return None


def words_of(trace: Trace) -> dict[str, tuple[int, ...]]:
    """The words that can fill a mask, and their places among the 77; none if the run recorded no attention."""
    if not any(step.attention and step.eps_cond is not None for step in trace):
        return {}
    first = {word.strip(): positions for word, positions in reversed(trace.tokens.words)}  # of a word that stands there twice
    return dict(sorted(first.items(), key=lambda found: found[1]))


def word_mask(trace: Trace, word: str, share: float, canvas: Canvas) -> np.ndarray:
    """The upper part of a word's map over all steps and layers, (H, W) bool of the canvas.

    Raises ValueError if the run has no such word, or recorded no attention.
    """
    positions = words_of(trace).get(word)
    if positions is None:
        raise ValueError("The run of this picture recorded no such word; choose one of those under the picture.")
    left, top, right, bottom = box_of(trace)
    heat = trace.word_maps()[list(positions)].mean(0)
    part = attention.upper(heat[None], (bottom - top, right - left), share)[0].numpy()
    return put_on(trace, part.astype(np.uint8) * 255, canvas)


def box_of(trace: Trace) -> conditioning.Box:
    """The part of its result that a run drew: all of it, but for an inpainting of a part."""
    source = trace.request.source
    return source.box if isinstance(source, Inpaint) else (0, 0, *pictures.result_of(trace).size)


def put_on(trace: Trace, mask: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A mask (h, w) uint8 of what a run drew, on the canvas that has the run's result, (H, W) bool. Raises ValueError if it is empty."""
    left, top, right, bottom = box_of(trace)
    whole = Image.new("L", pictures.result_of(trace).size)
    whole.paste(Image.fromarray(mask).resize((right - left, bottom - top)), (left, top))
    return images.open_mask(np.asarray(whole), (canvas.picture.width, canvas.picture.height)) >= 0.5


def thing_of(words: list[str]) -> str:
    """The word that a prompt's thing goes by: the first that is not small. "" if there is none."""
    return next((word for word in words if word.lower() not in SMALL_WORDS), "")


def packed_mask(mask: np.ndarray) -> str:
    """A mask (H, W) of bool for the editor: a bit a pixel."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def laid_out(canvas: Canvas, words: Sequence[str] = (), mask: np.ndarray | None = None, **more) -> str:
    """A canvas for the editor, with a mask (H, W) of bool on it if there is one; without, what was painted on this picture stays."""
    picture = canvas.picture
    value = {
        "kind": "canvas",
        "name": picture.name,
        "w": picture.width,
        "h": picture.height,
        "picture": render.uri(picture.image, "PNG"),
        "cells": [canvas.width // 8, canvas.height // 8],
        "words": list(words),
    }
    return common.packed(value | more | ({} if mask is None else {"bits": packed_mask(mask)}))


def mask_for(canvas: Canvas, mask: np.ndarray) -> str:
    """A mask (H, W) of bool for the canvas that the editor has."""
    picture = canvas.picture
    value = {"kind": "mask", "sent": time.time(), "name": picture.name, "w": picture.width, "h": picture.height}
    return common.packed(value | {"bits": packed_mask(mask)})


def there(canvas: Canvas | str | None) -> Canvas:
    """The canvas. Where there is none, raises ValueError with what was wrong with the picture."""
    if not isinstance(canvas, Canvas):
        raise ValueError(canvas or "There is no picture to start from; choose one first.")
    return canvas


def painted_on(page: str | None, canvas: Canvas | str | None) -> np.ndarray:
    """What is painted on the page, (H, W) bool. It came from outside, so it passes the one door.

    Raises ValueError if there is no picture, nothing is painted, or it was painted on another picture.
    """
    canvas = there(canvas)
    h, w = canvas.picture.height, canvas.picture.width
    try:
        value = json.loads(page or "{}")
        data = np.frombuffer(base64.b64decode(value.get("bits") or "", validate=True), np.uint8)
        if len(data) * 8 < h * w:  # of too few, numpy makes numbers up
            raise ValueError
        mask = np.unpackbits(data, count=h * w).reshape(h, w)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(images.UNPAINTED) from error
    if mask.any() and value.get("name") != canvas.picture.name:
        raise ValueError("The mask was painted on another picture; paint it on this one.")
    return images.open_mask(mask * 255, (w, h)) >= 0.5


def source_of(
    canvas: Canvas, painted: np.ndarray, strength: object, fill: str, area: str, padding: object, blur: object
) -> Inpaint:
    """The controls' values as core's own."""
    return conditioning.inpainting(
        canvas.picture,
        painted,
        canvas.width,
        canvas.height,
        padding=None if area == WHOLE else "" if padding is None else common.number_of(padding),  # pyright: ignore[reportArgumentType]
        strength=common.number_of(strength),
        fill=fill,
        blur=common.number_of(blur),
    )


# --- what is shown of a run ---------------------------------------------------------------------------------------------------------------


def forecast(source: Inpaint, factor: int, language: str) -> dict:
    """What a run would do with a mask, in words, and the part of the canvas that it would draw."""
    grid = conditioning.mask_on_grid(source, factor)
    left, top, right, bottom = source.box
    key = "inpaint_forecast_whole" if source.padding is None else "inpaint_forecast_part"
    size = {"width": source.picture.width, "height": source.picture.height}
    said = texts.say(language, key, w=right - left, h=bottom - top, marked=int(grid.sum()), total=grid.numel(), **size)
    if not grid.any():
        said = f"{said} {texts.say(language, 'inpaint_too_thin')}"
    return {"says": said, "box": source.box if source.padding is not None else None}


def made_by(trace: Trace) -> tuple[Inpaint, np.ndarray]:
    """An inpainting's source, and the picture that the VAE gave, (H, W, 3) uint8. Raises ValueError for any other run."""
    if not isinstance(trace.request.source, Inpaint):
        raise ValueError("This run is no inpainting; choose another.")
    if trace.picture is None:
        raise ValueError("A stopped run has no finished picture; choose another.")
    return trace.request.source, np.moveaxis(trace.picture.numpy(), 0, -1)


def outcome(trace: Trace, language: str) -> dict:
    """What ui/inpaint.js shows: the canvas with the result put back, raw and composited, and as it was."""
    source, made = made_by(trace)
    left, top, right, bottom = source.box
    size = {"w": right - left, "h": bottom - top, "width": source.picture.width, "height": source.picture.height}
    times = (right - left) / source.picture.width
    key = "inpaint_how_same" if times == 1 else "inpaint_how_larger" if times > 1 else "inpaint_how_smaller"
    return {
        "kind": "run",
        "w": source.whole.width,
        "h": source.whole.height,
        "pictures": {
            "composited": render.png_uri(trace, pictures.result_of(trace)),
            "raw": render.uri(Image.fromarray(source.put_back(made)), "PNG"),
            "original": render.uri(source.whole.image, "PNG"),
        },
        "how": texts.say(language, key, times=f"{max(times, 1 / times):.1f}", **size),
        "file": viewing.file_name(trace),
        "texts": texts.of(language, "inpaint_"),
    }


def honesty(trace: Trace, language: str) -> dict:
    """What ui/honest.js shows: what the UNet saw, and what changed outside the mask."""
    source, made = made_by(trace)
    first = trace.steps[0]
    channels = None if first.channels is None else first.channels.float()
    grid = conditioning.mask_on_grid(source, source.picture.height // trace.size[0])[0, 0] if channels is None else channels[0, 0]
    stride = max(1, -(-len(trace) // MOMENTS))
    chosen = [*trace.steps[:-1:stride], trace.steps[-1]]
    known = None if channels is None else channels[:, 1:]
    soft = conditioning.soft(source.hard, source.blur)
    outside = {
        "raw": (source.picture.array, made, source.mask.tensor()[0, 0].numpy() >= 0.5 if source.mask else source.hard),
        "composited": (source.whole.array, source.composited(made), soft > 0),
    }
    changes = {name: change(before, after, hidden, language) for name, (before, after, hidden) in outside.items()}
    marked = {"marked": int(grid.sum()), "total": grid.numel()}
    return {
        "kind": "run",
        "count": len(trace),
        "drawn": render.uri(source.picture.image, "PNG"),
        "mask": {
            "data": base64.b64encode(grid.to(torch.uint8).numpy().tobytes()).decode(),
            "h": grid.shape[0],
            "w": grid.shape[1],
        },
        "kind_says": texts.say(language, "honest_nine" if known is not None else "honest_four"),
        "marked_says": texts.say(language, "honest_marked" if grid.any() else "honest_none_marked", **marked),
        "inputs": [{"i": s.i, "t": round(s.t), "x": parts.compact(s.x_in)} for s in chosen],
        "limit": parts.limit_of(*(render.numbers(s.x_in) for s in chosen)),
        "known": None if known is None else parts.compact(known),
        "known_limit": 1.0 if known is None else parts.limit_of(render.numbers(known)),
        "changes": changes,
        "most": max(1, changes["raw"]["most"], changes["composited"]["most"]),
        "outside_says": texts.say(language, "honest_why_nine" if known is not None else "honest_why_four"),
        "texts": texts.of(language, "honest_"),
    }


def change(before: np.ndarray, after: np.ndarray, hidden: np.ndarray, language: str) -> dict:
    """How far two pictures (H, W, 3) lie apart outside a mask (H, W) of bool, in grey levels of 255."""
    apart = conditioning.change(before, after)
    outside = apart[~hidden]
    said = (
        texts.say(language, "honest_change", mean=f"{outside.mean():.2f}", most=int(outside.max()))
        if outside.size
        else texts.say(language, "honest_all_masked")
    )
    times = -(-max(apart.shape) // MAPPED)
    shown, covered = pooled(np.where(hidden, 0, apart), times), ~pooled(~hidden, times)
    return {
        "data": base64.b64encode(shown.tobytes()).decode(),
        "hidden": base64.b64encode(covered.astype(np.uint8).tobytes()).decode(),
        "h": shown.shape[0],
        "w": shown.shape[1],
        "mean": float(outside.mean()) if outside.size else 0.0,
        "most": int(outside.max()) if outside.size else 0,
        "says": said,
    }


def pooled(values: np.ndarray, times: int) -> np.ndarray:
    """The largest of each square of times x times values."""
    h, w = (-(-side // times) for side in values.shape)
    whole = np.zeros((h * times, w * times), values.dtype)
    whole[: values.shape[0], : values.shape[1]] = values
    return whole.reshape(h, times, w, times).max((1, 3))


# --- the page -----------------------------------------------------------------------------------------------------------------------------


def side_of(engine: LocalEngine, model: str) -> int:
    """The side that a model draws at, without loading gigabytes to know it."""
    sd = engine.model(model) if model in CATALOG and CATALOG[model].embedded else engine.loaded(model)
    return sd.size if sd else SIDE


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lays the tab out and wires it. What is on the canvas is one state, what is painted on it the editor's value: both go out with Run."""
    engine = shared.engine
    first = shared.example.request if shared.example else Request("", seed=1)
    common.heading("inpaint")
    with gr.Row(elem_classes="tab-body", elem_id="inpaint-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            start = pictures.box("inpaint")
            prompt, negative = pictures.words("inpaint", first)
            hint("inpaint_words_say")
            run, stop = pictures.panel_buttons("inpaint")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            model = pictures.model_menu(shared, "inpaint", ROLES)
            model_kind = gr.HTML(
                "", html_template="<p>${value}</p>", apply_default_css=False, elem_id="inpaint-way", elem_classes="hint"
            )
            area = gr.Radio(
                [(i18n("inpaint_whole"), WHOLE), (i18n("inpaint_part"), PART)],
                value=WHOLE,
                label=i18n("inpaint_area"),
                elem_id="inpaint-area",
            )
            padding = gr.Number(16, label=i18n("inpaint_padding"), elem_id="inpaint-padding", visible=False)
            blur = common.number(BLUR, 0, 64, 1, "inpaint_blur", "inpaint-blur")
            hint("inpaint_blur_says")
            strength = common.number(1, 0, 1, 0.05, "strength_label", "inpaint-strength")
            fill = gr.Radio(
                [(i18n(key), name) for name, key in zip(FILLS, FILL_KEYS, strict=True)],
                value=FILLS[0],
                label=i18n("inpaint_fill"),
                elem_id="inpaint-fill",
            )
            hint("inpaint_fill_says")
            guidance, steps, seed, scheduler = pictures.settings(shared, "inpaint", first)
            pictures.off("inpaint", strength, scheduler)
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            with gr.Row(elem_id="inpaint-easels", elem_classes="easels"):
                with gr.Column(min_width=280):
                    editor = viewing.view("mask", "inpaint-mask")
                    with gr.Row(elem_classes="pair"):
                        load = gr.UploadButton(
                            i18n("inpaint_load"),  # pyright: ignore[reportArgumentType]
                            elem_id="inpaint-load",
                            size="md",
                            min_width=120,
                        )
                with gr.Column(min_width=280):
                    result = viewing.view("inpaint", "inpaint-result")
                    again = gr.Button(i18n("inpaint_again"), elem_id="inpaint-again", size="md", visible=False)
            plan = gr.HTML(
                "{}",
                html_template="<p role='status'></p>",
                js_on_load=common.script("forecast.js"),
                apply_default_css=False,
                elem_id="inpaint-plan",
            )
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("inpaint_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("inpaint_try_button"), elem_id="inpaint-try", scale=0, min_width=96)
            ways_on = gr.Column(visible=False, min_width=0)
            honest = viewing.view("honest", "inpaint-honest")
            panel = pictures.panel(shared, "inpaint", run, stop)
        with ways_on:
            pictures.send_row(
                shared, "inpaint", panel.mine, blur, lambda one, owner, amount: pictures.made_of(blurred(one, amount, owner))
            )
            hint("inpaint_raw_trace")

    canvas = gr.State(None)  # a Canvas; or why the picture that came is on none
    controls = pictures.Controls(prompt, negative, guidance, steps, seed, scheduler)
    mask_controls = [area, padding, blur, strength, fill]

    def of(page: str | None, now: Canvas | str | None, area: str, padding, blur, strength, fill: str) -> Inpaint:
        return source_of(there(now), painted_on(page, now), strength, fill, area, padding, blur)

    def asked(page, now, area, padding, blur, strength, fill, name: str, *settings) -> Request:
        return pictures.request_of(of(page, now, area, padding, blur, strength, fill), name, *settings)

    def laid(image: Image.Image, name: str, owner: str | None, language: str) -> tuple[Canvas, dict]:
        """A picture on the canvas, and what `laid_out` says with it."""
        found = came_from(image, shared.kept(common.owner_of(owner)))
        words = list(words_of(found[1])) if found else []
        now = canvas_of(image, side_of(engine, name), found[0] if found else "")
        return now, {"words": words, "texts": texts.of(language, "mask_")}

    def place(path: str | None, name: str, owner: str | None, at: Canvas | str | None, request: gr.Request) -> dict:
        """What stands in the box goes on the canvas; if it came with a mask, with that."""
        language = common.language(request)
        try:
            if not path:
                raise ValueError("There is no picture to start from; choose one first.")
            opened = images.look_in(path)
            now, more = laid(opened.image, name, owner, language)
        except ValueError as error:
            said = {"kind": "none", "status": texts.sentence(language, error), "texts": texts.of(language, "mask_")}
            return {canvas: str(error), editor: common.packed(said)}
        note = " ".join(texts.sentence(language, notice) for notice in [fit_of(opened.image, now, language), *opened.notices])
        before = at if isinstance(at, Canvas) else None
        mask = before.mask.array > 0 if before and before.mask and before.picture == now.picture else None
        resized = before is not None and before.path == path  # by another model: what was painted goes along
        return {canvas: replace(now, path=path), editor: laid_out(now, mask=mask, note=note, resized=resized, **more)}

    def ran(now: Canvas | str | None, owner: str | None) -> tuple[Canvas, Trace]:
        """The canvas, and the run that made its picture."""
        at = there(now)
        if not at.run:
            raise ValueError("This picture is from no run that is kept, so no word has a map on it; paint by hand.")
        return at, shared.trace_of(at.run, owner)

    def from_word(now: Canvas | str | None, owner: str | None, event: gr.EventData, request: gr.Request) -> str:
        try:
            word, share = common.event_value(event, "word"), common.number_of(common.event_value(event, "share"))
            if not isinstance(share, int | float) or not 0 <= share <= 100:
                raise ValueError("The share of a map must be a number from 0 to 100; choose again.")
            at, trace = ran(now, owner)
            return mask_for(at, word_mask(trace, word, share / 100, at))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None

    def from_file(path: str, now: Canvas | str | None, request: gr.Request) -> str:
        language = common.language(request)
        try:
            at, opened = there(now), images.look_in(path)
            mask = images.open_mask(path, (at.picture.width, at.picture.height)) >= 0.5
        except ValueError as error:
            raise common.refusal(language, error) from None
        for notice in opened.notices:
            if "transparent" not in notice:  # of a mask, what is transparent is what is not painted
                gr.Info(html.escape(texts.sentence(language, notice)), title="", duration=6)
        return mask_for(at, mask)

    def foresee(page, now, area, padding, blur, strength, fill, name: str, request: gr.Request) -> str:
        """Under the editor: what a run would do. What is wrong is said when Run is pressed."""
        try:
            sd = engine.loaded(name)
            said = forecast(of(page, now, area, padding, blur, strength, fill), sd.factor if sd else 8, common.language(request))
        except ValueError as error:  # that nothing is painted stands above already
            said = {"says": "" if str(error) == images.UNPAINTED else texts.sentence(common.language(request), error)}
        return common.packed(said)

    def shown(trace: Trace, language: str) -> dict:
        return {
            result: common.packed(outcome(trace, language)),
            honest: common.packed(honesty(trace, language)),
            again: gr.update(visible=True),
            ways_on: gr.update(visible=True),
        }

    def unfinished(language: str) -> dict:
        nothing = common.packed({"kind": "none", "status": texts.say(language, "inpaint_no_run")})
        bare = common.packed({"kind": "none"})
        return {result: nothing, honest: bare, again: gr.update(visible=False), ways_on: gr.update(visible=False)}

    def blurred(one: str, amount, owner: str | None) -> Trace:
        """A finished inpainting as the blur that stands there now would have it: it acts after the run, so it can change after it."""
        trace = shared.trace_of(one, owner)
        source, _ = made_by(trace)
        return replace(trace, request=replace(trace.request, source=replace(source, blur=common.number_of(amount))))

    def reblur(one: str, amount, owner: str | None, request: gr.Request) -> dict:
        try:
            return shown(blurred(one, amount, owner), common.language(request))
        except ValueError:  # nothing to show yet, or half a number: Run says what is wrong with it
            return {result: gr.skip()}

    def go_on(one: str, amount, name: str, owner: str | None, request: gr.Request) -> dict:
        """The result becomes the picture to change next."""
        try:
            image = pictures.result_of(blurred(one, amount, owner))
            now, more = laid(image, name, owner, common.language(request))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        return {start: image, canvas: now, editor: laid_out(now, **more)}

    def remade(request: Request) -> dict:
        """What a run was made from, beside its picture and words."""
        source = request.source
        assert isinstance(source, Inpaint)
        now = Canvas(source.whole, source.picture.width, source.picture.height, mask=Pixels.of(source.hard.astype(np.uint8)))
        chosen = {area: WHOLE} if source.padding is None else {area: PART, padding: source.padding}
        numbers = {blur: f"{source.blur:g}", strength: f"{source.strength:g}"}
        return {canvas: now, editor: laid_out(now, mask=source.hard), fill: source.fill} | chosen | numbers

    def receive(handed: Handed | None, name: str, owner: str | None, request: gr.Request) -> dict:
        """A mask from the Attention tab, with the picture of its run."""
        if handed is None:
            return {start: gr.skip()}
        try:
            trace = shared.trace_of(handed.run, owner)
            image = pictures.result_of(trace)
            now, more = laid(image, name, owner, common.language(request))
            mask = put_on(trace, handed.mask.array, now)
            now = replace(now, mask=Pixels.of(mask.astype(np.uint8)))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        return {start: image, canvas: now, editor: laid_out(now, mask=mask, **more)} | controls.restored(trace.request)

    def attempted(now: Canvas | str | None, owner: str | None, request: gr.Request) -> dict:
        """The thing that the picture's words name, masked, and another in its place."""
        try:
            at, trace = ran(now, owner)
            thing = thing_of([word.strip() for word, _ in trace.tokens.words])
            mask = mask_for(at, word_mask(trace, thing, TRY_SHARE, at))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        other = "cat" if thing == "fox" else "fox"
        return controls.restored(trace.request) | {prompt: trace.request.prompt.replace(thing, other, 1), editor: mask}

    def arrive(name: str, mine: str, request: gr.Request) -> dict:
        language = common.language(request)
        nine = engine.allowed.get(name) == "inpaint"
        return {
            model_kind: texts.say(language, "inpaint_way_nine" if nine else "inpaint_way_four"),
            result: gr.skip() if mine else unfinished(language)[result],
        }

    judged = [result, honest, again, ways_on]
    run_inputs = [editor, canvas, *mask_controls, model, *controls.all]
    pictures.fill(
        shared, tab, start, controls, "inpaint", remade, [canvas, editor, *mask_controls], with_words=True, strength=strength
    )
    pictures.wire(shared, panel, asked, run_inputs, shown, judged, tab=tab, name="inpaint", unfinished=unfinished)
    start.change(place, [start, model, shared.owner, canvas], [canvas, editor], **LOOK)
    gr.on([tab.select, model.change], arrive, [model, panel.mine], [model_kind, result], **QUICK)
    model.change(place, [start, model, shared.owner, canvas], [canvas, editor], **LOOK)
    editor.word(from_word, [canvas, shared.owner], editor, **LOOK)
    load.upload(from_file, [load, canvas], editor, **LOOK)
    for event in (editor.stroke, area.change, padding.change):
        event(foresee, [editor, canvas, *mask_controls, model], plan, trigger_mode="always_last", **LOOK)
    area.change(lambda chosen: gr.update(visible=chosen == PART), area, padding, **QUICK)
    blur.change(reblur, [panel.mine, blur, shared.owner], judged, trigger_mode="always_last", **LOOK)
    again.click(go_on, [panel.mine, blur, model, shared.owner], [start, canvas, editor], **LOOK)
    tried = attempt.click(attempted, [canvas, shared.owner], [editor, *controls.all], **LOOK)
    tried.success(None, None, None, js="() => document.querySelector('#inpaint-go').click()", api_visibility="private")
    shared.mask.change(receive, [shared.mask, model, shared.owner], [start, canvas, editor, *controls.all], **LOOK)
    endpoint(engine)


def endpoint(engine: LocalEngine) -> None:
    """The tab's public endpoint, with files. Its values come raw, so that a wrong one meets core's own sentence."""
    names = [one for role in ROLES for one in engine.for_role(role)]

    @pictures.public
    def inpaint(
        picture,
        mask,
        prompt,
        negative,
        strength,
        fill,
        padding,
        blur,
        seed,
        steps,
        guidance,
        scheduler,
        model,
        request: gr.Request,
    ):
        """A part of a picture made anew. The mask is a picture of its own, white where to change, fitted to the picture's shape; padding
        (pixels) draws the masked part alone, null all of it. Answers with the composited picture, which outside the blurred mask is the
        original to the bit, its settings in a text chunk of the PNG; with the raw picture; and with everything that made it as JSON."""
        model = pictures.known(model, names)
        if not picture:
            raise ValueError("There is no picture to start from; choose one first.")
        opened = images.look_in(picture)
        now = canvas_of(opened.image, side_of(engine, model))
        painted = images.open_mask(mask, (now.picture.width, now.picture.height)) >= 0.5
        source = conditioning.inpainting(
            now.picture, painted, now.width, now.height, padding=padding, strength=strength, fill=fill, blur=blur
        )
        wanted = Request(prompt, negative, seed, steps, guidance, scheduler, model=model, source=source)
        trace = pictures.drawn(engine, wanted, request)
        raw = Image.fromarray(source.put_back(made_by(trace)[1]))
        notices = [fit_of(opened.image, now, "en"), *opened.notices]
        return render.signed(trace, pictures.result_of(trace)), raw, {**trace.settings(), "notices": notices}

    fields, own = Request.__dataclass_fields__, Inpaint.__dataclass_fields__
    kinds = {
        "strength": "number",
        "padding": "integer",
        "blur": "number",
        "seed": "integer",
        "steps": "integer",
        "guidance": "number",
    }
    with gr.Row(visible=False):
        raw = [gr.File(label="picture"), gr.File(label="mask"), Api("", {"type": "string"})]
        for name in ("negative", "strength", "fill", "padding", "blur", "seed", "steps", "guidance", "scheduler"):
            raw.append(Api((fields | own)[name].default, {"type": kinds.get(name, "string")}))
        raw.append(Api(names[0] if names else "", {"type": "string"}))
        answer = [gr.Image(format="png", label="picture"), gr.Image(format="png", label="raw"), gr.JSON(label="settings")]
        gr.Button().click(inpaint, raw, answer, api_name="inpaint", concurrency_id="watch", concurrency_limit=common.WATCHERS)
