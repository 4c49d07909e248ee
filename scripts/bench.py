"""Speed and memory on the embedded model, as ratios within one run: machines are shared, and a second of today is not one of tomorrow.

    make bench            # a table, and one line of JSON last
    make bench ARGS="--turns 9 --no-page"

Every turn runs all contestants one after the other; a ratio is the median over turns of what the two took in the same turn.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from diffusers import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL import Image

import bench_train
from core import catalog, latents, models, schedulers, sweep
from core.attention import Record
from core.conditioning import Depth, Inpaint, Pixels, Source, Upscale
from core.models import StableDiffusion
from core.sampling import Request, denoise
from core.sweep import Sweep
from core.trace import Trace

REQUEST = Request("a fox in a top hat on a blue background", seed=1, steps=20)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_calls(sd: StableDiffusion) -> Callable[[], None]:
    """The UNet calls that a run makes, and nothing else."""
    calls = []
    hook = sd.unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    list(denoise(sd, REQUEST))
    hook.remove()

    @torch.no_grad()
    def run() -> None:
        for args, kwargs in calls:
            sd.unet(*args, **kwargs)

    return run


def pipeline_of(sd: StableDiffusion) -> StableDiffusionPipeline:
    cls, extra = schedulers.SCHEDULERS[REQUEST.scheduler]
    pipe = StableDiffusionPipeline(
        vae=sd.vae,
        text_encoder=sd.text_encoder,
        tokenizer=sd.tokenizer,
        unet=sd.unet,
        scheduler=cls.from_config(sd.scheduler_config, **extra),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loops(sd: StableDiffusion, turns: int) -> dict[str, float]:
    pipe = pipeline_of(sd)

    def ours(record: Record | None = None) -> torch.Tensor:
        *_, last = denoise(sd, REQUEST, record)
        return last.x_next

    def picture() -> torch.Tensor:
        return latents.decode(sd, ours())

    def theirs() -> torch.Tensor:
        source = torch.Generator().manual_seed(REQUEST.seed)
        options = {"num_inference_steps": REQUEST.steps, "guidance_scale": REQUEST.guidance, "generator": source}
        return pipe(REQUEST.prompt, output_type="pt", **options).images

    assert torch.allclose(picture(), theirs() * 2 - 1, atol=1e-6), "not the same picture: nothing to compare"
    contestants = {
        "bare": bare_calls(sd),
        "loop": ours,
        "recording": lambda: ours(Record()),
        "picture": picture,
        "pipeline": theirs,
    }
    for work in contestants.values():
        work()  # warm
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns):
        names = list(contestants)
        for name in names if turn % 2 else reversed(names):
            took[name].append(seconds(contestants[name]))

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(took[a], took[b], strict=True)), 3)

    trace = Trace.start(sd, REQUEST)
    for _ in trace.follow(denoise(sd, REQUEST, Record())):
        pass
    return {
        "loop_overhead": ratio("loop", "bare"),
        "vs_pipeline": ratio("picture", "pipeline"),
        "record_overhead": ratio("recording", "loop"),
        "record_mb": round(trace.nbytes / 1e6, 2),
        "picture_s": round(statistics.median(took["picture"]), 2),
    }


def sweeps(sd: StableDiffusion, turns: int) -> dict[str, float]:
    """Nine guidance scales, two of them 0 and 1, beside nine calls of the pipeline that make the same pictures.

    The pipeline makes one prediction a step where guidance is 1; the picture of w = 0 is that of its negative prompt with guidance 1.
    """
    grid, pipe = Sweep(REQUEST, tuple(range(9))), pipeline_of(sd)

    def ours() -> torch.Tensor:
        return torch.cat([cell.picture for cell in sweep.run(sd, grid) if cell.picture is not None])

    def call(w: float) -> torch.Tensor:
        words = {"prompt": REQUEST.prompt if w else REQUEST.negative, "guidance_scale": w or 1.0}
        source = torch.Generator().manual_seed(REQUEST.seed)
        return pipe(**words, num_inference_steps=REQUEST.steps, generator=source, output_type="pt").images

    def theirs() -> torch.Tensor:
        return torch.cat([call(w) for w in grid.guidances])

    passes: list[int] = []
    hook = sd.unet.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    mine = ours()
    hook.remove()
    assert torch.allclose(mine, theirs() * 2 - 1, atol=1e-3), "not the same pictures: nothing to compare"
    took = [(seconds(ours), seconds(theirs)) if turn % 2 else (seconds(theirs), seconds(ours))[::-1] for turn in range(turns)]
    trace_bytes = max(t.trace.nbytes for t in (part.value for part in sweep.work(grid)(sd)) if t.trace is not None)
    return {
        "sweep_passes": sum(passes),
        "sweep_ratio": round(statistics.median(a / b for a, b in took), 3),
        "sweep_mb": round(len(grid.guidances) * trace_bytes / 1e6, 2),
    }


def views(sd: StableDiffusion, turns: int) -> dict[str, float]:
    """What a control of the tabs makes the server do, each many times on one recorded run: the slowest one's 95th percentile."""
    from ui import attention, common, fork, guidance, viewing
    from ui import latents as latents_tab
    from ui import sweep as sweep_tab

    trace = Trace.start(sd, REQUEST)
    *_, last = trace.follow(denoise(sd, REQUEST, Record()))
    trace.finish(sd, last.x_next)
    mask = torch.zeros(attention.size_of(trace), dtype=torch.bool)
    mask[32:96, 32:96] = True
    tiles = [part.value for part in sweep.work(Sweep(REQUEST, tuple(range(9))))(sd)]
    works: dict[str, Callable[[], object]] = {
        "attention, all layers": lambda: attention.volume(trace, "", "cond"),
        "attention, one layer": lambda: attention.volume(trace, trace.layers[-1], "cond"),
        "attention, mask": lambda: attention.judge(trace, (2,), "cond", mask, 0.5),
        "attention, two words": lambda: attention.overlap(trace, (2,), (5,), "", "cond"),
        "guidance, a run": lambda: guidance.anatomy(trace, "one", "en"),
        "latents, a run": lambda: latents_tab.view(trace, "en"),
        "fork, a run": lambda: fork.view(trace, "en"),
        "sweep, pulls": lambda: sweep_tab.chart(sweep_tab.pulls(tiles, 0), tiles[0].sweep, 1, title="", said="", across=""),
        "sweep, ways": lambda: sweep_tab.chart(sweep_tab.ways(tiles, (0, 4)), tiles[0].sweep, 0, title="", said="", across=""),
        "prompt, a run": lambda: viewing.finished(trace, "one", "en"),
    }
    slowest = {}
    for name, work in works.items():
        common.packed({"made": work()})  # warm
        took = sorted(seconds(lambda work=work: common.packed({"made": work()})) for _ in range(20 * turns))
        slowest[name] = 1000 * took[int(0.95 * len(took))]
        print(f"view: {name:24}{slowest[name]:8.1f} ms", flush=True)
    return {"view_ms": round(max(slowest.values()), 1)}


def from_pictures(turns: int) -> dict[str, float]:
    """Each way to start from a picture: twenty steps and decoding, over diffusers' pipeline for the same picture."""
    small = Image.fromarray((255 * torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(0))).byte().numpy())
    picture = Pixels.of(small.resize((128, 128), Image.Resampling.BICUBIC))
    hole = torch.zeros(128, 128, dtype=torch.uint8)
    hole[40:90, 30:100] = 255
    mask = Pixels.of(hole.numpy())
    sources = {
        "img2img": ("emoji", StableDiffusionImg2ImgPipeline, Source(picture, 1.0), {"strength": 1.0}),
        "inpaint": ("emoji-inpaint", StableDiffusionInpaintPipeline, Inpaint(picture, mask=mask), {"mask_image": mask.image}),
        "depth": ("emoji-depth", StableDiffusionDepth2ImgPipeline, Depth(picture, 1.0), {"strength": 1.0}),
        "upscale": ("emoji-upscale", StableDiffusionUpscalePipeline, Upscale(picture), {"noise_level": 20}),
    }
    figures = {}
    for name, (model, kind, source, options) in sources.items():
        if model not in catalog.CATALOG:
            continue
        sd = models.load(model)
        pipe = kind.from_pretrained(catalog.MODELS / model, local_files_only=True)
        cls, extra = schedulers.SCHEDULERS[REQUEST.scheduler]
        pipe.scheduler = cls.from_config({**sd.scheduler_config, "clip_sample": False}, **extra)
        pipe.set_progress_bar_config(disable=True)
        request = replace(REQUEST, source=source)

        def ours(sd: StableDiffusion = sd, request: Request = request) -> torch.Tensor:
            *_, last = denoise(sd, request)
            return latents.decode(sd, last.x_next)

        def theirs(pipe=pipe, options: dict = options) -> torch.Tensor:
            asked = {"num_inference_steps": REQUEST.steps, "guidance_scale": REQUEST.guidance, **options}
            source = torch.Generator().manual_seed(REQUEST.seed)
            return torch.as_tensor(pipe(REQUEST.prompt, image=picture.image, generator=source, output_type="np", **asked).images)

        same = torch.allclose(ours().permute(0, 2, 3, 1) / 2 + 0.5, theirs(), atol=1e-4)
        assert same, f"{name}: not the same picture, nothing to compare"
        count = 2 if name == "upscale" else turns
        took = [(seconds(ours), seconds(theirs)) if turn % 2 else (seconds(theirs), seconds(ours))[::-1] for turn in range(count)]
        figures[f"{name}_s"] = round(statistics.median(a for a, _ in took), 2)
        figures[f"{name}_ratio"] = round(statistics.median(a / b for a, b in took), 3)
    return figures


def refusals() -> dict[str, float]:
    """What the tests' malformed pictures cost the one door, in a process of its own: the 95th percentile of opening or refusing one, and
    how much memory they make it hold. Of three readings the fastest: a busy machine only adds."""
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root / "tests"))
    from test_images import READER, corner, file_of, malformed

    p95s, grown = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = [*(file_of(corner(), kind) for kind in ("PNG", "JPEG", "WEBP")), *malformed().values()]
        for k, data in enumerate(files):
            (Path(folder) / str(k)).write_bytes(data)
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", READER, folder], cwd=root, capture_output=True, check=True)
            readings = [json.loads(line) for line in done.stdout.splitlines()]
            p95s.append(1000 * sorted(seconds for _, seconds, *_ in readings)[len(files) * 95 // 100])
            if readings[0][2] is not None:  # as Linux tells it
                grown.append(readings[-1][3] - readings[0][2])
    return {"refusal_p95_ms": round(min(p95s), 1)} | ({"refusal_mb": round(max(grown), 1)} if grown else {})


def page(turns: int) -> dict[str, float]:
    """Through the page's own API, as a visitor's click goes: engine, queue, server, client."""
    from gradio_client import Client

    import app

    engine, default = app.make_engine([])
    engine.model(default)
    demo = app.make_app(engine, default)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        ask = ("a fox in a top hat on a blue background", "", 1, 20, 7.5, "DDIM")
        client.predict(*ask, api_name="/generate")
        clicks = [seconds(lambda: client.predict(*ask, api_name="/generate")) for _ in range(turns)]

        def first_preview() -> float:
            start = time.perf_counter()
            job = engine.submit(REQUEST, owner="bench")
            for snapshot in engine.events(job, rate=1000):
                if snapshot.preview is not None:
                    took = time.perf_counter() - start
                    engine.result(job)
                    return took
            raise AssertionError("a run without a preview")

        previews = [first_preview() for _ in range(turns)]
    finally:
        demo.close()
        engine.close()
    return {
        "click_to_picture_s": round(statistics.median(clicks), 2),
        "first_preview_s": round(statistics.median(previews), 3),
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--turns", type=int, default=7)
    ask.add_argument("--no-page", action="store_true")
    args = ask.parse_args()
    sd = models.load("emoji")
    figures = (
        loops(sd, args.turns)
        | sweeps(sd, max(3, args.turns // 2))
        | views(sd, args.turns)
        | from_pictures(max(3, args.turns // 2))
        | refusals()
        | bench_train.figures(max(3, args.turns // 2))
    )
    if not args.no_page:
        figures |= page(args.turns)
    imports = [seconds(lambda: subprocess.run([sys.executable, "-c", "import app"], check=True)) for _ in range(3)]
    figures["import_s"] = round(statistics.median(imports), 2)
    for name, value in figures.items():
        print(f"{name:24}{value!s:>10}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
