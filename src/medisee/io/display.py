"""Grey values to the 8 bits that people and models see."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError

__all__ = [
    "CT_WINDOWS",
    "SOFT_TISSUE",
    "WINDOWS",
    "Window",
    "apply_window",
    "grey_to_rgb",
    "looks_like_hounsfield",
    "parse_window",
    "render_grey",
    "stretch",
    "window_text",
]

Window = tuple[float, float]
"""(centre, width) in the units of the pixels, e.g. HU."""

SOFT_TISSUE: Window = (40.0, 400.0)
WINDOWS: dict[str, Window] = {
    "soft-tissue": SOFT_TISSUE,
    "brain": (40.0, 80.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "mediastinum": (50.0, 350.0),
    "liver": (60.0, 160.0),
}
"""Usual CT windows in HU."""

CT_WINDOWS = {
    **dict.fromkeys(("BRAIN", "HEAD"), "brain"),
    **dict.fromkeys(("LUNG", "BRONCHUS"), "lung"),
    **dict.fromkeys(("HEART", "MEDIASTINUM"), "mediastinum"),
    "LIVER": "liver",
    **dict.fromkeys(
        ("ANKLE", "ARM", "CLAVICLE", "ELBOW", "EXTREMITY", "FEMUR", "FOOT", "HAND", "HIP",
         "HUMERUS", "IAC", "JAW", "KNEE", "LEG", "MAXILLA", "MANDIBLE", "SHOULDER", "SKULL",
         "TMJ", "WRIST"),
        "bone",
    ),
}  # fmt: skip
"""Body Part Examined (0018,0015) -> the window for a CT whose file has none of its own."""

# A slice with air around the patient reaches about -1000 HU; metal and padding stay in the range.
_AIR_HU = (-4100.0, -500.0)
_DENSEST_HU = (50.0, 32767.0)


def parse_window(window: str | Window | None) -> Window | None:
    """A window's name ("lung") or "CENTRE,WIDTH", or the two numbers, as numbers."""
    if window is None:
        return None
    if isinstance(window, str):
        named = WINDOWS.get(window.strip().lower().replace(" ", "-"))
        parts = named or window.split(",")
    else:
        parts = window
    try:
        centre, width = (float(part) for part in parts)
    except (TypeError, ValueError):
        known = ", ".join(WINDOWS)
        raise InputError(f"a window is CENTRE,WIDTH (as in 40,400) or one of: {known}") from None
    if not (np.isfinite(centre) and np.isfinite(width) and width > 0):
        raise InputError("a window needs a finite centre and a width above 0, as in 40,400")
    return centre, width


def window_text(window: Window) -> str:
    """The window as notes name it."""
    return f"window centre {window[0]:g}, width {window[1]:g}"


def looks_like_hounsfield(values: NDArray[Any]) -> bool:
    """Whether the values span what a CT slice with some air around the patient spans."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return False
    low, high = float(finite.min()), float(finite.max())
    return _AIR_HU[0] <= low <= _AIR_HU[1] and _DENSEST_HU[0] <= high <= _DENSEST_HU[1]


def apply_window(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Linear window to 0..255; what is not a number becomes black."""
    centre, width = window
    return _scale(values, centre - width / 2, centre + width / 2)


def stretch(values: NDArray[Any], padding: float | None = None) -> NDArray[np.uint8]:
    """The 0.5th to 99.5th percentile over 0..255, as MedSAM prepares MR; `padding` left out."""
    finite = values[np.isfinite(values)]
    inside = finite if padding is None else finite[finite != padding]
    if inside.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(inside, (0.5, 99.5))
    if low == high:  # a few bright pixels on a flat ground, such as a label map
        low, high = inside.min(), inside.max()
    return _scale(values, float(low), float(high))


def render_grey(
    values: NDArray[Any], window: Window | None, *, hounsfield: bool, padding: float | None = None
) -> tuple[NDArray[np.uint8], str]:
    """8-bit rendering of (H, W) grey values and a note that says how it was made.

    The caller's window comes first; then the soft-tissue window where values are `hounsfield`
    units; 8-bit values are shown as they are; all else is stretched between its percentiles.
    """
    if window is None and hounsfield:
        return apply_window(values, SOFT_TISSUE), f"soft-tissue {window_text(SOFT_TISSUE)}"
    if window is not None:
        return apply_window(values, window), window_text(window)
    if values.dtype == np.uint8:
        return values, ""
    return stretch(values, padding), "contrast stretched from the 0.5th to the 99.5th percentile"


def grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) to (H, W, 3)."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
