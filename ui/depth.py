"""What does a depth map keep of a picture?

The UNet of a depth model sees one channel more: how near each place is. So the layout of a picture stays however strong the noise is,
and its colours and things may go. The same settings without that channel, by the base model, stand beside it.
"""

import base64
import html
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import gradio as gr
import numpy as np
from gradio.components.api_component import Api
from PIL import Image
from torch import Tensor

from core import depth, images
from core.attention import Record
from core.catalog import CATALOG
from core.conditioning import Depth, Pixels, Source
from core.engine import ENDED, LocalEngine, Snapshot
from core.models import StableDiffusion
from core.sampling import Request
from core.trace import Trace
from ui import common, parts, pictures, render, texts, viewing
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n

TITLE = "tab_depth"
PROMPT = "a fox on a yellow background"  # another thing, in other colours, with nothing of the example's layout
ESTIMATE, UPLOAD, BLANK = "estimate", "upload", "blank"  # where a map comes from, beside "picture:{run}" and "map:{run}"
SAID = {  # what is said of a map by where it comes from
    ESTIMATE: "depth_from_estimate",
    UPLOAD: "depth_from_upload",
    BLANK: "depth_from_blank",
    "picture": "depth_from_picture",
    "map": "depth_from_map",
}
WHICH = ("depth_with", "depth_without")
LARGEST = 1024  # numbers along a map's side


# --- the map: plain Python, nothing of gradio -----------------------------------------------------------------------------------------


def nearness(map_picture: Image.Image, picture: Image.Image) -> np.ndarray:
    """An uploaded map at the picture's size, (H, W) in 0 .. 1. The rule: light is near, so white is nearest and black farthest; of a
    coloured picture its luminance (ITU-R 601). Of another shape, it is cut to the picture's around the middle."""
    return np.asarray(images.cover(map_picture.convert("L"), *picture.size), np.float32) / 255


def estimated(engine: LocalEngine, model: str, picture: Image.Image, owner: str) -> np.ndarray:
    """The model's own guess, (h', w') float32, larger = nearer. Waits for a turn of the model."""
    return engine.ask(model, lambda sd: depth.estimate(sd, Pixels.of(picture).tensor())[0].cpu().numpy(), owner)


def view(picture: Image.Image, numbers: np.ndarray, origin: str, factor: int, language: str) -> dict:
    """What ui/depth.js shows. of: the name of the picture that the map was estimated from, "" if it stands for itself."""
    kind = origin.partition(":")[0]
    low, high = float(numbers.min()), float(numbers.max())
    if kind in (UPLOAD, BLANK):
        low, high = 0.0, 1.0
    elif low == high:  # so that it can be painted on at all
        low, high = low - 0.5, high + 0.5
    return {
        "kind": "map",
        "when": time.time(),  # the same map once more undoes what was painted
        "of": Pixels.of(picture).name if kind == ESTIMATE else "",
        "picture": render.uri(picture, "PNG"),
        "width": picture.width,
        "height": picture.height,
        "map": render.numbers_of(numbers, low, high),
        "seen": [picture.height // factor, picture.width // factor],
        "said": texts.say(language, SAID[kind]),
        "start": texts.say(language, "start"),
        "texts": texts.of(language, "depth_"),
    }


def map_on(page: str | None, picture: Pixels) -> Pixels | None:
    """The map that stands on the page, painted and inverted as it is; None if it has none for this picture, and core estimates one.

    Raises ValueError if it is no map: it came from outside.
    """
    try:
        value = json.loads(page or "{}")
        if value.get("kind") != "map" or value["of"] not in ("", picture.name):
            return None
        sent = value["map"]
        h, w = int(sent["h"]), int(sent["w"])
        numbers = np.frombuffer(base64.b64decode(sent["data"], validate=True), np.float32).reshape(h, w)
        if not (2 <= h <= LARGEST and 2 <= w <= LARGEST and np.isfinite(numbers).all()):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("The depth map on the page cannot be read; choose again where it comes from.") from error
    return Pixels.of(numbers)


def origins(runs: list[tuple[str, Trace]], shown: str, uploaded: bool, language: str) -> list[tuple[str, str]]:
    """Where a map can come from, as a menu: (line, origin)."""
    found = [(texts.say(language, "depth_estimate"), ESTIMATE)]
    found += [(texts.say(language, "depth_upload_choice"), UPLOAD)] if uploaded else []
    for one, trace in runs:
        if one == shown and trace.picture is not None:
            found.append((texts.say(language, "depth_of_picture", run=common.run_name(one, trace, language)), f"picture:{one}"))
        if isinstance(trace.request.source, Depth):
            found.append((texts.say(language, "depth_of_run", run=common.run_name(one, trace, language)), f"map:{one}"))
    return [*found, (texts.say(language, "depth_blank"), BLANK)]


# --- the two runs ---------------------------------------------------------------------------------------------------------------------


def request_of(page: str | None, picture: Image.Image, strength: object, model: str, *settings) -> Request:
    """The page's values as a request for a depth run. settings: as pictures.request_of's, from the prompt on."""
    start = Pixels.of(picture)
    source = Depth(start, common.number_of(strength), map_on(page, start))  # pyright: ignore[reportArgumentType]
    return pictures.request_of(source, model, *settings)


def without_depth(asked: Request, model: str, picture: Image.Image | None = None) -> Request:
    """The same by img2img with a base model, seed, words, steps, guidance, scheduler and strength alike. picture: at that model's size."""
    source = asked.source
    assert isinstance(source, Depth)
    return replace(asked, model=model, source=Source(Pixels.of(picture) if picture else source.picture, source.strength))


@dataclass(frozen=True)
class Judged:
    """What the depth model says of the pictures that came out."""

    asked: Tensor  # the map that was asked, (h, w)
    again: tuple[Tensor | None, ...]  # estimated of each result, (h', w'); None of one that was stopped
    agreement: tuple[float | None, ...]  # of each with the one asked, -1 .. 1


def judge(engine: LocalEngine, asked: Request, traces: list[Trace], owner: str) -> Judged:
    """Estimates the depth of the results and compares. Waits for a turn of the depth model."""
    source = asked.source
    assert isinstance(source, Depth)

    def question(sd: StableDiffusion) -> Judged:
        def look(picture: Tensor) -> Tensor:
            return depth.estimate(sd, Pixels.of(picture.movedim(0, -1).numpy()).tensor())[0].cpu()

        wanted = depth.estimate(sd, source.picture.tensor())[0].cpu() if source.depth is None else source.depth.tensor()[0, 0]
        again = tuple(None if trace.picture is None else look(trace.picture) for trace in traces)
        return Judged(wanted, again, tuple(None if d is None else depth.agreement(wanted, d) for d in again))

    return engine.ask(asked.model, question, owner)


# --- what came out, as HTML -------------------------------------------------------------------------------------------------------------


def grey_image(numbers: Tensor | np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A map as a picture of `size` (width, height), its nearest white and its farthest black."""
    v = render.numbers(numbers)
    span = float(v.max() - v.min()) or 1.0
    image = Image.fromarray(np.round(255 * (v - v.min()) / span).astype(np.uint8))
    return image.resize(size, Image.Resampling.BICUBIC)


def grey(numbers: Tensor | np.ndarray, size: tuple[int, int]) -> str:
    return render.uri(grey_image(numbers, size), "PNG")


def signed(x: float) -> str:
    return f"{x:.2f}".replace("-", "−")


def column(title: str, line: str, inside: str) -> str:
    return f"<section><header><h4>{html.escape(title)}</h4><p>{html.escape(line)}</p></header>{inside}</section>"


@dataclass(frozen=True)
class Board:
    """The start, the run with depth and the run without, side by side, from the first step on to the comparison: in each column a picture,
    and a depth map under it."""

    asked: Request
    plain: Request  # without depth
    language: str

    def say(self, key: str, **values: object) -> str:
        return texts.say(self.language, key, **values)

    def start(self, judged: Judged | None) -> str:
        source = self.asked.source
        assert isinstance(source, Depth)
        figures = [(render.uri(source.picture.image, "PNG"), self.say("start"), "")]
        asked = source.depth.tensor()[0, 0] if source.depth else judged.asked if judged else None
        if asked is not None:
            figures.append((grey(asked, source.picture.image.size), self.say("depth_asked"), ""))
        strength = self.say("img2img_strength_is", strength=f"{source.strength:g}")
        return column(self.say("depth_start"), strength, parts.figures(figures))

    def going(self, k: int, snapshot: Snapshot | None) -> str:
        """A run that waits, or its newest guess."""
        inside = '<div class="blank"></div>'
        if snapshot and snapshot.preview is not None:
            picture = render.uri(render.picture(snapshot.preview).image)
            inside = parts.figures([(picture, self.say("view_x0"), f"{snapshot.i} / {snapshot.count}")])
        return column(self.say(WHICH[k]), self.model(k), inside)

    def done(self, k: int, one: str, trace: Trace, judged: Judged | None) -> str:
        if trace.picture is None:
            figures = [(render.thumbnail(trace), self.say("runs_stopped"), "")]
        else:
            ran = self.say("depth_ran", ran=len(trace), steps=trace.request.steps)
            figures = [(render.png_uri(trace), self.say("depth_result"), ran)]
            if judged and (again := judged.again[k]) is not None and (score := judged.agreement[k]) is not None:
                height, width = trace.picture.shape[1:]
                agreement = self.say("depth_agreement", value=signed(score))
                figures.append((grey(again, (width, height)), self.say("depth_estimated_again"), agreement))
        look = f'<button type="button" data-act="open" data-job="{one}">{html.escape(self.say("depth_open"))}</button>'
        return column(self.say(WHICH[k]), self.model(k), parts.figures(figures) + look)

    def model(self, k: int) -> str:
        return common.title_of((self.asked, self.plain)[k].model)

    def page(self, status: str, columns: list[str], share: float | None = None, verdict: tuple[str, ...] = ()) -> str:
        meter = "" if share is None else f'<div class="meter"><i style="width:{100 * share:.0f}%"></i></div>'
        note = "".join(f'<p class="verdict">{html.escape(line)}</p>' for line in verdict)
        said = f'<p class="said" role="status">{html.escape(status)}</p>{meter}'
        return f'<div class="board">{said}<div class="columns">{"".join(columns)}</div>{note}</div>'

    def verdict(self, judged: Judged) -> tuple[str, ...]:
        """What the two figures say, and what they are."""
        a, b = judged.agreement
        if a is None or b is None:
            return ()
        near = abs(a - b) < 0.05
        key = "depth_kept_alike" if near else "depth_kept_more" if a > b else "depth_kept_less"
        return self.say(key, a=signed(a), b=signed(b)), self.say("depth_what_agreement")


# --- the page ---------------------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine = shared.engine
    first = Request(PROMPT, seed=1, guidance=5.0)
    common.heading("depth")
    with gr.Row(elem_classes="tab-body", elem_id="depth-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            picture = pictures.box("depth")
            note = gr.Column(min_width=0)
            prompt, negative = pictures.words("depth", first)
            run, stop = pictures.panel_buttons("depth")
            hint("depth_run_says")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            strength = common.number(0.8, 0, 1, 0.05, "strength_label", "depth-strength")
            hint("depth_strength_says")
            guidance, steps, seed, scheduler = pictures.settings(shared, "depth", first)
            pictures.off("depth", strength, scheduler)
            model = pictures.model_menu(shared, "depth", ["depth"])
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            with gr.Row(elem_classes="section-controls", elem_id="depth-sources"):
                origin = gr.Dropdown(
                    [(i18n("depth_estimate"), ESTIMATE), (i18n("depth_blank"), BLANK)],
                    value=ESTIMATE,
                    label=i18n("depth_origin"),
                    filterable=False,
                    elem_id="depth-origin",
                    min_width=280,
                    scale=2,
                )
                upload = gr.UploadButton(
                    i18n("depth_upload"),  # pyright: ignore[reportArgumentType]
                    elem_id="depth-upload",
                    size="md",
                    min_width=160,
                )
            hint("depth_upload_says")
            easel = viewing.view("depth", "depth-easel")
            hint("depth_no_picture")  # seen while there is none
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("depth_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("depth_try_button"), elem_id="depth-try", scale=0, min_width=96)
            board = gr.HTML(
                "",
                html_template="<div>${value}</div>",
                js_on_load=common.script("depth_board.js"),
                apply_default_css=False,
                elem_id="depth-board",
            )
            with gr.Column(visible=False, elem_id="depth-more") as more:
                gr.HTML(i18n("depth_slider"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")
                slider = gr.ImageSlider(show_label=False, interactive=False, buttons=[], format="png", elem_id="depth-slider")
                mine = gr.State("")  # the newest depth run
                pictures.send_row(shared, "depth", mine)
                viewer = viewing.viewer("depth-viewer")

    jobs = gr.State(())  # the two runs that Stop stops
    opened = gr.State(False)  # in this window
    own = gr.State(None)  # an uploaded map's picture
    controls = pictures.Controls(prompt, negative, guidance, steps, seed, scheduler)
    busy = {run: gr.update(visible=False), stop: gr.update(visible=True)}
    idle = {run: gr.update(visible=True), stop: gr.update(visible=False)}

    def found(where: str, at: Image.Image, mine: Image.Image | None, name: str, owner: str) -> np.ndarray:
        """The map that an origin names."""
        kind, _, one = where.partition(":")
        if kind == UPLOAD and mine is not None:
            return nearness(mine, at)
        if kind == BLANK:
            return np.full((at.height, at.width), 0.5, np.float32)
        if kind not in ("picture", "map"):
            return estimated(engine, name, at, owner)
        trace = shared.trace_of(one, owner)
        source = trace.request.source
        if kind == "map" and isinstance(source, Depth) and source.depth is not None:
            return source.depth.tensor()[0, 0].numpy()
        other = source.picture.image if kind == "map" and source is not None else pictures.result_of(trace)
        return estimated(engine, name, other, owner)

    def show(
        path: str | None, name: str, where: str, mine: Image.Image | None, owner: str | None, request: gr.Request
    ) -> Iterator[str]:
        """The map of what stands in the box."""
        language, owner = common.language(request), common.owner_of(owner)
        try:
            if not path:
                yield parts.said("")
                return
            yield parts.said(texts.say(language, "depth_estimating" if engine.loaded(name) else "status_loading"))
            sd = engine.model(name)
            at = pictures.fitted(path, sd.size).image
            yield common.packed(view(at, found(where, at, mine, name, owner), where, sd.factor, language))
        except ValueError as error:
            yield parts.said(texts.sentence(language, error))

    def take(path: str, owner: str | None, shown: str, request: gr.Request) -> dict:
        language = common.language(request)
        try:
            opened = images.look_in(path)
        except ValueError as error:
            raise common.refusal(language, error) from None
        opened.image.thumbnail((LARGEST, LARGEST))
        choices = origins(shared.kept(common.owner_of(owner)), shown, True, language)
        return {own: opened.image, origin: gr.Dropdown(choices=choices, value=UPLOAD)}

    def menu(owner: str | None, shown: str, mine: Image.Image | None, now: str, request: gr.Request) -> dict:
        choices = origins(shared.kept(common.owner_of(owner)), shown, mine is not None, common.language(request))
        if now in dict(choices).values():
            return {origin: gr.Dropdown(choices=choices)}
        return {origin: gr.Dropdown(choices=choices, value=ESTIMATE)}

    def again(sent: pictures.Sent | None, owner: str | None, mine: Image.Image | None, request: gr.Request) -> dict:
        """A depth run that is to be made again brings its map along."""
        trace = dict(shared.kept(common.owner_of(owner))).get(sent.run) if sent and not sent.made else None
        if sent is None or trace is None or not isinstance(trace.request.source, Depth):
            return {origin: gr.skip()}
        choices = origins(shared.kept(common.owner_of(owner)), sent.run, mine is not None, common.language(request))
        return {origin: gr.Dropdown(choices=choices, value=f"map:{sent.run}")}

    def asked_of(path: str | None, name: str, base: str, page: str | None, amount: str, *settings) -> tuple[Request, Request]:
        sides = engine.model(name).size, engine.model(base).size
        asked = request_of(page, pictures.fitted(path, sides[0]).image, amount, name, *settings)
        return asked, without_depth(asked, base, pictures.fitted(path, sides[1]).image)

    def draw(request: gr.Request, owner: str | None, before: str, path: str | None, name: str, *values) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        queued: list[str] = []
        if not (engine.loaded(name) and engine.loaded(values[0])):
            yield busy  # loading takes its time
        try:
            wanted = asked_of(path, name, *values)
            for one in wanted:
                queued.append(engine.submit(one, owner, Record()))
        except ValueError as error:
            halt(tuple(queued))
            yield idle
            raise common.refusal(language, error) from None
        yield from watch(tuple(queued), Board(*wanted, language), owner, before, language)

    def watch(queued: tuple[str, ...], page: Board, owner: str, before: str, language: str) -> Iterator[dict]:
        """Follows both runs to their end, then compares. After a reload it may be the first alone. before: the run on the board."""
        columns = [page.start(None), page.going(0, None), page.going(1, None)]
        yield busy | {jobs: queued, shared.owner: owner, more: gr.update(visible=False)}
        try:
            traces: list[Trace] = []
            for k, one in enumerate(queued):
                snapshot = None
                for snapshot in engine.events(one):
                    if snapshot.state not in ENDED:
                        columns[k + 1] = page.going(k, snapshot)
                        share = snapshot.i / snapshot.count if snapshot.count else 0
                        status = f"{page.say(WHICH[k])}. {viewing.status_of(snapshot, language, from_picture=True)}"
                        yield {board: page.page(status, columns, share)}
                if snapshot and snapshot.state == "stopped" and not snapshot.i:
                    break  # there is nothing of it to look at
                traces.append(engine.result(one))
                columns[k + 1] = page.done(k, one, traces[k], None)
            if not traces:
                yield idle | {board: page.page(texts.say(language, "status_stopped_early"), [])}
                return
            yield {board: page.page(texts.say(language, "depth_judging"), columns, 1)}
            yield idle | over(queued, page, traces, owner, language)
        except ValueError as error:
            halt(queued)
            yield idle | back(before, owner, language)
            raise common.refusal(language, error) from None

    def over(queued: tuple[str, ...], page: Board, traces: list[Trace], owner: str, language: str) -> dict:
        """The board of runs that have ended, compared."""
        judged = judge(engine, page.asked, traces, owner)
        columns = [page.start(judged), page.going(0, None), page.going(1, None)]
        for k, trace in enumerate(traces):
            columns[k + 1] = page.done(k, queued[k], trace, judged)
        both = len(traces) == 2 and not any(trace.stopped for trace in traces)
        status = texts.say(language, "depth_done" if both else "depth_stopped", seconds=f"{sum(t.seconds for t in traces):.1f}")
        now = {board: page.page(status, columns, None, page.verdict(judged) if both else ()), shared.shown: queued[0]}
        if traces[0].picture is not None:
            start = page.asked.source
            assert start is not None
            now |= {more: gr.update(visible=True), slider: (start.picture.image, pictures.result_of(traces[0]))}
        return now | {mine: queued[0], viewer: common.packed(viewing.finished(traces[0], queued[0], language))}

    def ended(one: str, owner: str, language: str) -> dict:
        """The board of a depth run that is kept, with its partner if that is kept too. Raises ValueError for any other run."""
        runs = dict(shared.kept(owner))
        trace = shared.trace_of(one, owner)
        if not isinstance(trace.request.source, Depth):
            raise ValueError("This run is no depth run; choose another.")
        asked = trace.request
        partner = next((k for k, other in runs.items() if other.request == without_depth(asked, other.request.model)), None)
        both = (one, partner) if partner else (one,)
        plain = runs[partner].request if partner else without_depth(asked, shared.default)
        return over(both, Board(asked, plain, language), [runs[k] for k in both], owner, language)

    def back(before: str, owner: str, language: str) -> dict:
        """What the board showed before a run that was refused."""
        try:
            return ended(before, owner, language)
        except ValueError:
            return {board: ""}

    def come_back(owner: str | None, was_open: bool, shown: str, before: str, request: gr.Request) -> Iterator[dict]:
        """A page that was reloaded finds its runs again while they go on; and a depth run that is looked at is shown."""
        language, owner = common.language(request), common.owner_of(owner)
        yield {opened: True}
        mine_now = [] if was_open else engine.mine(owner)  # later on, what goes on is another window's
        here = [one for one in mine_now if (now := engine.snapshot(one)) and now.state not in ENDED]
        asked = {one: engine.request(one) for one in here}
        first_run = next((one for one in here if isinstance(asked[one].source, Depth)), None)
        if first_run is None:
            if shown != before:
                with suppress(ValueError):  # it is none, or no longer kept
                    yield ended(shown, owner, language)
            return
        partner = next((one for one in here if (r := asked[one]) == without_depth(asked[first_run], r.model)), None)
        both = (first_run, partner) if partner else (first_run,)
        plain_request = asked[partner] if partner else without_depth(asked[first_run], shared.default)
        source = asked[first_run].source
        assert isinstance(source, Depth)
        yield controls.restored(asked[first_run]) | {picture: source.picture.image, strength: f"{source.strength:g}"}
        yield from watch(both, Board(asked[first_run], plain_request, language), owner, before, language)
        choices = origins(shared.kept(owner), first_run, False, language)
        if (
            source.depth is not None and f"map:{first_run}" in dict(choices).values()
        ):  # its own map comes back, now that it is kept
            yield {origin: gr.Dropdown(choices=choices, value=f"map:{first_run}")}

    def halt(going: tuple[str, ...]) -> None:
        for one in going:
            with suppress(ValueError):  # over already
                engine.cancel(one)

    def look(owner: str | None, event: gr.EventData, request: gr.Request) -> dict:
        """One of the two runs becomes the run of all tabs, and is shown step by step under them."""
        language, one = common.language(request), common.event_value(event, "job")
        try:
            trace = shared.trace_of(one, owner)
        except ValueError as error:
            raise common.refusal(language, error) from None
        return {shared.shown: one, viewer: common.packed(viewing.finished(trace, one, language)), more: gr.update(visible=True)}

    def restore(owner: str | None, event: gr.EventData, request: gr.Request) -> dict:
        """The viewer's "Use its settings": here for a depth run, in its own tab for the one without."""
        one = common.event_value(event, "job")
        try:
            kind = pictures.kind_of(shared.trace_of(one, owner).request)
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        sent = pictures.Sent(kind, one, time.time())
        return {shared.sent: sent} if kind == "depth" else pictures.sending(shared, sent)

    shows = [picture, model, origin, own, shared.owner]
    with note:
        pictures.note(shared, "depth", picture, model)
    arrived = pictures.fill(
        shared,
        tab,
        picture,
        controls,
        "depth",
        lambda r: {strength: f"{r.source.strength:g}"} if r.source else {},
        [strength],
        strength=strength,
    )
    gr.on([tab.select, shared.shown.change], menu, [shared.owner, shared.shown, own, origin], origin, **QUICK)
    arrived.success(again, [shared.sent, shared.owner, own], origin, **LOOK)
    upload.upload(take, [upload, shared.owner, shared.shown], [own, origin], **LOOK)
    # One event for all, so that the last one asked for is the one that stays.
    changes = [picture.change, model.change, origin.change, own.change]
    gr.on(changes, show, shows, easel, trigger_mode="always_last", **WATCH)
    drawing = [shared.owner, mine, picture, model, shared.model, easel, strength, *controls.all]
    seen = [run, stop, jobs, board, more, slider, viewer, mine, shared.owner, shared.shown]
    run.click(draw, drawing, seen, **WATCH)
    stop.click(halt, jobs, None, **QUICK)
    found_again = [*seen, opened, picture, origin, strength, *controls.all]
    tab.select(come_back, [shared.owner, opened, shared.shown, mine], found_again, **WATCH)
    board.pick(look, shared.owner, [shared.shown, viewer, more], **LOOK)
    viewer.pick(restore, shared.owner, [shared.sent, shared.shown, shared.tabs], **LOOK)
    attempt.click(lambda: "1", None, strength, **QUICK).then(draw, drawing, seen, **WATCH)
    endpoint(engine)


def endpoint(engine: LocalEngine) -> None:
    """The tab's public endpoint, with files. Its values come raw, so that a wrong one meets core's own sentence."""
    models = engine.for_role("depth")
    name = next((one for one in models if one in CATALOG and CATALOG[one].embedded), models[0] if models else "")

    @pictures.public
    def depth_of(
        picture, depth_map, invert, prompt, negative, strength, seed, steps, guidance, scheduler, model, request: gr.Request
    ):
        """A picture with the depth of another. Without a depth map it is estimated; in one, white is near, or far with invert.

        Answers with the picture, its settings in a text chunk of the PNG; with the map that it followed, near is white; and with
        everything that made it as JSON. There, depth_agreement is the rank correlation, -1 .. 1, of the depth of the result with the one
        asked."""
        model = pictures.known(model, models)
        owner, start = pictures.caller(request), pictures.fitted(picture, engine.model(model).size)
        at = start.image
        numbers = nearness(images.look_in(depth_map).image, at) if depth_map else estimated(engine, model, at, owner)
        numbers = numbers.max() + numbers.min() - numbers if invert else numbers
        source = Depth(Pixels.of(at), strength, Pixels.of(numbers))
        wanted = Request(prompt, negative, seed, steps, guidance, scheduler, model=model, source=source)
        trace = pictures.drawn(engine, wanted, request)
        (agreement,) = judge(engine, wanted, [trace], owner).agreement
        notices = [start.said("en"), *start.notices]
        return (
            render.signed(trace),
            grey_image(numbers, at.size),
            {**trace.settings(), "depth_agreement": agreement, "notices": notices},
        )

    fields = Request.__dataclass_fields__
    kinds = {"seed": "integer", "steps": "integer", "guidance": "number"}
    raw = [
        gr.File(label="picture", visible=False),
        gr.File(label="depth_map", visible=False),
        Api(False, {"type": "boolean"}),
        Api(PROMPT, {"type": "string"}),
    ]
    raw += [Api("", {"type": "string"}), Api(0.8, {"type": "number"})]
    raw += [Api(fields[n].default, {"type": kinds.get(n, "string")}) for n in ("seed", "steps", "guidance", "scheduler")]
    raw.append(Api(name, {"type": "string"}))
    with gr.Row(visible=False):
        answer = [gr.Image(format="png", label="picture"), gr.Image(format="png", label="depth_map"), gr.JSON(label="settings")]
        gr.Button().click(depth_of, raw, answer, api_name="depth", concurrency_id="watch", concurrency_limit=common.WATCHERS)
