"""The precisions a bundle can have. They are typed in the graph; no backend is asked to lower one."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
