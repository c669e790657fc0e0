"""Makes the JPEG files of this folder with cjpeg (libjpeg-turbo) and a byte editor, and as NAME.png what Pillow makes of each.

Written by libjpeg-turbo 2.1.5 and Pillow 13.0.0: python make.py
What each is about is its name; `refused-` are those that no decoder here reads right.
"""

import io
import math
import os
import struct
import subprocess
import tempfile

from PIL import Image

os.chdir(os.path.dirname(os.path.abspath(__file__)))
W, H = 21, 19
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def gradient():
    image = Image.new("RGB", (W, H))
    for y in range(H):
        for x in range(W):
            color = (128 + 100 * math.sin(x / 7 + y / 11), 40 + 180 * x / (W - 1), 40 + 180 * y / (H - 1))
            image.putpixel((x, y), tuple(map(int, (230, 40, 40) if x < W / 3 and y < H / 3 else color)))
    return image


def cjpeg(*args, scans=None):
    ppm = io.BytesIO()
    gradient().save(ppm, "PPM")
    with tempfile.NamedTemporaryFile("w", suffix=".scans") as script:
        if scans:
            script.write(scans)
            script.flush()
            args = (*args, "-scans", script.name)
        command = ["cjpeg", "-quality", "75", *([] if "-arithmetic" in args else ["-optimize"]), *args]
        return subprocess.run(command, input=ppm.getvalue(), capture_output=True, check=True).stdout


def segments(data):
    """(marker, start, end) of the segments up to the first scan's head."""
    at = 2
    while True:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        yield data[at + 1], at, at + 2 + length
        if data[at + 1] == 0xDA:
            return
        at += 2 + length


def drop(data, marker):
    for found, start, end in reversed(list(segments(data))):
        if found == marker:
            data = data[:start] + data[end:]
    return data


def bare(data):
    return drop(drop(data, 0xE0), 0xEE)


def insert(data, segment):
    return data[:2] + segment + data[2:]


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def named(data, new):
    """Components called `new` in the frame and in the first scan."""
    data = bytearray(data)
    for marker, start, _ in list(segments(bytes(data))):
        if marker in (0xC0, 0xC2):
            old = [data[start + 10 + 3 * i] for i in range(3)]
            for i in range(3):
                data[start + 10 + 3 * i] = new[i]
        if marker == 0xDA:
            for i in range(data[start + 4]):
                data[start + 5 + 2 * i] = new[old.index(data[start + 5 + 2 * i])]
    return bytes(data)


def put(name, data):
    with open(f"{name}.jpg", "wb") as file:
        file.write(data)
    if not name.startswith("refused-"):
        with Image.open(f"{name}.jpg") as found:
            found.convert("RGB").save(f"{name}.png", optimize=True)


APART, LAST_FIRST, PAIR = "0;\n1;\n2;\n", "2;\n1;\n0;\n", "0;\n1,2;\n"
STEPS = (
    "0: 0-0, 0, 1;\n1: 0-0,0,1;\n2: 0-0,0,1;\n0: 0-0,1,0;\n1,2: 0-0,1,0;\n0: 1-5, 0, 2;\n2: 1-63, 0, 1;\n1: 1-63, 0, 1;\n"
    "0: 6-63, 0, 2;\n0: 1-63, 2, 1;\n2: 1-63, 1, 0;\n1: 1-63, 1, 0;\n0: 1-63, 1, 0;\n"
)
put("scans-apart-420", cjpeg("-sample", "2x2", scans=APART))
put("scans-apart-440", cjpeg("-sample", "1x2", scans=APART))
put("scans-apart-444-restart", cjpeg("-sample", "1x1", "-restart", "3B", scans=APART))
put("scans-last-first-422", cjpeg("-sample", "2x1", scans=LAST_FIRST))
put("scans-pair-420", cjpeg("-sample", "2x2", scans=PAIR))
put("scans-steps-420", cjpeg("-sample", "2x2", scans=STEPS))
put("scans-steps-422-restart", cjpeg("-sample", "2x1", "-restart", "2B", scans=STEPS))
put("scans-one-420-restart", cjpeg("-sample", "2x2", "-restart", "2B"))
for factors in ["1x1,2x2,2x2", "1x2,2x1,1x1", "2x2,1x2,2x1", "3x1,1x1,1x1", "4x1,1x1,1x1", "2x4,1x1,1x1"]:
    name = factors.replace(",", "-")
    put(f"factors-{name}", cjpeg("-sample", factors))
    put(f"factors-{name}-progressive", cjpeg("-sample", factors, "-progressive"))
rgb, ycc = bare(cjpeg("-rgb", "-sample", "1x1")), bare(cjpeg("-sample", "2x2"))
put("color-called-rgb", named(rgb, b"RGB"))
put("color-called-rgb-small-letters", named(ycc, b"rgb"))
put("color-from-0", named(ycc, b"\0\1\2"))
put("color-called-rgb-but-jfif", insert(named(ycc, b"RGB"), JFIF))
put("color-called-rgb-but-adobe-1", insert(named(ycc, b"RGB"), adobe(1)))
put("color-adobe-0", insert(rgb, adobe(0)))
put("color-adobe-0-but-jfif", insert(ycc, adobe(0) + JFIF))
put("color-adobe-2-of-three", insert(ycc, adobe(2)))
put("refused-factors-4x1-2x1-1x1-apart", cjpeg("-sample", "4x1,2x1,1x1", scans=APART))
put("refused-arithmetic", cjpeg("-arithmetic"))
plain = cjpeg("-sample", "2x2")
frame = next(start for marker, start, _ in segments(plain) if marker == 0xC0)
later = bytearray(plain)
later[frame + 5 : frame + 7] = b"\0\0"
put("refused-height-later", bytes(later[:-2]) + b"\xff\xdc\x00\x04" + struct.pack(">H", H) + b"\xff\xd9")
deep = bytearray(plain)
deep[frame + 1], deep[frame + 4] = 0xC1, 12
put("refused-12-bits", bytes(deep))
two = cjpeg("-sample", "1x1", scans=APART)
put("refused-a-component-without-data", two[: two.rindex(b"\xff\xda")] + b"\xff\xd9")
