"""How colors look to people who see two primaries only, and how far apart they are then.

Matrices: Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB. Distance: CIE 1976 (L*a*b*, D65).
"""

import numpy as np
from matplotlib.colors import to_rgb

MATRICES = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]])}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])


def lab(color, vision="normal"):
    """L*a*b* of a matplotlib color as somebody sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(MATRICES[vision] @ linear, 0, 1) / TO_XYZ.sum(1)
    f = lambda t: np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
    return np.array([116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))])


def nearest(colors, vision):
    """(distance, the two colors) of the pair that is hardest to tell apart."""
    seen = [(c, lab(c, vision)) for c in colors]
    return min((float(np.linalg.norm(a - b)), (x, y)) for i, (x, a) in enumerate(seen) for y, b in seen[:i])
