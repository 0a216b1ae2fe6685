"""The folder that viewers work on: images to ask about, and the labels that people hand in.

Images in it are only read. What a viewer sends along lives in memory, like every image here; only
labels that somebody submits are written, to `labels/TAG/` in the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medisee.errors import InputError
from medisee.io import MedicalVolume

from .errors import ServeError
from .limits import Limits
from .sessions import SessionStore

__all__ = ["Datastore", "Source"]

LABELS = "labels"
FINAL = "final"
LABEL_KINDS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd")
IMAGE_KINDS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

_NAME = re.compile(r"[\w][\w .()+,=@-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True)
class Source:
    """An image to open: its place or content; of several series in a folder, which one."""

    data: Path | bytes = field(repr=False)
    series: int | None = None
    files: frozenset[Path] = field(default=frozenset(), repr=False)

    def check(self, volume: MedicalVolume) -> None:
        """Raises InputError where another series of the same number was opened."""
        opened = {file.place for file in volume.reference.files}
        if self.files and not opened <= self.files:
            raise InputError("several series here have the same number; give each its own folder")


class Upload:
    """An image that a viewer sent, under the name that it goes by."""

    def __init__(self, key: str, data: bytes) -> None:
        self.id, self.data = key, data
        self.bytes = len(data)


class Datastore:
    """Images by the names that viewers have for them: file names without their ending, or the
    Series Instance UID of a DICOM series."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder; make it first")
        self.folder = folder
        self._uploads: SessionStore[Upload] = SessionStore(limits)
        self._headers: dict[Path, tuple[int, tuple[str, int] | None]] = {}

    # ---- images ------------------------------------------------------------------------------

    def images(self) -> dict[str, Source]:
        """All images of the folder."""
        files = [path for path in sorted(self._walk()) if path.is_file()]
        series: dict[tuple[str, int], list[Path]] = {}
        for path in files:
            if (belongs := self._series_of(path)) is not None:
                series.setdefault(belongs, []).append(path)
        pictures = [path for path in files if path.name.lower().endswith(IMAGE_KINDS)]
        found = {name: Source(path) for name, path in self._named(pictures).items()}
        return found | {uid: _series(number, paths) for (uid, number), paths in series.items()}

    def image(self, key: str) -> Source:
        """An image of the folder by its name; ServeError where there is none."""
        found = self.images().get(key)
        if found is None:
            raise ServeError(404, "no_image", "the datastore has no image of this name")
        return found

    def keep(self, key: str | None, files: Sequence[bytes]) -> str:
        """Hold an image in memory, by default under a name of ours; several files are a series."""
        name = secrets.token_urlsafe(18) if key is None else _checked(key)
        self._uploads.add(Upload(name, files[0] if len(files) == 1 else _zipped(files)))
        return name

    def kept(self, key: str) -> Source:
        """An image in memory; ServeError where there is none."""
        return Source(self._uploads.get(key).data)

    def forget(self, key: str) -> None:
        """Drop an upload; ServeError where there is none."""
        self._uploads.remove(key)

    def clear(self) -> None:
        """Drop all uploads."""
        self._uploads.clear()

    def next_unlabelled(self) -> dict[str, Any]:
        """The first single file without a final label, as viewers load it; empty if there is none.

        DICOM series are left out: a viewer has those from its own archive.
        """
        done = self.labels().get(FINAL, {})
        for key, source in self.images().items():
            if key not in done and isinstance(source.data, Path) and not source.files:
                digest = hashlib.sha256(source.data.read_bytes()).hexdigest()
                return {"id": key, "name": source.data.name, "checksum": f"SHA256:{digest}"}
        return {}

    def _walk(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder).parts
            if inside[0] != LABELS and not any(part.startswith(".") for part in inside):
                yield path

    def _named(self, paths: Sequence[Path]) -> dict[str, Path]:
        """Files by name without ending, unless two would then be the same."""
        full = [path.relative_to(self.folder).as_posix() for path in paths]
        short = [_split(name, IMAGE_KINDS)[0] for name in full]
        count = Counter(short)
        names = [name if count[key] > 1 else key for name, key in zip(full, short, strict=True)]
        return dict(zip(names, paths, strict=True))

    def _series_of(self, path: Path) -> tuple[str, int] | None:
        """Series Instance UID and number of a DICOM file; read once for each state of it."""
        changed = path.stat().st_mtime_ns
        if self._headers.get(path, (0,))[0] != changed:
            self._headers[path] = changed, _read_series(path)
        return self._headers[path][1]

    # ---- labels ------------------------------------------------------------------------------

    def labels(self) -> dict[str, dict[str, Path]]:
        """Label files by tag, then image."""
        found: dict[str, dict[str, Path]] = {}
        root = self.folder / LABELS
        for path in sorted(root.rglob("*")):
            kind = _split(path.name, LABEL_KINDS)[1]
            parts = path.relative_to(root).parts
            if path.is_file() and kind and len(parts) > 1:
                key = _split("/".join(parts[1:]), LABEL_KINDS)[0]
                found.setdefault(parts[0], {})[key] = path
        return found

    def save_label(self, key: str, tag: str, name: str, data: bytes, info: Any) -> None:
        """Write a label that somebody submits, in place of an older one of that image and tag.

        name: of the file that was sent; its ending is kept. info: what its numbers mean.
        """
        kind = _split(name, LABEL_KINDS)[1]
        if not kind:
            raise ServeError(400, "invalid_request", f"label: send {', '.join(LABEL_KINDS)}")
        parts = [_checked(part) for part in key.split("/")]
        place = self.folder / LABELS / _tag(tag)
        target = place.joinpath(*parts[:-1], parts[-1] + kind)
        try:
            _write(target, data)
            _write(target.with_name(f"{parts[-1]}.info.json"), json.dumps(info).encode())
        except OSError as error:
            raise ServeError(500, "not_written", f"label: {error.strerror or 'failed'}") from None

    def label(self, key: str, tag: str) -> Path:
        """A label's file; ServeError where there is none."""
        found = self.labels().get(tag, {}).get(key)
        if found is None:
            raise ServeError(404, "no_label", "the image has no label of this tag")
        return found

    def status(self) -> dict[str, Any]:
        """How many images there are, and how many have labels."""
        labels = self.labels()
        tags = {tag: len(files) for tag, files in labels.items()}
        total = len(self.images())
        return {"total": total, "completed": len(labels.get(FINAL, {})), "label_tags": tags}

    def contents(self) -> dict[str, Any]:
        """All images with the tags of their labels."""
        labels = self.labels()
        return {
            key: {
                "image": {"ext": "", "info": {}},
                "labels": {
                    tag: {"ext": _split(files[key].name, LABEL_KINDS)[1], "info": _info(files[key])}
                    for tag, files in labels.items()
                    if key in files
                },
            }
            for key in self.images()
        }


def _series(number: int, paths: Sequence[Path]) -> Source:
    if len(paths) == 1:
        return Source(paths[0], files=frozenset(paths))
    return Source(paths[0].parent, number, frozenset(paths))


def _read_series(path: Path) -> tuple[str, int] | None:
    import pydicom

    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM" or path.name == "DICOMDIR":
            return None
        file.seek(0)
        try:
            tags = ["SeriesInstanceUID", "SeriesNumber"]
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            return str(header.SeriesInstanceUID), int(header.get("SeriesNumber") or 0)
        except Exception:  # noqa: BLE001 - a damaged file is no image
            return None


def _zipped(files: Sequence[bytes]) -> bytes:
    """Several files as the archive that a DICOM series may come in."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(f"{number}.dcm", data)
    return buffer.getvalue()


def _split(name: str, kinds: Sequence[str]) -> tuple[str, str]:
    """A file's name, and its ending if it is one of `kinds`, else ''."""
    kind = next((each for each in kinds if name.lower().endswith(each)), "")
    return name[: len(name) - len(kind)], kind


def _checked(name: str) -> str:
    """A name that can stand in a folder; ServeError for any other."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ServeError(400, "invalid_request", "image: letters, digits, space and . _ - only")
    return name


def _tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise ServeError(400, "invalid_request", "tag: letters, digits, _ and - only")
    return tag


def _write(path: Path, data: bytes) -> None:
    """The whole file, or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".medisee-", dir=path.parent) as draft:
        part = Path(draft) / "part"
        part.write_bytes(data)
        part.replace(path)


def _info(path: Path) -> Any:
    """What was said of a label when it was submitted."""
    name = _split(path.name, LABEL_KINDS)[0]
    with suppress(OSError, ValueError):
        return json.loads(path.with_name(f"{name}.info.json").read_text(encoding="utf-8"))
    return {}
