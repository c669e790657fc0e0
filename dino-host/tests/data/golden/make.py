"""Makes the images in this folder with Pillow: NAME.EXT and, as NAME.EXT.png, what Pillow's convert("RGB") makes of it.

Written by Pillow 13.0.0: python make.py
"""

import io
import math
import os
import struct

import numpy as np
import tifffile
from PIL import Image, ImageOps

W, H = 40, 24
os.chdir(os.path.dirname(os.path.abspath(__file__)))


def picture():
    """Smooth in some places, sharp in others, no two corners alike."""
    image = Image.new("RGB", (W, H))
    for y in range(H):
        for x in range(W):
            r = 128 + 120 * math.sin(x / 5 + y / 9)
            g = 255 * x / (W - 1)
            b = 255 * y / (H - 1)
            if x < 12 and y < 8:
                r, g, b = 250, 20, 20
            if (x // 4 + y // 4) % 5 == 0:
                r, g, b = b, r, g
            image.putpixel((x, y), (int(r), int(g), int(b)))
    return image


def save(name, image, **options):
    image.save(name, **options)
    with Image.open(name) as found:
        found.convert("RGB").save(name + ".png", optimize=True)


rgb = picture()
grey = rgb.convert("L")
rgba = rgb.copy()
rgba.putalpha(grey)
save("rgb.png", rgb)
grey.save("rgb.png.grey.png", optimize=True)
save("rgba.png", rgba)
save("la.png", rgba.convert("LA"))
save("palette.png", rgb.quantize(64))

# Chroma is not subsampled: how it is spread again is each decoder's own business.
jpeg = dict(quality=90, subsampling=0)
save("baseline.jpg", rgb, **jpeg)
save("progressive.jpg", rgb, progressive=True, **jpeg)
save("420.jpg", rgb, quality=90, subsampling=2)
save("grey.jpg", grey, quality=90)
cmyk = rgb.convert("CMYK")
ink = Image.merge("CMYK", [*rgb.split(), grey.point(lambda v: v // 2)])  # with black in it
save("cmyk.jpg", ink, **jpeg)
# Pillow writes CMYK. As YCCK: the same four planes, called YCbCr and K by Adobe's marker (transform 2).
data = bytearray(open("cmyk.jpg", "rb").read())
adobe = data.index(b"Adobe")
data[adobe + 11] = 2
open("ycck.jpg", "wb").write(data)
with Image.open("ycck.jpg") as found:
    found.convert("RGB").save("ycck.jpg.png", optimize=True)
# Without the marker the inks are not inverted.
start = adobe - 4
length = int.from_bytes(data[adobe - 2 : adobe], "big")
del data[start : start + 2 + length]
open("cmyk-plain.jpg", "wb").write(data)
with Image.open("cmyk-plain.jpg") as found:
    found.convert("RGB").save("cmyk-plain.jpg.png", optimize=True)

# Eight ways to store one image. Expected is the upright one.
for tag in range(1, 9):
    stored = rgb
    for step in {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(tag, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x112] = tag
    stored.save(f"turned{tag}.jpg", exif=exif, **jpeg)
    with Image.open(f"turned{tag}.jpg") as found:
        ImageOps.exif_transpose(found).convert("RGB").save(f"turned{tag}.jpg.png", optimize=True)
exif = Image.Exif()
exif[0x112] = 6
for name in ["turned.png", "turned.webp", "turned.tif"]:
    options = dict(lossless=True) if name.endswith("webp") else {}
    rgb.save(name, exif=exif, **options)
    with Image.open(name) as found:
        ImageOps.exif_transpose(found).convert("RGB").save(name + ".png", optimize=True)

save("lossless.webp", rgb, lossless=True)
save("lossy.webp", rgb, quality=80)
save("alpha.webp", rgba, lossless=True)

save("rgb.bmp", rgb)
save("palette.bmp", rgb.quantize(32))
save("grey.bmp", grey)
save("rgba.bmp", rgba)

for packing in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
    save(f"{packing}.tif", rgb, compression=packing)
save("grey.tif", grey)
save("bits.tif", rgb.convert("1"))
save("rgba.tif", rgba)
save("palette.tif", rgb.quantize(64))
save("cmyk.tif", ink)

# What Pillow does not write is written by tifffile 2026.3.3, or here.
pixels = np.asarray(rgb)
planes = np.moveaxis(pixels, -1, 0)


def by_tifffile(name, pixels, expected=rgb, **options):
    tifffile.imwrite(name, pixels, **{"photometric": "rgb", **options})
    expected.save(name + ".png", optimize=True)


by_tifffile("tiles.tif", pixels, tile=(16, 16), compression="lzw")
by_tifffile("tiles-planes.tif", planes, planarconfig="separate", tile=(16, 16), compression="lzw", predictor=True)
by_tifffile("tiles-planes-16.tif", planes.astype(np.uint16) * 257, planarconfig="separate", tile=(32, 16), byteorder=">")
by_tifffile("strips-planes.tif", planes, planarconfig="separate", rowsperstrip=5, compression="zstd")
by_tifffile("big.tif", pixels, bigtiff=True, rowsperstrip=7)
by_tifffile("big-endian-big.tif", pixels, bigtiff=True, byteorder=">", tile=(16, 16), compression="adobe_deflate", predictor=True)
by_tifffile("white-is-zero.tif", 255 - np.asarray(grey), grey.convert("RGB"), photometric="miniswhite", rowsperstrip=5)
by_tifffile("white-is-zero-16.tif", 65535 - np.asarray(grey).astype(np.uint16) * 257, grey.convert("RGB"), photometric="miniswhite")
with tifffile.TiffWriter("pages.tif") as pages:
    pages.write(pixels, photometric="rgb", compression="lzw")
    pages.write(np.asarray(grey))
rgb.save("pages.tif.png", optimize=True)
# JPEG within; how it is read is libtiff's.
tifffile.imwrite("jpeg-420.tif", pixels, photometric="ycbcr", compression="jpeg", subsampling=(2, 2), tile=(32, 32))
with Image.open("jpeg-420.tif") as found:
    found.convert("RGB").save("jpeg-420.tif.png", optimize=True)
save("ycc.tif", rgb.convert("YCbCr"))


def tiff(name, bits, photometric, rows, more=(), samples=1, packing=1):
    """A TIFF of one strip, written by hand."""
    data = b"".join(rows)
    tags = [(256, [W]), (257, [H]), (258, [bits] * samples), (259, [packing]), (262, [photometric]), (273, [8]), (277, [samples])]
    tags = sorted([*tags, (278, [H]), (279, [len(data)]), *more])
    data = bytearray(b"II*\0\0\0\0\0" + data + b"\0" * (len(data) % 2))
    entries = b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, 3, len(values), len(data))
            data += packed
        else:
            entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    open(name, "wb").write(data)
    with Image.open(name) as found:
        found.convert("RGB").save(name + ".png", optimize=True)


def packed(row, bits, turned):
    """Values of a few bits as bytes, their bits in the other order where `turned`."""
    text = "".join(format(int(v), f"0{bits}b") for v in row)
    text += "0" * (-len(text) % 8)
    step = -1 if turned else 1
    return bytes(int(text[i : i + 8][::step], 2) for i in range(0, len(text), 8))


for bits in (1, 2, 4):
    levels = np.asarray(grey) >> (8 - bits)
    for turned in (False, True):
        rows = [packed(row, bits, turned) for row in levels]
        order = [(266, [2 if turned else 1])]
        tiff(f"{bits}-bits-{'turned' if turned else 'plain'}.tif", bits, 1, rows, order)
    colours = [(x * 37 + 11) % 256 * 257 for x in range(3 << bits)]
    tiff(f"palette-{bits}-bits.tif", bits, 3, [packed(row, bits, False) for row in levels], [(320, colours)])
# Red, green and blue in a JPEG that does not state it: the TIFF does.
within = io.BytesIO()
rgb.save(within, "JPEG", keep_rgb=True, **jpeg)
within = within.getvalue()
start = within.index(b"\xff\xee")
within = bytearray(within[:start] + within[start + 16 :])
for marker, first, step in [(b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)]:
    for i in range(3):
        within[within.index(marker) + first + step * i] = 1 + i
tiff("jpeg-rgb.tif", 8, 2, [bytes(within)], samples=3, packing=7)
multiplied = np.asarray(rgba).astype(int)
multiplied[..., :3] = multiplied[..., :3] * multiplied[..., 3:] // 255
tiff("alpha-associated.tif", 8, 2, [multiplied.astype(np.uint8).tobytes()], [(338, [1])], samples=4)
tiff("alpha-not-called-so.tif", 8, 2, [rgba.tobytes()], [(338, [0])], samples=4)

rgb.quantize(16).save("animated.gif", save_all=True, append_images=[grey.quantize(4)])
with Image.open("animated.gif") as found:
    found.convert("RGB").save("animated.gif.png", optimize=True)
save("grey.gif", grey)
# The first image is smaller than the canvas, reaches beyond it, and has a transparent color.
whole = io.BytesIO()
rgb.crop((0, 0, 9, 7)).quantize(8).save(whole, "GIF")
whole = bytearray(whole.getvalue())
place = whole.index(b",\0\0\0\0\x09\0\x07\0")
for name, canvas, left, extension in [
    ("small.gif", (12, 11), 2, b""),
    ("small-transparent.gif", (12, 11), 2, b"!\xf9\x04\x01\0\0\x03\0"),
    ("beyond.gif", (8, 9), 3, b""),
]:
    data = bytearray(whole)
    struct.pack_into("<HH", data, 6, *canvas)
    struct.pack_into("<HH", data, place + 1, left, 3)
    data[place:place] = extension
    open(name, "wb").write(data)
    with Image.open(name) as found:
        found.convert("RGB").save(name + ".png", optimize=True)

save("rgb.ppm", rgb)
save("grey.pgm", grey)
save("bits.pbm", rgb.convert("1"))
small = np.asarray(rgb.resize((5, 3)))
grey_values = " ".join(str(int(v) * 100 // 255) for v in small[..., 0].reshape(-1))
texts = {
    "plain.pbm": "P1\n# a comment\n5 3\n1 0 1 0 1\n01010\n1 1 1 0 0\n",
    "plain.pgm": f"P2 5 3 # a comment\n100\n{grey_values}\n",
    "plain.ppm": "P3\n5 3\n15\n" + " ".join(str(v >> 4) for v in small.reshape(-1)) + "\n",
}
for name, text in texts.items():
    open(name, "w").write(text)
    with Image.open(name) as found:
        found.convert("RGB").save(name + ".png", optimize=True)
open("100.ppm", "wb").write(b"P6 5 3 100\n" + bytes(int(v) * 100 // 255 for v in small.reshape(-1)))
with Image.open("100.ppm") as found:
    found.convert("RGB").save("100.ppm.png", optimize=True)
