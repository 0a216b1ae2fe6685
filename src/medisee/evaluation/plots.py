"""Pictures of figures: bars with intervals, risk against coverage, a grid of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.extras import needs_extra

__all__ = ["bars", "example_grid", "risk_coverage"]

Figure = Mapping[str, float]  # value, low, high, as reports have them
Panel = tuple[str, NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]

_DOTS = 110
_TRUE, _FOUND = "#2a9d4a", "#d1495b"


def bars(path: Path, title: str, rows: Mapping[str, Mapping[str, Figure]], label: str) -> None:
    """Horizontal bars with 95 % intervals: one group a row, one bar for each figure in it."""
    plt = _pyplot()
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    step = 0.8 / max(len(names), 1)
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.22 * len(rows) * max(len(names), 1)))
    for number, name in enumerate(names):
        places = [n + number * step for n, row in enumerate(rows.values()) if name in row]
        found = [row[name] for row in rows.values() if name in row]
        values = np.array([100 * each["value"] for each in found])
        sides = [[100 * each[side] for each in found] for side in ("low", "high")]
        errors = np.abs(np.array(sides) - values)
        axes.barh(places, values, step * 0.9, xerr=errors, label=name, error_kw={"lw": 0.8})
    axes.set_yticks([n + step * (len(names) - 1) / 2 for n in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel=label, title=title)
    if len(names) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _save(plt, figure, path)


def risk_coverage(path: Path, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Share wrong among the most certain answers against the share kept."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5, 4))
    for name, curve in curves.items():
        coverage, risk = zip(*curve, strict=True)
        axes.plot(coverage, risk, label=name)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="coverage (share of answers kept)",
        ylabel="risk (share with IoU 0.5 or less)",
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(plt, figure, path)


def example_grid(path: Path, rows: Mapping[str, Sequence[Panel]]) -> None:
    """Images with the outline of the truth (green) and of the answer (red), a row each."""
    plt = _pyplot()
    width = max(len(panels) for panels in rows.values())
    figure, grid = plt.subplots(
        len(rows), width, figsize=(2.3 * width, 2.6 * len(rows)), squeeze=False
    )
    for line, (name, panels) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (caption, pixels, true, found) in zip(line, panels, strict=False):
            axes.imshow(pixels)
            for mask, colour in ((true, _TRUE), (found, _FOUND)):
                if mask.any():
                    axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
            axes.set_title(caption, fontsize=7)
        line[0].text(-0.06, 0.5, name, rotation=90, va="center", ha="right", fontsize=9,
                     transform=line[0].transAxes)  # fmt: skip
    _save(plt, figure, path)


def _pyplot() -> Any:
    with needs_extra("drawing plots", "stats"):
        import matplotlib as mpl
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    # Without a date the same figures give the same file.
    figure.savefig(path, dpi=_DOTS, metadata={"Software": None})
    plt.close(figure)
