"""The page. One file per tab, in teaching order."""

from ui import attention, guidance, latents, prompt, sweep, text

TABS = (prompt, text, latents, guidance, sweep, attention)
