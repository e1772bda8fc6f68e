#!/usr/bin/env bash
# Pillow: in a grey PNG of 16 bits, the one value that the file calls transparent (its tRNS chunk) is compared after
# every pixel was cut off at 255. With a transparent white (65535), as depth maps and scans have it around the subject,
# everything from 255 up becomes transparent, which is nearly the whole image; with any other value above 255, nothing
# does. PNG says that the sample value itself is compared. `Image.open` reads values and the transparent one right, so a
# mask has to be made of them before `convert("RGBA")` or `convert("LA")`.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "pillow==13.0.0" "numpy==2.3.5"
"$work/env/bin/python" - <<'P'
import io

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
values = np.array([[0, 200, 255, 256, 1000, 40000, 65535]], np.uint16)
expected = {65535: [False] * 6 + [True], 1000: [value == 1000 for value in values[0]]}
seen = {65535: [False, False] + [True] * 5, 1000: [False] * 7}
for transparent in expected:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", transparency=transparent)
    image = Image.open(file)
    assert np.array_equal(np.asarray(image), values) and image.info["transparency"] == transparent
    found = [bool(alpha == 0) for alpha in np.asarray(image.convert("RGBA"))[0, :, 3]]
    print(f"values {values[0].tolist()}, transparent {transparent}")
    print("  by the file:", [int(v) for v, t in zip(values[0], expected[transparent]) if t])
    print("  by convert :", [int(v) for v, t in zip(values[0], found) if t])
    assert found == seen[transparent] != expected[transparent]
P
