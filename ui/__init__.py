"""The page. One file per tab, in teaching order."""

from ui import prompt

TABS = (prompt,)
