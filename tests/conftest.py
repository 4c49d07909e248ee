"""Toy models of the real classes, and the embedded one. Nothing here is a mock: a mock would only confirm what we believe already."""

import base64
import io
import os
import re
import shutil
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads that wait for each other on busy ones lose far more
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from core import attention, catalog, models, schedulers
from core.engine import LocalEngine
from core.models import StableDiffusion
from core.sampling import Request
from core.trainings import Trainings
from ui import texts

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@cache
def toy_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(catalog.MODELS / "emoji" / "tokenizer")


def toy_model(*, heads=2, linear=False, prediction_type="epsilon", text_width=16, seed=0, kind="img2img") -> StableDiffusion:
    torch.manual_seed(seed)
    channels = next(count for count, role in catalog.ROLES.items() if role == ("base" if kind == "img2img" else kind))
    tokenizer = toy_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Untrained embeddings are too small to matter; louder ones make prompts differ.
    text_encoder.get_input_embeddings().weight.data.normal_(std=1.0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        num_class_embeds=1000 if kind == "upscale" else None,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=heads,
        use_linear_projection=linear,
        cross_attention_dim=text_width,
        norm_num_groups=4,
    )
    levels = 3 if kind == "upscale" else 4
    vae = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
    )
    estimator, processor = toy_estimator() if kind == "depth" else (None, None)
    for part in filter(None, (text_encoder, unet, vae, estimator)):
        part.requires_grad_(False).eval()
    attention.make_recordable(unet)
    return StableDiffusion(
        name="toy",
        source="made by the tests",
        revision="0",
        licence="none",
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler_config={**BETAS, "prediction_type": prediction_type},
        preview=torch.tensor(models.SD_PREVIEW),
        device=torch.device("cpu"),
        dtype=torch.float32,
        why="a test",
        depth_estimator=estimator,
        depth_processor=processor,
        low_res_config={**BETAS, "beta_start": 0.0001, "beta_end": 0.02} if kind == "upscale" else None,
    )


def toy_estimator():
    config = DPTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    return DPTForDepthEstimation(config), DPTImageProcessorPil(size={"height": 64, "width": 64})


@pytest.fixture(scope="session")
def toy() -> StableDiffusion:
    return toy_model()


@pytest.fixture(scope="session")
def toy_sd2() -> StableDiffusion:
    """SD 2.1's traits: v-prediction, a number of heads a level, linear projections, a wider text encoder."""
    return toy_model(heads=(2, 4), linear=True, prediction_type="v_prediction", text_width=32, seed=1)


@pytest.fixture(scope="session")
def emoji() -> StableDiffusion:
    return models.load("emoji", device="cpu")


def pipeline_of(sd: StableDiffusion, scheduler: str) -> StableDiffusionPipeline:
    """diffusers' own pipeline over the same parts."""
    cls, extra = schedulers.SCHEDULERS[scheduler]
    pipe = StableDiffusionPipeline(
        vae=sd.vae,
        text_encoder=sd.text_encoder,
        tokenizer=sd.tokenizer,
        unet=sd.unet,
        scheduler=cls.from_config({**sd.scheduler_config, "clip_sample": False}, **extra),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_latents(sd: StableDiffusion, request: Request) -> torch.Tensor:
    return pipeline_of(sd, request.scheduler)(
        request.prompt,
        negative_prompt=request.negative,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width or sd.size,
        height=request.height or sd.size,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images


# --- the page in a browser ----------------------------------------------------------------------------------------------------

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser():
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    places = [os.environ.get("CHROMIUM"), *map(shutil.which, BROWSERS), MAC]
    path = next((place for place in places if place and Path(place).exists()), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium found; install one, or name it in CHROMIUM=")
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=path, headless=True, args=QUIET)


@pytest.fixture(scope="session")
def page_engine():
    made = LocalEngine()
    made.model("emoji")
    yield made
    made.close()


@pytest.fixture(scope="session")
def page_example(page_engine, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("example") / "first.safetensors"
    trace = page_engine.result(page_engine.submit(Request("a red apple", steps=5, seed=3), "the tests", attention.Record()))
    trace.save(path)
    return path


@pytest.fixture(scope="session")
def page_trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("trainings"))
    yield made
    for settings in made.home.glob("*/settings.json"):  # none goes on after the tests
        made.forget(settings.parent.name, None)


@pytest.fixture(scope="session")
def address(page_engine, page_example, page_trainings):
    import app

    demo = app.make_app(page_engine, "emoji", page_example, page_trainings)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH)
    yield url
    demo.close()


class Page:
    """A visit: the playwright page, what went wrong in it, and where it asked to go."""

    def __init__(self, browser, address: str, *, width=1280, height=900, locale="en-US", scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.leaving = False  # a reload cuts Gradio's own connection, which Gradio writes to the console
        self.page.on("console", lambda m: m.type == "error" and not self.leaving and self.errors.append(m.text))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", self.note)
        self.page.goto(address, wait_until="domcontentloaded")
        self.ready()

    def note(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.outside.append(request.url)

    def ready(self) -> None:
        self.page.wait_for_selector(".viewer[data-kind=run]", timeout=60_000)
        self.page.wait_for_selector("#prompt-tokens .tokens", timeout=60_000)

    def open(self, tab: str) -> None:
        """Clicks on a tab, also where it has gone into the menu that Gradio makes of those that find no room."""
        button = self.page.locator(f"#{tab}-button")
        self.page.wait_for_selector("#tabs [role=tab]")
        if button.count():
            return button.click()
        names = [words[tab] for words in texts.LANGUAGES.values()]
        self.page.locator("#tabs .overflow-menu > button").first.click()
        self.page.locator("#tabs .overflow-dropdown button", has_text=re.compile(f"^({'|'.join(names)})$")).first.click()

    def said(self) -> str:
        return self.page.locator(".viewer .said").inner_text()

    def finished(self) -> None:
        self.page.wait_for_selector("#run", timeout=120_000)
        self.page.wait_for_selector(".viewer[data-kind=run]", timeout=120_000)

    def started(self) -> None:
        """Seen going on: ask for a dozen steps at least, as fewer can come and go between two looks."""
        self.page.wait_for_selector(".viewer[data-kind=live]", timeout=60_000)

    def set(self, control: str, value: object) -> None:
        self.page.locator(f"#{control} input").first.fill(str(value))
        self.page.locator(f"#{control} input").first.blur()

    def value(self, control: str) -> str:
        return self.page.locator(f"#{control} :is(textarea, input)").first.input_value()

    def step(self) -> str:
        return self.page.locator(".viewer .where").inner_text()

    def pictures(self) -> tuple[str, str]:
        return tuple(self.page.locator(f".{side} .frame img.pixels").get_attribute("src") for side in ("noisy", "guess"))

    def close(self) -> None:
        self.context.close()
        assert not self.outside, "a request left the machine"
        assert not self.errors, "the console has errors"


def canvas_pixels(p, selector: str) -> np.ndarray:
    """What a canvas of the page shows, (H, W, 4). As a PNG: a million numbers as text take seconds."""
    uri = p.locator(selector).first.evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


@pytest.fixture
def visit(browser, address):
    opened: list[Page] = []

    def visit(**how) -> Page:
        opened.append(Page(browser, address, **how))
        return opened[-1]

    yield visit
    for page in opened:
        page.close()
