"""Colours that touch in the picture differ for everybody, and on a grey printer."""

import numpy as np
import pytest

from tokendance.plots import style

# Machado, Oliveira and Fernandes (2009), at full severity, for linear light; and what is left in grey.
VISION = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = np.sum(TO_XYZ, axis=1)
TOUCHING = [
    ("OWN", "SHARED"),
    ("OWN", "MASTER"),
    ("MASTER", "SHARED"),
    ("OWN", "FORKED"),
    ("FORKED", "SHARED"),
    ("OWN", "WRITTEN"),
    ("SHARED", "PAST_END"),
    ("MASTER", "PAST_END"),
]


def seen(name, vision):
    """Return a colour's CIELAB as somebody sees it; 1 is about the least difference that anybody notices."""
    text = getattr(style, name)
    light = np.array([int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    light = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(VISION[vision]) @ light, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_that_touch_are_told_apart(vision):
    differences = {pair: float(np.linalg.norm(seen(pair[0], vision) - seen(pair[1], vision))) for pair in TOUCHING}
    assert {pair: far for pair, far in differences.items() if far < 9} == {}
