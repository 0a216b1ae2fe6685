"""A small DICOMweb archive on this machine: QIDO-RS, WADO-RS and STOW-RS, and its bad days."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom

BORDER = "border"


class Archive:
    """Files by SOP Instance UID. bad: what goes wrong; wants: the Authorization header needed."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bad, self.wants, self.page, self.url = "", "", 100, ""

    def add(self, data: bytes) -> pydicom.Dataset:
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        self.files[str(header.SOPInstanceUID)] = data
        return header

    def add_folder(self, folder: Path) -> pydicom.Dataset:
        headers = [self.add(path.read_bytes()) for path in sorted(folder.iterdir())]
        return headers[0]

    @property
    def headers(self) -> list[pydicom.Dataset]:
        return [
            pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            for data in self.files.values()
        ]

    def search(self, level: str, within: dict[str, str], query: dict[str, str]) -> list[dict]:
        """One page of studies or series with what the standard wants of them."""
        offset, limit = int(query.pop("offset", 0)), int(query.pop("limit", self.page))
        wanted = {**within, **query}
        found: dict[str, pydicom.Dataset] = {}
        for header in self.headers:
            if any(str(header.get(name, "")) != value for name, value in wanted.items()):
                continue
            uid = header.StudyInstanceUID if level == "studies" else header.SeriesInstanceUID
            result = found.setdefault(uid, pydicom.Dataset())
            result.StudyInstanceUID = header.StudyInstanceUID
            if level == "series":
                result.SeriesInstanceUID, result.Modality = (
                    header.SeriesInstanceUID,
                    header.Modality,
                )
                result.SeriesNumber = header.get("SeriesNumber")
                result.NumberOfSeriesRelatedInstances = 1 + int(
                    result.get("NumberOfSeriesRelatedInstances") or 0
                )
        return [each.to_json_dict() for each in found.values()][offset : offset + limit]

    def parts(self, within: dict[str, str]) -> list[bytes]:
        return [
            data
            for data, header in zip(self.files.values(), self.headers, strict=True)
            if all(str(header.get(name)) == value for name, value in within.items())
        ]


LEVELS = {
    "studies": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instances": "SOPInstanceUID",
}


def handler(archive: Archive) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, kind: str, body: bytes, short: int = 0) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) + short))
            self.end_headers()
            self.wfile.write(body)

        def refused(self) -> bool:
            archive.asked.append((self.command, self.path, dict(self.headers)))
            if archive.bad == "slow":
                time.sleep(1)
            if archive.wants and self.headers.get("Authorization") != archive.wants:
                self.send(401, "text/plain", b"")
            elif archive.bad.isdigit():
                self.send(int(archive.bad), "text/plain", b"Secret^Person")
            elif archive.bad == "html":
                self.send(200, "text/html", b"<html>Secret^Person</html>")
            else:
                return False
            return True

        def do_GET(self) -> None:
            if self.refused():
                return
            parts = urlsplit(self.path)
            words = parts.path.removeprefix("/dicom-web/").strip("/").split("/")
            within = {LEVELS[k]: v for k, v in zip(words[::2], words[1::2], strict=False)}
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if words[0] not in LEVELS:
                self.send(404, "text/plain", b"")
            elif len(words) % 2:
                found = archive.search(words[-1], within, query)
                self.send(200, "application/dicom+json; charset=utf-8", json.dumps(found).encode())
            elif files := archive.parts(within):
                self.retrieve(files)
            else:
                self.send(404, "text/plain", b"")

        def retrieve(self, files: list[bytes]) -> None:
            if archive.bad == "fewer":
                files = files[1:]
            if archive.bad == "junk":
                files[-1] = b"Secret^Person" * 20
            head = f"--{BORDER}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body = b"\r\n".join(head + file for file in files) + f"\r\n--{BORDER}--\r\n".encode()
            if archive.bad == "cut":
                body = body[: -len(BORDER) - 200]
            kind = f'multipart/related; type="application/dicom"; boundary={BORDER}'
            self.send(200, kind, body, short=500 if archive.bad == "broken off" else 0)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.refused():
                return
            said, name = pydicom.Dataset(), "ReferencedSOPSequence"
            if archive.bad == "full":
                name = "FailedSOPSequence"
            items = []
            for data in unpacked(self.headers["Content-Type"], body):
                header = (
                    archive.add(data)
                    if archive.bad != "full"
                    else pydicom.dcmread(io.BytesIO(data))
                )
                item = pydicom.Dataset()
                item.ReferencedSOPClassUID = header.SOPClassUID
                item.ReferencedSOPInstanceUID = header.SOPInstanceUID
                if archive.bad == "full":
                    item.FailureReason = 0xA700
                items.append(item)
            setattr(said, name, items)
            status = 202 if archive.bad == "full" else 200
            self.send(status, "application/dicom+json; charset=utf-8", said.to_json().encode())

    return Handler


def unpacked(kind: str, body: bytes) -> list[bytes]:
    """Parts of a multipart message."""
    border = kind.partition("boundary=")[2].strip('"').encode()
    return [part.partition(b"\r\n\r\n")[2] for part in body.split(b"\r\n--" + border)[1:-1]]


@contextmanager
def running() -> Iterator[Archive]:
    """An empty archive, listening; `url` is its address."""
    archive = Archive()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(archive))
    server.handle_error = lambda *_: None  # type: ignore[method-assign] - clients that went away
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield archive
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
