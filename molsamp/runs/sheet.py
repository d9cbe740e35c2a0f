"""Pictures on a sheet: every pixel a square of whole pixels, on transparent ground, labelled in grey.

Contract: a picture is (channels, height, width) in [-1, 1]; one or three channels are shown as they are, of others the
mean.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

Array = np.ndarray
WIDE, GAP, TEXT, MARGIN = 960, 4, 20, 8  # pixels: a sheet at most, between pictures, of letters, around them
GREY = (138, 143, 152, 255)


def pixels(x: Float[Tensor, "n C H W"]) -> UInt8[Array, "n H W 3"]:
    """Values in [-1, 1] as bytes; what lies outside is cut off."""
    rgb = x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255.0 * (0.5 + 0.5 * rgb.clamp(-1.0, 1.0))).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def sheet(rows: Sequence[Float[Tensor, "_ C H W"]], headings: Sequence[str] = (), caption: str = "") -> bytes:
    """Rows of pictures as a PNG, enlarged by a whole number so that the sheet is at most `WIDE` wide, if that can be.

    Args:
        rows: pictures of one size, each row from the left.
        headings: words above the columns.
        caption: a line below.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = max(map(len, rows))
    H, W = rows[0].shape[-2:]
    factor = max(1, (WIDE - GAP * (columns - 1)) // (columns * W))
    step = factor * W + GAP, factor * H + GAP
    top, bottom = (TEXT + 2 * MARGIN if words else 0 for words in (headings, caption))
    size = columns * step[0] - GAP, top + len(rows) * step[1] - GAP + bottom
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    for i, row in enumerate(rows):
        for j, tile in enumerate(pixels(row)):
            large = Image.fromarray(tile).resize((factor * W, factor * H), Image.Resampling.NEAREST)
            image.paste(large, (j * step[0], top + i * step[1]))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    for j, words in enumerate(headings):
        draw.text((j * step[0] + factor * W / 2, top - MARGIN), words, GREY, font, anchor="ms")
    if caption:
        draw.text((0, size[1] - MARGIN), caption, GREY, font, anchor="ls")
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
