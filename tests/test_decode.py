"""Decoding of image files of any format, mode and shape."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from mixmatch.data.folder.decode import Unreadable, decode
from mixmatch.data.folder.index import find_images
from mixmatch.errors import UserError


def save(tmp_path, image, name="x.tif", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def gray(values, dtype):
    return Image.fromarray(np.array([values] * 4, dtype))


@pytest.mark.parametrize(
    "name, image, options, expected",
    [
        ("x.png", gray([0, 30000, 60000, 65535], np.uint16), {}, [0, 117, 233, 255]),
        ("x.tif", gray([0, 30000, 60000, 65535], np.uint16), {}, [0, 117, 233, 255]),
        ("x.tif", gray([0, 1000, 2000, 4095], np.uint16), {"tiffinfo": {281: 4095}}, [0, 62, 125, 255]),
        ("x.tif", gray([0, 0.25, 0.5, 1], np.float32), {}, [0, 64, 128, 255]),
        ("x.tif", gray([0, 100, 200, 255], np.float32), {}, [0, 100, 200, 255]),
        ("x.tif", gray([0, 100, 200, 255], np.int32), {}, [0, 100, 200, 255]),
        ("x.png", gray([0, 100, 200, 255], np.uint8), {}, [0, 100, 200, 255]),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "12 of 16 bits, tagged", "floats to 1", "floats to 255", "32-bit", "8-bit"],
)
def test_gray_of_any_depth_keeps_its_brightness(tmp_path, name, image, options, expected):
    pixels = decode(save(tmp_path, image, name, **options), 4, channels=1).pixels
    assert np.abs(pixels[2, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "image",
    [
        gray([0, 1000, 2000, 4095], np.uint16),
        gray([0, 1, 2, 100000], np.int32),
        gray([-1, 0, 0.5, 1], np.float32),
        gray([0, 1, 2, 1e6], np.float32),
        gray([0, 1, 2, np.nan], np.float32),
    ],
    ids=["12 of 16 bits", "32-bit", "negative floats", "large floats", "not a number"],
)
def test_an_unknown_range_of_values_is_an_error(tmp_path, image):
    with pytest.raises(Unreadable, match=r"convert it to 8 bits|not finite"):
        decode(save(tmp_path, image), 4)


@pytest.mark.parametrize(
    "name, dtype, white", [("x.png", np.uint16, 65535), ("x.tif", np.uint16, 65535), ("x.png", np.uint8, 255)]
)
def test_gray_of_any_depth_is_rotated_by_its_orientation_tag(tmp_path, name, dtype, white):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    pixels = decode(save(tmp_path, gray([0, 0, 0, white], dtype), name, exif=exif), 4, channels=1).pixels
    assert pixels[2, 0, 0] == 255 and pixels[2, 3, 0] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_modes_are_converted_as_by_pillow(tmp_path, mode):
    random = np.random.RandomState(0)
    image = Image.fromarray(random.randint(0, 256, (16, 16, 3)).astype(np.uint8))
    image = image.convert("L" if mode == "LA" else "RGB").convert(mode)
    file = save(tmp_path, image, "x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    with Image.open(file) as saved:
        expected = np.asarray(saved.convert("RGB"))
    assert np.array_equal(decode(file, 16).pixels, expected)


def test_shapes_are_cropped_padded_or_stretched(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))
    file = save(tmp_path, wide, "wide.png")
    crop, pad, stretch = (decode(file, 30, fit=fit).pixels for fit in ("crop", "pad", "stretch"))
    assert (crop[15, 2:-2] == [255, 0, 0]).all()
    assert (pad[2] == 0).all() and tuple(pad[15, 15]) == (255, 0, 0) and tuple(pad[15, 2]) == (0, 0, 255)
    assert tuple(stretch[1, 15]) == (255, 0, 0) and tuple(stretch[15, 2]) == (0, 0, 255)


def test_too_many_pixels_are_an_error(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "x.png")
    with pytest.raises(Unreadable, match=r"too many|exceeds"):
        decode(tmp_path / "x.png", 8)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        list(find_images(tmp_path / "nowhere"))
