"""How does noise become a picture?

Stable Diffusion starts from pure noise. At each step its UNet predicts the noise that is still in it, and the scheduler takes a little
of that away. Your words steer every prediction.
"""

import html
import random
import time
from collections.abc import Iterator
from contextlib import suppress

import gradio as gr
from gradio.components.api_component import Api

from core.attention import Record
from core.engine import ENDED, LocalEngine
from core.images import read_settings
from core.sampling import Request, check_whole
from core.schedulers import SCHEDULERS
from core.text import Tokens, tokenize
from core.trace import Trace
from ui import common, pictures, render, texts, viewing
from ui.common import EXAMPLE_RUN, LOOK, QUICK, WATCH, Shared, hint, i18n

TITLE = "tab_prompt"  # a key of ui/texts.py


# --- the handler: plain Python, nothing of gradio -----------------------------------------------------------------------------


def request_of(
    prompt: str,
    negative: str,
    seed: int | None,
    steps: int,
    guidance: float,
    scheduler: str,
    width: int | None,
    height: int | None,
    first: int | None,
    last: int | None,
    model: str,
) -> Request:
    """The controls' values as a request. An empty seed is a new one; an empty size the model's own. Nothing is rounded or clamped."""
    return Request(
        prompt=prompt,
        negative=negative,
        seed=random.randrange(2**32) if seed is None else seed,
        steps=common.number_of(steps),
        guidance=common.number_of(guidance),
        scheduler=scheduler,
        width=width,
        height=height,
        interval=interval_of(first, last),
        model=model,
    )


def interval_of(first: int | None, last: int | None) -> tuple[int, int] | None:
    """The page counts steps from 1 and names the last that is guided; core counts from 0 and names the one after."""
    if first is None and last is None:
        return None
    for name, value in (("start", first), ("stop", last)):
        if value is not None:
            check_whole(f"interval's {name}", value, 1, 200)
    return (0 if first is None else first - 1, 200 if last is None else last)


def settings_of(settings: dict, allowed: tuple[str, ...]) -> tuple[Request, str]:
    """The settings that a PNG or a run carries, checked, and the model that made it if this app has none of that name, else "".

    Raises ValueError with one sentence for values that no request can have.
    """
    try:
        request = Request.of(settings)
    except TypeError as error:  # no prompt, or an interval that is not two numbers
        raise ValueError("This PNG carries no settings of this app; drop one that was saved here, unchanged.") from error
    return request, "" if request.model in allowed else str(request.model)[:80]


def tokens_html(tokens: Tokens, language: str) -> str:
    """The tokens of a prompt as a strip of pieces with their ids, how many of the 77 they are, and what was cut off."""
    if tokens.used == 2:  # the two marks alone
        return ""
    pieces = []
    for token in tokens.tokens[: tokens.used]:
        mark = token.kind != "text"
        piece = texts.say(language, f"tokens_{token.kind}") if mark else token.piece.strip() or "·"
        kind = "mark" if mark else f"word{token.word % 4}"
        pieces.append(f'<li class="token {kind}"><span>{html.escape(piece)}</span><small>{token.id}</small></li>')
    cut = ""
    if tokens.cut:
        cut = f'<p class="cut"><b>{texts.say(language, "tokens_cut")}</b> <s>{html.escape(tokens.cut)}</s></p>'
    full = " full" if tokens.cut else ""
    count = texts.say(language, "tokens_count", used=tokens.used)
    about = texts.say(language, "tokens_about")
    count = f'<span class="term" tabindex="0" data-tip="{html.escape(about, quote=True)}">{count}</span>'
    return f'<div class="tokens{full}"><p class="count">{count}</p><ol>{"".join(pieces)}</ol>{cut}</div>'


def runs_html(runs: list[tuple[str, Trace]], shown: str, language: str) -> str:
    """This visit's runs as a strip of cards, newest first."""
    cards = []
    for job, trace in runs:
        r = trace.request
        name = html.escape(r.prompt.strip() or texts.say(language, "runs_no_words"))
        how = texts.say(language, "runs_how", guidance=f"{r.guidance:g}", steps=r.steps)
        facts = f"{how}<br>{html.escape(r.scheduler)}, {texts.say(language, 'runs_seed', seed=r.seed)}<br>{html.escape(r.model)}"
        if kind := pictures.kind_of(r):
            facts = f"{texts.say(language, f'tab_{kind}')}<br>{facts}"
        facts += "".join(f"<br>{said}" for said in common.said_beside(trace.settings(), language))
        label = (
            texts.say(language, "runs_example")
            if job == EXAMPLE_RUN
            else texts.say(language, "runs_stopped")
            if trace.stopped
            else ""
        )
        flag = f'<span class="flag">{label}</span>' if label else ""
        actions = f'<button type="button" data-act="restore" data-job="{job}">{texts.say(language, "runs_settings")}</button>'
        if not trace.stopped and job != shown:
            actions += f'<button type="button" data-act="compare" data-job="{job}">{texts.say(language, "runs_compare")}</button>'
        small = " small" if trace.stopped else ""
        cards.append(
            f'<li class="card{" shown" if job == shown else ""}"><button type="button" class="open" data-act="open" data-job="{job}">'
            f'<img class="pixels{small}" src="{render.thumbnail(trace)}" alt="">{flag}<span class="prompt">{name}</span>'
            f'<span class="how">{facts}</span></button><div class="actions">{actions}</div></li>'
        )
    forget = f'<button type="button" class="forget" data-act="forget" data-job="">{texts.say(language, "runs_forget")}</button>'
    about = (
        f'<h3>{texts.say(language, "runs")}</h3><p class="note">{texts.say(language, "runs_about")}'
        f"{forget if any(job != EXAMPLE_RUN for job, _ in runs) else ''}</p>"
    )
    return f'{about}<ul class="runs">{"".join(cards)}</ul>' if cards else ""


def plain(key: str, value: object) -> str:
    """A setting's value as the controls show it."""
    if key == "interval" and isinstance(value, list | tuple):
        start, end = value
        value = f"{start + 1}–{'' if end >= 200 else end}"
    if key == "edits" and isinstance(value, list | tuple):
        value = len(value) or None
    if key == "start" and isinstance(value, dict):
        value = ", ".join(f"{name} {number:g}" for name, number in value.items() if isinstance(number, int | float)) or None
    return "–" if value in (None, "") else html.escape(str(value))


def difference(left: Trace, right: Trace, language: str) -> str:
    """Which settings differ between two runs, in one line of HTML."""
    a, b = left.settings(), right.settings()
    keys = (
        "prompt",
        "negative",
        "seed",
        "steps",
        "guidance",
        "scheduler",
        "width",
        "height",
        "interval",
        "edits",
        "loss",
        "taken_up",
        "start",
        "model",
    )
    lines = [
        f"<li><b>{texts.say(language, key)}</b> <span>{plain(key, a.get(key))}</span> → <span>{plain(key, b.get(key))}</span></li>"
        for key in keys
        if (a.get(key) or None) != (b.get(key) or None)
    ]
    inside = f"<ul>{''.join(lines)}</ul>" if lines else f"<p>{texts.say(language, 'compare_same')}</p>"
    return f'<div class="difference"><h3>{texts.say(language, "compare_title")}</h3>{inside}</div>'


# --- the page -----------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lays the tab out and wires it. Every handler's output is a dict of component -> value: what it leaves out stays as it is."""
    engine, demo = shared.engine, gr.context.Context.root_block
    first_request = shared.example.request if shared.example else Request("", seed=1)

    common.heading("prompt")

    with gr.Row(elem_classes="tab-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            prompt = gr.Textbox(
                first_request.prompt,
                label=i18n("prompt"),
                placeholder=i18n("prompt_placeholder"),
                lines=2,
                max_lines=6,
                elem_id="prompt",
                elem_classes="runs-on-enter",
            )
            prompt_tokens = gr.HTML(elem_id="prompt-tokens", apply_default_css=False)
            negative = gr.Textbox(
                first_request.negative,
                label=i18n("negative"),
                placeholder=i18n("negative_placeholder"),
                lines=1,
                max_lines=6,
                elem_id="negative",
                elem_classes="runs-on-enter",
            )
            negative_tokens = gr.HTML(elem_id="negative-tokens", apply_default_css=False)
            run = gr.Button(i18n("draw"), variant="primary", elem_id="run", elem_classes="run")
            stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id="stop")
            hint("draw_key")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            guidance = common.number(first_request.guidance, 0, 30, 0.1, "guidance", "guidance")
            hint("guidance_info")
            steps = common.number(first_request.steps, 1, 100, 1, "steps", "steps")
            seed = common.seed(shared, first_request.seed)
            scheduler = gr.Dropdown(
                list(SCHEDULERS), value=first_request.scheduler, label=i18n("scheduler"), filterable=False, elem_id="scheduler"
            )
            with gr.Row(elem_classes="pair"):
                size = {"placeholder": i18n("size_placeholder"), "min_width": 100}
                width = gr.Number(None, label=i18n("width"), step=8, elem_id="width", **size)
                height = gr.Number(None, label=i18n("height"), step=8, elem_id="height", **size)
            with gr.Accordion(i18n("more"), open=False, elem_id="more"):
                with gr.Row(elem_classes="pair"):
                    first = gr.Number(
                        None,
                        label=i18n("interval_first"),
                        placeholder=i18n("interval_first_placeholder"),
                        min_width=100,
                        elem_id="first",
                    )
                    last = gr.Number(
                        None,
                        label=i18n("interval_last"),
                        placeholder=i18n("interval_last_placeholder"),
                        min_width=100,
                        elem_id="last",
                    )
                hint("interval_info")
            with gr.Column(elem_id="drop", min_width=0):
                opened = gr.UploadButton(i18n("open"), elem_id="open", size="md")
                hint("drop")

        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            viewer = viewing.viewer("viewer")
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("prompt_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("prompt_try_button"), elem_id="try", scale=0, min_width=96)
            runs = gr.HTML(
                "",
                html_template="<div>${value}</div>",
                js_on_load=common.script("runs.js"),
                apply_default_css=False,
                elem_id="runs",
            )
            pictures.send_row(shared, "prompt", shared.shown)
            with gr.Column(visible=False, elem_id="compare") as compare:
                changes = gr.HTML(
                    js_on_load="watch('value', () => setTimeout(() => element.scrollIntoView({ block: 'nearest' }), 400));",
                    apply_default_css=False,
                    elem_id="changes",
                )
                both = gr.ImageSlider(show_label=False, interactive=False, buttons=[], format="png", elem_id="both")
                close = gr.Button(i18n("compare_close"), elem_id="close", size="md")

    job = gr.State("")  # the run that Stop stops
    shown = shared.shown  # the run that all tabs look at
    inside = gr.State("")  # the run in the viewer
    before = gr.State("")  # the run that "Try it" began from
    controls = [prompt, negative, seed, steps, guidance, scheduler, width, height, first, last, shared.model]
    busy = {run: gr.update(visible=False), stop: gr.update(visible=True)}
    idle = {run: gr.update(visible=True), stop: gr.update(visible=False)}

    def restored(request: Request, owner: str) -> dict:
        """The controls set to a run's settings."""
        r = request
        start, end = r.interval or (None, None)
        first_step = None if start is None else start + 1
        last_step = None if end is None or end >= 200 else end
        values = [
            r.prompt,
            r.negative,
            r.seed,
            f"{r.steps}",
            f"{r.guidance:g}",
            r.scheduler,
            r.width,
            r.height,
            first_step,
            last_step,
        ]
        model = {shared.model: r.model} if r.model in engine.for_role("base", owner) else {}
        return dict(zip(controls, values, strict=False)) | model

    def watch(one: str, owner: str, language: str) -> Iterator[dict]:
        """Follows a run to its end."""
        yield busy | {job: one}
        try:
            for value in viewing.follow(engine, one, language):
                if value["kind"] == "live":
                    yield {viewer: common.packed(value)}
        except ValueError as error:
            ended = shared.kept(owner)  # back to what was there before
            back = viewing.finished(ended[0][1], ended[0][0], language) if ended else viewing.empty(language)
            yield idle | {viewer: common.packed(back), shown: ended[0][0] if ended else "", inside: ended[0][0] if ended else ""}
            raise common.refusal(language, error) from None
        now = {shown: one, inside: one, runs: runs_html(shared.kept(owner), one, language)} if value["kind"] == "run" else {}
        yield idle | now | {viewer: common.packed(value)}

    def draw(request: gr.Request, owner: str | None, *values) -> Iterator[dict]:
        language = common.language(request)
        owner = common.owner_of(owner)
        try:
            one = engine.submit(request_of(*values), owner, Record())
        except ValueError as error:
            raise common.refusal(language, error) from None
        yield {shared.owner: owner}  # a page whose browser keeps nothing was given this name just now
        yield from watch(one, owner, language)

    def arrive(stored: str | None, request: gr.Request) -> dict:
        return opening(common.owner_of(stored), common.language(request))

    def opening(owner: str, language: str) -> dict:
        """A page opens: with its newest run if there is one, else with the example. If one still goes on, `resume` follows it."""
        ended = shared.kept(owner)
        over = dict(ended)
        going = [one for one in engine.mine(owner) if one not in over and (s := engine.snapshot(one)) and s.state not in ENDED]
        newest, trace = ended[0] if ended else ("", None)
        page = {shared.owner: owner, runs: runs_html(ended, newest, language)}
        if trace is None:
            page |= {viewer: common.packed(viewing.empty(language))}
        else:
            page |= restored(trace.request, owner) | ({shared.model: shared.default} if newest == EXAMPLE_RUN else {})
            page |= {shown: newest, inside: newest, viewer: common.packed(viewing.finished(trace, newest, language))}
        if going:
            del page[viewer]
            page |= restored(engine.request(going[0]), owner)
        return page | {job: going[0] if going else ""}

    def resume(owner: str, one: str, request: gr.Request) -> Iterator[dict]:
        """Follows the run that was going on when the page opened."""
        if one:
            yield from watch(one, owner, common.language(request))
        else:
            yield {job: ""}

    def halt(one: str) -> None:
        with suppress(ValueError):  # no run yet, or one that is long over
            engine.cancel(one)

    def pick(owner: str | None, at: str, event: gr.EventData, request: gr.Request) -> dict:
        """A click on a run: look into it, take its settings, or compare it with the one in the viewer."""
        language, owner = common.language(request), common.owner_of(owner)
        act, one = common.event_value(event, "act"), common.event_value(event, "job")
        if act == "forget":  # on a shared machine the next person must not find them
            shared.trainings.forget_all(owner)
            engine.forget(owner)
            gone = {compare: gr.update(visible=False), shared.trained: time.time()}
            return opening(common.owner_of(None), language) | gone
        try:
            trace = shared.trace_of(one, owner)
            if act == "restore" and (kind := pictures.kind_of(trace.request)):  # the tab that made it has the controls for it
                return pictures.sending(shared, pictures.Sent(kind, one, time.time()))
            if act == "restore":
                common.warn_of(trace.settings(), language)
                return restored(trace.request, owner)
            if act == "compare":
                return comparison(trace, shared.trace_of(at, owner), language)
        except ValueError as error:
            raise common.refusal(language, error) from None
        return looking(one, trace, owner, language) | {compare: gr.update(visible=False)}

    def looking(one: str, trace: Trace, owner: str, language: str) -> dict:
        strip = runs_html(shared.kept(owner), one, language)
        return {viewer: common.packed(viewing.finished(trace, one, language)), runs: strip, shown: one, inside: one}

    def come_back(owner: str | None, one: str, now: str, request: gr.Request) -> dict:
        """The tab is opened again: another tab may have chosen another run meanwhile, or made one."""
        owner = common.owner_of(owner)
        if one == now or one not in dict(shared.kept(owner)):
            return {viewer: gr.skip()}
        return looking(one, shared.trace_of(one, owner), owner, common.language(request))

    def comparison(left: Trace, right: Trace, language: str) -> dict:
        if left.picture is None or right.picture is None:
            raise ValueError("A stopped run has no finished picture to compare; choose another.")
        pictures = tuple(render.picture(trace.picture).image for trace in (left, right))
        return {both: pictures, changes: difference(left, right, language), compare: gr.update(visible=True)}

    def weaken(owner: str | None, at: str, request: gr.Request) -> dict:
        """The settings of the run in the viewer, but guidance 1."""
        try:
            owner = common.owner_of(owner)
            trace = shared.trace_of(at, owner)
            common.warn_of(trace.settings(), common.language(request))
            return {before: at} | restored(trace.request, owner) | {guidance: "1"}
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None

    def compare_both(owner: str | None, first_run: str, second_run: str, request: gr.Request) -> dict:
        owner = common.owner_of(owner)
        try:
            left, right = shared.trace_of(first_run, owner), shared.trace_of(second_run, owner)
            if first_run != second_run:
                return comparison(left, right, common.language(request))
        except ValueError:  # one of them was stopped: nothing to compare, and nothing wrong
            pass
        return {compare: gr.skip()}

    def open_file(path: str, stored: str | None, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(stored)
        try:
            settings = read_settings(path)
            wanted, missing = settings_of(settings, (*engine.allowed, *engine.for_role("base", owner)))
        except ValueError as error:
            raise common.refusal(language, error) from None
        if missing:
            gr.Warning(texts.say(language, "no_model", model=html.escape(missing)), title="")
        common.warn_of(settings, language)
        gr.Info(texts.say(language, "status_restored"), title="", duration=4)
        return restored(wanted, owner)

    def take_over(wanted: tuple[Request, float], owner: str | None) -> dict:
        """Settings that another tab hands over."""
        return restored(wanted[0], common.owner_of(owner))

    def show_tokens(text: str, request: gr.Request) -> str:
        try:
            Request(text)  # the same limits as a run's
            return tokens_html(tokenize(engine.model(shared.default), text), common.language(request))
        except ValueError as error:
            return f'<p class="cut">{html.escape(texts.sentence(common.language(request), error))}</p>'

    def show_prompt(text: str, request: gr.Request) -> str:
        none = f'<p class="tokens count">{texts.say(common.language(request), "tokens_none")}</p>'
        return show_tokens(text, request) or none

    seen = [viewer, runs, run, stop, job, shown, inside, shared.owner]
    opened_page = demo.load(arrive, shared.owner, [*seen, *controls], **LOOK)
    opened_page.success(resume, [shared.owner, job], seen, **WATCH)
    run.click(draw, [shared.owner, *controls], seen, **WATCH)
    stop.click(halt, job, None, **QUICK)
    for box, strip, handler in ((prompt, prompt_tokens, show_prompt), (negative, negative_tokens, show_tokens)):
        gr.on([demo.load, box.change], handler, box, strip, trigger_mode="always_last", **QUICK)
    chosen = [
        viewer,
        runs,
        shown,
        inside,
        job,
        shared.owner,
        compare,
        both,
        changes,
        shared.sent,
        shared.tabs,
        shared.trained,
        *controls,
    ]
    for strip in (viewer, runs):
        strip.pick(pick, [shared.owner, shown], chosen, **LOOK)
    shared.wanted.change(take_over, [shared.wanted, shared.owner], controls, **QUICK)
    tab.select(come_back, [shared.owner, shown, inside], [viewer, runs, shown, inside], **LOOK)
    close.click(lambda: gr.update(visible=False), None, compare, **QUICK)
    opened.upload(open_file, [opened, shared.owner], controls, **LOOK)
    started = attempt.click(weaken, [shared.owner, shown], [before, *controls], **LOOK)
    drawn = started.success(draw, [shared.owner, *controls], seen, **WATCH)
    drawn.success(compare_both, [shared.owner, before, shown], [compare, both, changes], **LOOK)
    generate(engine, shared.default)


def generate(engine: LocalEngine, default: str) -> None:
    """The tab's one public endpoint. Its values come raw, so that a wrong one meets the request's own sentence."""

    @pictures.public
    def generate(prompt, negative, seed, steps, guidance, scheduler, request: gr.Request):
        """Draws a picture; answers with it, its settings in a text chunk of the PNG, and with everything that made it as JSON."""
        wanted = Request(prompt, negative, seed, steps, guidance, scheduler, model=default)
        trace = pictures.drawn(engine, wanted, request)
        return render.signed(trace), trace.settings()

    defaults = {
        name: Request.__dataclass_fields__[name].default for name in ("negative", "seed", "steps", "guidance", "scheduler")
    }
    kinds = {"seed": "integer", "steps": "integer", "guidance": "number"}
    raw = [Api(None, {"type": "string"}), *(Api(value, {"type": kinds.get(name, "string")}) for name, value in defaults.items())]
    with gr.Row(visible=False):
        answer = [gr.Image(format="png", label="picture"), gr.JSON(label="settings")]
        gr.Button().click(generate, raw, answer, api_name="generate", concurrency_id="watch", concurrency_limit=common.WATCHERS)
