"""Tensors as NumPy arrays and back, in every dtype that both know, bfloat16 as well."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def array_of(tensor: Any) -> np.ndarray[Any, Any]:
    """The tensor's numbers, copied."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    narrow = tensor.dtype == torch.bfloat16  # NumPy has none of its own: the same bits
    numbers: np.ndarray[Any, Any] = (tensor.view(torch.int16) if narrow else tensor).numpy().copy()
    return numbers.view(ml_dtypes.bfloat16) if narrow else numbers


def tensor_of(array: Any) -> Any:
    """A tensor of these numbers, copied."""
    import torch

    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
