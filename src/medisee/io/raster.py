"""PNG, JPEG, TIFF, BMP and WebP through Pillow; PIL images and numpy arrays."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from medisee.errors import InputError
from medisee.io.display import grey_to_rgb, render_grey
from medisee.io.request import ReadRequest
from medisee.structures import MedicalImage

__all__ = ["FORMATS", "from_array", "from_pil", "read_raster"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")


def read_raster(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    """Read one picture; of a file with several pages the first, unless `frame` names another."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:  # twice the size of Pillow's own limit
        raise InputError(f"{request.name}: {request.limits.too_large}") from error
    return from_pil(image, request)


def from_pil(image: Image.Image, request: ReadRequest) -> MedicalImage:
    """A PIL image of any mode; EXIF orientation is applied, transparency laid on black."""
    request.allow_only({"frame", "window"}, "a picture")
    notes, page = [], 0
    request.check_size(image.height, image.width)
    pages = _count_pages(image, request)
    if pages > 1 or request.frame is not None:
        page = request.pick("frame", pages, default=0)
        image.seek(page)
        request.check_size(image.height, image.width)
        notes.append(f"frame {page} of {pages}, counted from 0")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned as its EXIF orientation says")
    image, opaque = _without_alpha(image)
    if not opaque:
        notes.append("transparent parts laid on black")
    medical = from_array(_pixels(image), request, tuple(notes))
    return replace(medical, places={"frame": (page, pages)})


def _count_pages(image: Image.Image, request: ReadRequest) -> int:
    """Pages of the file; a TIFF is walked page by page, and no further than the limit."""
    if image.format != "TIFF":
        pages = int(getattr(image, "n_frames", 1))
        request.check_frames(pages)
        return pages
    pages = 1
    with suppress(EOFError):
        while True:
            image.seek(pages)
            pages += 1
            request.check_frames(pages)
    image.seek(0)
    return pages


def from_array(
    array: NDArray[Any], request: ReadRequest, notes: tuple[str, ...] = ()
) -> MedicalImage:
    """An array (H, W), (H, W, 1) or (H, W, 3): bool, integer or float; float colour is 0..1."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.kind not in "buif":
        raise InputError(f"{request.name}: pixels must be numbers, not {array.dtype.name}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(
            f"{request.name}: one image has the shape (H, W) or (H, W, 3), not {array.shape}"
        )
    request.check_size(*array.shape[:2])
    pixels = np.array(array, dtype=array.dtype.newbyteorder("="))
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    display, note = _display(pixels, request)
    return MedicalImage(
        pixels=pixels,
        display=display,
        modality=None,
        spacing=None,
        orientation=None,
        source=request.name,
        notes=(*notes, note) if note else notes,
    )


def _display(pixels: NDArray[Any], request: ReadRequest) -> tuple[NDArray[np.uint8], str]:
    if pixels.ndim == 2:
        if not np.isfinite(pixels).any():
            raise InputError(f"{request.name}: none of its pixels is a number")
        grey, note = render_grey(pixels, request.window, hounsfield=False)
        return grey_to_rgb(grey), note
    request.allow_only({"frame"}, "a colour picture")
    return colour_to_8_bits(pixels, request.name), ""


def colour_to_8_bits(pixels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """(H, W, 3) colours over the full range of their type, or floats 0..1, in 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u":
        return (pixels >> (8 * (pixels.dtype.itemsize - 1))).astype(np.uint8)
    if pixels.dtype.kind == "f" and np.all((pixels >= 0) & (pixels <= 1)):
        return np.rint(pixels * 255).astype(np.uint8)
    raise InputError(f"{name}: colours must be unsigned integers, or floats from 0 to 1")


def _without_alpha(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image on black, and whether it was opaque all over anyway."""
    if not (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return image, True
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return image.convert("L" if image.mode in ("LA", "La", "L") else "RGB"), True
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    flat = Image.alpha_composite(black, rgba)
    return flat.convert("L" if image.mode in ("LA", "La", "L") else "RGB"), False


def _pixels(image: Image.Image) -> NDArray[Any]:
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    return np.asarray(image)
