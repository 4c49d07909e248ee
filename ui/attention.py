"""Which words did each spot look at?

In a cross-attention layer each spot of the picture shares out its attention, 1 in all, among the 77 tokens of the prompt. These shares
were kept while the picture was drawn. Choose a word to see which spots looked at it; click a spot to see which words it looked at.
"""

import base64
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import attention, trace
from core.attention import SMALL, Record, grid_of, in_time
from core.conditioning import Pixels
from core.engine import Part
from core.models import StableDiffusion
from core.text import Tokens
from core.trace import Trace
from ui import common, render, texts, viewing
from ui.common import LOOK, QUICK, WATCH, Handed, Shared
from ui.pictures import send_row

TITLE = "tab_attention"  # a key of ui/texts.py

HEAVY = 3 * 2**20  # bytes of maps in one answer; beyond, they are averaged over squares of 2 x 2 spots, as often as needed
LARGE = 128  # pixels of a mask's longer side: finer than any map
EVERYTHING = Record(heads=True, itself=SMALL)  # what one more UNet pass brings back
REMEMBERED = 256 * 2**20  # bytes of such passes, everyone's; the last one is kept in any case
BRANCHES = ("cond", "uncond")
KINDS = ("volume", "judge", "overlap", "mask", "other", "heads", "itself")
NONSENSE = "This view asked for something that the run does not have; open the tab again."


# --- views: plain functions of a Trace ------------------------------------------------------------------------------------------


def names_of(tokens: Tokens) -> list[dict]:
    """Start mark, words, end mark and the padding as one: each with its places among the 77, which they share out among them."""
    marks = {kind: tuple(t.position for t in tokens.tokens if t.kind == kind) for kind in ("start", "end", "padding")}
    named = [
        {"kind": "start", "word": "", "positions": marks["start"]},
        *({"kind": "word", "word": word.strip(), "positions": positions} for word, positions in tokens.words),
        {"kind": "end", "word": "", "positions": marks["end"]},
        {"kind": "padding", "word": "", "positions": marks["padding"]},
    ]
    return [name for name in named if name["positions"]]


def pieces_of(tokens: Tokens) -> list[str]:
    """All 77, each by its piece of a word; marks and padding by their kind."""
    return [t.piece.strip() if t.kind == "text" else t.kind for t in tokens.tokens]


def tokens_of(run: Trace, branch: str) -> Tokens:
    return run.tokens if branch == "cond" else run.negative_tokens


def recorded(run: Trace, branch: str) -> list[int]:
    """The steps in which this branch ran and its attention was kept."""
    return [s.i for s in run if s.attention and (s.eps_cond if branch == "cond" else s.eps_uncond) is not None]


def maps_of(run: Trace, steps: Sequence[int], layer: str, branch: str, gather: Tensor) -> Tensor:
    """The share of the attention that each column of gather (77, k) got, (steps, k, h, w): of one layer at its own size, or averaged over
    all layers ("") at the latents' size."""
    kept = [run.steps[i].attention for i in steps]
    if not kept or not all(layer in maps for maps in kept if layer):
        raise ValueError("This run recorded no attention in these layers; run again with recording on.")
    size = grid_of(kept[0][layer].shape[1], *run.size) if layer else run.size
    layers = [layer] if layer else None
    return in_time(kept, size=size, layers=layers, branch=-1 if branch == "cond" else 0, gather=gather)


def gather_of(groups: Sequence[Sequence[int]]) -> Tensor:
    """(77, k): adds up the columns of each group of tokens."""
    gather = torch.zeros(77, len(groups))
    for k, positions in enumerate(groups):
        gather[list(positions), k] = 1
    return gather


def halves(values: Tensor) -> str:
    """Numbers for the script: base64 of float16, row by row."""
    return base64.b64encode(values.to(torch.float16).contiguous().numpy().tobytes()).decode()


def overview(run: Trace, one: str, runs: list[tuple[str, Trace]], language: str) -> dict:
    """What the tab knows of a run before it asks for any map."""
    at = {branch: recorded(run, branch) for branch in BRANCHES}
    said = {"texts": texts.of(language, "attention_"), "run": one}
    first = next((s for s in run if s.attention), None)
    if first is None:
        passes = sum((s.eps_uncond is not None) + (s.eps_cond is not None) for s in run)
        return said | {"kind": "bare", "status": texts.say(language, "attention_bare"), "passes": passes}
    layers = [facts_of(run, layer, p.shape[1]) for layer in run.layers if (p := first.attention.get(layer)) is not None]
    height, width = size_of(run)
    return said | {
        "kind": "run",
        "count": len(run),
        "latent": list(run.size),
        "pixels": [height, width],
        "picture": render.uri(render.picture(run.picture).image) if run.picture is not None else "",
        "guesses": [render.uri(render.latent(run, s.x0).image) for s in run],
        "layers": layers,
        "of": len(run.layers),
        "at": at,
        "names": {branch: names_of(tokens_of(run, branch)) for branch in BRANCHES},
        "pieces": {branch: pieces_of(tokens_of(run, branch)) for branch in BRANCHES},
        "bytes": run.attention_bytes,
        "budget": trace.MEGABYTES * 2**20,
        "notes": [texts.sentence(language, note) for note in run.notes],
        "runs": [
            [key, common.run_name(key, other, language)] for key, other in runs if key != one and any(s.attention for s in other)
        ],
        "light": volume_bytes(run, [layer["h"] * layer["w"] for layer in layers]) < HEAVY,
    }


def facts_of(run: Trace, layer: str, positions: int) -> dict:
    """What the script needs to name a layer: on which side of the UNet, of how many spots, and which of its block if there are several."""
    h, w = grid_of(positions, *run.size)
    block = [name for name in run.layers if name.split(".attentions")[0] == layer.split(".attentions")[0]]
    number = block.index(layer.replace("attn1", "attn2")) + 1 if len(block) > 1 else 0
    return {"name": layer, "side": layer.split("_")[0], "h": h, "w": w, "number": number}


def volume_bytes(run: Trace, positions: list[int]) -> int:
    """Of all volumes of one branch together."""
    return 2 * len(run) * len(names_of(run.tokens)) * (sum(positions) + run.size[0] * run.size[1])


def size_of(run: Trace) -> tuple[int, int]:
    """(H, W) of the run's picture in pixels, 8 for each latent if it was stopped before there was one."""
    if run.picture is not None:
        return run.picture.shape[1], run.picture.shape[2]
    return 8 * run.size[0], 8 * run.size[1]


def volume(run: Trace, layer: str, branch: str, position: int | None = None) -> dict:
    """The maps of all names (or of the one token at a position) in all steps, and what share each of the 77 got on average."""
    at = recorded(run, branch)
    groups = [n["positions"] for n in names_of(tokens_of(run, branch))] if position is None else [(position,)]
    found = maps_of(run, at, layer, branch, gather_of(groups))  # (steps, k, h, w)
    while found.nbytes / 2 > HEAVY and min(found.shape[2:]) > 1:
        found = torch.nn.functional.avg_pool2d(found, 2, ceil_mode=True)
    answer = {"h": found.shape[2], "w": found.shape[3], "k": found.shape[1], "at": at, "data": halves(found)}
    return answer if position is not None else answer | {"spent": halves(spent(run, at, layer, branch))}


def spent(run: Trace, steps: Sequence[int], layer: str, branch: str) -> Tensor:
    """The share of the attention that each of the 77 tokens got, averaged over all spots, (steps, 77); each row adds up to 1."""
    row = -1 if branch == "cond" else 0
    shares = [
        torch.stack([p[row].float().mean(0) for name, p in run.steps[i].attention.items() if layer in ("", name)]) for i in steps
    ]
    return torch.stack([s.mean(0) for s in shares])


def judge(run: Trace, positions: Sequence[int], branch: str, mask: Tensor, share: float) -> dict:
    """How well a word's map fits a mask, by layer and step: IoU, rows "" (all layers) and each layer, columns the steps and their mean.

    Raises ValueError if the mask is empty.
    """
    at, gather = recorded(run, branch), gather_of([positions])
    rows = ["", *(layer for layer in run.layers if at and layer in run.steps[at[0]].attention)]
    table = []
    for layer in rows:
        found = maps_of(run, at, layer, branch, gather)[:, 0]  # (steps, h, w)
        table.append(attention.iou(torch.cat([found, found.mean(0, keepdim=True)]), mask, share))
    scores = torch.stack(table)  # (1 + layers, steps + 1)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    best = {"layer": rows[row], "step": at[column] if column < len(at) else None, "iou": round(float(scores[row, column]), 4)}
    return {"rows": rows, "at": at, "scores": np.round(scores.numpy(), 4).tolist(), "best": best}


def overlap(run: Trace, first: Sequence[int], second: Sequence[int], layer: str, branch: str) -> dict:
    """How far two words' maps lie in the same place, by step, and of their means over the steps: 1 the same, 0 apart."""
    at = recorded(run, branch)
    a, b = maps_of(run, at, layer, branch, gather_of([first, second])).unbind(1)
    together = attention.overlap(torch.cat([a, a.mean(0, keepdim=True)]), torch.cat([b, b.mean(0, keepdim=True)]))
    return {"at": at, "overlap": np.round(together.numpy(), 4).tolist()}


def selected_map(run: Trace, positions: Sequence[int], layer: str, branch: str, step: int | None) -> Tensor:
    """One map (h, w): of one step, or their mean (None)."""
    at = recorded(run, branch) if step is None else [step]
    return maps_of(run, at, layer, branch, gather_of([positions]))[:, 0].mean(0)


def mask_of(run: Trace, positions: Sequence[int], layer: str, branch: str, step: int | None, share: float) -> np.ndarray:
    """The upper part of a word's map as an inpainting mask of the picture's size, (H, W) uint8: 255 = paint anew, 0 = keep."""
    chosen = selected_map(run, positions, layer, branch, step)
    return attention.upper(chosen[None], size_of(run), share)[0].numpy().astype(np.uint8) * 255


def mask_view(mask: np.ndarray) -> dict:
    png = base64.b64encode(render.encode(Image.fromarray(mask), "PNG")).decode()
    return {"png": f"data:image/png;base64,{png}", "part": round(float((mask > 0).mean()), 4)}


def elsewhere(run: Trace, other: Trace, word: str, layer: str, branch: str) -> dict:
    """The same word in another run: its maps at this run's steps (each that of the other's nearest time), and how far the two overlap.

    Raises ValueError if the other prompt has no such word.
    """
    theirs = next((p for w, p in tokens_of(other, branch).words if w.strip().lower() == word.lower()), None)
    ours = next((p for w, p in tokens_of(run, branch).words if w.strip().lower() == word.lower()), None)
    if ours is None or theirs is None:
        raise ValueError(f'The other run has no word "{word}"; choose a word that stands in both prompts.')
    layer = layer if layer in other.layers else ""
    at, times = recorded(run, branch), recorded(other, branch)
    nearest = [min(times, key=lambda j: abs(other.steps[j].t - run.steps[i].t)) for i in at] if times else []
    found = maps_of(other, nearest, layer, branch, gather_of([theirs]))  # (steps, 1, h, w)
    mine = maps_of(run, at, layer, branch, gather_of([ours]))
    answer = {"h": found.shape[2], "w": found.shape[3], "k": 1, "at": at, "data": halves(found), "steps": nearest}
    answer["pixels"] = list(size_of(other))
    answer["picture"] = render.uri(render.picture(other.picture).image) if other.picture is not None else ""
    if found.shape == mine.shape:
        a, b = (torch.cat([x[:, 0], x[:, 0].mean(0, keepdim=True)]) for x in (mine, found))
        answer["overlap"] = np.round(attention.overlap(a, b).numpy(), 4).tolist()
    return answer


Looked = Mapping[str, Tensor]  # what Trace.look_again found: layer -> (branches, heads, h w, 77), or (branches, h w, h w)


def row_of(run: Trace, step: int, branch: str) -> int:
    """A branch's row in what one step recorded."""
    if (run.steps[step].eps_cond if branch == "cond" else run.steps[step].eps_uncond) is None:
        raise ValueError("The UNet was not asked in this branch at this step; choose another step, or the other branch.")
    return -1 if branch == "cond" else 0


def heads(run: Trace, step: int, looked: Looked, positions: Sequence[int], branch: str) -> dict:
    """A word's map in every head of every layer."""
    row, rows = row_of(run, step, branch), []
    for layer in run.layers:
        p = looked[layer][row].float() @ gather_of([positions])  # (heads, h w, 1)
        rows.append({**facts_of(run, layer, p.shape[1]), "k": p.shape[0], "data": halves(p[..., 0])})
    return {"layers": rows}


def itself(run: Trace, step: int, looked: Looked, branch: str) -> dict:
    """Self-attention of the small layers: for every spot, how much it looked at every other, (h w, h w)."""
    row, rows = row_of(run, step, branch), []
    order = {layer.replace("attn2", "attn1"): k for k, layer in enumerate(run.layers)}
    for layer in sorted((name for name in looked if "attn1" in name), key=lambda name: order.get(name, len(order))):
        p = looked[layer][row]  # (h w, h w)
        rows.append({**facts_of(run, layer, p.shape[-1]), "k": p.shape[-1], "data": halves(p)})
    return {"layers": rows}


# --- questions: what the script asks, checked, for it comes from outside ----------------------------------------------------------


class Question:
    """One of the script's questions about a run. Its values are read by what they must be, or refused."""

    def __init__(self, run: Trace, asked: object):
        self.run, self.asked = run, asked if isinstance(asked, dict) else {}

    def checked(self, name: str, fits: Callable[[object], bool]) -> Any:
        """The value of this name if it fits; ValueError if not."""
        value = self.asked.get(name)
        if not fits(value):
            raise ValueError(NONSENSE)
        return value

    @property
    def layer(self) -> str:
        return self.checked("layer", lambda v: v == "" or v in self.run.layers)

    @property
    def branch(self) -> str:
        return self.checked("branch", lambda v: v in BRANCHES)

    @property
    def share(self) -> float:
        return self.checked("share", lambda v: type(v) in (int, float) and 0 <= v <= 1)

    @property
    def word(self) -> str:
        return self.checked("word", lambda v: isinstance(v, str) and len(v) <= 200)

    @property
    def position(self) -> int | None:
        return self.checked("position", lambda v: v is None or place(v))

    @property
    def step(self) -> int | None:
        return self.checked("step", lambda v: v is None or (type(v) is int and 0 <= v < len(self.run)))

    def positions(self, name: str = "positions") -> list[int]:
        return self.checked(name, lambda v: isinstance(v, list) and 0 < len(v) <= 77 and all(map(place, v)))

    @property
    def mask(self) -> Tensor:
        """(h, w) bool, sent as bits."""
        h, w = (self.checked(name, lambda v: type(v) is int and 1 <= v <= LARGE) for name in ("h", "w"))
        try:
            bits = np.unpackbits(
                np.frombuffer(base64.b64decode(str(self.asked.get("mask")), validate=True), np.uint8), count=h * w
            )
        except ValueError as error:
            raise ValueError(NONSENSE) from error
        return torch.from_numpy(bits.reshape(h, w).astype(bool))


def place(value: object) -> bool:
    return type(value) is int and 0 <= value <= 76


def answer(run: Trace, asked: object, other: Callable[[str], Trace], looked: tuple[int, Looked] | None = None) -> dict:
    """One of the script's questions, answered. looked: a step and what one more UNet pass of it found, if it is about that."""
    q = Question(run, asked)
    match q.checked("kind", lambda v: v in KINDS):
        case "volume":
            return volume(run, q.layer, q.branch, q.position)
        case "judge":
            return judge(run, q.positions(), q.branch, q.mask, q.share)
        case "overlap":
            return overlap(run, q.positions(), q.positions("others"), q.layer, q.branch)
        case "mask":
            return mask_view(mask_of(run, q.positions(), q.layer, q.branch, q.step, q.share))
        case "other":
            return elsewhere(run, other(str(q.asked.get("job"))), q.word, q.layer, q.branch)
        case "heads" if looked:
            return heads(run, *looked, q.positions(), q.branch)
        case "itself" if looked:
            return itself(run, *looked, q.branch)
    raise ValueError(NONSENSE)


def answers(questions: object, one: Callable[[object], dict], language: str) -> list[dict]:
    """Each question's answer under the key that it came with, or the sentence that refuses it."""
    found = []
    for asked in questions if isinstance(questions, list) else []:
        key = asked.get("key") if isinstance(asked, dict) else None
        try:
            found.append({**one(asked), "key": key})
        except ValueError as error:
            found.append({"key": key, "error": texts.sentence(language, error)})
    return found


class Passes:
    """What the last UNet passes brought back, by run and step."""

    def __init__(self, room: int = REMEMBERED):
        self._room, self._lock = room, threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Looked] = OrderedDict()

    def get(self, one: str, step: int, make: Callable[[], Looked]) -> Looked:
        """The pass of this run and step, made now if it is not kept."""
        with self._lock:
            if (one, step) in self._kept:
                self._kept.move_to_end((one, step))
                return self._kept[one, step]
        made = make()  # without the lock: it waits for the model
        with self._lock:
            self._kept[one, step] = made
            while len(self._kept) > 1 and sum(p.nbytes for looked in self._kept.values() for p in looked.values()) > self._room:
                self._kept.popitem(last=False)
        return made


# --- the page -----------------------------------------------------------------------------------------------------------------


def build(shared: Shared, tab: gr.Tab) -> None:
    """Lays the tab out and wires it.

    The script asks for what it lacks, and keeps what it was told: while it has a word's maps, moving through steps needs no server.
    """
    engine, passes = shared.engine, Passes()
    common.heading("attention")
    common.run_menu(shared, tab, "attention")
    view = viewing.view("attention", "attention")
    # What needs the model comes back by a way of its own: it may wait long, and must not overwrite an answer that does not.
    again = gr.HTML(
        "",
        html_template="<i hidden></i>",
        js_on_load="watch('value', () => document.dispatchEvent(new CustomEvent('attention-again', { detail: props.value })));",
        elem_id="attention-again",
        apply_default_css=False,
    )
    send_row(shared, "attention", shared.shown)

    def stale(shown: str, request: gr.Request) -> str:
        """Another run is looked at: the script asks for it when it is seen."""
        if not shown:
            language = common.language(request)
            return common.packed({"kind": "bare", "status": texts.say(language, "attention_none"), "passes": 0})
        return common.packed({"kind": "stale", "run": shown})

    def asked(event: gr.EventData) -> dict:
        """What the script sent along."""
        try:
            question = json.loads(common.event_value(event, "ask"))
        except ValueError:
            question = None
        return question if isinstance(question, dict) else {}

    def look(owner: str | None, event: gr.EventData, request: gr.Request) -> str:
        """The run, or whatever maps of it the script lacks."""
        language, owner, question = common.language(request), common.owner_of(owner), asked(event)
        one = str(question.get("run"))
        try:
            run = shared.trace_of(one, owner)
            if "questions" not in question:
                return common.packed(overview(run, one, shared.kept(owner), language))
        except ValueError as error:
            return common.packed({"kind": "bare", "status": texts.sentence(language, error), "passes": 0})
        found = answers(
            question["questions"], lambda asked: answer(run, asked, lambda job: shared.trace_of(job, owner)), language
        )
        return common.packed({"kind": "answers", "turn": question.get("turn"), "answers": found})

    def look_again(owner: str | None, event: gr.EventData, request: gr.Request) -> str:
        """One UNet pass of one step, if it is not kept, and what was asked of it."""
        language, owner, question = common.language(request), common.owner_of(owner), asked(event)
        one = str(question.get("run"))
        said = {"turn": question.get("turn"), "run": [one, question.get("step")]}
        try:
            run = shared.trace_of(one, owner)
            step = Question(run, question).step
            if step is None:
                raise ValueError(NONSENSE)
            looked = passes.get(
                one, step, lambda: engine.ask(run.request.model, lambda sd: run.look_again(sd, step, EVERYTHING), owner)
            )
        except ValueError as error:
            return common.packed({**said, "error": texts.sentence(language, error)})
        found = answers(question.get("questions"), lambda asked: answer(run, asked, lambda job: run, (step, looked)), language)
        return common.packed({**said, "answers": found})

    def record(owner: str | None, event: gr.EventData, request: gr.Request) -> Iterator[str]:
        """Makes a run's UNet calls again to record what was not recorded then."""
        language, owner = common.language(request), common.owner_of(owner)
        one = str(asked(event).get("run"))
        try:
            run = shared.trace_of(one, owner)
            count = sum(not s.attention for s in run)

            def work(sd: StableDiffusion) -> Iterator[Part]:
                return (Part(k, count, i) for k, i in enumerate(run.record_again(sd)))

            job = engine.submit_work(run.request.model, work, owner, "attention")
            for snapshot in engine.events(job):
                status = texts.say(language, "attention_recording", i=snapshot.i, count=count)
                yield common.packed({"kind": "bare", "status": status, "passes": 0})
            engine.values(job)  # or its sentence, if it failed
            yield common.packed(overview(run, one, shared.kept(owner), language))
        except ValueError as error:
            yield common.packed({"kind": "bare", "status": texts.sentence(language, error), "passes": 0})

    def hand_over(owner: str | None, event: gr.EventData, request: gr.Request) -> dict:
        """The mask goes to the Inpaint tab, which opens."""
        question = asked(event)
        one = str(question.get("run"))
        try:
            run = shared.trace_of(one, owner)
            q = Question(run, question)
            mask = mask_of(run, q.positions(), q.layer, q.branch, q.step, q.share)
            return {shared.mask: Handed(one, Pixels.of(mask), time.time()), shared.tabs: gr.Tabs(selected="tab_inpaint")}
        except ValueError as error:
            raise common.refusal(common.language(request), error) from None

    gr.on([tab.select, shared.shown.change], stale, shared.shown, view, **QUICK)
    view.look(look, shared.owner, view, trigger_mode="multiple", **LOOK)
    view.again(look_again, shared.owner, again, trigger_mode="multiple", **WATCH)
    view.record(record, shared.owner, view, **WATCH)
    view.hand(hand_over, shared.owner, [shared.mask, shared.tabs], **LOOK)
