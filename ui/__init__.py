"""The page. One file per tab, in teaching order."""

from core.catalog import CATALOG
from ui import attention, depth, dreambooth, guidance, img2img, inpaint, latents, prompt, sweep, text, upscale

TABS = (prompt, text, latents, guidance, sweep, attention, img2img, inpaint, depth)
if "emoji-upscale" in CATALOG:  # without it the tab would have nothing to run on a machine without a network
    TABS = (*TABS, upscale)
TABS = (*TABS, dreambooth)
