"""The section Fork: a run is taken up again at any of its steps, with other words, another guidance scale or another seed."""

import html
from collections.abc import Iterator
from contextlib import suppress

import gradio as gr

from core.attention import Record
from core.engine import Part, Work
from core.sampling import Fork, Request, Step, check_whole, denoise
from core.schedulers import FORGETFUL
from core.trace import Trace
from ui import common, parts, render, texts
from ui.common import QUICK, WATCH, Shared, i18n


def passes(step: Step) -> int:
    """UNet passes that a step cost: one for each prediction."""
    return (step.eps_uncond is not None) + (step.eps_cond is not None)


def last_of(trace: Trace) -> int:
    """The last step, counted from 1, that can be the first made anew: a stopped run's is the one it never made."""
    return min(len(trace) + 1, trace.steps[0].count)


def view(trace: Trace, language: str) -> dict:
    scheduler = trace.request.scheduler
    h, w = trace.size
    return {
        "kind": "run",
        "count": trace.steps[0].count,
        "last": last_of(trace),
        "middle": min(trace.steps[0].count // 2 + 1, last_of(trace)),
        "passes": [passes(s) for s in trace],
        "x0": [render.uri(render.latent(trace, s.x0).image) for s in trace],
        "aspect": f"{w} / {h}",
        "exact": texts.say(language, "fork_exact" if scheduler in FORGETFUL else "fork_remembers", scheduler=scheduler),
        "texts": texts.of(language, "fork_"),
    }


def forked(trace: Trace, start: int, prompt: str, guidance: float, seed: int) -> tuple[Request, Fork]:
    """The new run's request, and where it begins. start: the first step made anew, counted from 1.

    Raises ValueError for a step that is not there or a value that no request can have.
    """
    check_whole("first new step", start, 1, last_of(trace))
    request = common.reworded(trace.request, prompt, guidance=guidance, seed=seed)
    return request, Fork(trace.request, tuple(trace.steps[: start - 1]))


def going_on(request: Request, fork: Fork) -> Work:
    """The work of a fork. Its last part is the new Trace; the others are what each step's x0 looks like, (3, h, w) uint8."""

    def work(sd) -> Iterator[Part]:
        new = Trace.start(sd, request)
        r, start = fork.request, len(fork.steps)
        if start:  # the settings alone would not make this picture again: it says so itself
            new.made_by["taken_up"] = f"after step {start} of: {r.prompt!r}, w {r.guidance:g}, seed {r.seed}"
        last = None
        for last in new.follow(denoise(sd, request, Record(), fork)):
            yield Part(last.i, last.count + 1, render.latent(new, new.steps[-1].x0).image)
        assert last is not None
        new.finish(sd, last.x_next)
        yield Part(last.count, last.count + 1, new)

    return work


def comparison(old: Trace, new: Trace, start: int, run: str, language: str) -> str:
    """Both pictures, what the fork saved, and the way into it, as HTML."""
    saved, made = sum(map(passes, new.steps[: start - 1])), sum(map(passes, new.steps[start - 1 :]))

    def picture(trace: Trace) -> str:
        return render.thumbnail(trace) if trace.picture is None else parts.picture_uri(trace.picture)

    def line(trace: Trace) -> str:
        r = trace.request
        how = texts.say(language, "runs_how", guidance=f"{r.guidance:g}", steps=r.steps)
        return f"{r.prompt or texts.say(language, 'runs_no_words')} · {how} · {texts.say(language, 'runs_seed', seed=r.seed)}"

    before = (picture(old), texts.say(language, "fork_before"), line(old))
    after = (picture(new), texts.say(language, "fork_after", start=start), line(new))
    said = html.escape(texts.say(language, "fork_saved", saved=saved, made=made, total=saved + made))
    open_ = html.escape(texts.say(language, "fork_open"))
    return (
        f'<p class="saved">{said}</p><div class="figures">{parts.figures([before, after])}</div>'
        f'<div class="actions"><button type="button" data-act="open" data-job="{run}">{open_}</button></div>'
    )


def build(shared: Shared) -> None:
    engine = shared.engine
    first = shared.example.request if shared.example else Request("", seed=1)
    parts.heading("fork")
    with gr.Row(elem_classes="fork-words"):
        prompt = gr.Textbox(
            first.prompt, label=i18n("prompt"), lines=1, max_lines=4, elem_id="fork-prompt", scale=3, min_width=240
        )
        guidance = common.number(first.guidance, 0, 30, 0.1, "guidance", "fork-guidance")
        seed = gr.Number(first.seed, label=i18n("seed"), elem_id="fork-seed", min_width=120)
    seen = parts.live("fork")
    stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id="fork-stop")
    status = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="fork-status")
    result = gr.HTML(
        "",
        html_template="<div>${value}</div>",
        js_on_load=common.script("runs.js"),
        apply_default_css=False,
        elem_id="fork-result",
    )
    job = gr.State("")

    def look(trace: Trace, owner: str, language: str) -> dict:
        r = trace.request
        fields = {prompt: r.prompt, guidance: f"{r.guidance:g}", seed: r.seed}
        return {seen: common.packed(view(trace, language)), result: "", status: ""} | fields

    def go_on(
        owner: str | None, shown: str, words: str, w: str, number: int | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            old = shared.trace_of(shown, owner)
            start = common.number_of(common.event_value(event, "from"))
            wanted, fork = forked(old, start, words, common.number_of(w), number)
            common.warn_of_edits(old.request, wanted, language)
            made = []
            for one, snapshot, made in parts.works(shared, wanted.model, going_on(wanted, fork), owner, "fork"):
                previews = [made[-1]] if made and not isinstance(made[-1], Trace) else []
                now = parts.waiting(snapshot, language)
                live = [(render.uri(image), texts.say(language, "fork_after", start=start), now) for image in previews]
                row = f'<div class="figures">{parts.figures(live)}</div>'
                yield {job: one, stop: gr.update(visible=True), status: now, result: row}
            idle = {job: "", stop: gr.update(visible=False), status: ""}
            if not made or not isinstance(made[-1], Trace):
                yield idle | {status: texts.say(language, "fork_stopped"), result: ""}
                return
            kept = engine.keep(made[-1], owner)
            yield idle | {result: comparison(old, made[-1], start, kept, language), shared.owner: owner}
        except ValueError as error:
            yield {job: "", stop: gr.update(visible=False), status: ""}
            raise common.refusal(language, error) from None

    def weaken(
        owner: str | None, shown: str, words: str, number: int | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[dict]:
        """The suggestion: no guidance from the middle on."""
        yield {guidance: "1"}
        yield from go_on(owner, shown, words, "1", number, event, request)

    def halt(one: str) -> None:
        with suppress(ValueError):  # over already
            engine.cancel(one)

    def open_run(owner: str | None, event: gr.EventData, request: gr.Request) -> str:
        one = common.event_value(event, "job")
        try:
            shared.trace_of(one, owner)
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        return one

    parts.on_demand(shared, seen, "fork", look, [prompt, guidance, seed, result, status])
    outputs = [job, stop, status, result, shared.owner]
    seen.fork(go_on, [shared.owner, shared.shown, prompt, guidance, seed], outputs, **WATCH)
    seen.weaken(weaken, [shared.owner, shared.shown, prompt, seed], [*outputs, guidance], **WATCH)
    stop.click(halt, job, None, **QUICK)
    result.pick(open_run, shared.owner, shared.shown, **common.LOOK)
