#!/usr/bin/env python3
"""Opens a report in headless Chromium: check.py REPORT.html SHOTS

At 390 and 1280 pixels, light and dark: takes a screenshot, and fails on messages of the console, on addresses outside the page, on a
page wider than its window and on pictures that do not load. Without Chromium ($DINO_CHROMIUM, else `chromium`) it says that it was skipped.
"""
import os, re, shutil, subprocess, sys, tempfile

MEASURE = """<iframe id=f style='border:0;width:%dpx;height:900px' srcdoc="%s"></iframe><script>
const f = document.getElementById('f');
const done = () => { const d = f.contentDocument.documentElement;
  const broken = [...f.contentDocument.images].filter(i => !i.naturalWidth).length;
  document.title = 'measured ' + d.scrollWidth + ' ' + broken; };
f.onload = done;</script>"""


def main():
    chromium = os.environ.get("DINO_CHROMIUM") or shutil.which("chromium")
    if not chromium:
        print("SKIPPED: no Chromium; DINO_CHROMIUM names one")
        return 0
    page, shots = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    os.makedirs(shots, exist_ok=True)
    html = open(page, encoding="utf-8").read()
    bad = [a for a in re.findall(r"""\s(?:src|href|srcset|action|data)=['"]?([^'"\s>]+)|url\(""", html) if not a.startswith("data:")]
    bad += re.findall(r"https?://\S{0,40}", html)
    faults = ["address outside the page: " + a for a in bad]

    def run(*args):
        with tempfile.TemporaryDirectory() as home:
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
                     "--user-data-dir=" + home, "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
            done = subprocess.run([chromium, *flags, *args], capture_output=True, text=True, timeout=90)
            return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    for width, height in [(390, 844), (1280, 900)]:
        with tempfile.TemporaryDirectory() as scratch:
            frame = os.path.join(scratch, "frame.html")
            with open(frame, "w", encoding="utf-8") as f:
                f.write(MEASURE % (width, html.replace("&", "&amp;").replace('"', "&quot;")))
            dom, said = run("--dump-dom", "--virtual-time-budget=8000", "file://" + frame)
            found = re.search(r"<title>measured (\d+) (\d+)", dom)
            if not found:
                faults.append("%d pixels: the page was not measured" % width)
            elif int(found[1]) > width or int(found[2]):
                faults.append("%d pixels: the page is %s wide, %s pictures are broken" % (width, found[1], found[2]))
            faults += said
        for scheme, number in [("light", 1), ("dark", 0)]:
            shot = os.path.join(shots, "%d-%s.png" % (width, scheme))
            # Chromium makes no window narrower than 500 pixels: a frame does.
            with tempfile.TemporaryDirectory() as scratch:
                frame = os.path.join(scratch, "frame.html")
                with open(frame, "w", encoding="utf-8") as f:
                    f.write("<body style='margin:0'><iframe style='border:0;width:%dpx;height:%dpx' src='file://%s'></iframe>" % (width, height * 5, page))
                _, said = run("--screenshot=" + shot, "--window-size=%d,%d" % (width, height * 5),
                              "--blink-settings=preferredColorScheme=%d" % number, "file://" + frame)
            faults += said
            if not os.path.exists(shot):
                faults.append("no screenshot " + shot)
    print("\n".join(dict.fromkeys(faults)) or "the report opens: no messages, no requests, no overflow; pictures in " + shots)
    return 1 if faults else 0


sys.exit(main())
