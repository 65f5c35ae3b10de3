"""The one list of published checkpoints that can be converted; where two fit a file, the first one counts."""

from __future__ import annotations

from crossmost.checkpoints import openshape_layouts, point_bert_layouts, uni3d_layouts
from crossmost.checkpoints.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    *point_bert_layouts.LAYOUTS,
    *openshape_layouts.LAYOUTS,
    *uni3d_layouts.LAYOUTS,
)
