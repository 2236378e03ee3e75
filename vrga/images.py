"""Reading image files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError


@contextmanager
def whole_images() -> Iterator[None]:
    """Let a truncated image be an error, also where another library has told Pillow otherwise."""
    own, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = own


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        OSError: no such file, or one that is no image or a damaged one; the message names it.
    """
    try:
        with whole_images(), Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise OSError(f"image {path} does not exist") from None
    except (
        UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError
    ) as error:  # fmt: skip
        raise OSError(f"image {path} cannot be read: {error}") from error
