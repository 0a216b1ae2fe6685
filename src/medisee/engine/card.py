"""The data card of a built set, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import medisee
from medisee.data.licences import may_be_passed_on
from medisee.engine.stats import Stats

__all__ = ["write_card"]


_BUILT = "One JSON object a line; images and masks stay in the data set that the build read."


def write_card(stats: Stats, about: str = _BUILT) -> str:
    """Counts, splits, licences, versions and checksum of a set; about: what its files are."""
    build = stats.build
    settings = ", ".join(f"{name} {value}" for name, value in build["settings"].items())
    parts = [
        "# MLMR-SD, built by MediSee\n",
        f"Questions about medical images with masks, boxes and explaining answers. {about}\n",
        _facts(
            [
                ("records", f"{sum(stats.records.values()):,}"),
                ("image-category pairs", f"{build['pairs']['built']:,} of {_pairs(stats):,}"),
                ("categories", f"{len(stats.categories):,}"),
                ("made by", f"MediSee {medisee.__version__} ({settings})"),
                ("writers", ", ".join(f"{name}: {n:,}" for name, n in stats.writers.items())),
                ("SHA-256 of train, val, test as built", f"`{stats.checksum}`"),
            ]
        ),
        "## Splits\n",
        _splits(stats),
        "By patient, by image where the patient is unknown; splits that the data came with are "
        "kept. "
        + "; ".join(f"{name}: {n:,}" for name, n in build["leaks"].items())
        + " (`work/leaks.jsonl`).\n",
        "## Implicit questions\n",
        _table(("what", "count"), _implicit(stats)),
        "## Review\n",
        _table(
            ("rule", "checked", "mended", "dropped"),
            [(rule, n["checked"], n["mended"], n["dropped"]) for rule, n in build["rules"].items()],
        ),
        "Each dropped record is in `work/dropped.jsonl` with its reason.\n",
        "## Left out\n",
        _table(
            ("reason", "files", "pairs"),
            [(reason, n["files"], n["pairs"]) for reason, n in sorted(stats.left_out.items())],
        ),
        "## Licences of the images\n",
        _table(("licence", "images", "may be passed on"), _licences(stats)),
        "## Categories\n",
        _table(("category", "records", "images"), _categories(stats)),
    ]
    return "\n".join(parts)


def _pairs(stats: Stats) -> int:
    return stats.build["pairs"]["built"] + sum(n["pairs"] for n in stats.left_out.values())


def _licences(stats: Stats) -> Iterable[Sequence[object]]:
    for licence, images in sorted(stats.licences.items()):
        yield licence, images, "yes" if may_be_passed_on(licence) else "no"


def _categories(stats: Stats) -> Iterable[Sequence[object]]:
    for name, records in stats.categories.most_common():
        yield name, records, stats.category_images[name]


def _implicit(stats: Stats) -> Iterable[Sequence[object]]:
    for counts in (stats.perspectives, stats.lengths):
        yield from sorted(counts.items())
    yield from ((f"pass {number}", count) for number, count in sorted(stats.passes.items()))


def _splits(stats: Stats) -> str:
    kinds = sorted({kind for counts in stats.kinds.values() for kind in counts})
    rows = [
        (split, stats.images[split], number, *(stats.kinds[split][kind] for kind in kinds))
        for split, number in stats.records.items()
    ]
    return _table(("split", "images", "records", *kinds), rows)


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
