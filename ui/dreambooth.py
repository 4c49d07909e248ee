"""Is it learning the subject, memorising the photos, or forgetting the class?

DreamBooth teaches a model one new thing from a few pictures: a word that meant nothing becomes its name. Training goes on by itself, and
every few steps the same prompts and seeds are drawn again. The loss hardly tells how it goes; these pictures do.
"""

import base64
import html
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.components.api_component import Api
from PIL import Image

from core import catalog, images
from core.catalog import CATALOG
from core.engine import LocalEngine
from core.lane import ENDED
from core.models import StableDiffusion
from core.preflight import Preflight, preflight, size, sorted_out
from core.previews import GUIDANCE, places_of
from core.recipe import METHODS, PRECISIONS, PRESETS, SCHEDULES, Recipe, name_in
from core.sampling import Request
from core.subjects import SAMPLES
from core.text import Token, tokenize
from core.trainings import THEMES, Status, Trainings
from ui import common, render, texts, trained
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n
from ui.texts import say

TITLE = "tab_dreambooth"  # a key of ui/texts.py
FIRST = "embedded"  # the preset that the tab opens with
SHOWN = 160  # pixels of a picture's long side in the tab
KEPT = 1024  # pixels a side of a picture that goes into training, at most
EXAMPLES = Path(__file__).parent.parent / "assets" / "examples" / "dreambooth"
EXAMPLE = "0" * 32  # the id of the recorded training there
TARGETS = PRESETS["embedded"].targets  # modules of the UNet that can have a LoRA
NOTHING = common.packed({"kind": "none"})
SAVE = "(file) => file?.url && Object.assign(document.createElement('a'), { href: file.url, download: file.orig_name }).click()"


# --- pictures in ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """A picture to learn from, as it came in and as training sees it."""

    whole: Image.Image  # small
    kept: tuple[float, float, float, float]  # left, top, width, height of what is kept, as shares of the whole
    notices: tuple[str, ...]

    @property
    def cut(self) -> float:
        """The share that is cut off."""
        return 1 - self.kept[2] * self.kept[3]


@lru_cache(maxsize=256)  # Gradio names an upload by its content; what is kept is small
def photo(path: str) -> Photo:
    """A file through the door for pictures, and its middle square. Raises ValueError with one sentence."""
    opened = images.look_in(path)
    width, height = opened.image.size
    _, (left, top, right, bottom) = images.fitted(opened.image, 8, 8)
    whole = opened.image.copy()
    whole.thumbnail((SHOWN, SHOWN))
    return Photo(whole, (left / width, top / height, (right - left) / width, (bottom - top) / height), opened.notices)


def taken_in(paths: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Which of these files are pictures, and of the others the name and the sentence that refuses each."""
    good, refused = [], []
    for path in paths:
        try:
            photo(path)
            good.append(path)
        except ValueError as error:
            refused.append((Path(path).name, str(error)))
    return good, refused


def photos_html(paths: Sequence[str], side: int, language: str, remarks: dict[int, list[str]] | None = None) -> str:
    """The chosen pictures with the part of each that training sees. remarks: of a picture by its place, what is to be said of it."""
    if not paths:
        return f'<p class="note">{html.escape(say(language, "dreambooth_no_photos"))}</p>'
    cells, below = [], []
    for k, path in enumerate(paths):
        one = photo(path)
        said = [texts.sentence(language, notice) for notice in [*one.notices, *(remarks or {}).get(k, [])]]
        cut = say(language, "dreambooth_cropped", cut=f"{100 * one.cut:.0f}") if one.cut >= 0.01 else ""
        box = "left:{:.2%};top:{:.2%};width:{:.2%};height:{:.2%}".format(*one.kept)
        name, remove = html.escape(say(language, "dreambooth_photo", n=k + 1)), say(language, "dreambooth_remove")
        marked = ' class="remarked"' if (remarks or {}).get(k) else ""
        below += [f"<li><b>{k + 1}</b> {html.escape(line)}</li>" for line in said]
        out = f'<button type="button" data-act="remove" data-job="{k}" title="{remove}" aria-label="{remove}: {name}">×</button>'
        picture = f'<img src="{render.uri(one.whole, "JPEG")}" alt="{name}"><i style="{box}"></i><b>{k + 1}</b>'
        cells.append(f'<li{marked}><div class="crop">{picture}{out}</div><small>{html.escape(cut)}</small></li>')
    count = say(language, "dreambooth_photos", count=len(paths), side=side)
    remarked = f'<ul class="remarks">{"".join(below)}</ul>' if below else ""
    return f'<p class="note">{html.escape(count)}</p><ul class="crops">{"".join(cells)}</ul>{remarked}'


def samples_html(chosen: str = "") -> str:
    """The sample sets, one click each."""
    cells = []
    for slug, sample in SAMPLES.items():
        cells.append(
            f'<li><button type="button" data-act="sample" data-job="{slug}" aria-pressed="{str(slug == chosen).lower()}">'
            f'<img src="{sample_uri(slug)}" alt=""><span>{html.escape(sample.name)}</span></button></li>'
        )
    return f'<ul class="samples">{"".join(cells)}</ul>'


@lru_cache
def sample_uri(slug: str) -> str:
    with Image.open(SAMPLES[slug].files[0]) as first:
        small = first.convert("RGB")
    small.thumbnail((96, 96))
    return render.uri(small, "JPEG")


# --- words in -------------------------------------------------------------------------------------------------------------------------


def named(sd: StableDiffusion, instance: str, class_prompt: str) -> list[Token]:
    """The tokens of the name: those words of the pictures' prompt that the class prompt has not."""
    places = places_of(sd, name_in(instance, class_prompt), instance)
    return [token for token in tokenize(sd, instance).tokens if token.position in places]


def name_html(sd: StableDiffusion, instance: str, class_prompt: str, language: str) -> str:
    """The name with its token ids, or what is missing."""
    tokens = named(sd, instance, class_prompt)
    if not tokens:
        return f'<p class="cut">{html.escape(say(language, "dreambooth_token_none"))}</p>'
    ids = common.short(", ".join(dict.fromkeys(str(token.id) for token in tokens)))
    what = (
        say(language, "dreambooth_token_one", id=ids)
        if len(tokens) == 1
        else say(language, "dreambooth_token_more", count=len(tokens), ids=ids)
    )
    whole = tokenize(sd, instance)
    pieces = "".join(
        f'<li class="token {"word0" if token in tokens else "mark"}"><span>{html.escape(token.piece.strip())}</span>'
        f"<small>{token.id}</small></li>"
        for token in whole.tokens
        if token.kind == "text"
    )
    name = html.escape(common.short(name_in(instance, class_prompt)))
    cut = f'<p class="cut"><b>{say(language, "tokens_cut")}</b> <s>{html.escape(whole.cut)}</s></p>' if whole.cut else ""
    count = f'<p class="count">{say(language, "dreambooth_token_is", name=name, ids=what)}</p>'
    return f'<div class="tokens">{count}<ol>{pieces}</ol>{cut}</div>'


# --- settings -------------------------------------------------------------------------------------------------------------------------


def worded(recipe: Recipe, kind: str) -> Recipe:
    """A recipe's prompts for another class: "a sks dog" becomes "a sks cat". A recipe's class is the last word of its class prompt."""
    usual = recipe.class_prompt.split()[-1]

    def other(words: str) -> str:
        return " ".join(kind if word == usual else word for word in words.split())

    prompts = tuple(map(other, recipe.prompts))
    return replace(
        recipe, instance_prompt=other(recipe.instance_prompt), class_prompt=other(recipe.class_prompt), prompts=prompts
    )


TAUGHT = ("instance_prompt", "class_prompt", "prompts")


def of_a_preset(words: Sequence[str], kind: str) -> bool:
    """Whether these are a preset's own words for a class, and no person's. words: what stands in the fields of TAUGHT."""
    presets = (typed_of(worded(preset, kind)) for preset in PRESETS.values())
    return tuple(words) in [tuple(preset[name] for name in TAUGHT) for preset in presets]


def recipe_of(values: dict) -> Recipe:
    """The controls' values, by the names of a recipe's fields. A number is what can be read as one; core refuses the rest by its own
    words. Raises ValueError."""
    read: dict[str, Any] = {name: value if name in WORDS else common.number_of(value) for name, value in values.items()}
    read["prompts"] = tuple(line.strip() for line in read["prompts"].splitlines() if line.strip())
    read["targets"] = tuple(read["targets"] or ())
    read["snr_gamma"] = None if read["snr_gamma"] in ("", None) else read["snr_gamma"]
    return Recipe(**read)


WORDS = ("model", "instance_prompt", "class_prompt", "method", "schedule", "precision", "prompts", "targets")


def typed_of(recipe: Recipe) -> dict:
    """recipe_of backwards: what the controls show of a recipe."""
    gamma = "" if recipe.snr_gamma is None else f"{recipe.snr_gamma:g}"
    lines = {"prompts": "\n".join(recipe.prompts), "targets": list(recipe.targets)}
    return recipe.facts() | lines | {"rate": rate_of(recipe.rate), "snr_gamma": gamma}


def rate_of(rate: float) -> str:
    """A learning rate as people write it: 0.002, 2e-6."""
    return f"{rate:g}".replace("e-0", "e-")


def teachable(engine: LocalEngine, model: str) -> None:
    """Raises ValueError for a model that is not here, or that starts from more than words."""
    engine.check(model)
    if model not in (names := engine.for_role("base")):
        raise ValueError(f"DreamBooth does not teach the model {model}; choose one of {', '.join(names)}.")


def missing(trainings: Trainings, model: str, language: str) -> str:
    """What keeps a model from being taught here, if anything does."""
    try:
        catalog.resolve(trainings.places.get(model, model), fetch=False)
    except ValueError as error:
        return f'<p class="cut">{html.escape(texts.sentence(language, error))}</p>'
    return ""


def square(image: Image.Image) -> Image.Image:
    """The middle square of a picture, all that training sees of it."""
    side = min(*image.size, KEPT)
    return image if image.size == (side, side) else images.cover(image, side, side)


def checked_html(found: Preflight, recipe: Recipe, language: str) -> str:
    """What is known before Start, and what can be changed by a click."""
    lines = []
    if found.seconds is not None and found.step_seconds is not None:
        values = {"steps": recipe.steps, "left": left_of(found.seconds, language), "each": f"{found.step_seconds:.2f}"}
        lines.append(f"<b>{say(language, 'dreambooth_takes', **values)}</b>")
    memory = "dreambooth_memory" if found.step_seconds is not None else "dreambooth_memory_more"
    lines.append(say(language, memory, needed=size(found.memory), free=size(found.memory_free)))
    lines.append(say(language, "dreambooth_disk", needed=size(found.disk), free=size(found.disk_free)))
    if found.steps != recipe.steps:
        take = change_button({"steps": found.steps}, say(language, "dreambooth_take"))
        lines.append(say(language, "dreambooth_recommended", steps=found.steps, count=found.accepted) + take)
    refused = [
        say(
            language,
            "dreambooth_refused_file",
            name=say(language, "dreambooth_photo", n=k + 1),
            why=texts.sentence(language, why),
        )
        for k, why in found.refused
    ]
    problems = [
        f'<p class="cut">{html.escape(said)}</p>'
        for said in [*refused, *(texts.sentence(language, one) for one in found.problems)]
    ]
    ladder = [
        f"<li>{html.escape(texts.sentence(language, one.sentence))}{change_button(one.changes, say(language, 'dreambooth_take'))}</li>"
        for one in found.savings
    ]
    lines += [html.escape(texts.sentence(language, note)) for note in found.notes]
    if ladder:
        problems.append(f'<p class="cut">{say(language, "dreambooth_short")}</p><ol>{"".join(ladder)}</ol>')
    return "".join(problems) + "".join(f"<p>{line}</p>" for line in lines)


def change_button(changes: dict, words: str) -> str:
    """A button that changes settings: `change` reads what it carries."""
    return f' <button type="button" data-act="change" data-job="{html.escape(json.dumps(changes), quote=True)}">{words}</button>'


# --- what the flight recorder shows -----------------------------------------------------------------------------------------------------


def left_of(seconds: float | None, language: str) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return say(language, "dreambooth_seconds", n=f"{seconds:.0f}")
    return say(language, "dreambooth_minutes", n=f"{seconds / 60:.0f}")


def said_of(status: Status, language: str) -> str:
    """What a training does now, in a sentence; why it ended, if it did not mean to."""
    key = status.state
    if status.state == "waiting" and status.ahead != 1:
        key = "waiting_many" if status.ahead else "waiting_next"
    elif status.state == "training" and not status.rate:
        key = "training_first"
    elif status.state == "preparing" and status.to_make:
        key = "preparing_class"
    values = {"step": status.step, "count": status.count, "ahead": status.ahead, "made": status.made, "to_make": status.to_make}
    rate = status.rate or 0
    speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
    said = say(language, f"dreambooth_{key}", rate=speed, left=left_of(status.seconds_left, language), **values)
    return f"{said} {texts.sentence(language, status.message)}" if status.message else said


def may(status: Status) -> list[str]:
    """What can be done with a training now."""
    if status.state in ENDED:
        return [*([] if status.state in ("done", "diverged") else ["go_on"]), "again", "forget"]
    return ["stop"] if status.state == "waiting" else ["pause", "stop"]


def best_of(previews: list[dict], checkpoints: list[int]) -> int | None:
    """The step to use: of those that copy no picture, the one most like the subject. None where nothing was measured, or all copy."""

    def copies(facts: dict) -> bool:
        return min(p["distance"] for p in facts["pictures"] if p["kind"] == "subject") < min(facts["photos"]["spread"]) / 2

    free = [f for f in previews if f["step"] in checkpoints and f["likeness"] is not None and not copies(f)]
    return max(free, key=lambda f: f["likeness"])["step"] if free else None


@lru_cache(maxsize=2048)
def small_uri(path: str) -> str:
    """A picture of a training for the page. Its file never changes; a training that is taken up makes the same bits again."""
    file = Path(path)
    with Image.open(file) as image:
        if max(image.size) <= SHOWN:
            return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        shown = image.convert("RGB")
    shown.thumbnail((256, 256))
    return render.uri(shown, "JPEG")


def film_of(facts: dict) -> dict:
    """A preview for the page: one column of the filmstrip."""
    made = []
    for picture in facts["pictures"]:
        near = [picture["nearest"], round(picture["distance"], 2)] if picture["kind"] == "subject" else None
        shown = {name: picture[name] for name in ("kind", "prompt", "seed")}
        made.append(shown | {"src": small_uri(picture["path"]), "near": near})
    if facts["attention"] is not None:
        made[0]["map"] = render.numbers_of(np.array(facts["attention"]), low=0)
    numbers = {name: None if facts[name] is None else round(facts[name], 4) for name in ("likeness", "drift")}
    return {"step": facts["step"], "pictures": made, **numbers}


@dataclass(frozen=True)
class Known:
    """What a page knows of a training already, by its own account: what came from outside."""

    id: str = ""
    steps: int = 0
    films: int = 0
    photos: bool = False
    asked: int = 0

    @classmethod
    def of(cls, text: str) -> "Known":
        try:
            told = json.loads(text)
            return cls(
                str(told["id"]), max(int(told["steps"]), 0), max(int(told["films"]), 0), bool(told["photos"]), int(told["asked"])
            )
        except (ValueError, TypeError, KeyError):
            return cls()


def line_of(step: dict) -> list:
    """A step for the page: [step, loss, the photos' loss, the class pictures', learning rate, the gradient's length]."""
    return [step["step"]] + [None if step[n] is None else float(f"{step[n]:.4g}") for n in LOSSES]


LOSSES = ("loss", "instance_loss", "prior_loss", "rate", "grad_norm")


def flight(trainings: Trainings, owner: str | None, known: Known, language: str) -> dict:
    """The news of a training for ui/dreambooth.js: what its page does not know yet, and how it stands. Raises ValueError if it is not
    there, or not this person's."""
    one = known.id
    settings, status = trainings.settings(one, owner), trainings.status(one, owner)
    recipe = Recipe.of(settings["recipe"])
    previews, checkpoints = trainings.previews(one, owner), trainings.checkpoints(one, owner)
    first = min(known.steps, status.step)  # fewer than before, if it was taken up from a checkpoint
    steps = trainings.steps(one, owner, first)
    films = min(known.films, len(previews))
    photos = [] if known.photos else [{"src": small_uri(str(path))} for path in trainings.photos(one, owner)]
    about = previews[0]["photos"] if previews else {"likeness": None, "spread": [], "measure": None}
    every = recipe.preview_every
    done = previews[-1]["step"] if previews else 0
    method = (
        say(language, "dreambooth_fact_lora", rank=recipe.rank)
        if recipe.method == "lora"
        else say(language, "dreambooth_fact_full")
    )
    return {
        "kind": "flight",
        "id": one,
        "asked": known.asked,  # so that no two answers are equal, which the page would not hear of
        "name": name_of(settings),
        "state": status.state,
        "said": say(language, "dreambooth_example") if one == EXAMPLE else said_of(status, language),
        "facts": say(
            language,
            "dreambooth_facts",
            model=common.title_of(recipe.model),
            method=method,
            steps=recipe.steps,
            batch=recipe.batch,
            rate=rate_of(recipe.rate),
            photos=settings["pictures"],
        ),
        "step": status.step,
        "count": status.count,
        "made": status.made / status.to_make if status.to_make else 0,
        "acts": [] if one == EXAMPLE else may(status),
        "method": recipe.method,
        "token": recipe.identifier,
        "among": about["likeness"],
        "spread": about["spread"],
        "judge": say(language, "dreambooth_by_judge") if about["measure"] == "judge" else about["measure"],
        "next": min((done // every + 1) * every, recipe.steps) if every else 0,
        "checkpoints": checkpoints,
        "best": best_of(previews, [f["step"] for f in previews] if one == EXAMPLE else checkpoints),
        "from": {"steps": first, "films": films},
        "steps": [line_of(step) for step in steps],
        "films": [film_of(facts) for facts in previews[films:]],
        "photos": photos,
        "example": one == EXAMPLE,
    }


def name_of(settings: dict) -> str:
    """A training in a few words."""
    words, subject = common.short(settings["recipe"]["instance_prompt"]), settings["subject"]
    return f"“{words}” · {subject}" if subject else f"“{words}”"


def menu_of(trainings: Trainings, owner: str) -> list[tuple[str, str]]:
    """This person's trainings, newest first: (id, a line)."""
    found = []
    for one in trainings.mine(owner):
        with suppress(ValueError):  # deleted meanwhile
            settings = trainings.settings(one, owner)
            found.append((one, f"{name_of(settings)} · {time.strftime('%m-%d %H:%M', time.localtime(settings['created']))}"))
    return found


# --- the page -----------------------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    engine, trainings, recorded = shared.engine, shared.trainings, Trainings(EXAMPLES)
    sample = next(iter(SAMPLES.values()), None)
    recipe = worded(PRESETS[FIRST], sample.kind if sample else "dog")
    typed = typed_of(recipe) | ({} if recipe.model in engine.for_role("base") else {"model": shared.default})

    common.heading("dreambooth")
    with gr.Row(elem_classes="tab-body", elem_id="dreambooth-body"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls words-in"):
            label("dreambooth_samples")
            samples = clickable(samples_html(sample.slug if sample else ""), "dreambooth-samples")
            with gr.Row(elem_classes="pair start-picture"):
                upload = gr.UploadButton(
                    i18n("dreambooth_upload"), file_count="multiple", elem_id="dreambooth-upload", size="md", min_width=160
                )
                clear = gr.Button(i18n("dreambooth_clear"), elem_id="dreambooth-clear", size="md", min_width=80)
            crops = clickable("", "dreambooth-crops")
            instance = gr.Textbox(
                typed["instance_prompt"], label=i18n("dreambooth_instance"), lines=1, elem_id="dreambooth-instance"
            )
            name = gr.HTML(apply_default_css=False, elem_id="dreambooth-name")
            hint("dreambooth_instance_info")
            class_prompt = gr.Textbox(typed["class_prompt"], label=i18n("dreambooth_class"), lines=1, elem_id="dreambooth-class")
            hint("dreambooth_class_info")
            with gr.Row(elem_classes="pair"):
                preset = gr.Dropdown(
                    list(PRESETS),
                    value=FIRST,
                    label=i18n("dreambooth_preset"),
                    filterable=False,
                    elem_id="dreambooth-preset",
                    min_width=140,
                )
                steps = gr.Number(typed["steps"], label=i18n("dreambooth_steps"), elem_id="dreambooth-steps", min_width=100)
            checked = clickable("", "dreambooth-checked")
            start = gr.Button(i18n("dreambooth_start"), variant="primary", elem_id="dreambooth-start", elem_classes="run")
            check = gr.Button(i18n("dreambooth_check"), elem_id="dreambooth-check", size="md")
        with gr.Column(scale=0, min_width=320, elem_classes="controls settings"):
            prompts = gr.Textbox(
                typed["prompts"],
                label=i18n("dreambooth_prompts"),
                placeholder=typed["instance_prompt"],
                lines=3,
                max_lines=8,
                elem_id="dreambooth-prompts",
            )
            fields = {"instance_prompt": instance, "class_prompt": class_prompt, "steps": steps, "prompts": prompts}
            with gr.Accordion(i18n("dreambooth_settings"), open=False, elem_id="dreambooth-settings"):
                fields |= settings_of(shared, typed)
                theme = gr.Dropdown(
                    [(i18n(f"dreambooth_theme_{name}"), name) for name in THEMES],
                    value=THEMES[-1],
                    label=i18n("dreambooth_theme"),
                    filterable=False,
                    elem_id="dreambooth-theme",
                )
                hint("dreambooth_theme_info")
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            view = gr.HTML(
                NOTHING,
                html_template=common.script("dreambooth.html"),
                js_on_load=common.script("dreambooth.js"),
                apply_default_css=False,
                elem_id="dreambooth",
            )
            file = gr.DownloadButton("", visible="hidden", elem_id="dreambooth-file")

    chosen = gr.State(
        (tuple(map(str, sample.files)), sample.slug) if sample else ((), "")
    )  # (paths, the sample set's slug or "")
    boxes = list(fields.values())

    def read(values: Sequence) -> Recipe:
        return recipe_of(dict(zip(fields, values, strict=True)))

    def ready(model: str) -> StableDiffusion | None:
        """The model, if it can be had at once."""
        small = model in CATALOG and CATALOG[model].embedded
        return engine.model(model) if small else engine.loaded(model)

    # --- what is taught ---

    def shown(now: tuple, model: str, language: str) -> dict:
        (known, slug), sd, remarks = now, ready(model), {}
        paths = tuple(path for path in known if Path(path).exists())  # uploads go after an hour, a training's when it is deleted
        if gone := len(known) - len(paths):
            gr.Warning(say(language, "dreambooth_gone", count=gone), title="")
        if sd:
            _, refused, warned = sorted_out(sd, paths)
            for k, why in [*refused, *warned]:
                remarks.setdefault(k, []).append(why)
        crop = photos_html(paths, sd.size if sd else 512, language, remarks)
        return {chosen: (paths, slug), crops: crop, samples: samples_html(slug)}

    def arrive(now: tuple, model: str, request: gr.Request) -> dict:
        return shown(now, model, common.language(request))

    def add(files: list[str], now: tuple, model: str, request: gr.Request) -> dict:
        """Uploads join what is there, but not a sample set: a set is one thing, and an upload another."""
        language, (paths, slug) = common.language(request), now
        good, refused = taken_in(files)
        for file_name, why in refused:
            said = say(language, "dreambooth_refused_file", name=file_name[:60], why=texts.sentence(language, why))
            gr.Warning(html.escape(said), title="", duration=20)
        if not good:
            return {chosen: gr.skip()}
        before = () if slug else paths
        return {checked: ""} | shown((tuple(dict.fromkeys([*before, *good])), ""), model, language)

    def remove(now: tuple, model: str, event: gr.EventData, request: gr.Request) -> dict:
        which, (paths, slug) = common.event_value(event, "job"), now
        left = tuple(path for k, path in enumerate(paths) if str(k) != which)
        return {checked: ""} | shown((left, slug), model, common.language(request))

    def take_sample(named: str, model: str, event: gr.EventData, request: gr.Request) -> dict:
        one = SAMPLES.get(common.event_value(event, "job"))
        if one is None:
            return {chosen: gr.skip()}
        words = typed_of(worded(PRESETS.get(named, recipe), one.kind))
        filled = {fields[name]: words[name] for name in ("instance_prompt", "class_prompt", "prompts")}
        return filled | shown((tuple(map(str, one.files)), one.slug), model, common.language(request))

    def filled(recipe: Recipe, *left: str) -> dict:
        """The controls for a recipe, but for those that are left as they are and a model that is not here; the estimate was for others."""
        left = left if recipe.model in engine.for_role("base") else (*left, "model")
        values = typed_of(recipe).items()
        return {fields[name]: value for name, value in values if name in fields and name not in left} | {checked: ""}

    def take_preset(named: str, *words: str) -> dict:
        """A preset's settings; what is taught stays, and so do words that a person has chosen."""
        kind = (words[1].split() or PRESETS[named].class_prompt.split())[-1]
        return filled(worded(PRESETS[named], kind), *(() if of_a_preset(words, kind) else TAUGHT))

    def tell_name(model: str, instance: str, class_prompt: str, request: gr.Request) -> str:
        try:
            known = engine.loaded(model) or engine.model(shared.default)  # all have CLIP's tokens
            return name_html(known, instance, class_prompt, common.language(request))
        except ValueError as error:
            return f'<p class="cut">{html.escape(texts.sentence(common.language(request), error))}</p>'

    def look_ahead(stored: str | None, now: tuple, request: gr.Request, *values) -> Iterator[dict]:
        """Preflight, with a few steps on a copy."""
        language, owner = common.language(request), common.owner_of(stored)
        yield {checked: f"<p>{say(language, 'dreambooth_checking')}</p>"}
        try:
            wanted = read(values)
            found = engine.ask(wanted.model, lambda sd: preflight(sd, wanted, now[0], trainings.home), owner)
            yield {checked: checked_html(found, wanted, language)}
        except ValueError as error:
            yield {checked: f'<p class="cut">{html.escape(texts.sentence(language, error))}</p>'}

    def look_ahead_if_free(stored: str | None, now: tuple, request: gr.Request, *values) -> Iterator[dict]:
        """The same without being asked, where it takes a second or two and keeps nobody waiting."""
        mine = trainings.mine(common.owner_of(stored))
        sd = ready(values[list(fields).index("model")])
        going = mine and trainings.status(mine[0], None).state not in ENDED
        if sd and catalog.is_embedded(sd.source) and not engine.busy() and not going:
            yield from look_ahead(stored, now, request, *values)
        else:
            yield {checked: missing(trainings, values[list(fields).index("model")], common.language(request))}

    def change(event: gr.EventData) -> dict:
        """Settings that preflight proposes."""
        try:
            proposed = json.loads(common.event_value(event, "job"))
            return {fields[name]: value for name, value in proposed.items() if name in fields} | {checked: ""}
        except (ValueError, AttributeError):
            return {checked: gr.skip()}

    def begin(owner: str | None, now: tuple, theme: str, request: gr.Request, *values) -> dict:
        owner, (paths, slug) = common.owner_of(owner), now
        try:
            wanted = read(values)
            teachable(engine, wanted.model)
            photos = [square(images.open_picture(path)) for path in paths]
            one = trainings.start(wanted, photos, owner, theme, SAMPLES[slug].name if slug else "")
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None
        return {shared.owner: owner, view: common.packed({"kind": "follow", "id": one, "when": time.time()})}

    # --- the flight recorder ---

    def look(stored: str | None, event: gr.EventData, request: gr.Request) -> str:
        """The news of a training that the page asks for; without an id, of the newest, or of the recorded one."""
        language, owner = common.language(request), common.owner_of(stored)
        known, mine = Known.of(common.event_value(event, "at")), menu_of(trainings, owner)
        one = known.id or (mine[0][0] if mine else EXAMPLE)
        first = {} if known.photos else {"texts": texts.of(language, "dreambooth_")}
        try:
            found = recorded if one == EXAMPLE else trainings
            made = flight(found, None if one == EXAMPLE else owner, replace(known, id=one), language)
        except ValueError as error:
            said = texts.sentence(language, error) if known.id else ""
            return common.packed({"kind": "empty", "status": said, "trainings": mine, "asked": known.asked} | first)
        return common.packed(made | first | {"trainings": mine})

    def again(one: str = "") -> dict:
        """Has the page ask for news."""
        return {view: common.packed({"kind": "follow", "id": one, "when": time.time()})}

    def act(stored: str | None, event: gr.EventData, request: gr.Request) -> Iterator[dict]:
        """What the page's buttons do with a training."""
        language, owner = common.language(request), common.owner_of(stored)
        told = {
            name: common.event_value(event, name)
            for name in ("act", "id", "step", "strength", "repository", "token", "private", "rights")
        }
        one = told["id"]
        yield {file: None}
        try:
            if told["act"] in ("pause", "stop", "go_on"):
                getattr(trainings, told["act"])(one, owner)
                yield again(one)
            elif told["act"] == "again":
                yield refilled(one, owner, language)
            elif told["act"] == "forget":
                for name in trained.names(engine, trainings, owner, one):
                    engine.withdraw(name)
                trainings.forget(one, owner)
                gr.Info(say(language, "dreambooth_forgotten"), title="")
                yield again() | {shared.trained: time.time()}
            elif told["act"] == "use":
                yield used(owner, one, *checkpoint_of(told), language)
            elif told["act"] in ("lora", "folder", "card"):
                gr.Info(say(language, "dreambooth_making"), title="", duration=3)
                yield {file: str(trainings.export(one, owner, *checkpoint_of(told), told["act"]))}
            elif told["act"] == "push":
                gr.Info(say(language, "dreambooth_pushing"), title="", duration=5)
                if told["rights"] != "yes":
                    raise ValueError("Pushing needs your word that you may: tick the box on rights and likeness.")
                address = trainings.push(
                    one, owner, *checkpoint_of(told), told["repository"], told["token"], told["private"] != "no"
                )
                gr.Info(html.escape(say(language, "dreambooth_pushed", address=address)), title="", duration=30)
                yield {view: gr.skip()}
        except ValueError as error:
            raise common.refusal(language, error) from None

    def refilled(one: str, owner: str, language: str) -> dict:
        """The controls as they were for a training, its pictures too."""
        settings, photos = trainings.settings(one, owner), tuple(map(str, trainings.photos(one, owner)))
        slug = next((s.slug for s in SAMPLES.values() if s.name == settings["subject"]), "")
        wanted = Recipe.of(settings["recipe"])
        gr.Info(say(language, "dreambooth_refilled"), title="", duration=4)
        try:
            teachable(engine, wanted.model)
        except ValueError as error:  # the app was started anew, with other models
            gr.Warning(html.escape(texts.sentence(language, error)), title="")
        return filled(wanted) | {theme: settings["theme"]} | shown((photos, slug), wanted.model, language)

    def used(owner: str, one: str, step: int, strength: float, language: str) -> dict:
        """A checkpoint among this person's models, and the Prompt tab open with it."""
        model = trained.offer(engine, trainings, owner, one, step, strength)
        trainings.choose(one, owner, step, strength)
        settings = trainings.settings(one, owner)
        wanted = Recipe.of(settings["recipe"])
        lines = trained.choices(engine, trainings, ["base"], owner, language)
        gr.Info(html.escape(say(language, "dreambooth_used", name=trained.title(settings, step, strength, language))), title="")
        first = Request(wanted.shown[0], seed=wanted.seed, guidance=GUIDANCE, model=model)  # the film's first picture
        return {
            shared.model: gr.Dropdown(choices=lines, value=model),
            shared.wanted: (first, time.time()),
            shared.tabs: gr.Tabs(selected="tab_prompt"),
            shared.trained: time.time(),
        }

    taught = [chosen, crops, samples]
    asked = [shared.owner, chosen, *boxes]
    opened = tab.select(arrive, [chosen, fields["model"]], taught, **LOOK)
    upload.upload(add, [upload, chosen, fields["model"]], [*taught, checked], **LOOK)
    clear.click(lambda: (((), ""), ""), None, [chosen, checked], **LOOK).success(
        arrive, [chosen, fields["model"]], taught, **LOOK
    )
    crops.pick(remove, [chosen, fields["model"]], [*taught, checked], **LOOK)
    sampled = samples.pick(take_sample, [preset, fields["model"]], [*taught, instance, class_prompt, prompts], **LOOK)
    set_up = preset.input(take_preset, [preset, *(fields[name] for name in TAUGHT)], [*boxes, checked], **LOOK)
    changed = checked.pick(change, None, [*boxes, checked], **LOOK)
    for event in (opened, sampled, set_up, changed):
        event.success(look_ahead_if_free, asked, checked, **WATCH)
    # What was found out before holds no longer. A box of numbers tells of each digit, so this is done by the page alone.
    gr.on([box.input for box in boxes], None, None, checked, js="() => ''", api_visibility="private")
    check.click(look_ahead, asked, checked, **WATCH)
    words = [fields["model"], instance, class_prompt]
    gr.on([tab.select, *(box.change for box in words)], tell_name, words, name, trigger_mode="always_last", **QUICK)
    start.click(begin, [shared.owner, chosen, theme, *boxes], [shared.owner, view], **LOOK)
    view.want(look, shared.owner, view, **QUICK)
    done = view.pick(
        act,
        shared.owner,
        [view, file, shared.model, shared.wanted, shared.tabs, shared.trained, *taught, theme, *boxes, checked],
        **WATCH,
    )
    done.success(None, file, None, js=SAVE, api_visibility="private")
    view.ended(lambda: time.time(), None, shared.trained, **LOOK)
    api(engine, trainings)


def label(key: str) -> None:
    gr.HTML(i18n(key), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="section-question")


def clickable(value: str, elem_id: str) -> gr.HTML:
    """HTML whose buttons with data-act tell of their clicks as `pick`."""
    return gr.HTML(
        value, html_template="<div>${value}</div>", js_on_load=common.script("runs.js"), apply_default_css=False, elem_id=elem_id
    )


def checkpoint_of(told: dict[str, str]) -> tuple[int, float]:
    """The step and the strength that the page's sliders stand at. Raises ValueError for what is none."""
    step, strength = common.number_of(told["step"]), common.number_of(told["strength"] or "1")
    if not isinstance(step, int):
        raise ValueError("There is no checkpoint chosen; choose one.")
    if not isinstance(strength, int | float) or not 0 <= strength <= 2:
        raise ValueError(f"The strength is {strength}; it must be a number from 0 to 2.")
    return step, round(float(strength), 2)


def settings_of(shared: Shared, typed: dict) -> dict[str, Component]:
    """The settings behind a preset, by the names of a recipe's fields."""
    made: dict[str, Component] = {}

    def number(name: str, key: str) -> None:
        made[name] = gr.Number(typed[name], label=i18n(key), elem_id=f"dreambooth-{name}", min_width=100)

    def typing(name: str, key: str) -> None:
        """Of a number that is written with an exponent, or may be empty: Gradio makes 0 of an empty one when it comes into sight."""
        placeholder = "–" if typed[name] == "" else None
        made[name] = gr.Textbox(
            typed[name], label=i18n(key), placeholder=placeholder, elem_id=f"dreambooth-{name}", max_lines=1, min_width=100
        )

    def tick(name: str, key: str) -> None:
        made[name] = gr.Checkbox(typed[name], label=i18n(key), elem_id=f"dreambooth-{name}")

    def menu(name: str, key: str, choices: Sequence, **more) -> None:
        made[name] = gr.Dropdown(
            list(choices),
            value=typed[name],
            label=i18n(key),
            filterable=False,
            elem_id=f"dreambooth-{name}",
            min_width=100,
            **more,
        )

    menu("model", "dreambooth_model", [(common.title_of(name), name) for name in shared.engine.for_role("base")])
    made["method"] = gr.Radio(
        [(i18n(f"dreambooth_method_{name}"), name) for name in METHODS],
        value=typed["method"],
        label=i18n("dreambooth_method"),
        elem_id="dreambooth-method",
    )
    with gr.Row(elem_classes="pair"):
        number("rank", "dreambooth_rank")
        number("alpha", "dreambooth_alpha")
    menu("targets", "dreambooth_targets", TARGETS, multiselect=True)
    tick("text_encoder", "dreambooth_text_encoder")
    with gr.Row(elem_classes="pair"):
        typing("rate", "dreambooth_rate")
        menu("schedule", "dreambooth_schedule", SCHEDULES)
    with gr.Row(elem_classes="pair"):
        number("warmup", "dreambooth_warmup")
        number("seed", "dreambooth_seed_of")
    with gr.Row(elem_classes="pair"):
        number("batch", "dreambooth_batch")
        number("accumulation", "dreambooth_accumulation")
    with gr.Row(elem_classes="pair"):
        number("class_images", "dreambooth_class_images")
        number("prior_weight", "dreambooth_prior_weight")
    hint("dreambooth_class_images_info")
    with gr.Row(elem_classes="pair"):
        typing("snr_gamma", "dreambooth_snr")
        number("noise_offset", "dreambooth_noise_offset")
    with gr.Row(elem_classes="pair"):
        number("grad_norm", "dreambooth_grad_norm")
        number("weight_decay", "dreambooth_weight_decay")
    with gr.Row(elem_classes="pair"):
        number("preview_every", "dreambooth_preview_every")
        number("checkpoint_every", "dreambooth_checkpoint_every")
    hint("dreambooth_every_info")
    menu("precision", "dreambooth_precision", ["auto", *PRECISIONS])
    hint("dreambooth_precision_info")
    tick("flip", "dreambooth_flip")
    tick("gradient_checkpointing", "dreambooth_checkpointing")
    tick("adam8bit", "dreambooth_adam8bit")
    return made


def api(engine: LocalEngine, trainings: Trainings) -> None:
    """The tab's public endpoints. Their values come raw, so that a wrong one meets core's own sentence."""

    def train(pictures, instance_prompt, class_prompt, preset, steps, settings, request: gr.Request):
        """Starts a training and answers with its id. pictures: 3 to 30 files of one thing; instance_prompt: with a rare word for it, as in
        "a sks dog"; class_prompt: without, as in "a dog"; steps: null for the preset's; settings: other settings than the preset's, by
        their names, as in {"rate": 0.0001, "method": "full"}."""
        try:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise ValueError(f"There is no preset {str(preset)[:40]!r}; choose one of {', '.join(PRESETS)}.")
            if not isinstance(settings or {}, dict):
                raise ValueError("The settings are no object of names and values; leave them out.")
            if unknown := [str(name)[:40] for name in settings or {} if name not in Recipe.__dataclass_fields__]:
                known = ", ".join(Recipe.__dataclass_fields__)
                raise ValueError(f"There is no setting {unknown[0]!r}; choose from {known}.")
            changed = {"instance_prompt": instance_prompt, "class_prompt": class_prompt, **(settings or {})}
            wanted = Recipe.of({**PRESETS[preset].facts(), **({} if steps is None else {"steps": steps}), **changed})
            teachable(engine, wanted.model)
            photos = []
            for k, path in enumerate(pictures or [], 1):
                try:
                    photos.append(square(images.open_picture(path)))
                except ValueError as error:
                    raise ValueError(f"Picture {k}: {error}") from None
            return trainings.start(wanted, photos, f"api {request.session_hash}")
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def train_status(training: str):
        """How far a training is: whoever knows its id may ask."""
        try:
            return status_of(trainings, training)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    lane = {"concurrency_id": "watch", "concurrency_limit": common.WATCHERS}
    raw = [
        Api(None, {"type": "string"}),
        Api(None, {"type": "string"}),
        Api(FIRST, {"type": "string"}),
        Api(None, {"type": "integer"}),
        Api({}, {"type": "object"}),
    ]
    with gr.Row(visible=False):
        files = gr.File(file_count="multiple", label="pictures")
        gr.Button().click(train, [files, *raw], gr.Textbox(label="id"), api_name="train", **lane)
        gr.Button().click(train_status, gr.Textbox(label="id"), gr.JSON(label="status"), api_name="train_status", **lane)


def status_of(trainings: Trainings, one: str) -> dict:
    """A training's status for a program."""
    status, previews, checkpoints = trainings.status(one, None), trainings.previews(one, None), trainings.checkpoints(one, None)
    steps = trainings.steps(one, None, max(status.step - 1, 0))
    newest = {name: previews[-1][name] for name in ("step", "likeness", "distance", "drift")} if previews else None
    return asdict(status) | {
        "loss": steps[-1]["loss"] if steps else None,
        "preview": newest,
        "checkpoints": checkpoints,
        "best": best_of(previews, checkpoints),
    }
