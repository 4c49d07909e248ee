"""A run on the page: the newest step while it goes on, and all of its steps afterwards, for the viewer (ui/viewer.js)."""

import re
from collections.abc import Iterator

import gradio as gr

from core.engine import ENDED, LocalEngine, Snapshot
from core.trace import Trace
from ui import common, render, texts
from ui.common import EXAMPLE_RUN


def view(name: str, elem_id: str) -> gr.HTML:
    """A view with a script of its own: ui/{name}.html and ui/{name}.js. Its value is what common.packed makes."""
    return gr.HTML(
        common.packed({"kind": "none"}),
        html_template=common.script(f"{name}.html"),
        js_on_load=common.script(f"{name}.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def viewer(elem_id: str) -> gr.HTML:
    """The component that `live`, `finished` and `empty` make values for."""
    return view("viewer", elem_id)


def follow(engine: LocalEngine, job: str, language: str) -> Iterator[dict]:
    """What the viewer shows of a run, from now to its end. Raises ValueError with the run's own sentence if it failed."""
    for snapshot in engine.events(job):
        if snapshot.state not in ENDED:
            source = engine.request(job).source  # super-resolution looks at a picture, and starts from noise as ever
            yield live(snapshot, language, source is not None and source.KIND != "upscale")
    if snapshot.state == "stopped" and not snapshot.i:
        yield empty(language, "status_stopped_early")
    else:
        yield finished(engine.result(job), job, language)


def status_of(snapshot: Snapshot, language: str, from_picture: bool = False) -> str:
    """What a run does now, in words."""
    starting = "starting_picture" if from_picture else "starting"
    key = starting if snapshot.state == "running" and not snapshot.i else snapshot.state
    left = snapshot.seconds_left or 0
    seconds = f"{left:.1f}" if left < 10 else f"{left:.0f}"
    return texts.say(language, f"status_{key}", place=snapshot.place, i=snapshot.i, count=snapshot.count, seconds=seconds)


def live(snapshot: Snapshot, language: str, from_picture: bool = False) -> dict:
    """A run that goes on: its place, or its newest step."""
    pictures = {}
    if snapshot.preview is not None and snapshot.noisy is not None:
        pictures = {
            "x0": render.uri(render.picture(snapshot.preview).image),
            "x": render.uri(render.picture(snapshot.noisy).image),
        }
    return {
        "kind": "live",
        "job": snapshot.job,
        "state": snapshot.state,
        "status": status_of(snapshot, language, from_picture),
        "i": snapshot.i,
        "count": snapshot.count,
        **pictures,
        "texts": texts.of(language, "view_"),
    }


def finished(trace: Trace, job: str, language: str) -> dict:
    """A run that has ended, whole: everything that the viewer needs to scrub through it without asking again."""
    if job == EXAMPLE_RUN:
        status = texts.say(language, "status_example")
    elif trace.stopped:
        status = texts.say(language, "status_stopped", i=len(trace), count=trace.steps[0].count)
    else:
        status = texts.say(language, "status_done", count=len(trace), seconds=f"{trace.seconds:.1f}", seed=trace.request.seed)
    done = trace.picture is not None
    height, width = trace.picture.shape[1:] if trace.picture is not None else (0, 0)
    return {
        "kind": "run",
        "job": job,
        "state": "done" if done else "stopped",
        "status": status,
        "prompt": trace.request.prompt,
        "count": trace.steps[0].count,
        "latent": list(trace.steps[0].x.shape[1:]),
        "height": height,
        "width": width,
        "steps": [render.step(trace, s) for s in trace],
        "end": {"x": render.uri(render.latent(trace, trace.steps[-1].x_next).image), "picture": render.png_uri(trace)}
        if done
        else None,
        "words": render.words(trace),
        "png": render.png_uri(trace) if done else None,
        "file": file_name(trace),
        "made_with": common.made_with(trace, language),
        "texts": texts.of(language, "view_"),
    }


def empty(language: str, status: str = "", said: str = "view_empty") -> dict:
    """Nothing to show yet. status, said: keys of the texts above the empty place and in it."""
    words = texts.of(language, "view_") | {"empty": texts.say(language, said)}
    return {"kind": "empty", "status": texts.say(language, status) if status else "", "texts": words}


def file_name(trace: Trace) -> str:
    words = re.sub(r"[^\w]+", "-", trace.request.prompt.lower()).strip("-")[:60] or "picture"
    return f"{words}-{trace.request.seed}.png"
