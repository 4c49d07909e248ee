"""What does the guidance scale do?

All pictures of a row begin with the same noise and read the same words; only the guidance scale w differs. At w = 0 the words count for
nothing, at w = 1 they are followed as they are, and beyond that every step goes past what they ask for. Drag through the steps to see
where the pictures part ways.
"""

import base64
import html
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from core import sweep as sweeping
from core.engine import ENDED, LocalEngine, Snapshot
from core.images import SETTINGS
from core.models import StableDiffusion
from core.sampling import Request, size_of
from core.schedulers import SCHEDULERS
from core.sweep import Cost, Meter, Sweep, Tile
from core.trace import Trace
from ui import common, render, texts
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n
from ui.pictures import send_row
from ui.texts import say

TITLE = "tab_sweep"  # a key of ui/texts.py

# The course's own figure, which is what the tab opens with.
PRESET = {"prompt": "an oil painting of a dog in a top hat", "scales": "0, 1, 2, 10"}

AXES = {
    "none": "sweep_axis_none",
    "seed": "sweep_axis_seed",
    "steps": "sweep_axis_steps",
    "scheduler": "sweep_axis_scheduler",
    "negative": "sweep_axis_negative",
    "swap": "sweep_axis_swap",
}
SOME = ["DDIM", "Euler a", "DPM++ 2M"]  # schedulers, until others are chosen
EXAMPLES = {"seed": "1, 2, 3", "steps": "5, 10, 20", "negative": "red\nblurry, dark", "swap": "dog -> cat"}
HOW = {
    "seed": "sweep_values_numbers",
    "steps": "sweep_values_numbers",
    "negative": "sweep_values_lines",
    "swap": "sweep_values_swap",
}
WAITING = {"queued": "status_queued", "loading": "status_loading", "running": "status_starting"}

Place = tuple[int, int]  # row, column
NOTHING = common.packed({"kind": "none"})


# --- from controls to a grid --------------------------------------------------------------------------------------------------------


def sweep_of(
    prompt: str,
    negative: str,
    scales: str,
    axis: str,
    values: str,
    names: list[str],
    steps: object,
    seed: int | None,
    scheduler: str,
    width: str,
    height: str,
    model: str,
) -> Sweep:
    """The controls' values as a grid. An empty seed is a new one, the same for all; an empty size is the model's own.

    Raises ValueError for what cannot be drawn.
    """
    request = Request(
        prompt=prompt,
        negative=negative,
        seed=random.randrange(2**32) if seed is None else seed,
        steps=common.number_of(steps),  # pyright: ignore[reportArgumentType]
        scheduler=scheduler,
        width=common.number_of(width) if width else None,  # pyright: ignore[reportArgumentType]
        height=common.number_of(height) if height else None,  # pyright: ignore[reportArgumentType]
        model=model,
    )
    typed = "\n".join(names or []) if axis == "scheduler" else values or ""
    return Sweep(request, sweeping.parse_scales(scales or ""), axis, sweeping.parse_values(axis, typed, request))


def typed_of(sweep: Sweep) -> dict:
    """sweep_of backwards: what the controls show of a grid."""
    r, values = sweep.request, sweep.values
    typed = {
        "negative": "\n".join(values[1:]),
        "swap": ", ".join(value for value in values if "->" in value),
        "none": "",
        "scheduler": "",
    }
    return {
        "prompt": r.prompt,
        "negative": r.negative,
        "scales": ", ".join(f"{w:g}" for w in sweep.guidances),
        "axis": sweep.axis,
        "values": typed.get(sweep.axis, ", ".join(values)),
        "names": list(values) if sweep.axis == "scheduler" else SOME,
        "steps": f"{r.steps}",
        "seed": r.seed,
        "scheduler": r.scheduler,
        "width": f"{r.width or ''}",
        "height": f"{r.height or ''}",
        "model": r.model,
    }


def price_html(sd: StableDiffusion, sweep: Sweep, clock: Meter | None, language: str) -> str:
    """What the grid will cost, before it is drawn."""
    cost = sweeping.cost(sd, sweep)
    tip = html.escape(say(language, "sweep_cost_tip"), quote=True)
    passes = f'<span class="term" tabindex="0" data-tip="{tip}">{say(language, "sweep_passes", count=cost.passes)}</span>'
    lines = [f"<b>{say(language, 'sweep_cost', pictures=cost.pictures, passes=passes, naive=cost.naive, saved=cost.saved)}</b>"]
    lines += [f'<span class="formula">{line}</span>' for line in [formula(sd, sweep, cost)] if line]
    seconds = clock.seconds(cost.passes, cost.pictures) if clock else None
    lines.append(
        say(language, "sweep_cost_unknown") if seconds is None else say(language, "sweep_cost_seconds", seconds=rounded(seconds))
    )
    return f'<p class="price">{"<br>".join(lines)}</p>'


def formula(sd: StableDiffusion, sweep: Sweep, cost: Cost) -> str:
    """2 + (T - 1)(2N - k) with its numbers; "" where it is not that simple."""
    t, n = sweeping.turns(sd, sweep.rows()[0][0]), len(sweep.guidances)
    k = sum(w in (0, 1) for w in sweep.guidances)
    if sweep.axis != "none" or cost.first != 2 or cost.rest != (t - 1) * (2 * n - k):
        return ""
    return f"2 + (T − 1)(2N − k) = 2 + {t - 1} × ({2 * n} − {k}) = {cost.passes}"


def rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"


# --- labels -------------------------------------------------------------------------------------------------------------------------


def columns(sweep: Sweep) -> list[str]:
    return [f"w = {w:g}" for w in sweep.guidances]


def rows(sweep: Sweep, language: str) -> list[str]:
    """What tells the rows apart; one empty label if there is one row without a second axis."""
    if sweep.axis == "seed":
        return [say(language, "runs_seed", seed=value.strip()) for value in sweep.values]
    if sweep.axis == "steps":
        return [say(language, "sweep_row_steps", steps=value.strip()) for value in sweep.values]
    if sweep.axis == "negative":
        return [value or say(language, "sweep_row_no_negative") for value in sweep.values]
    return [value.replace("->", "→") for value in sweep.values]


def facts(r: Request, language: str, leave_out: str = "") -> str:
    """A picture's settings in one line, without the one that its row's label tells."""
    parts = {
        "steps": say(language, "sweep_row_steps", steps=r.steps),
        "scheduler": r.scheduler,
        "seed": say(language, "runs_seed", seed=r.seed),
    }
    return " · ".join(text for name, text in parts.items() if name != leave_out)


def shades(count: int) -> list[str]:
    """A colour for each scale, the middle part of viridis: to be told apart on white and on black, also without seeing red or green."""
    stops = np.array([[92, 104, 184], [45, 117, 147], [32, 140, 136], [46, 150, 94], [118, 148, 24]])
    at = np.linspace(0, len(stops) - 1, max(count, 1))
    rgb = np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], 1).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb.tolist()]


# --- what the board shows -----------------------------------------------------------------------------------------------------------


def by_cell(tiles: list[Tile]) -> dict[Place, list[Tile]]:
    """The tiles of each cell, step by step."""
    cells: dict[Place, list[Tile]] = {}
    for tile in tiles:
        if tile.i == 0:  # anew, if the device's memory made it begin again
            cells[tile.row, tile.column] = []
        cells[tile.row, tile.column].append(tile)
    return cells


def finished_of(tiles: list[Tile]) -> dict[Place, Trace]:
    return {(tile.row, tile.column): tile.trace for tile in tiles if tile.trace is not None}


def frame(sweep: Sweep, language: str) -> dict:
    """The empty grid: what stands around the pictures."""
    return {
        "columns": columns(sweep),
        "colours": shades(len(sweep.guidances)),
        "rows": rows(sweep, language),
        "prompt": sweep.request.prompt,
        "texts": texts.of(language, "sweep_"),
    }


def picture_uri(trace: Trace) -> str | None:
    if trace.picture is None:
        return None
    image = render.picture(trace.picture).image
    return render.uri(image, "PNG" if max(image.size) <= 256 else "JPEG")


def strip_uri(tiles: list[Tile]) -> str:
    """A cell's steps, one below the other, in one picture."""
    image = render.picture(np.concatenate([tile.preview.numpy() for tile in tiles], axis=1)).image
    return render.uri(image, "PNG" if image.width <= 48 else "JPEG")


def board(tiles: list[Tile], language: str, status: str, state: str = "done") -> dict:
    """The grid with everything that the script needs to go through its steps without asking again."""
    sweep, cells, made = tiles[0].sweep, by_cell(tiles), finished_of(tiles)
    requests = sweep.rows()
    if state == "run":  # a single run, which may have been stopped
        made = {(0, 0): made.get((0, 0))}
    shown = []
    for (row, column), trace in sorted(made.items()):
        of, r = cells[row, column], requests[row][column]
        preview = of[0].preview
        shown.append(
            {
                "row": row,
                "column": column,
                "w": r.guidance,
                "count": of[-1].count,
                "picture": None if trace is None else picture_uri(trace),
                "strip": strip_uri(of),
                "steps": [[v if v is None else round(v, 4) for v in asdict(tile.strengths).values()] for tile in of],
                "kept": trace is None or len(trace) > 0,
                "prompt": r.prompt,
                "facts": facts(r, language),
                "aspect": f"{preview.shape[2]} / {preview.shape[1]}",
            }
        )
    return {"kind": "grid", "state": state, "status": status, "cells": shown} | frame(sweep, language)


def live(snapshot: Snapshot, sweep: Sweep | None, fresh: list[Tile], made: int, language: str) -> dict:
    """A grid that fills: the newest look of the cells that changed."""
    newest = {(tile.row, tile.column): tile for tile in fresh}
    last = fresh[-1] if fresh else None
    if last is None or sweep is None:
        status = say(language, WAITING[snapshot.state], place=snapshot.place)
    else:
        count = len(sweep.guidances) * len(sweep.values)
        status = say(language, "sweep_running", made=made, count=count, seconds=rounded(last.seconds_left or 0))
    cells = []
    for (row, column), tile in newest.items():
        cells.append(
            {
                "row": row,
                "column": column,
                "i": tile.i,
                "count": tile.count,
                "x0": render.uri(render.picture(tile.preview).image),
                "picture": None if tile.trace is None else picture_uri(tile.trace),
                "aspect": f"{tile.preview.shape[2]} / {tile.preview.shape[1]}",
            }
        )
    share = snapshot.i / snapshot.count if snapshot.count else 0
    now = {"kind": "live", "job": snapshot.job, "status": status, "share": round(share, 4), "cells": cells}
    return now | (frame(sweep, language) if sweep else {"texts": texts.of(language, "sweep_")})


AGAIN = 4  # a cell's news is told in so many messages, should the page miss one


def follow(engine: LocalEngine, job: str, language: str, sweep: Sweep | None = None) -> Iterator[dict]:
    """What the board shows of a sweep, from now to its end. Raises ValueError with its own sentence if it failed.

    sweep: what it draws, if the page knows; else its first tile tells.
    """
    tiles: list[Tile] = []
    seen = [0] * AGAIN  # how many tiles there were at the last messages
    made = 0
    for snapshot in engine.events(job, rate=6):
        if snapshot.state in ENDED:
            break
        new = [v for v in engine.values(job, len(tiles)) if isinstance(v, Tile)]
        tiles += new
        made += sum(tile.trace is not None for tile in new)
        yield live(snapshot, tiles[0].sweep if tiles else sweep, tiles[seen[0] :], made, language)
        seen = [*seen[1:], len(tiles)]
    yield ended(engine, job, language)


def ended(engine: LocalEngine, job: str, language: str) -> dict:
    """A sweep that is over: its board, or {"kind": "none"} if it was stopped before its first picture was finished."""
    values = engine.values(job)
    tiles = [v for v in values if isinstance(v, Tile)]
    made, snapshot = finished_of(tiles), engine.snapshot(job)
    if not made:
        return {"kind": "none"}
    sweep = tiles[0].sweep
    numbers = {"made": len(made), "count": len(sweep.guidances) * len(sweep.values)}
    if isinstance(values[-1], str):
        status = say(language, "sweep_broke", why=texts.sentence(language, values[-1]), **numbers)
    elif snapshot and snapshot.state == "stopped":
        status = say(language, "sweep_stopped", **numbers)
    else:
        last = tiles[-1]
        status = say(language, "sweep_done", passes=last.passes, seconds=rounded(last.seconds), **numbers)
    return board(tiles, language, status, "done" if len(made) == numbers["count"] else "stopped")


# --- curves -------------------------------------------------------------------------------------------------------------------------


def pulls(tiles: list[Tile], row: int) -> dict[int, list[float]]:
    """Column -> how strong eps_cond - eps_uncond was at each step, of those cells of a row that have both and are finished."""
    cells, found = by_cell(tiles), {}
    for (r, column), of in sorted(cells.items()):
        strengths = [tile.strengths.pull for tile in of]
        if r == row and None not in strengths and (len(of) == of[-1].count or len(cells) == 1):
            found[column] = strengths
    return found


def ways(tiles: list[Tile], place: Place) -> dict[int, list[float]]:
    """Column -> how far each finished cell's latents are from the chosen one's, after 0, 1, .. steps."""
    made = finished_of(tiles)
    chosen = made.get(place)
    if chosen is None or not len(chosen):
        return {}
    return {
        column: sweeping.apart(chosen, trace)
        for (row, column), trace in sorted(made.items())
        if row == place[0] and column != place[1] and len(trace)
    }


def chart(curves: dict[int, list[float]], sweep: Sweep, first: int, *, title: str, said: str, across: str) -> str:
    """Curves for ui/curve.js. first: the number of the first step."""
    names, colours = columns(sweep), shades(len(sweep.guidances))
    lines = [{"name": names[c], "colour": colours[c], "values": [round(v, 5) for v in curve]} for c, curve in curves.items()]
    return common.curves(lines, title=title, said=said, across=across, of="sweep", first=first)


def pull_said(curves: dict[int, list[float]], sweep: Sweep, language: str) -> str:
    """The norm curve in a sentence: of the largest scale that has one."""
    if not curves:
        return say(language, "sweep_pull_none")
    column = max(curves, key=lambda c: sweep.guidances[c])
    curve, names = curves[column], columns(sweep)
    numbers = {"scale": names[column], "first": f"{curve[0]:.3f}", "last": f"{curve[-1]:.3f}", "count": len(curve)}
    return say(language, "sweep_pull_said", **numbers)


def ways_said(curves: dict[int, list[float]], sweep: Sweep, place: Place, language: str) -> str:
    """Which scale ends farthest from the chosen one, and when it was half as far."""
    if not curves:
        return say(language, "sweep_ways_none")
    column = max(curves, key=lambda c: curves[c][-1])
    names, half = columns(sweep), sweeping.halfway(curves[column])
    numbers = {"far": f"{curves[column][-1]:.2f}", "half": half, "count": len(curves[column]) - 1}
    return say(language, "sweep_ways_said", scale=names[column], chosen=names[place[1]], **numbers)


def first_place(tiles: list[Tile]) -> Place:
    """The cell that is chosen before anybody chooses: the last of the first row that is finished."""
    made = finished_of(tiles)
    return max((p for p in made if p[0] == min(made)[0]), default=(0, 0))


# --- the grid as one picture --------------------------------------------------------------------------------------------------------

# A font that has all letters of a label; Pillow carries one for the Latin ones.
WORLD = ("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "Hiragino Sans GB.ttc", "YuGothM.ttc", "msgothic.ttc")


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if any(ord(c) > 0x24F and c not in "–→·−" for c in text):
        for name in WORLD:
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words where that is possible."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        if lines[-1] and font.getlength(lines[-1] + word.rstrip()) > width:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def sheet(sweep: Sweep, made: dict[Place, Trace], language: str) -> Image.Image:
    """The whole grid with its labels, as large as its pictures are; small ones twice or more, to be readable on a slide."""
    pictures = {place: render.picture(trace.picture).image for place, trace in made.items() if trace.picture is not None}
    if not pictures:
        raise ValueError("This run was stopped, so it has no finished picture.")
    one = next(iter(pictures.values()))
    scale = max(1, round(256 / one.width))
    w, h = one.width * scale, one.height * scale
    size = max(16, w // 14)
    gap, line = size // 2, round(size * 1.4)
    names, heads, r = rows(sweep, language), columns(sweep), sweep.request
    side = 0 if names == [""] else round(w * 0.7)
    across = len(heads) * (w + gap) - gap
    words = "" if sweep.axis == "swap" and len(sweep.values) == 1 else r.prompt.strip()
    caption = [
        words,
        say(language, "sweep_sheet_negative", words=r.negative) if r.negative and sweep.axis != "negative" else "",
    ]
    caption.append(f"{facts(r, language, sweep.axis)} · {r.model}")
    below = [
        (part, font_for(caption_line, size))
        for caption_line in caption
        if caption_line
        for part in wrapped(caption_line, font_for(caption_line, size), side + across)
    ]
    image = Image.new("RGB", (2 * gap + side + across, 3 * gap + line + len(names) * (h + gap) + len(below) * line), "white")
    draw = ImageDraw.Draw(image)
    for column, head in enumerate(heads):
        draw.text((gap + side + column * (w + gap) + w // 2, gap), head, "black", font_for(head, size), "ma")
    for row, name in enumerate(names):
        top = gap + line + gap // 2 + row * (h + gap)
        font = font_for(name, size)
        for k, part in enumerate(wrapped(name, font, side - gap) if side else []):
            draw.text((gap, top + k * line), part, "black", font)
        for column in range(len(heads)):
            left = gap + side + column * (w + gap)
            if (row, column) in pictures:
                image.paste(pictures[row, column].resize((w, h), Image.Resampling.LANCZOS), (left, top))
            else:
                draw.rectangle((left, top, left + w - 1, top + h - 1), "#f0f1ef")
    for k, (part, font) in enumerate(below):
        draw.text((gap, gap + line + gap + len(names) * (h + gap) + k * line), part, "black", font)
    return image


def sheet_png(sweep: Sweep, made: dict[Place, Trace], language: str) -> bytes:
    """The sheet as a file. It carries what all its pictures have in common, and the grid; dropped on the page, it restores the settings."""
    made_by = next(iter(made.values())).made_by
    about = PngImagePlugin.PngInfo()
    grid = {"guidances": sweep.guidances, "axis": sweep.axis, "values": sweep.values}
    about.add_text(SETTINGS, json.dumps({**asdict(sweep.request), **made_by, "sweep": grid}))
    return render.encode(sheet(sweep, made, language), "PNG", pnginfo=about)


def file_of(png: bytes, prompt: str, what: str) -> str:
    """For the page's script: a file to save. The moment makes each one new."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return common.packed({"uri": uri, "name": f"{words}-{what}.png", "at": time.time()})


# --- the page -----------------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine = shared.engine
    speeds: dict[tuple, Meter] = {}  # (model, height, width) -> what its last sweep took

    common.heading("sweep")
    with gr.Row(elem_classes="tab-body", elem_id="sweep"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            prompt = gr.Textbox(
                PRESET["prompt"], label=i18n("prompt"), lines=2, max_lines=6, elem_id="sweep-prompt", elem_classes="runs-on-enter"
            )
            scales = gr.Textbox(
                PRESET["scales"], label=i18n("sweep_scales"), elem_id="sweep-scales", elem_classes="runs-on-enter"
            )
            hint("sweep_scales_info")
            axis = gr.Dropdown(
                [(i18n(key), name) for name, key in AXES.items()],
                value="none",
                label=i18n("sweep_axis"),
                filterable=False,
                elem_id="sweep-axis",
            )
            values = gr.Textbox("", label=i18n("sweep_values"), lines=2, max_lines=8, visible=False, elem_id="sweep-values")
            names = gr.Dropdown(
                list(SCHEDULERS),
                value=SOME,
                multiselect=True,
                label=i18n("sweep_values"),
                visible=False,
                elem_id="sweep-names",
            )
            how = gr.HTML(visible=False, apply_default_css=False, elem_classes="hint", html_template="<p>${value}</p>")
            price = gr.HTML(apply_default_css=False, elem_id="sweep-price")
            run = gr.Button(i18n("sweep_draw"), variant="primary", elem_id="sweep-run", elem_classes="run")
            stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id="sweep-stop")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            negative = gr.Textbox(
                "",
                label=i18n("negative"),
                placeholder=i18n("negative_placeholder"),
                lines=1,
                max_lines=6,
                elem_id="sweep-negative",
                elem_classes="runs-on-enter",
            )
            steps = common.number(20, 1, 100, 1, "steps", "sweep-steps")
            seed = gr.Number(1, label=i18n("seed"), placeholder=i18n("seed_placeholder"), elem_id="sweep-seed")
            scheduler = gr.Dropdown(
                list(SCHEDULERS), value="DDIM", label=i18n("scheduler"), filterable=False, elem_id="sweep-scheduler"
            )
            with gr.Row(elem_classes="pair"):
                width, height = (
                    gr.Textbox(
                        label=i18n(side),
                        placeholder=i18n("size_placeholder"),
                        max_lines=1,
                        min_width=100,
                        elem_id=f"sweep-{side}",
                    )
                    for side in ("width", "height")
                )
            take = gr.Button(i18n("sweep_take"), elem_id="sweep-take", size="md")

        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            view = gr.HTML(
                NOTHING,
                html_template=common.script("sweep.html"),
                js_on_load=common.script("sweep.js"),
                apply_default_css=False,
                elem_id="sweep-board",
            )
            file = gr.HTML(
                "",
                js_on_load="""watch("value", () => {
                  const { uri, name } = JSON.parse(props.value || "{}");
                  if (uri) Object.assign(document.createElement("a"), { href: uri, download: name }).click();
                });""",
                apply_default_css=False,
                elem_id="sweep-file",
            )
            send_row(shared, "sweep", shared.shown)
            with gr.Row(elem_classes="try"):
                gr.HTML(i18n("sweep_try"), html_template="<p>${value}</p>", apply_default_css=False, min_width=200)
                attempt = gr.Button(i18n("sweep_try_button"), elem_id="sweep-try", scale=0, min_width=96)
            with gr.Row(elem_id="sweep-curves"):
                pull, way = common.curve("sweep-pull"), common.curve("sweep-ways")

    job = gr.State("")  # the sweep that this page follows, and Stop stops
    seen = gr.State("")  # the sweep, or the run, that the board shows
    wake = gr.State("")  # a sweep that was going on when the tab was opened
    fields = [prompt, negative, scales, axis, values, names, steps, seed, scheduler, width, height, shared.model]
    busy = {run: gr.update(visible=False), stop: gr.update(visible=True)}
    idle = {run: gr.update(visible=True), stop: gr.update(visible=False), job: ""}
    shapes = [pull, way]

    def tiles_at(one: str, owner: str) -> list[Tile]:
        """What the board shows: a sweep's tiles, or a run's. Raises ValueError if it is not kept."""
        if one in engine.mine(owner, "sweep"):
            return [v for v in engine.values(one) if isinstance(v, Tile)]
        return sweeping.tiles_of(shared.trace_of(one, owner))

    def drawn(tiles: list[Tile], place: Place, language: str) -> dict:
        """The curves under the board."""
        sweep = tiles[0].sweep
        strong, far = pulls(tiles, place[0]), ways(tiles, place)
        pull_words = {"title": say(language, "sweep_pull"), "across": say(language, "sweep_pull_x")}
        way_words = {"title": say(language, "sweep_ways"), "across": say(language, "sweep_ways_x")}
        return {
            pull: chart(strong, sweep, 1, said=pull_said(strong, sweep, language), **pull_words),
            way: chart(far, sweep, 0, said=ways_said(far, sweep, place, language), **way_words),
        }

    def single(one: str, owner: str, language: str, status: str = "sweep_one") -> dict:
        """No sweep yet: the run that all tabs look at, as a grid of one."""
        try:
            tiles = sweeping.tiles_of(shared.trace_of(one, owner))
        except ValueError:
            return {view: NOTHING}
        shown = board(tiles, language, say(language, status), "run")
        return {view: common.packed(shown), seen: one} | drawn(tiles, first_place(tiles), language)

    def sweeps(owner: str) -> list[str]:
        """This person's sweeps that have something to show, newest first."""
        found = []
        for one in reversed(engine.mine(owner, "sweep")):
            with suppress(ValueError):  # failed, or forgotten meanwhile
                if finished_of([v for v in engine.values(one) if isinstance(v, Tile)]):
                    found.append(one)
        return found

    def showing(one: str, owner: str, language: str) -> dict:
        tiles = tiles_at(one, owner)
        return {view: common.packed(ended(engine, one, language)), seen: one} | drawn(tiles, first_place(tiles), language)

    def before(owner: str, shown: str, language: str, status: str = "sweep_one") -> dict:
        """What there was to see: the newest sweep, or else the run."""
        found = [one for one in sweeps(owner) if (s := engine.snapshot(one)) and s.state in ENDED]
        return showing(found[0], owner, language) if found else single(shown, owner, language, status)

    def turned(name: str, text: str, language: str, chosen: list | None = None) -> dict:
        """The boxes for a second axis."""
        by_hand = name in EXAMPLES
        which = gr.update(visible=name == "scheduler", value=chosen) if chosen else gr.update(visible=name == "scheduler")
        about = say(language, HOW[name]) if by_hand else ""
        return {values: gr.update(visible=by_hand, value=text), names: which, how: gr.update(visible=by_hand, value=about)}

    def filled(one: str, language: str) -> dict:
        """The controls as they were for a sweep; nothing if it is none, or has not begun."""
        with suppress(ValueError):
            for tile in engine.values(one)[:1]:
                typed = typed_of(tile.sweep)
                boxes = turned(typed["axis"], typed["values"], language, typed["names"])
                return dict(zip(fields[:-1], typed.values(), strict=False)) | boxes
        return {}

    def arrive(owner: str | None, followed: str, now: str, shown: str, request: gr.Request) -> dict:
        """The tab is opened: with the sweep that goes on, which `resume` follows, with the newest, or with the run of all tabs."""
        language, owner = common.language(request), common.owner_of(owner)
        going = [one for one in engine.mine(owner, "sweep") if (s := engine.snapshot(one)) and s.state not in ENDED]
        if followed in going or (going and not (followed or now)):  # else it is another window's
            return {wake: "" if followed in going else going[0]} | filled(going[0], language)
        if not now:
            return {wake: ""} | before(owner, shown, language) | filled(next(iter(sweeps(owner)), shown), language)
        # A board that showed something before keeps its sweep, or follows the run of all tabs: a newer sweep is another window's.
        return {wake: ""} | ({} if now in {shown, *sweeps(owner)} else single(shown, owner, language))

    def watch(one: str, owner: str, shown: str, language: str, sweep: Sweep | None = None) -> Iterator[dict]:
        """Follows a sweep to its end."""
        yield busy | {job: one, pull: NOTHING, way: NOTHING}
        value = {"kind": "none"}
        try:
            for value in follow(engine, one, language, sweep):
                if value["kind"] == "live":
                    yield {view: common.packed(value)}
        except ValueError as error:
            yield idle | before(owner, shown, language)
            raise common.refusal(language, error) from None
        if value["kind"] == "none":
            yield idle | before(owner, shown, language, "sweep_stopped_early")
        else:
            tiles = tiles_at(one, owner)
            yield idle | {view: common.packed(value), seen: one} | drawn(tiles, first_place(tiles), language)

    def draw(request: gr.Request, owner: str | None, shown: str, *typed) -> Iterator[dict]:
        language, owner, clock = common.language(request), common.owner_of(owner), Meter()
        try:
            sweep = sweep_of(*typed)
            one = engine.submit_work(sweep.request.model, sweeping.work(sweep, meter=clock), owner, "sweep")
        except ValueError as error:
            raise common.refusal(language, error) from None
        yield {shared.owner: owner}
        yield from watch(one, owner, shown, language, sweep)
        if (sd := engine.loaded(sweep.request.model)) and clock.pictures:
            speeds[sweep.request.model, *size_of(sd, sweep.request)] = clock
            yield {price: cost_of(*typed, language=language)}

    def resume(owner: str | None, one: str, shown: str, request: gr.Request) -> Iterator[dict]:
        if one:
            yield from watch(one, common.owner_of(owner), shown, common.language(request))
        else:
            yield {wake: ""}

    def halt(one: str) -> None:
        with suppress(ValueError):  # none yet, or one that is long over
            engine.cancel(one)

    def cost_of(*typed, language: str) -> str:
        try:
            sweep = sweep_of(*typed)
            if sd := engine.loaded(sweep.request.model):
                return price_html(sd, sweep, speeds.get((sweep.request.model, *size_of(sd, sweep.request))), language)
        except ValueError as error:
            return f'<p class="cut">{html.escape(texts.sentence(language, error))}</p>'
        return f'<p class="price">{say(language, "sweep_cost_later")}</p>'

    def reckon(request: gr.Request, *typed) -> str:
        return cost_of(*typed, language=common.language(request))

    def time_it(request: gr.Request, owner: str | None, *typed) -> str:
        """Measures the device once, if it is free and its speed not known."""
        with suppress(ValueError):
            sweep = sweep_of(*typed)
            model = sweep.request.model
            sd = engine.loaded(model)
            if sd and (model, *size_of(sd, sweep.request)) not in speeds and not engine.busy():
                clock = engine.ask(model, lambda sd: sweeping.measure(sd, sweep), common.owner_of(owner))
                speeds[model, *size_of(sd, sweep.request)] = clock
        return cost_of(*typed, language=common.language(request))

    def turn(name: str, typed: str, request: gr.Request) -> dict:
        """Another second axis: what is typed for it, and how."""
        text = typed if typed.strip() and typed not in EXAMPLES.values() else EXAMPLES.get(name, "")
        return turned(name, text, common.language(request))

    def pick(owner: str | None, now: str, event: gr.EventData, request: gr.Request) -> dict:
        """What one does with a cell, or with the whole grid."""
        language, owner = common.language(request), common.owner_of(owner)
        act, at = common.event_value(event, "act"), re.fullmatch(r"(\d{1,2}),(\d{1,2})", common.event_value(event, "place"))
        try:
            tiles = tiles_at(now, owner)
            sweep, made = tiles[0].sweep, finished_of(tiles)
            if act == "sheet":
                if not made:
                    raise ValueError("This run was stopped, so it has no finished picture.")
                return {file: file_of(sheet_png(sweep, made, language), sweep.request.prompt, "sweep")}
            place = (int(at[1]), int(at[2])) if at else first_place(tiles)
            if act == "choose":
                return drawn(tiles, place, language)
            single_run = now not in engine.mine(owner, "sweep")
            trace = shared.trace_of(now, owner) if single_run else made.get(place)
            if trace is None:
                raise ValueError("This picture was not finished; choose another.")
            if act == "restore":
                common.warn_of(trace.settings(), language)
                return {shared.wanted: (trace.request, time.time())}
            if act == "save":
                return {
                    file: file_of(render.png(trace), trace.request.prompt, f"w{trace.request.guidance:g}-{trace.request.seed}")
                }
            if act == "look":
                if not len(trace):
                    megabytes = sweeping.KEPT_BYTES // 2**20
                    why = f"The sweep's {megabytes} MB for steps were full before this picture; draw it again from its settings."
                    raise ValueError(why)
                kept = {id(known): one for one, known in shared.kept(owner)}  # twice the same is one run
                one = kept.get(id(trace)) or engine.keep(trace, owner)
                gr.Info(say(language, "sweep_kept"), title="", duration=6)
                return {shared.shown: one} | ({seen: one} if single_run else {})
        except ValueError as error:
            raise common.refusal(language, error) from None
        return {file: gr.skip()}

    def take_run(owner: str | None, shown: str, request: gr.Request) -> dict:
        try:
            trace = shared.trace_of(shown, common.owner_of(owner))
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        common.warn_of(trace.settings(), common.language(request))
        r = trace.request
        controls = [prompt, negative, steps, seed, scheduler, width, height]
        return dict(
            zip(
                controls,
                [r.prompt, r.negative, f"{r.steps}", r.seed, r.scheduler, f"{r.width or ''}", f"{r.height or ''}"],
                strict=True,
            )
        )

    def preset() -> dict:
        return {prompt: PRESET["prompt"], scales: PRESET["scales"], axis: "none", negative: ""}

    live_parts = [view, run, stop, job, seen, price, shared.owner, *shapes]
    opened = tab.select(arrive, [shared.owner, job, seen, shared.shown], [wake, view, seen, how, *shapes, *fields[:-1]], **LOOK)
    opened.success(resume, [shared.owner, wake, shared.shown], [*live_parts, wake], **WATCH)
    opened.success(time_it, [shared.owner, *fields], price, **LOOK)
    run.click(draw, [shared.owner, shared.shown, *fields], live_parts, **WATCH)
    stop.click(halt, job, None, **QUICK)
    gr.on([field.change for field in fields], reckon, fields, price, trigger_mode="always_last", **QUICK)
    axis.input(turn, [axis, values], [values, names, how], **QUICK)
    # "multiple": one may choose a cell and press a button of it before the first is answered.
    view.pick(pick, [shared.owner, seen], [file, shared.wanted, shared.shown, seen, *shapes], trigger_mode="multiple", **LOOK)
    take.click(take_run, [shared.owner, shared.shown], [prompt, negative, steps, seed, scheduler, width, height], **LOOK)
    begun = attempt.click(preset, None, [prompt, scales, axis, negative], **LOOK)
    begun.success(turn, [axis, values], [values, names, how], **LOOK)
    begun.success(draw, [shared.owner, shared.shown, *fields], live_parts, **WATCH)
