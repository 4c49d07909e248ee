"""What the sections of the tab "Steps & latents" share: how one learns which run is looked at, and how work on a model is followed."""

import base64
import html
from collections.abc import Callable, Iterator

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image
from torch import Tensor

from core import images, latents
from core.catalog import CATALOG
from core.engine import ENDED, Snapshot, Work
from core.models import StableDiffusion
from core.trace import Trace, to_uint8
from ui import common, render, texts
from ui.common import LOOK, QUICK, Shared, i18n

LARGEST = 1024  # pixels of an uploaded picture's long side that are kept
NOTHING = common.packed({"kind": "stale", "run": ""})


def heading(name: str) -> None:
    """A section's question and the sentences under it: the texts `{name}_question` and `{name}_about`."""
    gr.HTML(i18n(f"{name}_question"), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="section-question")
    gr.HTML(i18n(f"{name}_about"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")


def live(name: str) -> gr.HTML:
    """A view with a script of its own, ui/{name}.js, in ui/{name}.html."""
    return gr.HTML(
        NOTHING,
        html_template=common.script(f"{name}.html"),
        js_on_load=common.script("parts.js") + common.script(f"{name}.js"),
        apply_default_css=False,
        elem_id=name,
        elem_classes="section-view",
    )


def on_demand(
    shared: Shared, view: gr.HTML, name: str, look: Callable[[Trace, str, str], dict], more: list | None = None
) -> Dependency:
    """Tells the view's script when another run is looked at, and answers when it asks for it, which it does once it is seen.

    look: (trace, owner, language) -> {component: value}, among them the view's. more: the other components that it fills.
    Returns the event of the answer, to go on from.
    """

    def stale(shown: str) -> str:
        return common.packed({"kind": "stale", "run": shown})

    def want(owner: str | None, shown: str, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            return look(shared.trace_of(shown, owner), owner, language)
        except ValueError as error:
            return {view: said(texts.sentence(language, error))}

    shared.shown.change(stale, shared.shown, view, **QUICK)
    return view.want(want, [shared.owner, shared.shown], [view, *(more or [])], trigger_mode="always_last", **LOOK)


def said(status: str) -> str:
    """A view that has nothing to show, and says why."""
    return common.packed({"kind": "said", "status": status})


def works(shared: Shared, model: str, work: Work, owner: str, kind: str) -> Iterator[tuple[str, Snapshot, list]]:
    """Has a work done, and tells how far it is: (its id, its snapshot, what it has made). Raises ValueError with its own sentence."""
    job = shared.engine.submit_work(model, work, owner, kind)
    for snapshot in shared.engine.events(job):
        yield job, snapshot, [] if snapshot.state == "failed" else shared.engine.values(job)
    shared.engine.values(job)  # raises if it failed


def waiting(snapshot: Snapshot, language: str) -> str:
    """What a work does now, in words; "" once it has ended."""
    if snapshot.state in ENDED:
        return ""
    key = {"queued": "status_queued", "loading": "status_loading"}.get(snapshot.state, "parts_running")
    return texts.say(language, key, place=snapshot.place, i=snapshot.i, count=snapshot.count)


def compact(latents: Tensor | np.ndarray) -> dict:
    """Latents (1, 4, h, w) for a script, in 16 bits each: exact to a 65,000th of the largest. What is no number is -32768."""
    v = render.numbers(latents)[0]
    known = np.isfinite(v)
    scale = max(float(np.abs(v[known]).max(initial=0)), 1e-6) / 32767
    whole = np.where(known, np.round(np.where(known, v, 0) / scale), -32768).astype("<i2")
    return {"data": base64.b64encode(whole.tobytes()).decode(), "scale": scale, "h": v.shape[1], "w": v.shape[2]}


def limit_of(*latents: np.ndarray, share: float = 0.99, unit: float = 0.5) -> float:
    """The end of a scale that is fixed for all of these: this share of them lies within, rounded up to whole units."""
    size = np.abs(np.concatenate([v[np.isfinite(v)].ravel() for v in latents]))
    size = size[:: max(1, size.size // 50_000)]  # of a long run of large latents, a sample
    return round(float(max(np.ceil(np.quantile(size, share) / unit), 1)) * unit, 6) if size.size else 1.0


def picture_uri(picture: Tensor) -> str:
    """(1, 3, H, W) in [-1, 1], or (3, H, W) in 0..255, as a PNG: what is looked at closely must not be changed by JPEG."""
    image = render.picture(picture if picture.ndim == 3 else to_uint8(picture)[0]).image
    return f"data:image/png;base64,{base64.b64encode(render.encode(image, 'PNG')).decode()}"


def figures(pictures: list[tuple[str, str, str]]) -> str:
    """Pictures with a title and a line under it, side by side, as HTML: (address, title, line)."""
    return "".join(
        f'<figure><img class="pixels" src="{source}" alt="{html.escape(title, quote=True)}"><figcaption><b>{html.escape(title)}</b>'
        f"<span>{html.escape(line)}</span></figcaption></figure>"
        for source, title, line in pictures
    )


def pictures(elem_id: str) -> gr.HTML:
    """A row of pictures, filled by `figures`."""
    return gr.HTML(
        "", html_template="<div class='figures'>${value}</div>", js_on_load=None, apply_default_css=False, elem_id=elem_id
    )


def quick(shared: Shared, owner: str | None, shown: str) -> bool:
    """Whether the run's model is a plain one of ours, small enough to be asked without a click."""
    try:
        model = shared.trace_of(shown, owner).request.model
    except ValueError:
        return False
    return model in CATALOG and CATALOG[model].embedded and CATALOG[model].role == "base"


def picture_for(sd: StableDiffusion, own: Image.Image | None, trace: Trace) -> Image.Image:
    """The visitor's own picture at a size for this model; without one the run's, or what a stopped run had guessed last."""
    if own is not None:
        return images.fit(own, sd.size)
    if trace.picture is not None:
        return render.picture(trace.picture).image
    return render.picture(to_uint8(latents.decode(sd, trace.steps[-1].x0.to(sd.device)))[0]).image


def upload(own: gr.State, name: str, back: str = "parts_back") -> tuple[Dependency, Dependency]:
    """A button that takes in a picture, one that goes back to the other picture; returns both events, to go on from."""
    button = gr.UploadButton(i18n("parts_upload"), elem_id=f"{name}-upload", size="md", min_width=160)
    forget = gr.Button(i18n(back), elem_id=f"{name}-back", size="md", min_width=160)

    def take(path: str, request: gr.Request) -> Image.Image:
        language = common.language(request)
        try:
            opened = images.look_in(path)
        except ValueError as error:
            raise common.refusal(language, error) from None
        for notice in opened.notices:
            gr.Info(texts.sentence(language, notice), title="")
        opened.image.thumbnail((LARGEST, LARGEST))
        return opened.image

    return button.upload(take, button, own, **LOOK), forget.click(lambda: None, None, own, **QUICK)
