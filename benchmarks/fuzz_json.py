"""Random changes to JSON: to what it says, and to its text."""

import contextlib
import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["mutated_document", "mutated_text"]

_EXTREMES: list[Any] = [
    *(0, 1, 2, 3, 7, 8, 16, 255, 4095, 4096, 65535, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 53),
    *((1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -1, -2, -(1 << 31), -(1 << 62), -(1 << 63)),
    *(0.5, 1.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), True, False, None),
    *("", "0", "1", "..", "/", "a\0b", "\ud800", "é", "float64", "float16", "uint8", "object", "0" * 8, "f" * 64),
    *([], {}, [[]], [1], [[0, 0]], {"x": {}}, ["x"]),
]
Document = dict[str, Any]


def mutated_document(
    text: bytes, dice: random.Random | None, last: Callable[[Document], object] | None = None
) -> bytes:
    """Return JSON that says something else.

    Parameters
    ----------
    text : bytes
        An object.
    dice : random.Random, optional
        Leave it out to change nothing.
    last : callable, optional
        Given the changed object, to change it further as far as that can be.
    """
    content = json.loads(text)
    for _ in range(dice.choice([1, 1, 1, 2, 3]) if dice else 0):
        assert dice is not None
        _change(content, dice)
    if last is not None:
        with contextlib.suppress(Exception):  # what was changed may be of any kind, and is then left as it is
            last(content)
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=dice is not None and dice.random() < 0.5)
    if dice is not None and dice.random() < 0.05:
        raw = _doubled_key(raw, dice)
    return raw.encode("utf-8", "surrogatepass")


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change(content: Document, dice: random.Random) -> None:
    places = list(_places(content))
    if not places:
        return
    node, key = dice.choice(places)
    value = node[key]
    how = dice.randrange(8)
    if how <= 1:
        node[key] = copy.deepcopy(dice.choice(_EXTREMES))
    elif how <= 3 and type(value) is int:
        node[key] = dice.choice([value + 1, value - 1, 2 * value, value // 2, -value, value + 4096, float(value)])
    elif how == 4:
        del node[key]
    elif how == 5:
        other, place = dice.choice(places)
        if place in other if isinstance(other, dict) else place < len(other):
            node[key] = copy.deepcopy(other[place])
    elif how == 6 and isinstance(value, list):
        dice.choice([value.reverse, value.clear, lambda: dice.shuffle(value), lambda: value.extend(value)])()
    elif isinstance(node, dict):
        node[dice.choice(["surprise", "", "Format", f"{key} ", "object", "n_blocks"])] = node.pop(key)
    else:
        node.insert(dice.randrange(len(node) + 1), copy.deepcopy(value))


def _doubled_key(raw: str, dice: random.Random) -> str:
    at = [place for place in range(len(raw)) if raw.startswith(('{"', ',"'), place)]
    if not at:
        return raw
    start = dice.choice(at) + 1
    end = raw.find(":", start) + 1
    return raw[:start] + raw[start:end] + dice.choice(["0", "null", '"x"', "{}"]) + "," + raw[start:]


def mutated_text(text: bytes, dice: random.Random) -> bytes:
    """Return JSON, or what was JSON, of which some bytes are others."""
    raw = bytearray(text)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at = dice.randrange(len(raw) + 1)
        length = dice.choice([1, 1, 2, 8, 40])
        how = dice.randrange(5)
        if how == 0:
            del raw[at : at + length]
        elif how == 1:
            raw[at:at] = raw[at : at + length]
        elif how == 2:
            raw[at:at] = dice.choice(
                [b"[" * 9000, b"9" * 5000, b"1e999", b"NaN", b"\xff", b"\0", b"\\ud800", b'"', b"-"]
            )
        elif how == 3:
            other = dice.randrange(len(raw) + 1)
            raw[at : at + length] = raw[other : other + length]
        elif digits := [place for place, one in enumerate(raw) if chr(one).isdigit()]:
            raw[dice.choice(digits)] = ord(dice.choice("0123456789"))
    return bytes(raw)
