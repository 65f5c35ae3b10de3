"""Let a torchvision wheel built for CUDA load beside a CPU build of torch.

Every torchvision wheel on PyPI links CUDA. Beside a CPU torch its compiled operators stay unloaded, and
`import torchvision` fails with `operator torchvision::nms does not exist`. That takes open_clip and timm down
too, although neither needs the operators. Declaring the two that torchvision registers shape functions for,
`nms` and `qnms`, is enough: whoever calls one is told that it has no CPU kernel.
"""

from __future__ import annotations

import importlib
import sys

MISSING_OPERATOR = "operator torchvision::nms does not exist"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair_torchvision() -> None:
    """Make `import torchvision` work; call it before the first import of open_clip or timm.

    Does nothing where torchvision loads, and may be called any number of times.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision fails for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if MISSING_OPERATOR not in str(error):
            raise
    else:
        return
    import torch

    # The failed import leaves its submodules behind; they would be taken for complete ones.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", SCHEMA)
    importlib.import_module("torchvision")
