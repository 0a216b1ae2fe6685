"""DICOMweb: series out of an archive (QIDO-RS, WADO-RS) and results into one (STOW-RS).

What is retrieved lies in a temporary folder for as long as it is needed, as a series on disk would;
`medisee.io` reads it there. Credentials come from the environment: `MEDISEE_DICOMWEB_TOKEN`, or
`..._USER` and `..._PASSWORD`, for the archive that images come from, `MEDISEE_STORE_...` for the
one that results go to. They are sent there and nowhere else. Certificates are always verified.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from medisee.errors import InputError, MediSeeError
from medisee.extras import needs_extra
from medisee.io import Limits
from medisee.io.dicom import not_an_image

__all__ = ["Series", "check_store", "is_address", "retrieved", "search", "store"]

Progress = Callable[[int, int | None], None]
"""Told (images that came, images in all where the server says)."""

_SOURCE, _SINK = "MEDISEE_DICOMWEB", "MEDISEE_STORE"
_SECONDS = (10, 120)
"""To connect, and between two pieces of an answer."""

_UNDEFINED = 0xFFFFFFFF
"""Length of an element that goes on to a delimiter, which pydicom misses if it is not there."""

_AS_STORED = (("application/dicom", "*"),)
_UID = r"[0-9]+(?:\.[0-9]+)*"
_RESOURCE = re.compile(
    rf"(?P<base>https?://[^?#]+?)/studies/(?P<study>{_UID})"
    rf"(?:/series/(?P<series>{_UID})(?:/instances/(?P<instance>{_UID}))?)?/?"
)
_SEARCH = re.compile(r"(?P<base>https?://[^?#]+?)/(?P<level>studies|series)/?(?:\?(?P<query>.*))?")
_FORM = "https://SERVER/.../studies/UID, with /series/UID and /instances/UID where they are known"


@dataclass(frozen=True)
class Series:
    """A series of images in an archive; images: how many, None where the archive does not say."""

    base: str
    study: str
    uid: str
    number: int | None
    modality: str
    images: int | None

    @property
    def address(self) -> str:
        """What `retrieved` takes."""
        return f"{self.base}/studies/{self.study}/series/{self.uid}"

    def __str__(self) -> str:
        return f"{self.number} ({self.modality}, {self.images or '?'} images)"


def is_address(source: str) -> bool:
    """Whether an image is named by an address rather than by a file."""
    return source.startswith(("https://", "http://"))


@contextmanager
def retrieved(
    address: str, number: int | None = None, progress: Progress = lambda done, total: None
) -> Iterator[Path]:
    """A folder with the images of a series, or the file of a single one; gone after the block.

    address: as WADO-RS has it, of a study, series or instance. number: the Series Number, where a
    study holds several series of images.

    Raises InputError where the address is none, the archive cannot be reached, refuses, or sends
    less than it should; or the study holds several series and `number` names none of them.
    """
    place = _match(_RESOURCE, address, _FORM)
    study, series, instance = place["study"], place["series"], place["instance"]
    with tempfile.TemporaryDirectory(prefix="medisee-", ignore_cleanup_errors=True) as folder:
        with _client(place["base"], _SOURCE) as client:
            if instance is None:
                chosen = _choose(_series_of(client, place["base"], study, series), number)
                target = _retrieve_series(client, chosen, Path(folder), progress)
            else:
                target = Path(folder) / f"{instance}.dcm"
                _write(client.retrieve_instance(study, series, instance, _AS_STORED), target)
        # What goes wrong in the caller's block is not the archive's fault.
        yield target


def search(address: str) -> list[Series]:
    """The series of images that a QIDO-RS address finds.

    address: BASE/studies or BASE/series with filters, such as ?StudyDate=20260101-&Modality=CT, or
    a study or series as `retrieved` takes it.

    Raises InputError as `retrieved` does.
    """
    if place := _RESOURCE.fullmatch(address):
        with _client(place["base"], _SOURCE) as client:
            return _series_of(client, place["base"], place["study"], place["series"])
    place = _match(_SEARCH, address, "https://SERVER/.../studies?FILTERS or .../series?FILTERS")
    filters = parse_qs(place["query"] or "")
    with _client(place["base"], _SOURCE) as client:
        if place["level"] == "series":
            return _images(place["base"], _all(client.search_for_series, filters))
        studies = _all(client.search_for_studies, filters)
        return [
            series
            for study in studies
            for series in _series_of(client, place["base"], str(study.StudyInstanceUID))
        ]


def check_store(address: str) -> None:
    """Refuse an archive that cannot be reached or refuses the credentials, before any work.

    Raises InputError.
    """
    with _client(address, _SINK, tolerant=True) as client:
        client.search_for_studies(search_filters={"StudyInstanceUID": "1"})  # finds nothing


def store(address: str, files: Iterable[Path]) -> int:
    """Send those files that are DICOM to the archive at BASE or BASE/studies; how many there were.

    Raises InputError when the archive refuses, or stores less than all of them.
    """
    import pydicom

    results = [pydicom.dcmread(file) for file in files if file.suffix == ".dcm"]
    if not results:  # a refusal has none
        return 0
    with _client(address, _SINK) as client:
        said = client.store_instances(results)
        if failed := said.get("FailedSOPSequence"):
            reasons = {f"{int(each.get('FailureReason') or 0):04X}" for each in failed}
            raise InputError(
                f"{_name(address)}: did not store {len(failed)} of {len(results)} results "
                f"(Failure Reason {', '.join(sorted(reasons))})"
            )
    return len(results)


# ---- the archive's side ----------------------------------------------------------------------


def _series_of(client: Any, base: str, study: str, series: str | None = None) -> list[Series]:
    """Image series of a study, or the one that is named; InputError where there is none."""
    filters = {} if series is None else {"SeriesInstanceUID": [series]}
    found = _all(client.search_for_series, filters, study_instance_uid=study)
    # Some archives ignore filters.
    images = [each for each in _images(base, found, study) if series in (None, each.uid)]
    if not images:
        raise InputError(f"{_name(base)}: has no images under this address")
    return images


def _images(base: str, found: Iterable[Any], study: str | None = None) -> list[Series]:
    return [
        Series(
            base,
            _uid(study or each.StudyInstanceUID),
            _uid(each.SeriesInstanceUID),
            _number(each.get("SeriesNumber")),
            str(each.get("Modality") or "unknown"),
            _number(each.get("NumberOfSeriesRelatedInstances")),
        )
        for each in found
        if not not_an_image(each)
    ]


def _number(value: Any) -> int | None:
    return None if value in (None, "") else int(value)


def _uid(value: Any) -> str:
    """A UID that can stand in an address and name a file."""
    if not re.fullmatch(_UID, str(value)):
        raise ValueError("not a UID")
    return str(value)


def _all(
    ask: Callable[..., list[Any]], filters: Mapping[str, Sequence[str]], **where: str
) -> list[Any]:
    """All pages of a search as data sets, unless `limit` is among the filters."""
    from pydicom import Dataset

    found: dict[str, Any] = {}
    while True:
        offset = {} if "limit" in filters else {"offset": len(found)}
        page = [
            Dataset.from_json(each) for each in ask(search_filters=dict(filters), **offset, **where)
        ]
        before = len(found)
        found |= {str(each.get("SeriesInstanceUID", each.StudyInstanceUID)): each for each in page}
        if len(found) == before or not offset:  # archives that know no offset begin again
            return list(found.values())


def _choose(found: Sequence[Series], number: int | None) -> Series:
    if number is not None:
        found = [each for each in found if each.number == number] or found
    if len(found) == 1 and number in (None, found[0].number):
        return found[0]
    known = ", ".join(map(str, found[:20]))
    raise InputError(f"the study has series {known}; choose one with --series or /series/UID")


def _retrieve_series(client: Any, series: Series, where: Path, progress: Progress) -> Path:
    """The folder of the images, named by the series; of a single one (X-ray, film) its file."""
    folder = where / series.uid
    folder.mkdir()
    progress(0, series.images)
    count, left = 0, Limits().unpacked_bytes
    images = client.iter_series(series.study, series.uid, media_types=_AS_STORED)
    for count, image in enumerate(images, start=1):
        left -= _write(image, folder / f"{count:06d}.dcm")
        if left < 0:
            raise InputError("the series is larger than what MediSee opens; choose another")
        progress(count, series.images)
    if count < (series.images or 1):
        raise InputError(f"{_name(series.base)}: sent {count} of {series.images} images; try again")
    return folder if count > 1 else (folder / "000001.dcm").rename(where / f"{series.uid}.dcm")


def _write(image: Any, path: Path) -> int:
    """Write a file as it came and give its size; ValueError when its end is missing."""
    import pydicom

    _check_end(image)
    pydicom.dcmwrite(path, image)
    return path.stat().st_size


def _check_end(image: Any) -> None:
    """pydicom reads what there is of a file that breaks off, and says nothing."""
    last = image.get_item(max(image.keys()))
    length = getattr(last, "length", _UNDEFINED)  # a sequence is read already
    cut = length != _UNDEFINED and last.value is not None and len(last.value) < length
    if cut or "SOPInstanceUID" not in image or ("Rows" in image and "PixelData" not in image):
        raise ValueError("the file breaks off")


# ---- the way there ---------------------------------------------------------------------------


def _match(pattern: re.Pattern[str], address: str, form: str) -> re.Match[str]:
    if (place := pattern.fullmatch(address)) is None:
        raise InputError(f"an image on the web has a DICOMweb address: {form}")
    return place


def _name(address: str) -> str:
    """The server alone: the rest of an address may say whose images they are."""
    return urlsplit(address).netloc.rpartition("@")[2]


@contextmanager
def _client(address: str, role: str, tolerant: bool = False) -> Iterator[Any]:
    """A client of the archive; what goes wrong in the block becomes one InputError.

    tolerant: an HTTP status other than that of refused credentials is passed over.
    """
    with needs_extra("DICOMweb", "dicom"):
        import requests
        from dicomweb_client.web import DICOMwebClient
    _check_address(address)
    with requests.Session() as session, _clear_errors(_name(address), role, tolerant):
        session.auth = _credentials(role)
        for scheme in ("https://", "http://"):
            session.mount(scheme, _retrying_adapter())
        client = DICOMwebClient(
            address.rstrip("/").removesuffix("/studies"),
            session=session,
            callback=_without_charset,
            permissive_uid=True,
            timeout=_SECONDS,
        )
        client.set_http_retry_params(retry=False)  # the adapter does
        client.host = _name(address)  # it leaves the port out, which proxies need
        yield client


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query
    except ValueError:
        usable = False
    if not usable:
        raise InputError("an archive has an address of the form https://SERVER/dicom-web")
    if parts.username or parts.password:
        raise InputError(
            "an address is no place for a password: it is kept in histories and logs; set "
            f"{_SOURCE}_USER and {_SOURCE}_PASSWORD (for --store {_SINK}_...)"
        )


def _credentials(role: str) -> Any:
    """What `requests` takes as auth; None where the environment has none."""
    if token := os.environ.get(f"{role}_TOKEN", "").strip():

        def bearer(request: Any) -> Any:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return bearer
    user, password = os.environ.get(f"{role}_USER"), os.environ.get(f"{role}_PASSWORD")
    return None if user is None else (user, password or "")


def _retrying_adapter() -> Any:
    """Asks twice more where an archive says that it is busy."""
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    busy = Retry(
        total=2, connect=0, read=False, backoff_factor=1, status_forcelist=(429, 502, 503, 504),
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    return HTTPAdapter(max_retries=busy)


def _without_charset(response: Any, **_: Any) -> Any:
    """The client knows "application/dicom+json", but not with "; charset=utf-8" behind it."""
    kind = response.headers.get("Content-Type", "")
    if "json" in kind or "xml" in kind:
        response.headers["Content-Type"] = kind.partition(";")[0].strip()
    return response


@contextmanager
def _clear_errors(server: str, role: str, tolerant: bool) -> Iterator[None]:
    """What users are told; the texts of the errors hold addresses, so they are not repeated."""
    from requests import exceptions

    try:
        yield
    except MediSeeError:
        raise
    except exceptions.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if not tolerant or status in (401, 403):
            raise InputError(f"{server}: {_said(status, role)}") from error
    except exceptions.SSLError as error:
        raise InputError(
            f"{server}: its certificate cannot be verified; set REQUESTS_CA_BUNDLE to a file with "
            "your authority's certificates"
        ) from error
    except exceptions.Timeout as error:
        raise InputError(f"{server}: gives no answer; try again later") from error
    except (exceptions.ConnectionError, exceptions.ChunkedEncodingError) as error:
        reason = "cannot be reached, or the connection broke off; check the address, try again"
        raise InputError(f"{server}: {reason}") from error
    except OSError as error:
        if not isinstance(error, exceptions.RequestException):
            raise  # the disk's
        raise InputError(f"{server}: {_NO_DICOM}") from error
    except Exception as error:
        raise InputError(f"{server}: {_NO_DICOM}") from error


_NO_DICOM = (
    "sent something that is not DICOM, or not all of it; is the address that of its DICOMweb "
    "interface?"
)


def _said(status: int, role: str) -> str:
    """What an HTTP status means here."""
    if status in (401, 403):
        return (
            f"refuses the credentials, or wants some ({status}): set {role}_TOKEN, or {role}_USER "
            f"and {role}_PASSWORD"
        )
    if status == 404:
        return "knows no such study, series or image, or no DICOMweb there (404)"
    return f"answered with HTTP status {status}"
