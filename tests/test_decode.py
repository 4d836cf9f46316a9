"""Decoding of image files of any format, mode and shape: pictures are what a viewer shows."""

import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from mixmatch.data.dataset import Decoding
from mixmatch.data.folder.decode import Unreadable, decode, decode_all, decode_opened, find_transform
from mixmatch.data.folder.index import find_images
from mixmatch.errors import UserError


def save(tmp_path, image, name="x.tif", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def gray(values, dtype):
    return Image.fromarray(np.array([values] * 4, dtype))


def middle(file, **options):
    """The color in the middle of a picture."""
    return decode(file, 8, options=Decoding(**options)).pixels[4, 4].tolist()


def row(file, **options):
    """The gray values of a picture of four columns."""
    return decode(file, 4, 1, Decoding(**options)).pixels[2, :, 0].astype(int)


# Gray of more than 8 bits


def write_pgm(tmp_path, values, maxval):
    rows = np.array([values] * 4, ">u2" if maxval > 255 else "u1")
    (tmp_path / "x.pgm").write_bytes(b"P5\n4 4\n%d\n" % maxval + rows.tobytes())
    return tmp_path / "x.pgm"


def write_tiff(tmp_path, values, bits, sample_format=1, photometric=1):
    """An uncompressed little-endian TIFF; 12 bits are packed, two samples in three bytes."""
    rows = np.array([values] * 4)
    if bits == 12:
        first, second = rows.reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = rows.astype(f"<{ {1: 'u', 2: 'i', 3: 'f'}[sample_format] }{bits // 8}").tobytes()
    tags = [(256, 4), (257, 4), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 4)]
    tags += [(279, len(data)), (339, sample_format)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4))
    return tmp_path / "x.tif"


@pytest.mark.parametrize("most", [1, 200, 16000, 17000, 65535])
def test_white_of_16_bits_is_that_of_the_format_whatever_the_picture_holds(tmp_path, most):
    values = np.array([0, most // 3, most // 2, most])
    expected = np.rint(values / 65535 * 255)
    image = gray(values, np.uint16)
    files = [
        save(tmp_path, image, "x.png"),
        save(tmp_path, image, "x.jp2", irreversible=False),
        write_pgm(tmp_path, values, 65535),
        save(tmp_path, image, "a.tif", tiffinfo={281: most}),  # MaxSampleValue is a statistic
        save(tmp_path, image, "b.tif", compression="tiff_deflate"),
        write_tiff(tmp_path, values, 16),
    ]
    for file in files:
        assert np.abs(row(file) - expected).max() <= 1, file.name
        assert np.array_equal(row(file), row(file, white=3.0)), "data.white is for formats that do not say it"


def test_white_of_other_depths_is_that_of_the_format(tmp_path):
    expected = [0, 62, 125, 255]
    assert np.abs(row(write_pgm(tmp_path, [0, 1000, 2000, 4095], 4095)) - expected).max() <= 1
    assert np.abs(row(write_tiff(tmp_path, [0, 1000, 2000, 4095], 12)) - expected).max() <= 1
    assert row(write_pgm(tmp_path, [0, 25, 50, 100], 100)).tolist() == [0, 64, 128, 255]
    assert row(save(tmp_path, gray([0, 100, 200, 255], np.uint8), "x.png")).tolist() == [0, 100, 200, 255]


def test_white_may_be_zero(tmp_path):
    assert np.abs(row(write_tiff(tmp_path, [0, 15535, 55535, 65535], 16, photometric=0)) - [255, 195, 39, 0]).max() <= 1
    floats = write_tiff(tmp_path, [0, 0.25, 0.5, 1], 32, sample_format=3, photometric=0)
    assert np.abs(row(floats, white=1.0) - [255, 191, 128, 0]).max() <= 1


@pytest.mark.parametrize(
    "values, bits, sample_format, white, expected",
    [
        ([0, 0.25, 0.5, 1], 32, 3, 1.0, [0, 64, 128, 255]),
        ([-1, 0.2, 0.4, 5], 32, 3, 1.0, [0, 51, 102, 255]),
        ([0, 100, 200, 255], 32, 2, 255.0, [0, 100, 200, 255]),
        ([0, 1 << 30, 1 << 31, (1 << 32) - 1], 32, 1, 2.0**32, [0, 64, 128, 255]),
        ([-5, 1000, 2000, 4000], 16, 2, 4000.0, [0, 64, 128, 255]),
    ],
    ids=["floats", "clipped", "32-bit", "unsigned 32-bit", "signed 16-bit"],
)
def test_white_that_the_format_does_not_say_is_a_setting(tmp_path, values, bits, sample_format, white, expected):
    file = write_tiff(tmp_path, values, bits, sample_format)
    assert np.abs(row(file, white=white) - expected).max() <= 1
    with pytest.raises(Unreadable, match=r"gray values from .* does not say which value is white; set data.white"):
        decode(file, 4)


def test_values_that_are_not_finite_are_an_error(tmp_path):
    with pytest.raises(Unreadable, match="not finite"):
        decode(save(tmp_path, gray([0, 1, 2, np.nan], np.float32)), 4, options=Decoding(white=1.0))


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


# Orientation


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
def test_pictures_are_turned_upright(tmp_path, mode, compression):
    upright = np.zeros((32, 48), bool)
    upright[:16, :24] = True  # the upper left quarter is white
    stored = {  # by the definition of the orientation tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }
    for orientation, values in stored.items():
        if mode == "I;16":
            image = Image.fromarray(values.astype(np.uint16) * 65535)
        else:
            image = Image.fromarray(values.astype(np.uint8) * 255).convert("RGB").convert(mode)
        file = save(tmp_path, image, compression=compression, tiffinfo={ExifTags.Base.Orientation: orientation})
        pixels = decode(file, 8, 1, Decoding(fit="stretch")).pixels[..., 0]
        assert (pixels[:3, :3] > 220).all() and (pixels[:3, 5:] < 35).all() and (pixels[5:] < 35).all(), orientation


# Transparency


def cutout(color=(20, 90, 200), hidden=(240, 30, 10)):
    """A square of one color, and another color hidden around it."""
    image = Image.new("RGBA", (24, 24), (*hidden, 0))
    image.paste((*color, 255), (6, 6, 18, 18))
    return image


@pytest.mark.parametrize(
    "name, convert, options",
    [
        ("x.png", lambda image: image, {}),
        ("x.tif", lambda image: image, {}),
        ("x.webp", lambda image: image, {"lossless": True, "exact": True}),
        ("x.jp2", lambda image: image, {}),
        ("x.png", lambda image: image.convert("LA"), {}),
        ("x.tif", lambda image: image.convert("LA"), {}),
        ("x.gif", lambda image: image, {}),
        ("x.png", lambda image: image.quantize(8), {}),
        ("x.png", lambda image: image.convert("RGB"), {"transparency": (240, 30, 10)}),
        ("x.png", lambda image: image.convert("L"), {"transparency": 91}),
        ("x.png", lambda image: image.convert("RGB").quantize(2), {"transparency": b"\0\xff"}),
        ("x.png", lambda image: image.getchannel("A").convert("1"), {"transparency": 0}),
    ],
    ids=[
        "PNG",
        "TIFF",
        "WebP",
        "JPEG 2000",
        "LA PNG",
        "LA TIFF",
        "GIF",
        "palette",
        "RGB",
        "L",
        "tRNS palette",
        "1 bit",
    ],
)
@pytest.mark.parametrize("background, expected", [("white", 255), ("black", 0), ("gray", 128), ("#070707", 7)])
def test_the_background_shows_through_and_hidden_colors_do_not(tmp_path, name, convert, options, background, expected):
    image = convert(cutout())
    if name == "x.png" and image.mode == "P" and options:  # the hidden color may be either entry
        options = {"transparency": bytes([0, 255] if image.getpixel((0, 0)) == 0 else [255, 0])}
    picture = decode(save(tmp_path, image, name, **options), 12, options=Decoding(background=background))
    border = picture.pixels[[0, 1, -1, -2]].astype(int)
    assert np.abs(border - expected).max() <= 3 and picture.info.transparent
    center = picture.pixels[6, 6].tolist()
    if image.mode not in ("1", "L", "LA"):
        assert np.abs(np.array(center) - [20, 90, 200]).max() <= 8
    edge = picture.pixels[2:10, 2:10].reshape(-1, 3).astype(int)  # between the two colors only
    low, high = np.minimum(expected, center), np.maximum(expected, center)
    assert (edge >= low - 25).all() and (edge <= high + 25).all()


def test_premultiplied_colors_are_what_they_were(tmp_path):
    file = save(tmp_path, Image.new("RGBA", (8, 8), (100, 50, 0, 128)))
    entry = struct.pack("<HHIH", 338, 3, 1, 2)  # ExtraSamples: 2 is unassociated alpha, 1 is premultiplied
    assert entry in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(entry, struct.pack("<HHIH", 338, 3, 1, 1)))
    assert np.abs(np.array(middle(file)) - [227, 177, 127]).max() <= 2


def write_png(tmp_path, depth, color_type, pixels, transparent):
    """A PNG of 4 x 4 pixels from the bytes of a row."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, depth, color_type, 0, 0, 0)
    data = zlib.compress((b"\0" + pixels) * 4)
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", transparent), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return tmp_path / "x.png"


@pytest.mark.parametrize(
    "depth, color_type, pixels, transparent, expected",
    [
        (1, 0, b"\x50", b"\0\1", [0, 255, 0, 255]),
        (8, 0, b"\0\x55\xaa\x55", b"\0\xaa", [0, 85, 255, 85]),
        (16, 0, b"\0\0\x55\x55\xaa\xaa\x55\x55", b"\xaa\xaa", [0, 85, 255, 85]),
    ],
)
def test_a_transparent_gray(tmp_path, depth, color_type, pixels, transparent, expected):
    assert row(write_png(tmp_path, depth, color_type, pixels, transparent)).tolist() == expected


def test_opaque_pictures_are_not_transparent_and_flat_ones_are_flat(tmp_path):
    opaque = decode(
        save(tmp_path, Image.new("RGBA", (30, 20), (9, 8, 7, 255)), "x.png"), 8, options=Decoding(fit="pad")
    )
    assert not opaque.info.transparent and opaque.info.flat  # the borders do not count
    black = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
    black.paste((0, 0, 0, 255), (6, 6, 18, 18))
    file = save(tmp_path, black, "x.png")
    assert not decode(file, 8).info.flat and decode(file, 8, options=Decoding(background="black")).info.flat


# Color profiles


def make_profile(space=b"RGB ", gamma=2.2):
    """An ICC profile: gray, or RGB with red and green exchanged."""

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = (0.9642, 1, 0.8249)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(80),
        b"cprt": b"text\0\0\0\0x\0\0\0",
        b"wtpt": xyz(*white),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        primaries = {b"g": (0.4361, 0.2225, 0.0139), b"r": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
        for letter, values in primaries.items():
            tags |= {letter + b"XYZ": xyz(*values), letter + b"TRC": curve}
    body, table, start = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(padded))
        body += padded
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"mntr", space, b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, white)) + bytes(48) + table + body


RED = (220, 30, 40)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_colors_are_converted_from_their_profile_to_srgb(tmp_path, mode, name):
    if (mode, name) == ("P", "x.webp"):
        return
    image = Image.new("RGB", (32, 32), RED).convert(mode)
    pixel = middle(save(tmp_path, image, name, icc_profile=make_profile(), **({"quality": 100} if "w" in name else {})))
    assert np.abs(np.array(pixel) - [24, 221, 35]).max() <= 5


def test_gray_is_converted_from_its_profile(tmp_path):
    profile = make_profile(b"GRAY", gamma=1.0)  # linear light
    expected = round(255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055))  # the definition of sRGB
    image = Image.new("L", (8, 8), 100)
    sixteen = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    for name, picture in (("x.png", image), ("y.png", image.convert("LA")), ("x.tif", image), ("z.png", sixteen)):
        assert np.abs(np.array(middle(save(tmp_path, picture, name, icc_profile=profile))) - expected).max() <= 1, name


def test_lab_is_converted(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = to_lab.apply(Image.new("RGB", (8, 8), RED))
    for options in ({}, {"icc_profile": lab}):
        assert np.abs(np.array(middle(save(tmp_path, image, **options))) - RED).max() <= 4


def test_a_large_cmyk_jpeg_is_scaled_and_keeps_its_colors(tmp_path):
    image = Image.new("CMYK", (800, 600), (200, 20, 30, 10))
    file = save(tmp_path, image, "x.jpg", quality=100)
    assert np.abs(np.array(middle(file)) - image.convert("RGB").getpixel((0, 0))).max() <= 3


def test_profiles_of_srgb_change_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert find_transform(profile, "RGB") is None
    random = Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8))
    pixels = decode(save(tmp_path, random, "x.png", icc_profile=profile), 16).pixels
    assert np.array_equal(pixels, np.asarray(random))


@pytest.mark.parametrize(
    "mode, profile",
    [("RGB", b"x" * 200), ("RGB", make_profile()[:140]), ("L", make_profile()), ("RGB", make_profile(b"GRAY"))],
)
def test_profiles_that_are_corrupt_or_do_not_fit_are_ignored_with_a_note(tmp_path, mode, profile):
    image = Image.new("RGB", (8, 8), RED).convert(mode)
    picture = decode(save(tmp_path, image, "x.png", icc_profile=profile), 8)
    assert picture.pixels[4, 4].tolist() == list(image.convert("RGB").getpixel((4, 4)))
    assert picture.info.notes == [f"its color profile is corrupt or not for {mode} and is ignored"]
    with Image.open(tmp_path / "x.png") as opened:  # by a program that uses the network
        assert np.array_equal(decode_opened(opened, 8, 3, Decoding()).pixels, picture.pixels)


# Shapes and sizes


def test_a_very_long_picture_keeps_a_pixel(tmp_path):
    file = save(tmp_path, Image.new("RGB", (3000, 3), (255, 0, 0)), "long.png")
    contained, padded = (decode(file, 30, options=Decoding(fit=fit)).pixels for fit in ("contain", "pad"))
    assert contained.shape == (1, 30, 3) and (contained == [255, 0, 0]).all() and padded.max() == 255


def test_shapes_are_cropped_padded_or_stretched(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))
    file = save(tmp_path, wide, "wide.png")
    crop, pad, stretch = (decode(file, 30, options=Decoding(fit=fit)).pixels for fit in ("crop", "pad", "stretch"))
    assert (crop[15, 2:-2] == [255, 0, 0]).all()
    assert (pad[2] == 0).all() and tuple(pad[15, 15]) == (255, 0, 0) and tuple(pad[15, 2]) == (0, 0, 255)
    assert tuple(stretch[1, 15]) == (255, 0, 0) and tuple(stretch[15, 2]) == (0, 0, 255)


def test_the_limit_of_pixels_is_a_setting(tmp_path):
    file = save(tmp_path, Image.new("1", (14000, 14000)), "x.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(Unreadable, match=r"has 196,000,000 pixels, more than data.max_pixels=178956970; raise that"):
        decode(file, 8)
    picture = decode(file, 8, options=Decoding(max_pixels=200_000_000))
    assert picture.info.size == (14000, 14000) and not picture.info.notes
    small = save(tmp_path, Image.new("L", (9, 9)), "y.png")
    with pytest.raises(Unreadable, match=r"has 81 pixels, more than data.max_pixels=80"):
        decode(small, 8, options=Decoding(max_pixels=80))
    with Image.open(small) as opened, pytest.raises(Unreadable, match=r"has 81 pixels, more than data.max_pixels=80"):
        decode_opened(opened, 8, 3, Decoding(max_pixels=80))
    assert before == Image.MAX_IMAGE_PIXELS


# Warnings


def test_warnings_are_notes_of_their_picture(tmp_path, recwarn):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "maker", "a camera with a long name"
    files = []
    for i in range(40):
        options = {"exif": exif.tobytes()[:-14]} if i % 4 == 0 else {}
        files.append(save(tmp_path, Image.new("RGB", (8, 8), (i, i, i)), f"{i}.jpg", **options))
    stop = threading.Event()

    def warn():
        while not stop.wait(0.001):
            warnings.warn("of another thread", stacklevel=1)

    thread = threading.Thread(target=warn)
    thread.start()
    try:
        pictures = [picture for _, picture in decode_all(files, 8)]
    finally:
        stop.set()
        thread.join()
    for i, picture in enumerate(pictures):
        assert [*picture.info.notes] == (["Pillow warns: Truncated File Read"] if i % 4 == 0 else [])
    assert not any("Truncated" in str(warning.message) for warning in recwarn)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        list(find_images(tmp_path / "nowhere"))
