"""What the tabs that start from a picture share: the picture, words and settings, a run that is watched, and the way to the next tab."""

import html
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.events import Dependency
from PIL import Image

from core import images
from core.attention import Record
from core.catalog import CATALOG
from core.conditioning import Inpaint, Pixels, Source
from core.engine import ENDED, LocalEngine
from core.sampling import Request
from core.schedulers import SCHEDULERS
from core.trace import Trace
from ui import common, render, texts, trained, viewing
from ui.common import LOOK, QUICK, WATCH, Shared, i18n

OFF = {"LMS": "pictures_off_lms", "PNDM": "pictures_off_pndm"}  # schedulers that go wrong when they begin in the middle
TABS = ("img2img", "inpaint", "depth", "upscale")  # that take a picture from others; each is named as its kind of source


@dataclass(frozen=True)
class Made:
    """A picture as a tab shows it, and what was asked for."""

    picture: Pixels  # not Pillow's, which has no hash: Gradio asks every state for one
    request: Request


@dataclass(frozen=True)
class Sent:
    """On its way to a tab: a picture, to go on from; or without one, all that a run was made from, to make it again."""

    tab: str  # one of TABS
    run: str  # its id; "" of a picture that no single run made, as one of tiles
    when: float  # so that the same run sent twice is two sendings
    made: Made | None = field(default=None, repr=False)  # Gradio tells by the repr whether it is another one


# --- the picture ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A picture from outside at the size that a model works at, and what that took."""

    image: Image.Image  # RGB, each side a multiple of 8
    whole: tuple[int, int]  # width and height as it came
    kept: tuple[float, ...]  # left, top, right, bottom: the part of it that `image` is
    notices: tuple[str, ...]  # what else was done to it, a sentence each

    def said(self, language: str) -> str:
        """The size that it came in and the one that it is worked on, and what was cut off."""
        return fit_said(self.whole, self.kept, self.image.size, language)


def fit_said(whole: tuple[int, int], kept: tuple[float, ...], size: tuple[int, int], language: str) -> str:
    """The size that a picture came in, the one that it is worked on, and what was cut off; kept: as in `Fitted`."""
    left, top = kept[:2]
    side, cut = ("sides", left) if left >= 0.05 else ("ends", top) if top >= 0.05 else ("whole", 0.0)
    facts = {"w": whole[0], "h": whole[1], "width": size[0], "height": size[1], "cut": f"{cut:.1f}"}
    return texts.say(language, f"pictures_fit_{side}", **facts)


def box(name: str) -> gr.Image:
    """The picture that a tab starts from, as its file, untouched: `fitted` opens it. Uploaded, dropped or pasted; or another run's."""
    made = gr.Image(
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        buttons=[],
        label=i18n("start"),
        elem_id=f"{name}-picture",
        elem_classes="start-picture",
        height=280,
    )
    return as_files(made)


def as_files(made: gr.Image) -> gr.Image:
    """The component hands over the file's path and nothing else. Gradio would open the file by itself, and say Pillow's words of it."""
    made.preprocess = lambda payload: payload.path if payload else None  # pyright: ignore[reportAttributeAccessIssue]
    return made


@lru_cache(maxsize=32)  # Gradio names an upload by its content; what is kept is small
def fitted(path: str | None, side: int) -> Fitted:
    """The picture in a box, at the size that a model of `side` x `side` pixels works at.

    Raises ValueError if there is none, or it is refused.
    """
    if not path:
        raise ValueError("There is no picture to start from; choose one first.")
    opened = images.look_in(path)
    image, kept = images.fitted(opened.image, *images.size_for(opened.image, side))
    return Fitted(image, opened.image.size, kept, opened.notices)


def result_of(trace: Trace) -> Image.Image:
    """A run's finished picture; of an inpainting the composited one. Raises ValueError if it was stopped before."""
    if trace.picture is None:
        raise ValueError("A stopped run has no finished picture; choose another.")
    image, source = render.picture(trace.picture).image, trace.request.source
    return Image.fromarray(source.composited(np.asarray(image))) if isinstance(source, Inpaint) else image


def made_of(trace: Trace) -> Made:
    """A finished run's picture. Raises ValueError as result_of does."""
    return Made(Pixels.of(result_of(trace)), trace.request)


def note_html(path: str | None, side: int, language: str) -> str:
    """What was done to the picture in a box, or why it is refused, as HTML; nothing for an empty box."""
    if not path:
        return ""
    try:
        found = fitted(path, side)
    except ValueError as error:
        return f'<p class="refused">{html.escape(texts.sentence(language, error))}</p>'
    said = [found.said(language), *(texts.sentence(language, notice) for notice in found.notices)]
    with suppress(ValueError):
        if prompt := images.read_settings(path).get("prompt"):
            said.append(texts.say(language, "pictures_ours", prompt=str(prompt)[:200]))
    return "".join(f"<p>{html.escape(line)}</p>" for line in said)


def note(shared: Shared, name: str, start: gr.Image, model: gr.Dropdown) -> gr.HTML:
    """The line under a box that says what was done to its picture. It is laid out where this is called."""
    line = gr.HTML(apply_default_css=False, elem_id=f"{name}-note", elem_classes="start-note")

    def tell(path: str | None, name: str, request: gr.Request) -> str:
        try:
            return note_html(path, shared.engine.model(name).size, common.language(request))
        except ValueError:
            return ""  # the model is not here; Run says so

    gr.on([start.change, model.change], tell, [start, model], line, trigger_mode="always_last", **LOOK)
    return line


# --- words and settings -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Controls:
    """A tab's words and settings, in the order of `request_of`."""

    prompt: gr.Textbox
    negative: gr.Textbox
    guidance: gr.HTML
    steps: gr.HTML
    seed: gr.Number
    scheduler: gr.Dropdown
    of_upscaler: bool = False

    @property
    def all(self) -> list[Component]:
        return [self.prompt, self.negative, self.guidance, self.steps, self.seed, self.scheduler]

    def restored(self, r: Request) -> dict:
        """All set to a request's; but a guidance that is good for an upscaler is good for no other model, nor the other way round."""
        found = dict(zip(self.all, [r.prompt, r.negative, f"{r.guidance:g}", f"{r.steps}", r.seed, r.scheduler], strict=True))
        if (kind_of(r) == "upscale") != self.of_upscaler:
            del found[self.guidance]
        return found


def words(name: str, first: Request) -> tuple[gr.Textbox, gr.Textbox]:
    classes = {"elem_classes": "runs-on-enter"}
    prompt = gr.Textbox(first.prompt, label=i18n("prompt"), lines=2, max_lines=6, elem_id=f"{name}-prompt", **classes)
    with gr.Accordion(i18n("negative"), open=False):
        negative = gr.Textbox(first.negative, show_label=False, lines=1, max_lines=4, elem_id=f"{name}-negative", **classes)
    return prompt, negative


def settings(shared: Shared, name: str, first: Request) -> tuple[gr.HTML, gr.HTML, gr.Number, gr.Dropdown]:
    guidance = common.number(first.guidance, 0, 30, 0.1, "guidance", f"{name}-guidance")
    steps = common.number(first.steps, 1, 100, 1, "steps", f"{name}-steps")
    seed = common.seed(shared, first.seed, f"{name}-")
    scheduler = gr.Dropdown(
        list(SCHEDULERS), value=first.scheduler, label=i18n("scheduler"), filterable=False, elem_id=f"{name}-scheduler"
    )
    return guidance, steps, seed, scheduler


def off(name: str, strength: gr.HTML, scheduler: gr.Dropdown) -> None:
    """A line that says where a scheduler is as wrong from a picture as diffusers' own: docs/decisions.md has the measurement."""
    line = gr.HTML(apply_default_css=False, elem_id=f"{name}-off", elem_classes="hint off")

    def tell(strength: object, scheduler: str, request: gr.Request) -> str:
        number = common.number_of(strength)
        wrong = scheduler in OFF and isinstance(number, int | float) and 0 < number < 1
        return f"<p>{html.escape(texts.say(common.language(request), OFF[scheduler]))}</p>" if wrong else ""

    gr.on([strength.change, scheduler.change], tell, [strength, scheduler], line, trigger_mode="always_last", **QUICK)


def request_of(source: Source, model: str, prompt: str, negative: str, guidance, steps, seed, scheduler: str) -> Request:
    """The controls' values as a request. An empty seed is a new one. Nothing is rounded or clamped."""
    return Request(
        prompt=prompt,
        negative=negative,
        seed=random.randrange(2**32) if seed is None else seed,
        steps=common.number_of(steps),  # pyright: ignore[reportArgumentType]
        guidance=common.number_of(guidance),  # pyright: ignore[reportArgumentType]
        scheduler=scheduler,
        model=model,
        source=source,
    )


def model_menu(shared: Shared, name: str, roles: Sequence[str]) -> gr.Dropdown:
    """The models that this tab can use, those made for it first."""
    names = [one for role in roles for one in shared.engine.for_role(role)]
    first = next((one for one in names if one in CATALOG and CATALOG[one].embedded), names[0] if names else None)
    choices = [(common.title_of(one), one) for one in names]
    menu = gr.Dropdown(choices, value=first, label=i18n("model"), filterable=False, elem_id=f"{name}-model")
    trained.follow(shared, menu, roles, first)
    return menu


# --- a run ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A run's buttons and view."""

    run: gr.Button
    stop: gr.Button
    viewer: gr.HTML
    job: gr.State  # the run that goes on, or the newest
    mine: gr.State  # the run in the viewer, "" before there is one
    look: gr.State  # what the rest of the tab puts there to have another ended run in the viewer: (its id, when)


def panel_buttons(name: str) -> tuple[gr.Button, gr.Button]:
    run = gr.Button(i18n(f"{name}_run"), variant="primary", elem_id=f"{name}-go", elem_classes="run")
    stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id=f"{name}-stop", elem_classes="stop")
    return run, stop


def panel(shared: Shared, name: str, run: gr.Button, stop: gr.Button) -> Panel:
    return Panel(run, stop, viewing.viewer(f"{name}-viewer"), gr.State(""), gr.State(""), gr.State(None))


def kind_of(request: Request) -> str:
    """The tab that makes such runs: one of TABS, or "" for a run from noise."""
    return request.source.KIND if request.source else ""


def wire(
    shared: Shared,
    panel: Panel,
    asked: Callable[..., Request | None],
    inputs: list[Component],
    after: Callable[[Trace, str], dict] | None = None,
    more: list[Component] | None = None,
    *,
    tab: gr.Tab | None = None,
    name: str = "",
    instead: Callable[..., Iterator[dict]] | None = None,
    during: Callable[[dict], dict] | None = None,
    unfinished: Callable[[str], dict] | None = None,
) -> Dependency:
    """Run draws what asked(*inputs' values) says, and the viewer follows it. Returns the event of the run, to go on from.

    after: (trace, language) -> {component: value} of `more`, for each finished run that the viewer shows.
    tab, name: when the tab is opened, the viewer shows its run: one that still goes on, or the one that is looked at if it is of this kind.
    during: what the viewer is given of a run on its way, and at its end -> values of `more`, for a tab that shows it in its own way too.
    unfinished: language -> values of `more` for a run that was stopped, so that nothing of an earlier one stands beside it.
    instead: where `asked` says None: (owner, language, *inputs' values) -> values of `more`, one after the other, in place of a run.
    """
    engine = shared.engine
    busy = {panel.run: gr.update(visible=False, interactive=True), panel.stop: gr.update(visible=True)}
    idle = {panel.run: gr.update(visible=True, interactive=True), panel.stop: gr.update(visible=False)}

    def nothing(language: str) -> dict:
        return {panel.viewer: common.packed(viewing.empty(language, said="pictures_empty")), panel.mine: ""}

    def bare(language: str) -> dict:
        return unfinished(language) if unfinished else {}

    def seen(one: str, trace: Trace, language: str) -> dict:
        """The viewer and what stands around it, filled with a run that has ended."""
        beside = after(trace, language) if after and trace.picture is not None else bare(language)
        return {panel.viewer: common.packed(viewing.finished(trace, one, language)), panel.mine: one} | beside

    def watch(one: str, owner: str, before: str, language: str) -> Iterator[dict]:
        yield busy | {panel.job: one, shared.owner: owner}
        try:
            for value in viewing.follow(engine, one, language):
                beside = during(value) if during else {}
                if value["kind"] == "live":
                    yield {panel.viewer: common.packed(value)} | beside
            if beside:
                yield beside
            if value["kind"] == "run":
                yield idle | {shared.shown: one} | seen(one, engine.result(one), language)
            else:  # stopped before its first step
                yield idle | {panel.viewer: common.packed(value), panel.mine: ""} | bare(language)
        except ValueError as error:
            yield idle | back(before, owner, language)
            raise common.refusal(language, error) from None

    def back(before: str, owner: str, language: str) -> dict:
        """What the viewer showed before a run that failed."""
        try:
            return seen(before, shared.trace_of(before, owner), language)
        except ValueError:
            return nothing(language)

    def draw(request: gr.Request, owner: str | None, before: str, *values) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        yield {panel.run: gr.update(interactive=False)}  # there is nothing to stop yet, and a model may have to be loaded
        try:
            if (wanted := asked(*values)) is not None:
                one = engine.submit(wanted, owner, Record())
            elif instead:
                yield busy
                yield from instead(owner, language, *values)
        except ValueError as error:
            yield idle
            raise common.refusal(language, error) from None
        if wanted is None:
            yield idle | {shared.owner: owner}
        else:
            yield from watch(one, owner, before, language)

    def come_back(
        owner: str | None, shown: str, now: str, job: str, was_open: bool, sent: Sent | None, request: gr.Request
    ) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        yield {opened: True}
        # A page that was reloaded finds its run again, with its picture and settings. Later on, what goes on is another window's.
        for one in () if was_open or job or (sent and sent.tab == name) else engine.mine(owner):
            going = (snapshot := engine.snapshot(one)) and snapshot.state not in ENDED
            if going and kind_of(engine.request(one)) == name:
                yield {shared.sent: Sent(name, one, time.time())}
                yield from watch(one, owner, now, language)
                return
        with suppress(ValueError):
            trace = shared.trace_of(shown, owner)
            if shown != now and kind_of(trace.request) == name:
                yield seen(shown, trace, language)
                return
        yield {panel.viewer: gr.skip()} if now or job else nothing(language)

    def open_run(owner: str | None, look: tuple[str, float], request: gr.Request) -> dict:
        try:
            return {shared.shown: look[0]} | seen(look[0], shared.trace_of(look[0], owner), common.language(request))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None

    def halt(one: str) -> None:
        with suppress(ValueError):
            engine.cancel(one)

    def pick(event: gr.EventData) -> Sent:
        """The viewer's "Use its settings"."""
        return Sent(name, common.event_value(event, "job"), time.time())

    opened = gr.State(False)  # in this window
    outputs = [panel.run, panel.stop, panel.viewer, panel.job, panel.mine, shared.owner, shared.shown, *(more or [])]
    event = panel.run.click(draw, [shared.owner, panel.mine, *inputs], outputs, **WATCH)
    panel.stop.click(halt, panel.job, None, **QUICK)
    panel.look.change(open_run, [shared.owner, panel.look], outputs, **LOOK)
    panel.viewer.pick(pick, None, shared.sent, **LOOK)
    if tab:
        back_to = [shared.owner, shared.shown, panel.mine, panel.job, opened, shared.sent]
        tab.select(come_back, back_to, [*outputs, opened, shared.sent], **WATCH)
    return event


def fill(
    shared: Shared,
    tab: gr.Tab,
    start: Component,
    controls: Controls | None,
    name: str,
    again: Callable[[Request], dict] | None = None,
    extra: list[Component] | None = None,
    with_words: bool = False,
    strength: Component | None = None,
    model: gr.Dropdown | None = None,
) -> Dependency:
    """An empty box takes the picture of the run that is looked at when the tab opens, and its words too if asked. A run that is sent here
    brings its picture and its words along; one that is to be made again, the picture that it began from, and what again(request) says of
    `extra`. strength, model: controls that a picture's own strength and base model come to. Returns the event of a sending to this tab,
    whose `success` it is."""

    engine = shared.engine

    def first(now: object, owner: str | None, shown: str) -> dict:
        owner = common.owner_of(owner)
        going = [one for one in engine.mine(owner) if (snapshot := engine.snapshot(one)) and snapshot.state not in ENDED]
        if any(kind_of(engine.request(one)) == name for one in going):  # a reloaded page gets the picture that it began from
            return {start: gr.skip()}
        runs = shared.kept(owner)
        best = [trace for one, trace in sorted(runs, key=lambda run: run[0] != shown) if trace.picture is not None]
        # Of a stopped run there is none: then the newest that has one; and without any, the box asks for a picture itself.
        if now or not best:
            return {start: gr.skip()}
        r = best[0].request
        words = {controls.prompt: r.prompt, controls.negative: r.negative} if controls and with_words else {}
        return {start: result_of(best[0])} | words

    def here(sent: Sent | None) -> None:
        if sent is None or sent.tab != name:
            raise gr.Error("Sent to another tab.", visible=False, print_exception=False)

    def receive(sent: Sent, owner: str | None, request: gr.Request) -> dict:
        try:
            if sent.made:
                r = sent.made.request
                filled = (controls.restored(r) if controls else {}) | {start: sent.made.picture.image}
                if strength and r.source and kind_of(r) != "upscale":
                    filled[strength] = f"{r.source.strength:g}"
                if model and r.model in engine.for_role("base", common.owner_of(owner)):
                    filled[model] = r.model
                return filled
            going_on = sent.run in engine.mine(common.owner_of(owner))
            r = engine.request(sent.run) if going_on else shared.trace_of(sent.run, owner).request
            filled = controls.restored(r) if controls else {}
            if kind_of(r) != name or not r.source:
                return {start: gr.skip()}
            return filled | {start: r.source.whole.image} | (again(r) if again else {})
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None

    # Gradio loses the properties of a number in a tab that was never opened if it is told anything, even to leave it alone:
    # so a tab hears of what is sent to it only.
    arrived = shared.sent.change(here, shared.sent, None, **LOOK)
    further = [one for one in (strength, model) if one and one not in (extra or [])]
    filled = [start, *(controls.all if controls else []), *(extra or []), *further]
    arrived.success(receive, [shared.sent, shared.owner], filled, **LOOK)
    tab.select(first, [start, shared.owner, shared.shown], [start, *(controls.all[:2] if controls else [])], **LOOK)
    return arrived


def sending(shared: Shared, sent: Sent) -> dict:
    """What sends a run to a tab, and opens that."""
    return {shared.sent: sent, shared.shown: sent.run or gr.skip(), shared.tabs: gr.Tabs(selected=f"tab_{sent.tab}")}


def send_row(
    shared: Shared,
    name: str,
    run: gr.State,
    beside: Component | None = None,
    made: Callable[[str, str | None, Any], Made] | None = None,
) -> None:
    """Buttons that carry a run's picture and settings to the other tabs that start from one. run: its id.

    beside: what else the picture hangs on; without `made`, a State of the Made that stands there where there is no run.
    made: (id, owner, value of `beside`) -> the picture, for a tab that shows another one than the run made.
    """

    def plain(one: str, owner: str | None, beside: Made | None = None) -> Made:
        return beside if beside and not one else made_of(shared.trace_of(one, owner))

    with gr.Row(elem_classes="send"):
        gr.HTML(i18n("pictures_send"), html_template="<p>${value}</p>", apply_default_css=False, min_width=80)
        for target in TABS:
            if target == name:
                continue
            button = gr.Button(i18n(f"tab_{target}"), size="md", min_width=96, elem_id=f"{name}-to-{target}")

            def send(request: gr.Request, one: str, owner: str | None, *values, target: str = target) -> dict:
                try:
                    picture = (made or plain)(one, owner, *values)
                except ValueError as error:
                    raise common.refusal(common.language(request), error) from None
                return sending(shared, Sent(target, one, time.time(), picture))

            inputs = [run, shared.owner, *([beside] if beside else [])]
            button.click(send, inputs, [shared.sent, shared.shown, shared.tabs], **LOOK)


# --- programs ---------------------------------------------------------------------------------------------------------------------


def public(endpoint: Callable) -> Callable:
    """A public endpoint, which says what it refuses in core's own words."""

    @wraps(endpoint)  # Gradio reads the names of its values
    def answer(*values):
        try:
            return endpoint(*values)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer


def caller(request: gr.Request) -> str:
    """The owner of what a program asks for."""
    return f"api {request.session_hash}"


def known(model: object, names: Sequence[str]) -> str:
    """The model that a program names. Raises ValueError if it is none of `names`."""
    if model not in names:
        raise ValueError(f"There is no model {str(model)[:40]!r} for this; choose one of {', '.join(names)}.")
    return str(model)


def drawn(engine: LocalEngine, wanted: Request, request: gr.Request) -> Trace:
    """A run for a program, when it is finished."""
    return engine.result(engine.submit(wanted, caller(request)))
