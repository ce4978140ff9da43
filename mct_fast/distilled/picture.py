"""All images of a distilled set in one picture, under the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mct_fast.run.errors import printable

COLUMNS = 10
"""Images side by side."""
_SIDE, _GAP, _BAND, _INK = 64, 4, 18, "#333333"


def picture(pixels: Tensor, classes: Tensor, names: Sequence[str]) -> Image.Image:
    """Images ``pixels (n, C, H, W)`` in [0, 1] of ``classes (n,)``, small ones enlarged by whole factors.

    One image a class: each has its name above it. More: each class begins a row of its own, below its name.
    """
    single = len(pixels) == len(names) == len(classes.unique())
    order = torch.argsort(classes, stable=True)
    groups = (order,) if single else order.split(torch.bincount(classes, minlength=len(names)).tolist())
    lines = [(line, not part) for group in groups for part, line in enumerate(group.split(COLUMNS)) if len(line)]
    factor = max(1, _SIDE // pixels.shape[-1])
    width, height = factor * pixels.shape[-1] + _GAP, factor * pixels.shape[-2] + _GAP
    columns = max(len(line) for line, _ in lines)
    bands = sum(single or first for _, first in lines)
    whole = Image.new("RGB", (columns * width + _GAP, len(lines) * height + bands * _BAND + _GAP), "white")
    draw, font, top = ImageDraw.Draw(whole), ImageFont.load_default(12), _GAP
    for line, first in lines:
        named = line.tolist() if single else line.tolist()[:1] if first else []
        for place, index in enumerate(named):
            room = width - _GAP if single else whole.width - 2 * _GAP
            draw.text((_GAP + place * width, top), _fitting(names[int(classes[index])], room, draw, font), _INK, font)
        top += _BAND if named else 0
        for place, index in enumerate(line.tolist()):
            image = pixels[index] if pixels.shape[1] in (1, 3) else pixels[index].mean(0, keepdim=True)
            tile = to_pil_image(image).resize((width - _GAP, height - _GAP), Image.Resampling.NEAREST)
            whole.paste(tile, (_GAP + place * width, top))
        top += height
    return whole


def _fitting(
    name: str, room: int, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> str:
    """As much of ``name`` as ``room`` pixels have place for."""
    text = printable(name[:_SIDE])
    if text == name and draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}…", font) > room:
        text = text[:-1]
    return f"{text}…"
