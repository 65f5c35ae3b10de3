"""What a figure means nothing without."""

from __future__ import annotations

from typing import Any

from crossmost.data.dataset import CloudDataset


def facts(clouds: CloudDataset, text_model: str) -> dict[str, Any]:
    """Which clouds were measured, how they were read, and the text model that embedded the names of the classes."""
    preparation = clouds.preparation
    return {
        "name": clouds.name,
        "contents_sha256": clouds.contents(),
        "points": preparation.points,
        "colour": preparation.color if preparation.channels == 6 else "none",
        "up_axis": preparation.up_axis,
        "columns": preparation.columns,
        "text_model": text_model,
    }
