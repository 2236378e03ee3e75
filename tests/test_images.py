"""Images as users have them: turned, transparent, deep, encoded, damaged."""

import base64
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from encoded import stored
from PIL import Image

from vrga.evaluation.tasks import documents
from vrga.images import read_image, to_rgb


def turned(orientation, kind="JPEG"):
    """A picture whose upper left pixel is dark once it is upright, 60 x 30."""
    upright = Image.new("RGB", (60, 30), "white")
    upright.paste("black", (0, 0, 30, 15))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = upright if undo is None else upright.transpose(undo)
    return stored(lying, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_upright_wherever_it_is_read(tmp_path, orientation, kind):
    content, path = turned(orientation, kind), tmp_path / "photo"
    path.write_bytes(content)
    encoded = base64.b64encode(content).decode()
    sources = [
        path, str(path), path.as_uri(), content, Image.open(path), {"bytes": content, "path": None},
        f"data:image/jpeg;base64,{encoded}", encoded,
    ]  # fmt: skip
    found = [read_image(source) for source in sources]
    found += documents.images({"image": str(path)}) + documents.images({"image": Image.open(path)})
    for image in found:
        assert image.mode == "RGB" and image.size == (60, 30)
        assert max(image.getpixel((5, 3))) < 60 and min(image.getpixel((55, 27))) > 200
        assert image.getexif().get(0x0112, 1) == 1 and to_rgb(image) == image  # not turned again


TRANSPARENT = {
    "RGBA": Image.new("RGBA", (4, 4), (0, 0, 0, 0)),
    "LA": Image.new("LA", (4, 4), (0, 0)),
    "RGBa": Image.new("RGBa", (4, 4), (0, 0, 0, 0)),
    "La": Image.new("LA", (4, 4), (0, 0)).convert("La"),
    "PA": Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert("PA"),
}


@pytest.mark.parametrize("image", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_is_white(image):
    assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_named_transparent_is_white(mode):
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else 9)
    content = stored(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert read_image(content).getpixel((2, 2)) == (255, 255, 255)
    assert read_image(content).getpixel((0, 0)) != (255, 255, 255)


def test_half_transparent_is_half_white():
    assert to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
DEEP = {
    "16 bits": stored(Image.fromarray((RAMP * 65535).astype(np.uint16))),
    "16 bits of TIFF": stored(Image.fromarray((RAMP * 65535).astype(np.uint16)), "TIFF"),
    "big-endian": Image.fromarray((RAMP * 65535).astype(">u2")),
    "32 bits": Image.fromarray((RAMP * 65535).astype(np.int32)),
    "32 bits of 8": Image.fromarray((RAMP * 255).astype(np.int32)),
    "32 bits, beyond": Image.fromarray((RAMP * 1e9 - 5e8).astype(np.int32)),
    "floats of 1": Image.fromarray(RAMP.astype(np.float32)),
    "floats of 255": Image.fromarray((RAMP * 255).astype(np.float32)),
    "floats of 65535": Image.fromarray((RAMP * 65535).astype(np.float32)),
    "metres": Image.fromarray((RAMP * 7e7 - 3).astype(np.float32)),
    "floats of TIFF": stored(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP)
def test_deep_grey_is_scaled_and_not_clipped(source):
    found = np.asarray(read_image(source)).astype(float)
    assert found.shape == (64, 64, 3)
    assert np.abs(found[..., 0] - RAMP * 255).max() <= 1.5


def test_a_dark_scan_stays_dark_and_unmeasured_depth_is_no_error():
    dark = Image.fromarray((RAMP * 200).astype(np.uint16))
    assert np.asarray(read_image(stored(dark))).max() <= 1
    holes = RAMP.astype(np.float32).copy()
    holes[0, :9] = np.nan, np.inf, -np.inf, *[np.nan] * 6
    found = np.asarray(read_image(Image.fromarray(holes)))
    assert found[0, 0, 0] <= 1 and found[-1, -1, 0] == 255
    nothing = Image.fromarray(np.full((2, 2), np.nan, np.float32))
    assert np.asarray(read_image(nothing)).max() == 0


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "1", "L", "P"])
def test_other_modes_are_rgb(mode):
    assert read_image(Image.new("RGB", (4, 4), "white").convert(mode)).mode == "RGB"


def test_addresses_are_not_fetched_and_it_is_said():
    for link in ("https://example.org/a.png", "http://a/b", "s3://bucket/a.png"):
        with pytest.raises(ValueError, match="is an address, and images are not fetched: save it"):
            read_image(link)


@pytest.mark.parametrize("value", [None, 3, "", {"bytes": None, "path": None}, ["a.png"]])
def test_what_holds_no_image_is_told(value):
    with pytest.raises(ValueError, match="image"):
        read_image(value)


HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(12)


def test_heic_names_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    for source in (tmp_path / "a.heic", HEIC):
        with pytest.raises(OSError, match="it is HEIC: pip install pillow-heif"):
            read_image(source)


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch):
    asked = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: asked.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    with pytest.raises(OSError):
        read_image(HEIC)
    assert asked == [True]


def png(width, height):
    """The head of a PNG of any size, without its pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, held in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(9)))):
        content += struct.pack(">I", len(held)) + name + held
        content += struct.pack(">I", zlib.crc32(name + held))
    return content


def test_an_image_that_would_fill_the_memory_is_refused():
    with pytest.raises(OSError, match="decompression bomb"):
        read_image(png(60_000, 60_000))
    with pytest.raises(OSError, match="decompression bomb"):
        documents.images({"image": {"bytes": png(60_000, 60_000), "path": "x.png"}})


DAMAGED = {
    "dds": b"DDS " + struct.pack("<I", 124) + bytes(72) + struct.pack("<II", 32, 4) + b"ABCD"
    + bytes(44),
    "no image": b"hello",
    "empty": b"",
    "cut": turned(6)[:300],
    "psd": b"8BPS" + bytes(60),
    "tiff": b"II*\0" + bytes(40),
    "icns": b"icns" + bytes(30),
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_image_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "broken.img"
    path.write_bytes(content)
    with pytest.raises(OSError, match="broken.img cannot be read: ."):
        read_image(path)
    with pytest.raises(OSError, match="cannot be read"):
        read_image(f"data:image/png;base64,{base64.b64encode(content).decode()}")


def test_what_pillow_says_in_whatever_way_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(stored(Image.new("L", (3, 3))))
    for error in (NotImplementedError("x"), struct.error("x"), KeyError("x"), RecursionError("x")):

        def fail(file, error=error):
            raise error

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(OSError, match="a.png cannot be read"):
            read_image(tmp_path / "a.png")


def test_folders_and_base64_of_nothing_are_named(tmp_path):
    with pytest.raises(OSError, match="cannot be read: .*directory"):
        read_image(tmp_path)
    for text in ("data:image/png;base64,!!!", "data:image/png,abc", "iVBORw0KGgo" + "A" * 90):
        with pytest.raises(OSError, match="cannot be read"):
            read_image(text)
