"""numpy arrays and torch tensors alike as numpy integers of the same bits, on the same memory.

torch is imported only when a tensor comes: whoever has one has imported it already.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokendance.dtypes import name_of

__all__ = ["Bits", "bits_of", "is_array", "is_tensor"]

Bits = NDArray[np.signedinteger[Any]]

# What a cache may be made of; `tokendance.adapters.cache_layout.CacheLayout` takes the same.
_FLOATS: Final = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def is_tensor(array: object) -> bool:
    """Say whether `array` is a torch tensor, without importing torch."""
    modules = (ancestor.__module__.partition(".")[0] for ancestor in type(array).__mro__)
    return "torch" in modules and hasattr(array, "data_ptr")


def is_array(array: object) -> bool:
    """Say whether `array` is something that `bits_of` may take."""
    return isinstance(array, np.ndarray) or is_tensor(array)


def bits_of(array: Any, name: str, *, written: bool = False) -> tuple[str, Bits]:
    """Return an array's dtype by name, and its bits as integers that share its memory.

    Parameters
    ----------
    array : numpy.ndarray or torch.Tensor
        float64, float32, float16, bfloat16, float8_e4m3fn or float8_e5m2; any shape, any strides; a tensor on the CPU.
    name : str
        What to call it in an error.
    written : bool
        Whether it will be written to.

    Returns
    -------
    dtype_name : str
    bits : numpy.ndarray
        Of the same shape and strides; int8, int16, int32 or int64, so that a NaN keeps its payload.

    Raises
    ------
    TypeError
        It is neither a numpy array nor a torch tensor.
    ValueError
        Its dtype is not one of those, it is not on the CPU, or it is to be written to and cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> dtype_name, bits = bits_of(np.array([0.5, -0.0], np.float16), "keys")
    >>> dtype_name, bits.tolist()
    ('float16', [14336, -32768])
    """
    if is_tensor(array):
        return _bits_of_tensor(array, name)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is of type {type(array).__name__}; expected a numpy array or a torch tensor")
    dtype_name = _checked(name_of(array.dtype) or str(array.dtype), name)
    if written and not array.flags.writeable:
        raise ValueError(f"{name} is read-only; expected an array that can be filled: pass a copy")
    return dtype_name, np.asarray(array).view(f"i{array.itemsize}")


def _bits_of_tensor(tensor: Any, name: str) -> tuple[str, Bits]:
    import torch

    dtype_name = _checked(str(tensor.dtype).removeprefix("torch."), name)
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; expected it on the CPU: pass a copy made by .cpu()")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} is {tensor.layout}; expected a dense tensor: pass one made by .to_dense()")
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    # Through integers because numpy has no bfloat16 of its own; neither step copies.
    bits: Bits = tensor.detach().view(integers[tensor.element_size()]).numpy()
    return dtype_name, bits


def _checked(dtype_name: str, name: str) -> str:
    if dtype_name in ("uint8", "int8"):
        raise ValueError(
            f"{name} is {dtype_name}, which does not say what its bits mean; expected one of {', '.join(_FLOATS)}: "
            "view an fp8 cache as float8_e4m3fn or float8_e5m2 first"
        )
    if dtype_name not in _FLOATS:
        raise ValueError(f"{name} has dtype {dtype_name}; expected one of {', '.join(_FLOATS)}")
    return dtype_name
