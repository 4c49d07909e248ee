"""What happens inside, from one step to the next?

Stable Diffusion does not paint pixels but latents: four small channels of numbers. Here you see those numbers, what the VAE makes of
them, how fast a scheduler takes the noise out of them, and what happens if you change your mind halfway.
"""

from collections.abc import Iterator
from itertools import pairwise

import gradio as gr

from core import latents
from core.engine import Part
from core.sampling import check_number, check_whole
from core.trace import Trace
from ui import common, fork, parts, render, schedulers, texts, vae
from ui.common import WATCH, Shared, i18n
from ui.pictures import send_row

TITLE = "tab_latents"  # a key of ui/texts.py


def view(trace: Trace, language: str) -> dict:
    """A run's latents as numbers: x_t as the UNet saw it (variance preserving, so that all steps have one scale) and x0, step by step."""
    x = [render.numbers(s.x_in) for s in trace]
    x0 = [render.numbers(s.x0) for s in trace]
    moved = [b - a for v in (x, x0) for a, b in pairwise(v)]
    return {
        "kind": "run",
        "count": trace.steps[0].count,
        "limit": parts.limit_of(*x, *x0),
        "change": parts.limit_of(*moved, share=0.95, unit=0.1) if moved else 1.0,
        "steps": [
            {"t": s.t, "sigma": s.sigma, "alpha_bar": s.alpha_bar, "x": parts.compact(noisy), "x0": parts.compact(guess)}
            for s, noisy, guess in zip(trace, x, x0, strict=True)
        ],
        "texts": texts.of(language, "latents_") | spread_note(trace, language),
    }


def spread_note(trace: Trace, language: str) -> dict:
    """A run from a picture does not begin with pure noise, and must not be said to."""
    from_picture = trace.request.source and trace.steps[0].alpha_bar > 0.05
    return {"spread_note": texts.say(language, "latents_spread_picture")} if from_picture else {}


def shifted(pictures: list, at: int, by: float, language: str) -> str:
    """The pictures made so far: as it is, then with one channel shifted each, with how far the pixels moved on average."""
    shown = []
    for k, picture in enumerate(pictures):
        if k == 0:
            title, line = texts.say(language, "latents_unshifted"), texts.say(language, "latents_unshifted_line", i=at + 1)
        else:
            change = tuple(float(c) for c in (picture - pictures[0]).mean(dim=(0, 2, 3)) * 127.5)
            title = texts.say(language, "latents_shifted", c=k, by=f"{by:+g}".replace("-", "−"))
            colours = zip(("latents_red", "latents_green", "latents_blue"), change, strict=True)
            line = ", ".join(f"{texts.say(language, name)} {value:+.0f}".replace("-", "−") for name, value in colours)
        shown.append((parts.picture_uri(picture), title, line))
    return parts.figures(shown)


def build(shared: Shared, tab: gr.Tab) -> None:
    common.heading("latents")
    common.run_menu(shared, tab, "latents")
    own = gr.State(None)  # a picture of the visitor's own, for the VAE and for one prediction
    with gr.Tabs(elem_id="latents-sections", elem_classes="sections"):
        with gr.Tab(i18n("latents_tab")):
            build_latents(shared)
        with gr.Tab(i18n("vae_tab")):
            vae.build(shared, own)
        with gr.Tab(i18n("schedulers_tab")):
            schedulers.build(shared, own)
        with gr.Tab(i18n("fork_tab")):
            fork.build(shared)
    send_row(shared, "latents", shared.shown)


def build_latents(shared: Shared) -> None:
    parts.heading("channels")
    seen = parts.live("latents")
    status = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="latents-status")
    pictures = parts.pictures("latents-shifted")

    def look(trace: Trace, owner: str, language: str) -> dict:
        return {seen: common.packed(view(trace, language)), pictures: "", status: ""}

    def shift(owner: str | None, shown: str, event: gr.EventData, request: gr.Request) -> Iterator[dict]:
        """Decodes the chosen step's x0 with each channel shifted, one picture after the other."""
        language, owner = common.language(request), common.owner_of(owner)
        try:
            trace = shared.trace_of(shown, owner)
            at, by = common.number_of(common.event_value(event, "at")), common.number_of(common.event_value(event, "by"))
            check_whole("step", at, 0, len(trace) - 1)
            check_number("shift", by, -3, 3)
            x0 = trace.steps[at].x0

            def work(sd):
                for k, picture in enumerate(latents.shifted(sd, x0.to(sd.device), by)):
                    yield Part(k, 1 + x0.shape[1], picture.cpu())

            for _, snapshot, made in parts.works(shared, trace.request.model, work, owner, "shift"):
                yield {status: parts.waiting(snapshot, language), pictures: shifted(made, at, by, language)}
        except ValueError as error:
            yield {status: ""}
            raise common.refusal(language, error) from None

    parts.on_demand(shared, seen, "latents", look, [pictures, status])
    seen.shift(shift, [shared.owner, shared.shown], [pictures, status], **WATCH)
