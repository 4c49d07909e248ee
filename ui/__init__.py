"""The page. One file per tab, in teaching order."""

from ui import attention, depth, dreambooth, guidance, img2img, inpaint, latents, prompt, sweep, text, upscale

TABS = (prompt, text, latents, guidance, sweep, attention, img2img, inpaint, depth, upscale, dreambooth)
