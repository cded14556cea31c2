"""The dtypes a cache may have, by name."""

from typing import Any

import numpy as np

from tokendance.store.layout import STORED_AS

__all__ = ["dtype_named", "name_of"]


def name_of(dtype: np.dtype[Any]) -> str | None:
    """Return the name of an allowed dtype, None for any other.

    Examples
    --------
    >>> name_of(np.dtype("<f2")), name_of(np.dtype(object)), name_of(np.dtype(">f4"))
    ('float16', None, None)
    """
    return dtype.name if dtype.name in STORED_AS and dtype.isnative else None


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype of an allowed name; ml_dtypes is imported only for those that numpy lacks."""
    if STORED_AS[name] == name:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype
