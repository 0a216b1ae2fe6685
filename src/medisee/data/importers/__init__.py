"""Foreign labelled data into SA-Med2D-20M's layout: `import_source` is the one door.

Each format is a module with `recognises(source)` and `list_units(context)`; what they have in
common (one class table, one selection rule, one writer) stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from medisee.data.importers.lock import locked
from medisee.data.importers.options import ImportOptions, Selection, read_classes
from medisee.data.importers.report import ImportReport
from medisee.data.importers.units import Context
from medisee.data.importers.writer import Writer
from medisee.errors import DataError

__all__ = [
    "FORMATS",
    "ImportOptions",
    "ImportReport",
    "Selection",
    "import_source",
    "read_classes",
]

FORMATS = {
    "decathlon": "NIfTI volumes with label maps and dataset.json",
    "totalsegmentator": "NIfTI volumes with one mask file for each class",
    "sa-med2d": "SA-Med2D-20M, or a folder in its layout",
    "pairs": "images and masks of the same names",
    "coco": "COCO annotations",
    "label-studio": "Label Studio's JSON export",
    "dicom": "DICOM series with DICOM-SEG",
}
"""Format -> what it is; each is a module here, asked in this order what it recognises."""


def import_source(
    source: Path,
    to: Path,
    options: ImportOptions,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Bring `source` into the folder `to`; what was done before is not done again.

    progress: called with the units done and all of them, once at the start and after each.

    A bad file is reported and never ends the import. Raises DataError when the source, the
    options or the folder cannot be used at all, OSError when writing fails; whatever was written
    until then stays, and the next call goes on.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    form = options.format or _recognise(source)
    context = Context(source, options)
    units = _module(form).list_units(context)
    if not units:
        raise DataError(f"{source}: holds nothing to import as {form}")
    name = _plain_name(
        options.name or (source if source.is_dir() else source.parent).resolve().name
    )
    with locked(to):
        writer = Writer(to, name, form, context)
        todo = writer.begin(units)
        report = progress or (lambda done, total: None)
        before = len(units) - len(todo)
        report(before, len(units))
        for number, unit in enumerate(todo, before + 1):
            writer.add(unit)
            report(number, len(units))
        return writer.finish()


def _recognise(source: Path) -> str:
    for form in FORMATS:
        if _module(form).recognises(source):
            return form
    known = ", ".join(FORMATS)
    raise DataError(f"{source}: is in none of the formats known; name one: {known}")


def _module(form: str) -> ModuleType:
    if form not in FORMATS:
        raise DataError(f"'{form}' is no format that is imported; known: {', '.join(FORMATS)}")
    return import_module(f"{__name__}.{form.replace('-', '_')}")


def _plain_name(name: str) -> str:
    """The source's name as file names take it; never with the `--` that parts them."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip(".-").lower()
    if not plain:
        raise DataError("give the data set a name with letters or digits: --name NAME")
    return plain
