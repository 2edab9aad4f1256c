"""Torchvision's and timm's models where torchvision has no compiled operators for this PyTorch.

Torchvision cannot be imported without them, though its classifiers use none. Declared here are the
two operators that it asks for on import: a signature and no kernel, so that a model which needs one
(a detector) is told so.
"""

from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a torch Library takes its declarations with it when it is collected


def load_torchvision() -> ModuleType:
    """The ``torchvision`` module."""
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _kept.append(library)
        import torchvision
    return torchvision


def load_timm() -> ModuleType:
    """The ``timm`` module."""
    load_torchvision()
    import timm

    return timm
