"""`medisee data import`: foreign labelled data into SA-Med2D-20M's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.options import JsonOption, Plane, WindowOption
from medisee.commands.screen import output, plain_table, print_error, print_json, print_text
from medisee.errors import DataError

if TYPE_CHECKING:
    from medisee.data.importers import ImportReport

__all__ = ["import_data"]

_SAYS = "What the source does not say"
_RULE = "Which images and targets stay"
_SHOWN_FLAWS = 10


def _option(panel: str, help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=panel, **more)


Source = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="Folder, or annotation file, to bring in.")
]
To = Annotated[Path, typer.Option(metavar="OUT", help="Folder of the data set.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="sa-med2d, pairs, coco, label-studio, decathlon, totalsegmentator or dicom. "
        "Default: told from the content.",
    ),
]
Name = Annotated[str, typer.Option(help="Name of the source in file names. Default: the folder's.")]
Images = Annotated[
    Path | None, typer.Option(help="Folder of the images that an annotation file is about.")
]
SlicePlane = Annotated[
    Plane | None, typer.Option(help="Plane of a volume's slices. Default: as acquired.")
]

Label = Annotated[str, _option(_SAYS, "The class that all masks show.")]
Classes = Annotated[
    Path | None,
    _option(
        _SAYS,
        'Value or name in the source -> class, as in {"1": "liver"}; null leaves it out.',
        metavar="FILE.json",
    ),
]
Modality = Annotated[str, _option(_SAYS, "CT, MR-T1, ultrasound, X-ray ...")]
BodyPart = Annotated[str, _option(_SAYS, "Default: where the labels lie.")]
Licence = Annotated[str, _option(_SAYS, "Licence of all images.")]
LabelledBy = Annotated[str, _option(_SAYS, "human, model, atlas ...")]
Patient = Annotated[
    str,
    _option(
        _SAYS,
        "Its group is the patient in an image's name, as in '^(p[0-9]+)_'.",
        metavar="REGEX",
    ),
]

Slices = Annotated[int, _option(_RULE, "Most slices of one volume.", min=1)]
MinArea = Annotated[float, _option(_RULE, "Least share of the image for a target.", min=0, max=1)]
MaxArea = Annotated[float, _option(_RULE, "Most share of the image.", min=0, max=1)]
MinContrast = Annotated[
    float, _option(_RULE, "Least span of the image's grey values.", min=0, max=255)
]
MinCompleteness = Annotated[
    float, _option(_RULE, "Least share of a target's outline off the image's edge.", min=0, max=1)
]
PerCategory = Annotated[int, _option(_RULE, "Images for each class; 0 for all.", min=0)]


def import_data(
    source: Source,
    to: To,
    form: Format = "",
    name: Name = "",
    images: Images = None,
    label: Label = "",
    classes: Classes = None,
    modality: Modality = "",
    body_part: BodyPart = "",
    licence: Licence = "",
    labelled_by: LabelledBy = "",
    patient: Patient = "",
    plane: SlicePlane = None,
    window: WindowOption = None,
    slices: Slices = 8,
    min_area: MinArea = 100 / 256**2,
    max_area: MaxArea = 0.95,
    min_contrast: MinContrast = 16,
    min_completeness: MinCompleteness = 0.75,
    per_category: PerCategory = 0,
    as_json: JsonOption = False,
) -> None:
    """Bring labelled images of another format into SA-Med2D-20M's layout.

    Reads SA-Med2D-20M itself, pairs of images and masks, COCO, Label Studio, NIfTI volumes with
    label maps (Medical Segmentation Decathlon, nnU-Net, TotalSegmentator) and DICOM series with
    DICOM-SEG. A bad file is reported and never ends the import; a run that was stopped goes on
    where it was.

    Example: medisee data import Task09_Spleen --to data --licence "CC BY-SA 4.0"
    """
    from medisee.data.importers import ImportOptions, Selection, import_source, read_classes
    from medisee.io.display import parse_window

    options = ImportOptions(
        format=form,
        name=name,
        label=label,
        classes=read_classes(classes) if classes else {},
        images=images,
        modality=modality,
        body_part=body_part,
        plane="" if plane is None else plane.value,
        window=parse_window(window),
        licence=licence,
        labelled_by=labelled_by,
        patient=patient,
        selection=Selection(
            min_area, max_area, min_contrast, min_completeness, per_category, slices
        ),
    )
    with _bar() as advance:
        report = import_source(source, to, options, advance)
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report, to)
    if not report.images:
        raise DataError(f"{source}: nothing was imported; work/ in {to} says why")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, as a function of what is done and what there is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from medisee.commands.screen import progress

    columns = (TextColumn("Importing"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=progress(), transient=True) as bar:
        task = bar.add_task("import", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(report: ImportReport, to: Path) -> None:
    print_text(
        f"{report.images} of {report.images_found} images with {report.masks} masks of "
        f"{len(report.categories)} classes are in {to}."
    )
    rows = [
        *(("images", reason, str(n)) for reason, n in report.left_out_images.most_common()),
        *(("targets", reason, str(n)) for reason, n in report.left_out_targets.most_common()),
    ]
    if rows:
        output().print(plain_table(["left out", "why", "count"], rows, right={2}))
    if report.bound:
        print_text(f"No licence is known to let {report.bound} of the images be passed on.")
    if report.uncurated:
        print_text(f"Not in the class table, kept as they are: {', '.join(report.uncurated)}")
    for file, reason, _ in sorted(report.flaws)[:_SHOWN_FLAWS]:
        print_error(f"{file}: {reason}")
    if len(report.flaws) > _SHOWN_FLAWS:
        print_error(f"... and {len(report.flaws) - _SHOWN_FLAWS} more; work/ in {to} has all.")
