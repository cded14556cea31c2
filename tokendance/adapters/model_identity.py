"""What a store's caches belong to, told from a model of transformers or from its config.

No framework is imported: whoever has a model has imported it already.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["identity_of"]

Simple = str | int | float | bool


def identity_of(model: Any, /, **said: Simple) -> dict[str, Simple]:
    """Return what makes the caches of one model useless to another, for ``td.open(path, identity=...)``.

    Parameters
    ----------
    model : transformers.PreTrainedModel or transformers.PretrainedConfig
        A model knows the dtype that it computes in; a config only the one that it was saved in, if any.
    **said : str, int, float or bool
        What the config does not know, or what is to be called otherwise: ``model="my-model"``, ``revision="1"``.

    Returns
    -------
    dict
        Flat: ``architecture``, ``layers``, ``heads``, ``kv_heads``, ``head_dim``; where they are known ``model``,
        ``revision``, ``dtype``; and what the config says of rotary positions, each key beginning with ``rope_``.
        A model that was loaded from a folder is called by the folder's name, whatever machine that is on. Weights are
        not looked at: say what tells apart two models of one name and revision.

    Raises
    ------
    TypeError
        `model` is neither a model nor a config of one with attention.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(model_type="llama", num_hidden_layers=2, num_attention_heads=4, hidden_size=64,
    ...                          rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    >>> identity_of(config, model="tiny")  # doctest: +NORMALIZE_WHITESPACE
    {'architecture': 'llama', 'layers': 2, 'heads': 4, 'kv_heads': 4, 'head_dim': 16, 'rope_type': 'default',
     'rope_theta': 10000.0, 'model': 'tiny'}
    """
    whole = getattr(model, "config", model)
    # Of a model that also sees or hears, the part that has the cache.
    config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    layers, heads = _of(config, "num_hidden_layers"), _of(config, "num_attention_heads")
    if type(layers) is not int or type(heads) is not int or heads < 1:
        raise TypeError(
            f"got {type(model).__name__}, which has no num_hidden_layers and num_attention_heads; expected a model of "
            "transformers or its config: write the identity as a dict for any other"
        )
    found = {
        "architecture": _of(config, "model_type"),
        "model": _name(_of(whole, "name_or_path")),
        "revision": _of(whole, "_commit_hash"),
        "dtype": _dtype(_of(model, "dtype") or _of(config, "dtype")),
        "layers": layers,
        "heads": heads,
        "kv_heads": _of(config, "num_key_value_heads") or heads,
        "head_dim": _of(config, "head_dim") or (_of(config, "hidden_size") or 0) // heads,
    }
    known = {key: value for key, value in found.items() if value}
    return known | dict(_rope(_of(config, "rope_parameters") or {})) | said


def _of(thing: Any, name: str) -> Any:
    return getattr(thing, name, None)


def _name(name_or_path: Any) -> str | None:
    if not isinstance(name_or_path, str) or not name_or_path:
        return None
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path


def _dtype(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _rope(parameters: Mapping[str, Any], prefix: str = "rope_") -> Iterator[tuple[str, Simple]]:
    for key, value in parameters.items():
        name = key if prefix == "rope_" and key.startswith("rope_") else prefix + key
        if isinstance(value, Mapping):  # layers of several kinds, each with rotary positions of its own
            yield from _rope(value, f"{name}_")
        elif isinstance(value, str | int | float | bool):
            yield name, value
        elif value is not None:
            yield name, json.dumps(value)
