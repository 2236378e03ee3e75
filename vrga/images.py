"""Reading images, from files and from what question files hold, as models are to see them."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

_LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
# How base64 of PNG, JPEG, GIF, WebP, TIFF (both byte orders) and BMP begins.
_ENCODED = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")
_SHORTEST = 64  # characters of base64 that are taken for an image and not for a file's name
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@contextmanager
def whole_images() -> Iterator[None]:
    """Let a truncated image be an error, also where another library has told Pillow otherwise."""
    own, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = own


def read_image(source: str | Path | bytes | Mapping | Image.Image) -> Image.Image:
    """An image as RGB, upright and without transparency, see `to_rgb`.

    Args:
        source: a path; the content of a file; base64, plain or as a data: URL; {"bytes", "path"}
            as `datasets` keeps images; or an image of Pillow's.

    Raises:
        OSError: no such file, or one that is no image or a damaged one; the message names it.
        ValueError: an address on the web, which is not fetched, or nothing that holds an image.
    """
    if isinstance(source, Mapping):
        stored, name = source.get("bytes"), source.get("path")
        if stored:
            return _read(stored, name or "(bytes)")
        if not name:
            raise ValueError("an image has neither bytes nor a path")
        return read_image(name)
    if isinstance(source, Image.Image):
        return _read(source, getattr(source, "filename", "") or "(of Pillow)")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(bytes(source), "(bytes)")
    if not isinstance(source, (str, Path)) or not str(source):
        raise ValueError(f"image {source!r} is no path: give a file's name")
    if isinstance(source, str):
        if is_link(source):
            raise ValueError(
                f"image {_short(source)} is an address, and images are not fetched: save it, and "
                "give the file's path"
            )
        encoded = _encoded(source)
        if encoded is not None:
            return _read(_decoded(encoded, source), _short(source))
    return _read(source, source)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits as a viewer shows it.

    Turned upright as EXIF says. What is transparent is white. Grey of 16 bits, of 32 bits and in
    floating point is scaled: whole ranges of 8 or 16 bits and of 0 to 1 stay what they are, any
    other range is stretched to black and white.
    """
    # Without the tag the image is not copied.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep(image)
    if image.mode in ("RGBa", "La"):  # colours multiplied by their opacity
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def bounded(image_processor, pixels: tuple[int | None, int | None]) -> dict[str, object]:
    """The option of an image processor that bounds images to (fewest, most) pixels.

    Raises:
        ValueError: a processor that is not told in pixels, or bounds that cross.
    """
    if pixels == (None, None):
        return {}
    size = getattr(image_processor, "size", None) or {}
    try:
        own = size["shortest_edge"], size["longest_edge"]  # Qwen's names for areas in pixels
    except (KeyError, TypeError):
        raise ValueError(
            f"{type(image_processor).__name__} has no bounds in pixels: leave out the pixels"
        ) from None
    fewest, most = (mine or theirs for mine, theirs in zip(pixels, own, strict=True))
    if fewest > most:
        raise ValueError(
            f"images of at least {fewest} and at most {most} pixels (what is not given is the "
            f"processor's own, {own[0]} and {own[1]}): raise the most, or lower the least"
        )
    return {"size": {"shortest_edge": fewest, "longest_edge": most}}


def data_uri(image: Image.Image, *, longest: int | None = None, largest: int = 200_000) -> str:
    """An image as a page without other files holds it: PNG, or JPEG where that is large.

    Args:
        longest: pixels of the longer side at most; None keeps the size.
        largest: bytes of a PNG; only images without transparency become JPEG.
    """
    if longest is not None and max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    file, kind = io.BytesIO(), "png"
    image.save(file, "PNG", optimize=True)
    if file.tell() > largest and image.mode == "RGB":
        file, kind = io.BytesIO(), "jpeg"
        image.save(file, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def is_link(text: str) -> bool:
    """Whether a text is an address such as https://..., and not of a file."""
    return bool(_LINK.match(text)) and not text.lower().startswith("file://")


def holds_image(text: str) -> bool:
    """Whether a text is an image itself, in base64, and not the name of one."""
    return _encoded(text) is not None


def located(text: str, folder: Path) -> str | Path:
    """An image as a question file names it: a path counts from the file's folder."""
    return text if is_link(text) or holds_image(text) else folder / text


def _read(source: str | Path | bytes | Image.Image, name: object) -> Image.Image:
    try:
        with whole_images():
            if isinstance(source, Image.Image):
                return to_rgb(source)
            if isinstance(source, str) and source.lower().startswith("file://"):
                source = source[len("file://") :]
            with _opened(source) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise OSError(f"image {name} does not exist") from None
    # Damaged files make Pillow's decoders raise anything: struct.error, NotImplementedError, ...
    except Exception as error:
        told = _heif_told(source) or str(error) or type(error).__name__
        raise OSError(f"image {name} cannot be read: {told}") from error


def _opened(source: str | Path | bytes) -> Image.Image:
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    if _is_heif(source):
        try:
            import pillow_heif
        except ImportError:
            pass
        else:
            pillow_heif.register_heif_opener()
    return Image.open(io.BytesIO(source))


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as RGB."""
    values = np.asarray(image).astype(np.float64)
    known = np.isfinite(values)
    if not known.all():  # unmeasured pixels of depth maps
        values = np.where(known, values, values[known].min() if known.any() else 0.0)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    floating = image.mode == "F"
    white = next((w for w in (1.0, 255.0, 65535.0) if high <= w), None)
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        white = 65535.0  # also where a scan is dark
    elif not floating and white == 1.0:
        white = 255.0
    if low < 0 or white is None:
        values, white = values - low, max(high - low, np.finfo(np.float64).tiny)
    scaled = np.rint(values * (255.0 / white)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _encoded(text: str) -> str | None:
    """The base64 in a text that is an image; None where it is another text."""
    found = _DATA.match(text)
    if found is not None:
        return text[found.end() :]
    text = text.strip()
    if len(text) < _SHORTEST or not text.startswith(_ENCODED):
        return None
    return text if re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", text) else None


def _decoded(encoded: str, source: str) -> bytes:
    head = _DATA.match(source)
    if head is not None and not head[0].lower().endswith(";base64,"):
        raise OSError(f"image {_short(source)} cannot be read: only data: URLs in base64 are")
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise OSError(f"image {_short(source)} cannot be read: {error}") from error


def _is_heif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] in _HEIF


def _heif_told(source: object) -> str:
    """What to do about a photo of a telephone that Pillow alone does not read."""
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                source = file.read(12)
        if not isinstance(source, bytes) or not _is_heif(source):
            return ""
    except (OSError, ValueError):
        return ""
    return "it is HEIC: pip install pillow-heif, or save it as JPEG or PNG"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
