"""Makes the pictures in this folder with Pillow: NAME.EXT and, as NAME.EXT.png, what Pillow's convert("RGB") makes of it.

Written by Pillow 13.0.0: python make.py
"""

import io
import math
import os

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

# Eight ways to store one picture. Expected is the upright one.
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
rgb.quantize(64).save("palette.tif")  # not read
save("cmyk.tif", ink)
