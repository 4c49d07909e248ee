"""Toy models of the real classes, and the embedded one. Nothing here is a mock: a mock would only confirm what we believe already."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from core import attention, catalog, models, schedulers
from core.models import StableDiffusion
from core.sampling import Request

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def toy_model(*, heads=2, linear=False, prediction_type="epsilon", text_width=16, seed=0) -> StableDiffusion:
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(catalog.MODELS / "emoji" / "tokenizer")
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
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=heads,
        use_linear_projection=linear,
        cross_attention_dim=text_width,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    for part in (text_encoder, unet, vae):
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
    )


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
