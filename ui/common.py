"""What the tabs share: the header, who is visiting in which language, and how a refusal is shown."""

import html
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.catalog import CATALOG
from core.conditioning import Pixels
from core.engine import LocalEngine
from core.sampling import Request
from core.trace import Trace
from core.trainings import Trainings
from ui import texts

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "assets" / "examples" / "first.safetensors"

EXAMPLE_RUN = "example"  # the id of the run that the page opens with

# Handlers only watch runs: the engine has the one lane of the device. So many may watch at once, and each needs a thread while it does.
WATCHERS = 60
WATCH = {"concurrency_id": "watch", "concurrency_limit": WATCHERS, "show_progress": "hidden", "api_visibility": "private"}
# What looks at ended runs answers at once, in a lane of its own; Gradio shows the errors of queued events alone.
LOOK = {"concurrency_id": "look", "concurrency_limit": 20, "show_progress": "hidden", "api_visibility": "private"}
# What cannot fail stays out of the queue.
QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

i18n = gr.I18n(**texts.LANGUAGES)


@dataclass(frozen=True)
class Handed:
    """A mask on its way from one tab to another."""

    run: str  # the id of the run whose picture it is for
    mask: Pixels  # (H, W) uint8 of what that run drew, 255 = make anew; an array cannot be hashed, as Gradio does with states
    when: float  # so that the same mask handed over twice is two of them


@dataclass(frozen=True)
class Shared:
    """What app.py gives to every tab's build()."""

    engine: LocalEngine
    default: str  # the model that the page opens with
    model: gr.Dropdown  # the header's model menu
    owner: gr.BrowserState  # a random name for this browser, by which a reloaded page finds its runs
    example: Trace | None  # the finished run that the page opens with
    shown: gr.State  # the id of the run that all tabs look at; "" before there is one
    wanted: gr.State  # settings that another tab hands to the Prompt tab's controls, and when: (Request, seconds); None before
    sent: gr.State  # a picture on its way to a tab that starts from one: ui/pictures.py's Sent; None before
    mask: gr.State  # a mask on its way from the Attention tab to the Inpaint tab: a Handed; None before
    tabs: gr.Tabs
    trainings: Trainings
    trained: gr.State  # when this visitor's own models changed last, for the model menus; None before

    def kept(self, owner: str) -> list[tuple[str, Trace]]:
        """This person's ended runs, newest first, and the example."""
        found = []
        for one in reversed(self.engine.mine(owner)):
            try:
                found.append((one, self.engine.result(one, timeout=0)))
            except (ValueError, TimeoutError):  # failed, stopped before its first step, forgotten meanwhile; or still going on
                continue
        return found + ([(EXAMPLE_RUN, self.example)] if self.example else [])

    def trace_of(self, one: str, owner: str | None) -> Trace:
        """A run by its id, if it is this person's; ValueError with one sentence if there is none."""
        if not one:
            raise ValueError("There is no run yet; draw one first.")
        if trace := dict(self.kept(owner_of(owner))).get(one):
            return trace
        raise ValueError("This run is no longer kept; make it again from its settings.")


def language(request: gr.Request) -> str:
    headers = request.headers
    return texts.language_of(headers.get("cookie"), headers.get("accept-language"))


class SwitchedLanguage:
    """Lets the header's language switch decide before Gradio's own script asks which language the browser speaks.

    What launch(head=) adds comes after that, so the page itself is given one line more, first thing in its head.
    """

    SCRIPT = b"""<script>{
      const chosen = /(?:^|;\\s*)language=(en|ja)/.exec(document.cookie)?.[1];
      if (chosen) for (const [name, value] of [["language", chosen], ["languages", [chosen]]])
        Object.defineProperty(navigator, name, { get: () => value });
    }</script>"""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None  # held back until the body tells how long it is

        async def pass_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                body = message.get("body", b"")
                longer = body.replace(b"<head>", b"<head>" + self.SCRIPT, 1)
                headers = MutableHeaders(scope=start)
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(longer) - len(body))
                message = {**message, "body": longer}
                await send(start)
                start = None
            await send(message)

        await self.app(scope, receive, pass_on if scope["type"] == "http" and scope["path"] in ("", "/") else send)


def owner_of(stored: object) -> str:
    """The browser's own name, or a new one: never "" or a guess, which could be somebody else's."""
    return stored if isinstance(stored, str) and re.fullmatch(r"[0-9a-f]{32}", stored) else uuid.uuid4().hex


def short(words: str, most: int = 48) -> str:
    """Words that a line can hold."""
    return words if len(words) <= most else words[: most - 1].rstrip(" ,") + "…"


def refusal(language: str, error: Exception) -> gr.Error:
    return gr.Error(html.escape(texts.sentence(language, error), quote=False), title="", print_exception=False)


def packed(value: dict) -> str:
    """A value for one of our scripts. One string, so that Gradio compares and sends it as one; "<" is spelled out."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


NO_CURVES = packed({"kind": "none"})


def script(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def title_of(model: str) -> str:
    """A model's line in the menu."""
    entry = CATALOG.get(model)
    if entry is None:
        return model
    return entry.title if entry.embedded else f"{entry.title} · {entry.gigabytes:g} GB · {entry.licence}"


def device_line(engine: LocalEngine, model: str, language: str) -> str:
    """The device, why this number format, and how long the queue is, as HTML."""
    sd = engine.loaded(model)
    where, why = (sd.why.split(":")[0], sd.why) if sd else (texts.say(language, "device_waiting"), "")
    busy = engine.busy()
    queue = texts.say(language, "queue_free" if not busy else "queue_one" if busy == 1 else "queue_many", count=busy)
    state = "busy" if busy else "free"
    return (
        f'<span class="device" title="{html.escape(why, quote=True)}"><span class="lamp {state}"></span>'
        f"<span>{html.escape(where)}</span><span>{html.escape(queue)}</span></span>"
    )


def header(engine: LocalEngine, default: str, demo: gr.Blocks) -> tuple[gr.Dropdown, gr.BrowserState]:
    """Name, model menu, device and its queue, language, projector switch."""
    # The key is no secret, and need not be one: without it, a restarted server could not read what the browser kept.
    owner = gr.BrowserState(None, storage_key="inside-stable-diffusion", secret="inside-stable-diffusion")
    with gr.Row(elem_id="header"):
        gr.HTML(f"<h1>{texts.EN['name']}</h1>", elem_id="name", apply_default_css=False, min_width=160)
        model = gr.Dropdown(
            [(title_of(name), name) for name in engine.for_role("base")],
            value=default,
            label=i18n("model"),
            elem_id="model",
            filterable=False,
            min_width=200,
        )
        device = gr.HTML(elem_id="device", apply_default_css=False, min_width=120)
        gr.HTML(
            i18n("projector"),
            html_template=script("switches.html"),
            js_on_load=script("switches.js"),
            elem_id="switches",
            apply_default_css=False,
            min_width=120,
        )

    def tick(model: str, request: gr.Request) -> str:
        return device_line(engine, model, language(request))

    for event in (demo.load, gr.Timer(3).tick, model.change):
        event(tick, model, device, **QUICK)
    return model, owner


def heading(tab: str) -> None:
    """A tab's question and the sentences under it: the texts `{tab}_question` and `{tab}_about`."""
    gr.HTML(i18n(f"{tab}_question"), html_template="<h2>${value}</h2>", apply_default_css=False, elem_classes="question")
    gr.HTML(i18n(f"{tab}_about"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")


def number(value: float, low: float, high: float, step: float, label: str, elem_id: str) -> gr.HTML:
    """A number with a slider. Its value is the text that stands there, whatever it is: `number_of` reads it."""
    with gr.Column(min_width=0, elem_classes="number"):
        gr.HTML(
            i18n(label), html_template=f'<label for="{elem_id}-number">${{value}}</label>', apply_default_css=False, min_width=0
        )
        return gr.HTML(
            f"{value:g}",
            html_template=script("number.html"),
            js_on_load=script("number.js"),
            apply_default_css=False,
            elem_id=elem_id,
            min_width=0,
            **{"box": elem_id, "first": f"{value:g}", "low": low, "high": high, "step": step},
        )


def number_of(text: object) -> object:
    """What stands in a number's box, as a number if it is one; core refuses the rest by its own words. A comma is a point in half of
    the world."""
    if not isinstance(text, str):
        return text
    for kind in (int, float):
        try:
            return kind(text.strip().replace(",", "."))
        except ValueError:
            continue
    return text.strip()


def curve(elem_id: str) -> gr.HTML:
    """Curves over the steps of a run, drawn by ui/curve.js from `curves`."""
    return gr.HTML(
        NO_CURVES,
        html_template=script("curve.html"),
        js_on_load=script("curve.js"),
        apply_default_css=False,
        min_width=260,
        elem_id=elem_id,
    )


def curves(lines: list[dict], *, title: str, said: str, across: str, of: str = "", first: int = 1, places: int = 3) -> str:
    """What `curve` draws. lines: of each its name, colour, values, one a step, and if it has any the marks on it, as 0-based steps.

    said: a sentence on it; across: the horizontal axis; of: whose chosen step it marks; first: the first step's number; places: decimals.
    """
    words = {"title": title, "said": said, "across": across}
    return packed({"kind": "curves", "of": of, "first": first, "places": places, "lines": lines, **words})


def seed(shared: Shared, value: int, prefix: str = "") -> gr.Number:
    """The seed's box with two buttons: a new one, and the one of the run that all tabs look at. prefix: of the elements' ids."""
    box = gr.Number(value, label=i18n("seed"), placeholder=i18n("seed_placeholder"), elem_id=f"{prefix}seed")
    with gr.Row(elem_classes="pair"):
        dice = gr.Button(i18n("dice"), elem_id=f"{prefix}dice", min_width=100)
        reuse = gr.Button(i18n("reuse"), elem_id=f"{prefix}reuse", min_width=100)

    def of_run(owner: str | None, one: str, request: gr.Request) -> int:
        try:
            return shared.trace_of(one, owner_of(owner)).request.seed
        except ValueError as error:
            raise refusal(language(request), error) from None

    dice.click(None, None, box, js="() => Math.floor(Math.random() * 2 ** 32)", api_visibility="private")
    reuse.click(of_run, [shared.owner, shared.shown], box, **LOOK)
    return box


def made_with(trace: Trace, language: str) -> list[str]:
    """Which model answered, and what of the words it could not read: what a result is told with, a sentence each."""
    by = trace.made_by
    entry = CATALOG.get(by["model"])
    title = entry.title if entry else by["model"]
    said = [texts.say(language, "made_with", model=title, source=by["source"], revision=by["revision"][:12])]
    for key, tokens in (("made_cut", trace.tokens), ("made_cut_negative", trace.negative_tokens)):
        if tokens.cut:
            said.append(texts.say(language, key, cut=tokens.cut))
    return said


def hint(key: str) -> None:
    gr.HTML(i18n(key), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="hint")


# What made a picture beside its request, key of its settings -> key of the text that says so on its card.
BESIDE = {"start": "runs_from_picture", "edits": "runs_edited", "loss": "loss_with", "taken_up": "runs_taken_up"}


def beside(settings: Mapping) -> list[str]:
    """Which of BESIDE had a hand in a picture. The Prompt tab draws without them, and warns of it."""
    return [key for key in BESIDE if settings.get(key)]


def said_beside(settings: Mapping, language: str) -> list[str]:
    """The same in words; of a picture to start from, how much noise was put on it."""
    said = {key: texts.say(language, BESIDE[key]) for key in beside(settings)}
    start = settings.get("start")
    if isinstance(start, Mapping) and start.get("kind") != "upscale":  # which begins with noise alone
        said["start"] += ", " + texts.say(language, "img2img_strength_is", strength=f"{start['strength']:g}")
    return list(said.values())


def same_from_request(trace: Trace) -> bool:
    """Whether the request alone, edits included, makes this run again."""
    return not {"loss", "taken_up"} & trace.made_by.keys()


def reworded(request: Request, prompt: str, **changes) -> Request:
    """A request with other words and whatever else changes. Edits belong to places among the old words, so other words have none."""
    return replace(request, prompt=prompt, edits=request.edits if prompt == request.prompt else (), **changes)


def warn_of_edits(before: Request, after: Request, language: str) -> None:
    """Says so if a request lost its edits to other words."""
    if before.edits and not after.edits:
        gr.Warning(texts.say(language, "edits_dropped"), title="")


def warn_of(settings: Mapping, language: str) -> None:
    """Says what made a picture and is not in the controls that take its settings over."""
    for key in beside(settings):
        gr.Warning(texts.say(language, f"{key}_left_out"), title="")


def run_name(one: str, trace: Trace, language: str) -> str:
    """A run in one line: its words, w, steps, seed."""
    r = trace.request
    words = r.prompt.strip() or texts.say(language, "runs_no_words")
    words = words if len(words) <= 60 else words[:59] + "…"
    how = texts.say(language, "runs_how", guidance=f"{r.guidance:g}", steps=r.steps)
    more = "".join(f" · {said}" for said in said_beside(trace.settings(), language))
    return f"{words} · {how} · {r.scheduler} · {texts.say(language, 'runs_seed', seed=r.seed)}{more}"


def run_menu(shared: Shared, tab: gr.Tab, name: str) -> gr.Dropdown:
    """The menu of this person's runs, on top of each tab that looks into one. Choosing in it changes `shared.shown` for all tabs."""
    menu = gr.Dropdown([], label=i18n("looking_at"), filterable=False, elem_id=f"{name}-run", elem_classes="run-menu")

    def fill(owner: str | None, shown: str, request: gr.Request):
        runs = shared.kept(owner_of(owner))
        choices = [(run_name(one, trace, language(request)), one) for one, trace in runs]
        known = shown if shown in dict(runs) else choices[0][1] if choices else None
        return gr.Dropdown(choices=choices, value=known)

    gr.on([tab.select, shared.shown.change], fill, [shared.owner, shared.shown], menu, **QUICK)
    menu.input(lambda one: one, menu, shared.shown, **LOOK)  # queued: Gradio tells of a State's change by its queue alone
    return menu


def event_value(event: gr.EventData, name: str) -> str:
    """What one of our scripts sent along with an event; it came from outside."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return value if isinstance(value, str) else ""
