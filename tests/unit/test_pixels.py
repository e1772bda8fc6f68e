"""Pixels: whatever Pillow opens becomes upright 8-bit colour or grey; expected values are worked out by hand."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from learngene.data.images import ImageSet
from learngene.data.open_split import decoding_of, open_split
from learngene.data.pixels import Decoding
from learngene.recipe.sections import DataSpec
from learngene.system.errors import CorruptError, DataError
from pico import make_images


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def grey(*values: float, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def of(content: bytes | Image.Image, mode: str = "RGB", **fields: Any) -> list[Any]:
    """The pixels of the first row as a run would see them."""

    def read(index: int) -> Image.Image:
        return content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))

    images = ImageSet("set", read, ["a"], [0], ["x", "y"], decoding=decoding_of(DataSpec(source="digits", **fields)))
    row: list[Any] = np.asarray(images.image(0, mode))[0].tolist()
    return row


def png(depth: int, kind: int, data: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row by the letter of its specification, which Pillow cannot write."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0" + data)), (b"IEND", b"")]
    written = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def tiff(values: bytes, bits: int, width: int, photometric: int = 1, kind: int = 1) -> bytes:
    """A little-endian TIFF of one grey row."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(values)), (339, kind)]
    body = values + b"\0" * (len(values) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4


WORDS = struct.pack("<3H", 0, 0x8000, 0xFFFF)
TRANSPARENT = (b"tRNS", b"\x00\x01")
SAME = {"P": [0, 128, 255], "L": [0, 128, 255], "1": [0, 255]}
DEPTHS: dict[str, tuple[bytes | Image.Image, list[int]]] = {
    "1 bit": (saved(Image.fromarray(np.array([[False, True]]))), [0, 255]),
    "2 bits": (png(2, 0, b"\x1b", 4), [0, 85, 170, 255]),  # 00 01 10 11
    "4 bits": (png(4, 0, b"\x0f\x10", 4), [0, 255, 17, 0]),
    "8 bits": (saved(grey(0, 128, 255)), [0, 128, 255]),
    # 32768 / 65535 of 255 is 127.502; 128 / 65535 is 0.498, 129 / 65535 is 0.502
    "16 bits": (saved(grey(0, 0x8000, 0xFFFF, 128, 129, dtype=np.uint16)), [0, 128, 255, 0, 1]),
    "16-bit TIFF": (tiff(WORDS, 16, 3), [0, 128, 255]),
    "16-bit TIFF, white is 0": (tiff(WORDS, 16, 3, photometric=0), [255, 127, 0]),
    "8-bit TIFF, white is 0": (tiff(b"\0\x80\xff", 8, 3, photometric=0), [255, 127, 0]),
    "12-bit TIFF": (tiff(b"\x80\x0f\xff", 12, 2), [128, 255]),  # 0x800, 0xfff: 2048 / 4095 of 255 is 127.53
    "16-bit PGM": (b"P5 3 1 65535\n\0\0\x80\0\xff\xff", [0, 128, 255]),
    "12-bit PGM": (b"P5 2 1 4095\n\x08\0\x0f\xff", [128, 255]),
    "16-bit JPEG 2000": (saved(grey(0, 0x8000, 0xFFFF, dtype=np.uint16), "JPEG2000"), [0, 128, 255]),
    "float": (saved(grey(0, 0.5, 1, dtype=np.float32), "TIFF"), [0, 128, 255]),  # 127.5 goes to the even number
    "big-endian in memory": (Image.frombytes("I;16B", (2, 1), b"\x80\0\xff\xff"), [128, 255]),
}


@pytest.mark.parametrize("content", [pair[0] for pair in DEPTHS.values()], ids=DEPTHS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_greys_of_every_depth_are_scaled_to_8_bits(content: Any, mode: str, request: pytest.FixtureRequest) -> None:
    expected = DEPTHS[request.node.callspec.id.split("-", 1)[1]][1]
    assert of(content, mode) == (expected if mode == "L" else [[value] * 3 for value in expected])


def rgba(*pixels: tuple[int, ...], mode: str = "RGBA") -> Image.Image:
    return Image.frombytes(mode, (len(pixels), 1), bytes(sum(pixels, ())))


def palette(mode: str, *colours: tuple[int, ...], **info: Any) -> Image.Image:
    image = Image.frombytes("P", (len(colours), 1), bytes(range(len(colours))))
    image.putpalette(bytes(sum(colours, ())), mode)
    image.info.update(info)
    return image


RED, CLEAR = (255, 0, 0), (0, 0, 0, 0)
COLOURS: dict[str, tuple[bytes | Image.Image, list[Any]]] = {
    # half of black over white: 255 - 128 = 127; red at half: (255, 127, 127)
    "RGBA": (saved(rgba((0, 0, 0, 128), (255, 0, 0, 128), CLEAR)), [[127] * 3, [255, 127, 127], [255] * 3]),
    "LA": (saved(rgba((0, 128), (0, 255), (0, 0), mode="LA")), [[127] * 3, [0] * 3, [255] * 3]),
    "La": (rgba((64, 128), (0, 0), mode="La"), [[191] * 3, [255] * 3]),  # 64 / 128 is 128 (127.5): 64 + 127
    "RGBa": (rgba((128, 0, 0, 128), mode="RGBa"), [[255, 127, 127]]),
    "PA": (palette("RGB", RED, (0, 255, 0)).convert("PA"), [[255, 0, 0], [0, 255, 0]]),
    "RGBX": (rgba((1, 2, 3, 0), mode="RGBX"), [[1, 2, 3]]),
    "P": (saved(palette("RGB", RED, (0, 0, 7))), [[255, 0, 0], [0, 0, 7]]),
    "P with one clear entry": (saved(palette("RGB", RED, (0, 0, 7)), transparency=1), [[255, 0, 0], [255] * 3]),
    "P with alphas": (saved(palette("RGB", RED, (0, 0, 0)), transparency=b"\xff\x80"), [[255, 0, 0], [127] * 3]),
    "P of RGBA": (palette("RGBA", (255, 0, 0, 255), (0, 0, 0, 128)), [[255, 0, 0], [127] * 3]),
    "GIF": (saved(palette("RGB", RED, (0, 0, 7)), "GIF", transparency=1), [[255, 0, 0], [255] * 3]),
    "L with a clear grey": (saved(grey(0, 128), transparency=128), [[0] * 3, [255] * 3]),
    "RGB with a clear colour": (saved(rgba((1, 2, 3), (4, 5, 6), mode="RGB"), transparency=(1, 2, 3)),
                                [[255] * 3, [4, 5, 6]]),
    "2 bits with a clear grey": (png(2, 0, b"\x1b", 4, TRANSPARENT), [[0] * 3, [255] * 3, [170] * 3, [255] * 3]),
    "1 bit with black clear": (png(1, 0, b"\x40", 2, (b"tRNS", b"\0\0")), [[255] * 3, [255] * 3]),
    "16 bits with a clear grey": (png(16, 0, b"\x80\0\0\x80", 2, (b"tRNS", b"\x80\0")), [[255] * 3, [0] * 3]),
    "16-bit RGB with a clear colour": (
        png(16, 2, b"\x12\x34\0\0\0\0\x56\x78\0\0\0\0", 2, (b"tRNS", b"\x12\x34\0\0\0\0")),
        [[255] * 3, [0x56, 0, 0]],
    ),
    "16-bit RGBA": (png(16, 6, b"\xff\xff\0\0\0\0\x80\x80", 1), [[255, 127, 127]]),
    "16-bit LA": (png(16, 4, b"\0\0\x80\x80", 1), [[127] * 3]),
    "CMYK": (rgba((0, 255, 255, 0), (0, 0, 0, 255), mode="CMYK"), [[255, 0, 0], [0, 0, 0]]),
    "YCbCr": (rgba((128, 128, 128), (255, 128, 128), mode="YCbCr"), [[128] * 3, [255] * 3]),
    "HSV": (rgba((0, 255, 255), (0, 0, 77), mode="HSV"), [[255, 0, 0], [77] * 3]),
    "LAB": (rgba((128, 0, 0), mode="LAB"), [[119] * 3]),  # L* 50.2: Y is ((50.2 + 16) / 116)^3 = 0.186, sRGB 0.468
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), COLOURS.values(), ids=COLOURS)
def test_colours_of_every_mode_become_rgb_and_grey_over_white(content: Any, expected: list[list[int]]) -> None:
    assert of(content) == expected
    luma = [round((299 * r + 587 * g + 114 * b) / 1000) for r, g, b in expected]  # ITU-R 601
    assert np.abs(np.subtract(of(content, "L"), luma)).max() <= 1


def test_every_mode_of_pillow_has_a_way_to_colour_and_to_grey() -> None:
    """No mode is left to Pillow's own conversion without a thought: a new one fails here."""
    for mode in Image.MODES:
        for wanted in ("RGB", "L"):
            if mode == "I":
                with pytest.raises(
                    DataError, match=r"image a has pixels from 0 to 0 and does not say .*pixel_range=\["
                ):
                    of(Image.new(mode, (1, 1)), wanted)
            else:
                assert len(of(Image.new(mode, (1, 1)), wanted)) == 1


def test_what_shows_through_is_the_recipes() -> None:
    assert of(saved(rgba((0, 0, 0, 128), CLEAR)), background=(0, 100, 200)) == [[0, 50, 100], [0, 100, 200]]


@pytest.mark.parametrize(
    ("content", "given", "expected"),
    [
        (saved(grey(-1000, 0, 1000, dtype=np.int32), "TIFF"), (-1000, 1000), [0, 128, 255]),
        (saved(grey(-1000, 0, 1000, dtype=np.int32), "TIFF"), (0, 500), [0, 0, 255]),
        (saved(grey(0, 2048, 4095, dtype=np.uint16)), (0, 4095), [0, 128, 255]),
        (saved(grey(0, 3, 4, dtype=np.float32), "TIFF"), (4, 0), [255, 64, 0]),  # 63.75
        (saved(grey(1, 2, 3)), (0, 3), [1, 2, 3]),  # 8 bits stay
    ],
)
def test_black_and_white_can_be_said(content: bytes, given: tuple[float, float], expected: list[int]) -> None:
    assert of(content, "L", pixel_range=given) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(grey(-7, 900, dtype=np.int32), "TIFF"),
         r"image a has pixels from -7 to 900 and does not say which are bl"),
        (saved(grey(0, 1.5, dtype=np.float32), "TIFF"),
         r"image a has pixels from 0 to 1.5 .*; set data.pixel_range=\["),
        (saved(grey(0, np.nan, dtype=np.float32), "TIFF"),
         r"cannot be decoded \(.*pixels that are no finite numbers\)"),
    ],
)  # fmt: skip
def test_pixels_without_a_meaning_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        of(content)


# -- orientation -------------------------------------------------------------------------------------------

SEEN = np.array([[0, 60], [120, 180], [240, 30]], np.uint8)
"""Two pixels wide, three high."""

STORED = {  # what the EXIF standard says of the 0th row and column, written out by hand
    1: [[0, 60], [120, 180], [240, 30]],
    2: [[60, 0], [180, 120], [30, 240]],
    3: [[30, 240], [180, 120], [60, 0]],
    4: [[240, 30], [120, 180], [0, 60]],
    5: [[0, 120, 240], [60, 180, 30]],
    6: [[60, 180, 30], [0, 120, 240]],
    7: [[30, 180, 60], [240, 120, 0]],
    8: [[240, 120, 0], [30, 180, 60]],
}


def tagged(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "16 bits", "TIFF, packed", "XMP"])
def test_an_image_is_seen_upright(orientation: int, form: str) -> None:
    stored, exif = np.array(STORED[orientation], np.uint8), tagged(orientation)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    content = {
        "PNG": lambda: saved(Image.fromarray(stored), exif=exif),
        "WEBP": lambda: saved(Image.fromarray(stored).convert("RGB"), "WEBP", lossless=True, exif=exif),
        "TIFF": lambda: saved(Image.fromarray(stored), "TIFF", tiffinfo={274: orientation}),
        "TIFF, packed": lambda: saved(
            Image.fromarray(stored), "TIFF", tiffinfo={274: orientation}, compression="tiff_lzw"
        ),
        "16 bits": lambda: saved(Image.fromarray(stored.astype(np.uint16) * 257), exif=exif),
        "XMP": lambda: saved(Image.fromarray(stored).convert("RGB"), "WEBP", lossless=True, xmp=xmp),
    }[form]()
    with Image.open(io.BytesIO(content)) as image:
        upright, _ = Decoding().decoded(image, "L")
    assert np.asarray(upright).tolist() == SEEN.tolist()


def test_an_image_with_damaged_exif_or_no_such_orientation_stays_as_it_is(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", tagged(9).tobytes(), tagged(0).tobytes()):
        assert of(saved(grey(0, 200), exif=exif), "L") == [0, 200]


# -- broken ones and large ones ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [Image.DecompressionBombError("bomb"), KeyError("x"), IndexError(), TypeError("no"), OverflowError("big")]
)
def test_whatever_an_image_raises_is_a_corrupt_image(error: Exception) -> None:
    def read(index: int) -> Image.Image:
        raise error

    with pytest.raises(CorruptError, match=rf"set: image a cannot be decoded \({type(error).__name__}: .*skip_corrupt"):
        ImageSet("set", read, ["a"], [0], ["x", "y"]).image(0)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_what_the_machine_lacks_is_no_fault_of_an_image(error: Exception) -> None:
    def read(index: int) -> Image.Image:
        raise error

    with pytest.raises(type(error)):
        ImageSet("set", read, ["a"], [0], ["x", "y"]).scan(skip=True)


def test_the_most_pixels_are_the_recipes_and_pillows_limit_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_images(tmp_path / "set", train=2, val=2)  # of 8 x 8 pixels
    Image.new("1", (20, 10)).save(folder / "train" / "red" / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # Pillow by itself refuses more than twice as many
    message = r"1 of 7 images .* is train/red/scan.png \(20 x 10 pixels are more than data.max_pixels 199\)"
    with pytest.raises(DataError, match=message):
        open_split(DataSpec(source=str(folder), max_pixels=199), "train")
    spec = DataSpec(source=str(folder), max_pixels=199, skip_corrupt=True)
    assert open_split(spec, "train").corrupt == ["train/red/scan.png"]
    with pytest.raises(DataError, match=r"none of its 7 images"):
        open_split(DataSpec(source=str(folder), max_pixels=63, skip_corrupt=True), "train")
    assert len(open_split(DataSpec(source=str(folder), max_pixels=200), "train")) == 7
    assert Image.MAX_IMAGE_PIXELS == 30
    assert DataSpec(source="digits").max_pixels == 178_956_970  # Pillow's own limit


def test_what_images_needed_is_counted(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "set", train=2, val=2)
    grey(0, 4095, dtype=np.uint16).save(folder / "train" / "red" / "deep.png")
    rgba((0, 0, 0, 128), CLEAR).save(folder / "train" / "red" / "clear.png", exif=tagged(6))
    assert open_split(DataSpec(source=str(folder)), "train").counted() == (
        "8 images (2 blue, 2 green, 4 red), 1 of more than 8 bits, 1 turned by their EXIF orientation, 1 with "
        "transparency, over data.background, "
        "no 16-bit pixel above 4095 of 65535: if white is less, set data.pixel_range=[0, WHITE]"
    )


def test_named_sets_are_decoded_alike(tmp_path: Path) -> None:
    for name, content in (("a", grey(0x8000, 0, dtype=np.uint16)), ("b", rgba((0, 0, 0, 128), CLEAR))):
        (tmp_path / name).mkdir()
        content.save(tmp_path / name / "0.png", exif=tagged(3))
    made = open_split(DataSpec(source="torch/image_folder", root=tmp_path, train_split="train"), "train")
    assert [np.asarray(made.image(i))[0].tolist() for i in range(2)] == [[[0] * 3, [128] * 3], [[255] * 3, [127] * 3]]
