"""What does the UNet read instead of your words?

It reads 77 vectors. The tokenizer cuts the prompt into pieces, a table gives each piece a vector, and the text encoder lets every vector
look back at the earlier ones. Change one of them, and see how far the change reaches and what becomes of the picture.
"""

import base64
import html
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import gradio as gr
import torch
from torch import Tensor

from core import text
from core.attention import Record
from core.engine import ENDED, LocalEngine, Snapshot
from core.models import StableDiffusion
from core.sampling import Request, Words, check_number
from core.text import INPUT, Edit, Tokens
from core.trace import Trace
from ui import common, render, texts
from ui.common import LOOK, QUICK, WATCH, Shared, hint, i18n
from ui.pictures import send_row

TITLE = "tab_text"  # a key of ui/texts.py

PADDING = 4  # positions of padding that the drawings show after the last used one: the rest is alike
NUMBERS = 96  # of a vector, so many are drawn
KEPT = 16  # readings; one of SD 1.5 takes some 6 MB
KINDS = {  # of edits, in the menu's order
    "mix": "text_kind_mix",
    "weight": "text_kind_weight",
    "blank": "text_kind_blank",
    "drop": "text_kind_drop",
    "blend": "text_kind_blend",
    "vector": "text_kind_vector",
}
# Words that say little by themselves: the suggestion swaps another one.
SMALL_WORDS = {
    "a",
    "an",
    "the",
    "in",
    "on",
    "of",
    "and",
    "with",
    "at",
    "to",
    "by",
    "is",
    "for",
    "from",
    "into",
    "near",
    "over",
    "under",
    "picture",
    "photo",
    "painting",
    "drawing",
}
SWAPS = ("cat", "fox", "apple")


# --- what the text encoder makes of words: asked once, looked at often ---------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What the text encoder makes of a prompt, on the CPU."""

    tokens: Tokens
    stages: Tensor  # (stages, 77, D), as core.text.layers has them
    attention: Tensor  # (layers, heads, 77, 77); of edited prompts too
    others: dict[int, tuple[str, Tensor]]  # of the tokens that edits mix in: their piece and their embedding, (D,)
    vocabulary: int  # rows of the embedding table

    @property
    def shown(self) -> int:
        """How many positions the drawings show."""
        return min(len(self.tokens.tokens), self.tokens.used + PADDING)


def read(sd: StableDiffusion, words: Words) -> Reading:
    prompt, edits = words
    table = sd.text_encoder.get_input_embeddings().weight
    stages = torch.cat(text.layers(sd, prompt, edits)).float().cpu()  # first: it refuses what does not fit
    others = {e.token: (text.piece_of(sd, e.token), table[e.token].float().cpu()) for e in edits if e.kind == "mix"}
    return Reading(text.tokenize(sd, prompt), stages, text.self_attention(sd, prompt, edits).cpu(), others, len(table))


class Reader:
    """Asks the engine for readings and keeps the newest, so that looking again needs no turn of the model."""

    def __init__(self, engine: LocalEngine):
        self._engine, self._lock = engine, threading.Lock()
        self._kept: OrderedDict[tuple[str, Words], Reading] = OrderedDict()

    def __call__(self, model: str, owner: str, *words: Words) -> list[Reading]:
        """Raises ValueError with one sentence if an edit does not fit the model."""
        with self._lock:
            found = {w: self._kept.get((model, w)) for w in words}
        if missing := [w for w, reading in found.items() if reading is None]:
            found |= dict(zip(missing, self._engine.ask(model, lambda sd: [read(sd, w) for w in missing], owner), strict=True))
        with self._lock:
            for w in words:
                self._kept[model, w] = found[w]
                self._kept.move_to_end((model, w))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return [found[w] for w in words]


# --- views: plain values, nothing of gradio -----------------------------------------------------------------------------------


def short(value: float) -> float:
    return float(f"{value:.4g}")


def lengths(vectors: Tensor) -> list[float]:
    """(77, D) -> the length of each."""
    return [short(v) for v in vectors.norm(dim=-1).tolist()]


def stages(reading: Reading) -> list[dict]:
    """The way of a prompt through the text encoder: at each stage its vectors as a map, a column a token, and their lengths."""
    s = reading.stages
    layers = len(s) - 3
    parts = [("token", 0, s[0]), ("position", 0, s[1] - s[0]), ("sum", 0, s[1])]
    parts += [("layer", k + 1, s[2 + k]) for k in range(layers)] + [("norm", 0, s[-1])]
    found = []
    for kind, number, vectors in parts:
        drawn = vectors[: reading.shown, :NUMBERS].T
        high = short(3 * float(drawn.std())) or 1.0  # a few numbers are far larger than the others
        found.append({"kind": kind, "number": number, "map": render.numbers_of(drawn, -high, high), "lengths": lengths(vectors)})
    return found


def tokens(reading: Reading) -> list[dict]:
    """All 77: id, piece, kind and word; the place in the list is the position."""
    return [{"id": t.id, "piece": t.piece.strip(), "kind": t.kind, "word": t.word} for t in reading.tokens.tokens]


def branch(reading: Reading) -> dict:
    n = reading.shown
    heads = torch.cat([reading.attention.mean(1, keepdim=True), reading.attention], 1)[:, :, :n, :n]  # the mean first
    return {
        "tokens": tokens(reading),
        "used": reading.tokens.used,
        "cut": reading.tokens.cut,
        "shown": n,
        "width": reading.stages.shape[-1],
        "vocabulary": reading.vocabulary,
        "stages": stages(reading),
        "attention": [[render.numbers_of(p, 0, 0.5) for p in layer] for layer in heads],
    }


def lens(prompt: Reading, negative: Reading, guidance: float, start: int, language: str) -> dict:
    """What the strips, the pipeline and the attention show of a run's two prompts; start: the position selected at first."""
    unread = {0.0: "prompt", 1.0: "negative"}.get(float(guidance), "")
    return {
        "kind": "lens",
        "prompt": branch(prompt),
        "negative": branch(negative),
        "unread": unread,
        "start": start,
        "texts": texts.of(language, "text_"),
    }


def comparison(a: Reading, b: Reading, language: str) -> dict:
    """How alike the vectors of two prompts point, at every stage."""
    n, m = a.tokens.used, b.tokens.used
    alike = text.cosine(a.stages[:, :n], b.stages[:, :m])  # (stages, n, m)
    kinds = [("token", 0), ("sum", 0), *(("layer", k + 1) for k in range(len(alike) - 3)), ("norm", 0)]
    return {
        "kind": "cosine",
        "stages": [
            {"kind": kind, "number": number, "map": render.numbers_of(c, -1, 1)}
            for (kind, number), c in zip(kinds, alike, strict=True)
        ],
        "rows": tokens(a)[:n],
        "columns": tokens(b)[:m],
        "texts": texts.of(language, "text_"),
    }


def reach(before: Reading, after: Reading) -> Tensor:
    """How far each vector moved at each stage, as a share of its own length, (stages, 77)."""
    moved = torch.cat([text.moved(a[None], b[None])[None] for a, b in zip(before.stages, after.stages, strict=True)])
    return moved / before.stages.norm(dim=-1).clamp(min=1e-9)


def moved_from(share: Tensor) -> list[int]:
    """Positions that moved by more than rounding does, (77,) -> which."""
    return (share > 1e-3).nonzero().flatten().tolist()


def leak_sentence(share: Tensor, language: str) -> str:
    """How far the edits reach, in words."""
    which = moved_from(share)
    if not which:
        return texts.say(language, "text_leak_none")
    first, last = which[0], len(share) - 1
    least, most = float(share[which].min()), float(share[which].max())
    values = {"first": first, "last": last, "count": len(which), "least": f"{least:.2f}", "most": f"{most:.2f}"}
    if which == list(range(first, last + 1)) and first:
        return texts.say(language, "text_leak_causal", before=first - 1, still=f"{float(share[:first].max()):g}", **values)
    if len(which) == len(share):
        return texts.say(language, "text_leak_all", **values)
    places = ", ".join(map(str, which[:12])) + (" …" if len(which) > 12 else "")
    return texts.say(language, "text_leak_some", places=places, **values)


def piece(reading: Reading, position: int, language: str) -> str:
    """A position's piece, or what stands there, as HTML."""
    token = reading.tokens.tokens[position]
    return html.escape(token.piece.strip()) if token.kind == "text" else texts.say(language, f"text_{token.kind}")


def edit_html(edit: Edit, before: Reading, after: Reading, language: str) -> str:
    """An edit as an equation with its numbers in it."""
    k = edit.position
    e, z = f"<var>e<sub>{k}</sub></var>", f"<var>z<sub>{k}</sub></var>"
    own = f"<var>E</var>[{piece(before, k, language)}]"
    length = float(before.stages[0, k].norm())
    if edit.kind == "mix":
        other, vector = after.others[edit.token]
        formula = f"{e} = <b>{1 - edit.share:g}</b> {own} + <b>{edit.share:g}</b> <var>E</var>[{html.escape(other)}]"
        numbers = texts.say(language, "text_lengths", a=f"{length:.2f}", b=f"{float(vector.norm()):.2f}")
        if edit.share < 1 and before.tokens.tokens[k].kind == "text":
            numbers += " " + save_link(before, k, other, (1 - edit.share) * before.stages[0, k] + edit.share * vector, language)
    elif edit.kind == "blank":
        formula = f"{e} = <var>E</var>[{texts.say(language, 'text_padding')}]"
        numbers = texts.say(language, "text_length_was", a=f"{length:.2f}")
    elif edit.kind == "drop":
        formula = f"<s>{e} = {own}</s>"
        numbers = texts.say(language, "text_moves_up")
    elif edit.kind == "vector":
        count = len(edit.vector) // before.stages.shape[-1]
        name = html.escape(edit.words or texts.say(language, "text_unnamed"))
        formula = f"{e} = <b>{name}</b>"
        norm = torch.tensor(edit.vector).view(count, -1).norm(dim=-1).mean().item()
        numbers = texts.say(language, "text_vectors", count=count, a=f"{length:.2f}", b=f"{norm:.2f}")
    elif edit.kind == "weight":
        formula = f"{z} ← <b>{edit.share:g}</b> {z}"
        old = float(before.stages[-1, k].norm())
        numbers = f"{piece(before, k, language)}: " + texts.say(
            language, "text_lengths", a=f"{old:.2f}", b=f"{edit.share * old:.2f}"
        )
    else:
        other = html.escape(edit.words.strip() or texts.say(language, "runs_no_words"))
        formula = f"<var>z</var> ← <b>{1 - edit.share:g}</b> <var>z</var> + <b>{edit.share:g}</b> <var>z</var>[{other}]"
        numbers = texts.say(language, "text_all_77")
    return f'<span class="formula">{formula}</span> <small>{numbers}</small>'


def save_link(before: Reading, position: int, other: str, vector: Tensor, language: str) -> str:
    """A mixture of two tokens as a textual inversion's file, carried by the link itself."""
    name = "-".join(re.sub(r"\W", "", word) for word in (before.tokens.tokens[position].piece, other))
    data = base64.b64encode(text.inversion_file(f"<{name}>", vector[None])).decode()
    label = texts.say(language, "text_save")
    return f'<a download="{name}.safetensors" href="data:application/octet-stream;base64,{data}">{label}</a>'


def edits_html(edits: Sequence[Edit], before: Reading, after: Reading, language: str) -> str:
    """The edits as a list, each with a button that takes it back."""
    remove = texts.say(language, "text_remove")
    lines = [
        f'<li>{edit_html(edit, before, after, language)} <button type="button" data-remove="{k}">{remove}</button></li>'
        for k, edit in enumerate(edits)
    ]
    return f"<ol>{''.join(lines)}</ol>" if lines else ""


def edited(
    edits: Sequence[Edit],
    before: Reading,
    after: Reading,
    runs: tuple[Trace | None, Trace | None],
    language: str,
    live: tuple[Snapshot | None, Snapshot | None] = (None, None),
    unread: bool = False,
) -> dict:
    """The edits, how far they reach, and the picture without them beside the one with them. unread: w = 0, so that they change nothing."""
    share = reach(before, after)
    sentence = leak_sentence(share[-1], language) if edits else texts.say(language, "text_leak_empty")
    return {
        "kind": "edits",
        "edits": edits_html(edits, before, after, language),
        "any": bool(edits),
        "reach": render.numbers_of(share, 0, 1),
        "last": [short(v) for v in share[-1].tolist()],
        "sentence": f"{sentence} {texts.say(language, 'text_leak_unread')}" if edits and unread else sentence,
        "tokens": tokens(before),
        "pictures": [frame(run, at, language) for run, at in zip(runs, live, strict=True)],
        "texts": texts.of(language, "text_"),
    }


def frame(run: Trace | None, snapshot: Snapshot | None, language: str) -> dict:
    """A picture of the pair: finished, on its way, or not drawn yet."""
    if run is not None and run.picture is not None:
        how = texts.say(language, "runs_how", guidance=f"{run.request.guidance:g}", steps=run.request.steps)
        said = f"{how} · {texts.say(language, 'runs_seed', seed=run.request.seed)}"
        return {"picture": render.uri(render.picture(run.picture).image), "said": said, "done": True}
    if snapshot is None:
        return {"picture": "", "said": "", "done": False}
    key = "starting" if snapshot.state == "running" and not snapshot.i else snapshot.state
    if key in ENDED:
        return {"picture": "", "said": "", "done": False}
    values = {"place": snapshot.place, "i": snapshot.i, "count": snapshot.count, "seconds": f"{snapshot.seconds_left or 0:.1f}"}
    picture = "" if snapshot.preview is None else render.uri(render.picture(snapshot.preview).image)
    return {"picture": picture, "said": texts.say(language, f"status_{key}", **values), "done": False}


# --- edits from what the controls hold ----------------------------------------------------------------------------------------


def places(tokens: Tokens, at: int) -> tuple[int, ...]:
    """The positions of the whole word that a position is a piece of; of a mark or padding itself."""
    return next((positions for _, positions in tokens.words if at in positions), (at,))


def position_of(at: object) -> int:
    if not isinstance(at, str) or not at.isdecimal():
        raise ValueError("There is no token chosen; click one in the strip.")
    return int(at)


def new_edits(
    sd: StableDiffusion, prompt: str, kind: str, at: object, word: str, share: object, weight: object, other: str
) -> tuple[Edit, ...]:
    """What the controls ask for: weight, blank and drop act on all pieces of a word, mix on one. Raises ValueError with one sentence
    for what no edit can be."""
    if kind == "blend":
        check_number("share", share, 0, 1)
        return (Edit("blend", share=float(share), words=other),)  # pyright: ignore[reportArgumentType]
    position = position_of(at)
    if kind == "mix":
        check_number("share", share, 0, 1)
        return (Edit("mix", position, token=text.token_of(sd, word), share=float(share)),)  # pyright: ignore[reportArgumentType]
    if kind == "weight":
        check_number("weight", weight, 0, 4)
    value = float(weight) if kind == "weight" else 1.0  # pyright: ignore[reportArgumentType]
    return tuple(Edit(kind, k, share=value) for k in places(text.tokenize(sd, prompt), position))


def joined(edits: Sequence[Edit], new: Sequence[Edit]) -> tuple[Edit, ...]:
    """An edit takes the place of the earlier one of the same position, at the input or at the output."""

    def place(edit: Edit) -> tuple:
        return ("blend",) if edit.kind == "blend" else (edit.kind in INPUT, edit.position)

    taken = {place(edit) for edit in new}
    return (*(edit for edit in edits if place(edit) not in taken), *new)


def suggestion(sd: StableDiffusion, prompt: str) -> tuple[str, Edit] | None:
    """The first word that says something, and the edit that makes another of it; None for a prompt without one."""
    tokens = text.tokenize(sd, prompt)
    words = [(word.strip(), places) for word, places in tokens.words if word.strip().isalpha()]
    said = {word.lower() for word, _ in words}
    saying = [(word, places[0]) for word, places in words if len(places) == 1 and word.lower() not in SMALL_WORDS]
    other = next((swap for swap in SWAPS if swap not in said), None)
    if not saying or other is None:
        return None
    return saying[0][0], Edit("mix", saying[0][1], token=text.token_of(sd, other))


def swapped(sd: StableDiffusion, prompt: str, tried: tuple[str, Edit] | None) -> str:
    """The prompt with the suggestion's word in it: a second prompt to begin with."""
    if tried is None:
        return prompt
    return re.sub(rf"\b{re.escape(tried[0])}\b", text.piece_of(sd, tried[1].token), prompt, count=1)


def token_name(reading: Reading, position: int, language: str) -> str:
    token = reading.tokens.tokens[position]
    return f"{position} · {token.piece.strip() if token.kind == 'text' else texts.say(language, f'text_{token.kind}')}"


def pair(runs: Sequence[tuple[str, Trace]], request: Request, edits: tuple[Edit, ...]) -> list[tuple[str, Trace] | None]:
    """Of the kept runs the finished one without edits and the one with these; None for what has not been drawn."""

    # What a loss moved, or what was taken up from another run, is not the picture of its request alone.
    plain = [(one, run) for one, run in runs if run.picture is not None and common.same_from_request(run)]

    def find(wanted: Request) -> tuple[str, Trace] | None:
        return next(((one, run) for one, run in plain if run.request == wanted), None)

    return [find(replace(request, edits=())), find(replace(request, edits=edits)) if edits else None]


# --- the page -----------------------------------------------------------------------------------------------------------------


def part(name: str) -> gr.HTML:
    """One of the tab's three views; they share a script, and with it what is selected."""
    return gr.HTML(
        common.packed({"kind": "none"}),
        html_template=common.script("text.html").replace("PART", name),
        js_on_load=common.script("text.js"),
        apply_default_css=False,
        elem_id=f"text-{name}",
    )


def title(key: str, note: str) -> None:
    gr.HTML(i18n(key), html_template="<h3>${value}</h3>", apply_default_css=False, elem_classes="text-title")
    hint(note)


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lays the tab out and wires it. What is selected (token, stage, layer, head) lives in the browser."""
    engine = shared.engine
    reader = Reader(engine)

    common.heading("text")
    common.run_menu(shared, tab, "text")
    seen = gr.State("")  # the run that the tab shows
    edits = gr.State(())
    jobs = gr.State(())
    is_open = gr.Checkbox(visible=False)  # filled in by the browser, which alone knows which tab is open

    lens_view = part("lens")

    title("text_edit_title", "text_edit_note")
    with gr.Row(elem_classes="tab-body", elem_id="text-edit"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls"):
            kind = gr.Dropdown([], label=i18n("text_kind"), filterable=False, elem_id="text-kind")
            with gr.Column(min_width=0) as for_token:
                token = gr.Dropdown([], label=i18n("text_token"), elem_id="text-token", filterable=False)
            with gr.Column(min_width=0) as for_mix:
                word = gr.Textbox("cat", label=i18n("text_word"), elem_id="text-word", max_lines=1)
            with gr.Column(min_width=0, visible=False) as for_blend:
                other = gr.Textbox(label=i18n("text_blend_prompt"), elem_id="text-blend", lines=2, max_lines=4)
            with gr.Column(min_width=0) as for_share:
                share = common.number(1, 0, 1, 0.05, "text_share", "text-share")
            with gr.Column(min_width=0, visible=False) as for_weight:
                weight = common.number(1.5, 0, 4, 0.1, "text_weight", "text-weight")
            with gr.Column(min_width=0, visible=False) as for_file:
                file = gr.UploadButton(i18n("text_file"), elem_id="text-file", size="md")
                hint("text_file_note")
            add = gr.Button(i18n("text_add"), elem_id="text-add")
            run = gr.Button(i18n("text_draw"), variant="primary", elem_id="text-draw", elem_classes="run")
            stop = gr.Button(i18n("stop"), variant="stop", visible=False, elem_id="text-stop")
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            edit_view = part("edits")
            with gr.Row(elem_classes="try"):
                try_text = gr.HTML(
                    html_template="<p>${value}</p>", apply_default_css=False, min_width=200, elem_id="text-try-words"
                )
                attempt = gr.Button(i18n("prompt_try_button"), elem_id="text-try", scale=0, min_width=96)
            send_row(shared, "text", shared.shown)

    title("text_cosine_title", "text_cosine_note")
    with gr.Row(elem_classes="tab-body", elem_id="text-compare"):
        with gr.Column(scale=0, min_width=320, elem_classes="controls"):
            second = gr.Textbox(label=i18n("text_second"), elem_id="text-second", lines=2, max_lines=4)
            hint("text_second_note")
        with gr.Column(scale=1, min_width=320, elem_classes="canvas"):
            cosine_view = part("cosine")

    fields = {
        "mix": (for_token, for_mix, for_share),
        "weight": (for_token, for_weight),
        "blank": (for_token,),
        "drop": (for_token,),
        "blend": (for_blend, for_share),
        "vector": (for_token, for_file),
    }
    busy = {run: gr.update(visible=False), stop: gr.update(visible=True)}
    idle = {run: gr.update(visible=True), stop: gr.update(visible=False)}

    def edits_value(trace: Trace, chosen: tuple[Edit, ...], owner: str, language: str, live=(None, None)) -> str:
        """The edits' view. Raises ValueError if one does not fit the model."""
        r = trace.request
        before, after = reader(r.model, owner, (r.prompt, ()), (r.prompt, chosen))
        found = [one[1] if one else None for one in pair(shared.kept(owner), r, chosen)]
        return common.packed(edited(chosen, before, after, (found[0], found[1]), language, live, r.guidance == 0))

    def cosine_value(trace: Trace, words: str, owner: str, language: str) -> str:
        Request(words)  # the limits of a prompt
        a, b = reader(trace.request.model, owner, (trace.request.prompt, ()), (words, ()))
        return common.packed(comparison(a, b, language))

    def look(owner: str | None, shown: str, drawn: str, words: str, visible: bool, request: gr.Request) -> dict:
        """The tab opens, or another run is looked at. A hidden tab costs nothing."""
        language, owner = common.language(request), common.owner_of(owner)
        if not visible or (shown and shown == drawn):
            return {seen: gr.skip()}
        if not shown:
            nothing = {"kind": "empty", "texts": texts.of(language, "text_")}
            return {lens_view: common.packed(nothing)}
        try:
            trace = shared.trace_of(shown, owner)
            r = trace.request
            prompt, negative = reader(r.model, owner, (r.prompt, ()), (r.negative, ()))
            tried = suggestion(engine.model(r.model), r.prompt)
            other_words = words or swapped(engine.model(r.model), r.prompt, tried)
            start = tried[1].position if tried else min(1, prompt.tokens.used - 1)
            chosen = r.edits or ((tried[1],) if tried else ())  # the suggestion stands there already: there is a reach to look at
            page = {
                lens_view: common.packed(lens(prompt, negative, r.guidance, start, language)),
                edit_view: edits_value(trace, chosen, owner, language),
                cosine_view: cosine_value(trace, other_words, owner, language),
            }
        except ValueError as error:
            raise common.refusal(language, error) from None
        choices = [(token_name(prompt, k, language), str(k)) for k in range(prompt.shown)]
        kinds = [(texts.say(language, key), name) for name, key in KINDS.items()]
        return page | {
            seen: shown,
            edits: chosen,
            second: other_words,
            token: gr.Dropdown(choices=choices, value=str(start)),
            kind: gr.Dropdown(choices=kinds, value="mix") if not drawn else gr.Dropdown(choices=kinds),
            try_text: say_suggestion(tried, r.model, language),
            attempt: gr.update(visible=tried is not None),
        }

    def say_suggestion(tried: tuple[str, Edit] | None, model: str, language: str) -> str:
        if tried is None:
            return texts.say(language, "text_try_none")
        other_word = text.piece_of(engine.model(model), tried[1].token)
        return texts.say(language, "text_try", word=html.escape(tried[0]), other=html.escape(other_word))

    def change(new: tuple[Edit, ...], owner: str, shown: str, language: str) -> dict:
        """The list of edits changes: how far they reach shows at once, the picture when it has been drawn."""
        trace = shared.trace_of(shown, owner)
        replace(trace.request, edits=new)  # as many and as long as a request may have
        return {edits: new, edit_view: edits_value(trace, new, owner, language)}

    def add_edit(owner, shown, chosen, which, at, word, share, weight, other, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        share, weight = common.number_of(share), common.number_of(weight)
        try:
            r = shared.trace_of(shown, owner).request
            new = new_edits(engine.model(r.model), r.prompt, which, at, word, share, weight, other)
            return change(joined(chosen, new), owner, shown, language)
        except ValueError as error:
            raise common.refusal(language, error) from None

    def add_vector(path: str, owner, shown, chosen, at, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            model = engine.model(shared.trace_of(shown, owner).request.model)
            name, vectors = text.read_inversion(path, model.text_encoder.config.hidden_size)
            new = Edit("vector", position_of(at), words=name[:40], vector=tuple(vectors.flatten().tolist()))
            return change(joined(chosen, (new,)), owner, shown, language)
        except ValueError as error:
            raise common.refusal(language, error) from None

    def remove(owner, shown, chosen, event: gr.EventData, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        index = common.event_value(event, "index")
        kept = tuple(e for k, e in enumerate(chosen) if str(k) != index)
        try:
            return change(kept, owner, shown, language)
        except ValueError as error:
            raise common.refusal(language, error) from None

    def suggest(owner, shown, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            r = shared.trace_of(shown, owner).request
            tried = suggestion(engine.model(r.model), r.prompt)
            if tried is None:
                raise ValueError("There is no edit yet; add one first.")
            return change((tried[1],), owner, shown, language)
        except ValueError as error:
            raise common.refusal(language, error) from None

    def draw(owner, shown, chosen, request: gr.Request) -> Iterator[dict]:
        """Draws what the pair lacks: the picture with the edits, and the one without them if it is no longer kept."""
        language, owner = common.language(request), common.owner_of(owner)
        try:
            trace = shared.trace_of(shown, owner)
            if not chosen:
                raise ValueError("There is no edit yet; add one first.")
            wanted = [replace(trace.request, edits=()), replace(trace.request, edits=chosen)]
            found = pair(shared.kept(owner), trace.request, chosen)
            ids = [None if had else engine.submit(r, owner, Record()) for r, had in zip(wanted, found, strict=True)]
        except ValueError as error:
            raise common.refusal(language, error) from None
        yield busy | {shared.owner: owner, jobs: tuple(one for one in ids if one)}
        try:
            for k, one in enumerate(ids):
                for snapshot in engine.events(one) if one else ():
                    live = (snapshot, None) if k == 0 else (None, snapshot)
                    yield {edit_view: edits_value(trace, chosen, owner, language, live)}
                if one and snapshot.state == "stopped":
                    break
                if one:
                    engine.result(one)  # says why, if it failed
        except ValueError as error:
            yield idle | {jobs: (), edit_view: edits_value(trace, chosen, owner, language)}
            raise common.refusal(language, error) from None
        last = pair(shared.kept(owner), trace.request, chosen)[1]
        now = {seen: last[0], shared.shown: last[0]} if last else {}
        yield idle | now | {jobs: (), edit_view: edits_value(trace, chosen, owner, language)}

    def halt(ids: tuple[str, ...]) -> None:
        for one in ids:
            with suppress(ValueError):  # long over
                engine.cancel(one)

    def compare(owner, shown, words: str, request: gr.Request) -> dict:
        language, owner = common.language(request), common.owner_of(owner)
        try:
            return {cosine_view: cosine_value(shared.trace_of(shown, owner), words, owner, language)}
        except ValueError as error:
            raise common.refusal(language, error) from None

    def picked(event: gr.EventData) -> str:
        return common.event_value(event, "at")

    def show_fields(which: str) -> dict:
        wanted = fields.get(which, ())
        every = {column for columns in fields.values() for column in columns}
        return {column: gr.update(visible=column in wanted) for column in every} | {add: gr.update(visible=which != "vector")}

    opened = [lens_view, edit_view, cosine_view, seen, edits, second, token, kind, try_text, attempt]
    looked = [shared.owner, shared.shown, seen, second, is_open]
    tab.select(look, looked, opened, js="(...values) => [...values.slice(0, 4), true]", **LOOK)
    shared.shown.change(
        look,
        looked,
        opened,
        js="(...values) => [...values.slice(0, 4), !!document.querySelector('#text-lens')?.offsetParent]",
        **LOOK,
    )
    kind.change(show_fields, kind, [*{c for columns in fields.values() for c in columns}, add], **QUICK)
    lens_view.pick(picked, None, token, trigger_mode="always_last", **QUICK)  # of two at once, Gradio would drop the second
    token.input(
        None, token, None, js="(at) => window.textTab?.choose({at: Number(at), branch: 'prompt'})", api_visibility="private"
    )
    values = [kind, token, word, share, weight, other]
    gr.on([add.click, word.submit], add_edit, [shared.owner, shared.shown, edits, *values], [edits, edit_view], **LOOK)
    file.upload(add_vector, [file, shared.owner, shared.shown, edits, token], [edits, edit_view], **LOOK)
    edit_view.remove(remove, [shared.owner, shared.shown, edits], [edits, edit_view], **LOOK)
    pieces = [shared.owner, shared.shown, seen, edits, jobs, edit_view, run, stop]
    run.click(draw, [shared.owner, shared.shown, edits], pieces, **WATCH)
    stop.click(halt, jobs, None, **QUICK)
    suggested = attempt.click(suggest, [shared.owner, shared.shown], [edits, edit_view], **LOOK)
    suggested.success(draw, [shared.owner, shared.shown, edits], pieces, **WATCH)
    second.change(compare, [shared.owner, shared.shown, second], cosine_view, trigger_mode="always_last", **LOOK)
