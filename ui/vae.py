"""The section VAE: a picture's way into latents and back, what can be done in between, and why there are latents at all."""

import html
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from core import images, latents
from core.engine import Part, Work
from core.models import StableDiffusion
from core.sampling import Request, check_number, check_whole
from core.trace import Trace
from ui import common, parts, render, texts
from ui.common import QUICK, WATCH, Shared, i18n

RANGES = {"noise": (0, 2), "blur": (0, 3), "zero": (0, 0), "shift": (-3, 3)}  # of the amount of each of latents.EDITS
SCALE = 64  # levels of 255: the end of the scale of error maps
BETWEEN = {"pictures": "vae_what_pictures", "starts": "vae_what_starts"}  # what of two runs is interpolated
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the second picture, between two
SIDES = (64, 128, 256, 512)  # pixels, in the table of costs


@dataclass(frozen=True)
class Trip:
    """A picture that went into latents and came back. All on the CPU."""

    model: str
    before: Tensor  # (1, 3, H, W) in [-1, 1]
    z: Tensor  # (1, 4, h, w), the posterior's mean
    after: Tensor  # z decoded


def travel(sd: StableDiffusion, picture: Image.Image) -> Trip:
    before = latents.pixels_of(picture)
    z = latents.encode(sd, before)
    return Trip(sd.name, before, z.cpu(), latents.decode(sd, z).cpu())


def distance(a: Tensor, b: Tensor) -> Tensor:
    """How far apart two pictures are at each pixel, mean over red, green and blue, in levels of 255: (H, W)."""
    return (a - b).abs().mean(1)[0] * 127.5


def view(trip: Trip, language: str) -> dict:
    (_, c, h, w), (_, _, height, width) = trip.z.shape, trip.before.shape
    many, few = 3 * height * width, c * h * w
    error = distance(trip.before, trip.after)
    facts = {"psnr": f"{latents.psnr(trip.before, trip.after):.1f}", "error": f"{float(error.mean()):.1f}"}
    return {
        "kind": "trip",
        "h": h,
        "w": w,
        "before": parts.picture_uri(trip.before),
        "after": parts.picture_uri(trip.after),
        "latents": parts.compact(trip.z),
        "limit": parts.limit_of(render.numbers(trip.z)),
        "error": render.numbers_of(error, 0, SCALE),
        "pixels": f"3 × {height} × {width} = {many:,}",
        "numbers": f"{c} × {h} × {w} = {few:,}",
        "verdict": texts.say(language, "vae_verdict", ratio=f"{many / few:g}", **facts),
        "texts": texts.of(language, "vae_"),
    }


def mask_of(painted: str, z: Tensor) -> Tensor | None:
    """What was painted, row by row as 0 and 1, as a mask (h, w); None if nothing was. Raises ValueError if it does not fit the latents."""
    if not painted:
        return None
    h, w = z.shape[-2:]
    if len(painted) != h * w or set(painted) - {"0", "1"}:
        raise ValueError("The painted patch has another size than the latents; paint it anew.")
    return torch.tensor([one == "1" for one in painted]).view(h, w)


def changed(trip: Trip, z: Tensor, picture: Tensor, language: str) -> str:
    """The picture of edited latents beside the one of the unedited, and where they differ, as HTML."""
    apart = distance(trip.after, picture)
    moved = int((z != trip.z).any(1).sum())
    facts = {
        "squares": moved,
        "total": z[0, 0].numel(),
        "share": f"{100 * float((apart > 1).float().mean()):.0f}",
        "mean": f"{float(apart.mean()):.1f}",
    }
    grey = (apart / SCALE).clamp(0, 1)[None].repeat(3, 1, 1) * 2 - 1
    pictures = [
        (parts.picture_uri(trip.after), texts.say(language, "vae_unedited"), ""),
        (parts.picture_uri(picture), texts.say(language, "vae_edited"), texts.say(language, "vae_edited_line", **facts)),
        (
            parts.picture_uri(grey[None]),
            texts.say(language, "vae_changed"),
            texts.say(language, "vae_changed_line", **facts, scale=SCALE),
        ),
    ]
    return parts.figures(pictures)


def between_pictures(trace: Trace, now: Trip | None, other: Trace | None, mine: Image.Image | None) -> Work:
    """From the picture that made the trip to another run's or the visitor's own, or with neither to pure noise. The work's last part is
    what between_html shows; the others count.

    Raises ValueError if one of the pictures is missing.
    """
    if now is None:
        raise ValueError("There are no latents yet; send a picture through the VAE first.")
    if other is not None and other.picture is None:
        raise ValueError("A stopped run has no finished picture to compare; choose another.")
    picture = render.picture(other.picture).image if other is not None and other.picture is not None else mine
    h, w = now.before.shape[-2:]

    def work(sd: StableDiffusion) -> Iterator[Part]:
        if picture is None:
            b = latents.noise(sd, h, w, latents.generator(1)).cpu()
        else:
            b = latents.encode(sd, latents.pixels_of(images.cover(picture, w, h))).cpu()
        decoded = []
        for one in between(sd, now.z, b, latents.slerp):
            yield Part(len(decoded), len(SHARES) + 1, one)
            decoded.append(one)
        blend = [line(now.after, decoded[-1], share) for share in SHARES]
        yield Part(len(SHARES), len(SHARES) + 1, (now.z, b, decoded, blend))

    return work


def between_starts(trace: Trace, now: Trip | None, other: Trace | None, mine: Image.Image | None) -> Work:
    """From what one run began with to what another did, or to other noise. Its parts are as those of between_pictures.

    Raises ValueError if that is not known, or does not fit.
    """
    if mine is not None:
        raise ValueError("A picture of yours began with no noise that is known; use the menu’s runs.")
    if not all(from_noise(run.request) for run in (trace, other) if run):
        raise ValueError("A run from a picture did not begin with noise alone; choose runs from words.")
    if other is not None and other.size != trace.size:
        raise ValueError("These two runs have latents of different sizes; choose one of the same size.")
    a = trace.steps[0].x_in  # as the UNet saw it: unit noise, in whatever coordinates the scheduler counts
    h, w = trace.size

    def work(sd: StableDiffusion) -> Iterator[Part]:
        b = latents.noise(sd, sd.factor * h, sd.factor * w, latents.generator(1)).cpu() if other is None else other.steps[0].x_in
        decoded = []
        for way in (latents.slerp, line):
            for one in between(sd, a, b, way):
                yield Part(len(decoded), 2 * len(SHARES) + 1, one)
                decoded.append(one)
        half = len(SHARES)
        yield Part(2 * half, 2 * half + 1, (a, b, decoded[:half], decoded[half:]))

    return work


def from_noise(request: Request) -> bool:
    """Whether a run's first latents were noise and nothing else."""
    source = request.source
    return source is None or (source.strength == 1 and source.KIND in ("inpaint", "upscale"))


def line(a: Tensor, b: Tensor, share: float) -> Tensor:
    return (1 - share) * a + share * b


def between(sd: StableDiffusion, a: Tensor, b: Tensor, way: Callable[[Tensor, Tensor, float], Tensor]) -> Iterator[Tensor]:
    """Latents on the way from a to b, decoded, one picture at a time."""
    for share in SHARES:
        yield latents.decode(sd, way(a, b, share).to(sd.device)).cpu()


def between_html(what: str, a: Tensor, b: Tensor, decoded: list[Tensor], straight: list[Tensor], language: str) -> str:
    """Two rows: the way round, decoded, with how strong the latents are beside a straight line's; and a straight line, which is of the
    pixels between pictures, of the latents between starts."""
    way = [
        (
            parts.picture_uri(picture),
            f"{100 * share:.0f} %",
            texts.say(
                language,
                "vae_strength",
                slerp=f"{render.strength(latents.slerp(a, b, share)):.2f}",
                line=f"{render.strength(line(a, b, share)):.2f}",
            ),
        )
        for share, picture in zip(SHARES, decoded, strict=False)
    ]
    under = [(parts.picture_uri(picture), f"{100 * s:.0f} %", "") for s, picture in zip(SHARES, straight, strict=True)]

    def row(key: str, pictures: list[tuple[str, str, str]]) -> str:
        title = html.escape(texts.say(language, key))
        return f'<section class="moment"><h4>{title}</h4><div class="figures">{parts.figures(pictures)}</div></section>'

    if what == "pictures":
        return row("vae_between_latents", way) + row("vae_between_pixels", under)
    said = html.escape(texts.say(language, "vae_starts_said"))
    return f'<p class="note">{said}</p>' + row("vae_between_starts", way) + row("vae_between_straight", under)


def costs(factor: int, language: str) -> str:
    """What self-attention costs in pixels and in latents: every place looks at every place, so twice the side is 16 times the work."""
    lines = []
    for k, side in enumerate(SIDES):
        more = f" <b>×{(side // SIDES[k - 1]) ** 4}</b>" if k else ""
        cells = ""
        for places in (side**2, (side // factor) ** 2):
            length = 100 * math.log(places) / math.log(SIDES[-1] ** 2)
            cells += f'<td>{places:,}</td><td class="cost"><i style="--share:{length / 100:.3f}"></i>{places**2:,}{more}</td>'
        lines.append(f'<tr><th scope="row">{side} × {side}</th>{cells}</tr>')
    head = "".join(
        f'<th colspan="2" scope="colgroup">{texts.say(language, key)}</th>' for key in ("vae_in_pixels", "vae_in_latents")
    )
    names = f"<th>{texts.say(language, 'vae_places')}</th><th>{texts.say(language, 'vae_pairs')}</th>" * 2
    note = html.escape(texts.say(language, "vae_costs_note", ratio=f"{factor**4:,}"))
    return (
        f"<table><thead><tr><td></td>{head}</tr><tr><th>{texts.say(language, 'vae_side')}</th>{names}</tr></thead>"
        f'<tbody>{"".join(lines)}</tbody></table><p class="note">{note}</p>'
    )


def build(shared: Shared, own: gr.State) -> None:
    """own: a picture of the visitor's own."""
    parts.heading("vae")
    with gr.Row(elem_classes="section-controls"):
        go = gr.Button(i18n("vae_go"), variant="primary", elem_id="vae-go", min_width=160)
        taken = parts.upload(own, "vae")
    status = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="vae-status")
    seen = parts.live("vae")
    edited = parts.pictures("vae-edited")

    gr.HTML(i18n("vae_between"), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="section-question")
    gr.HTML(i18n("vae_between_says"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")
    second = gr.State(None)  # the other picture, if it is the visitor's own
    with gr.Row(elem_classes="section-controls"):
        choices = [(i18n(key), name) for name, key in BETWEEN.items()]
        what = gr.Dropdown(choices, value="pictures", label=i18n("vae_what"), filterable=False, elem_id="vae-what", min_width=280)
        other = gr.Dropdown([], label=i18n("vae_other"), filterable=False, elem_id="vae-other", min_width=320, scale=2)
        mix = gr.Button(i18n("vae_mix"), variant="primary", elem_id="vae-mix", min_width=120)
        second_taken = parts.upload(second, "vae-second", back="vae_second_back")
    mixing = gr.HTML(apply_default_css=False, elem_classes="note", elem_id="vae-mixing")
    way = gr.HTML("", html_template="<div>${value}</div>", js_on_load=None, apply_default_css=False, elem_id="vae-way")

    gr.HTML(i18n("vae_why"), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="section-question")
    gr.HTML(i18n("vae_why_says"), html_template="<p>${value}</p>", apply_default_css=False, elem_classes="about")
    cost = gr.HTML(apply_default_css=False, elem_id="vae-costs")
    trip = gr.State(None)  # the Trip that the view shows

    def look(trace: Trace, owner: str, language: str) -> dict:
        """The section is opened: the menu of other pictures, the costs; the trip itself follows by `first`."""
        noise = (texts.say(language, "vae_noise_choice"), "noise")
        runs = [
            (common.run_name(one, t, language), one) for one, t in shared.kept(owner) if t is not trace and t.picture is not None
        ]
        menu = gr.Dropdown(choices=[*runs, noise], value=(runs or [noise])[0][1])
        sd = shared.engine.loaded(trace.request.model)
        return {
            seen: parts.said(""),
            other: menu,
            cost: costs(sd.factor if sd else 8, language),
            trip: None,
            edited: "",
            way: "",
            mixing: "",
            status: texts.say(language, "vae_press"),
        }

    def round_trip(owner: str | None, shown: str, mine: Image.Image | None, request: gr.Request) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            trace = shared.trace_of(shown, owner)

            def work(sd: StableDiffusion) -> Iterator[Part]:
                yield Part(0, 1, travel(sd, parts.picture_for(sd, mine, trace)))

            for _, snapshot, made in parts.works(shared, trace.request.model, work, owner, "vae"):
                yield {status: parts.waiting(snapshot, language)} | (
                    {seen: common.packed(view(made[0], language)), trip: made[0], edited: "", way: ""} if made else {}
                )
        except ValueError as error:
            yield {status: ""}
            raise common.refusal(language, error) from None

    def first(owner: str | None, shown: str, mine: Image.Image | None, request: gr.Request) -> Iterator[dict]:
        """The section is never empty, unless filling it takes a large model."""
        if parts.quick(shared, owner, shown):
            yield from round_trip(owner, shown, mine, request)
        else:
            yield {status: gr.skip()}

    def change(owner: str | None, now: Trip | None, event: gr.EventData, request: gr.Request) -> Iterator[dict]:
        """Edits the latents and decodes them."""
        language, owner = common.language(request), common.owner_of(owner)
        try:
            if now is None:
                raise ValueError("There are no latents yet; send a picture through the VAE first.")
            edit, amount = common.event_value(event, "edit"), common.number_of(common.event_value(event, "amount"))
            channel = common.number_of(common.event_value(event, "channel"))
            check_number("amount", amount, *RANGES.get(edit, (0, 0)))
            check_whole("channel", channel, 0, now.z.shape[1])
            mask = mask_of(common.event_value(event, "mask"), now.z)
            z = latents.edited(now.z, edit, amount, channel=channel - 1 if channel else None, mask=mask)

            def work(sd: StableDiffusion) -> Iterator[Part]:
                yield Part(0, 1, latents.decode(sd, z.to(sd.device)).cpu())

            for _, snapshot, made in parts.works(shared, now.model, work, owner, "vae"):
                yield {status: parts.waiting(snapshot, language)} | ({edited: changed(now, z, made[0], language)} if made else {})
        except ValueError as error:
            yield {status: ""}
            raise common.refusal(language, error) from None

    def mix_both(
        owner: str | None,
        shown: str,
        now: Trip | None,
        between_what: str,
        choice: str | None,
        mine: Image.Image | None,
        request: gr.Request,
    ) -> Iterator[dict]:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            trace = shared.trace_of(shown, owner)
            second_run = shared.trace_of(choice or "", owner) if mine is None and choice != "noise" else None
            do = between_starts if between_what == "starts" else between_pictures
            for _, snapshot, made in parts.works(shared, trace.request.model, do(trace, now, second_run, mine), owner, "vae"):
                rows = between_html(between_what, *made[-1], language) if made and isinstance(made[-1], tuple) else ""
                yield {mixing: parts.waiting(snapshot, language), way: rows}
        except ValueError as error:
            yield {mixing: ""}
            raise common.refusal(language, error) from None

    def choose_second(mine: Image.Image | None, choice: str | None, request: gr.Request) -> dict:
        return {mixing: texts.say(common.language(request), "vae_second_mine") if mine is not None else ""}

    travelling = [shared.owner, shared.shown, own]
    shows = [seen, trip, edited, way, status]
    opened = parts.on_demand(shared, seen, "vae", look, [other, cost, trip, edited, way, mixing, status])
    opened.success(first, travelling, shows, **WATCH)
    go.click(round_trip, travelling, shows, **WATCH)
    for event in taken:
        event.success(round_trip, travelling, shows, **WATCH)
    seen.edit(change, [shared.owner, trip], [edited, status], **WATCH)
    for event in second_taken:
        event.success(choose_second, [second, other], mixing, **QUICK)
    mix.click(mix_both, [shared.owner, shared.shown, trip, what, other, second], [way, mixing], **WATCH)
