"""One image file to one tensor: every pixel by the range that its format states, or an error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pursuitify.errors import DataError

#: What PIL's readers raise on damaged and hostile files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_SIXTEEN = 65535
#: The formats whose integers of more than 8 bits are of 16, whatever PIL holds them in.
_SIXTEEN_BIT = frozenset({"PNG", "PPM"})
#: Formats that other programs would be started for, whatever the file's name says: PostScript runs
#: in Ghostscript, and Windows draws its metafiles.
_PROGRAMS = frozenset({"EPS", "WMF"})
_ADVICE = "Mend or remove it, or leave such files out with load_data(..., skip_bad=True)"


def read_picture(path: Path, channels: int) -> Tensor:
    """Read an image file, turned as its EXIF orientation says.

    Transparent pixels are laid over white, as they are seen. Of several frames the first counts.

    Args:
        path: The file.
        channels: 3 for colour, 1 for grey.

    Returns:
        The image (channels, height, width): uint8, or float32 in [0, 1] where the file has more
        than 8 bits.

    Raises:
        DataError: If the file is damaged, too large, or its values have no known range; the message
            has its name.
    """
    from PIL import Image, ImageOps

    try:
        Image.init()  # knows every format, so that those left out are left out
        formats = [name for name in Image.OPEN if name not in _PROGRAMS]
        with Image.open(path, formats=formats) as image:
            image.load()
            kind = str(image.format)
            return _values(ImageOps.exif_transpose(image), kind, channels)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to be opened safely: {str(error).rstrip('.')}. {_ADVICE}. If you "
            "trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read: {str(error).rstrip('.')}. {_ADVICE}") from error


def _values(image: Any, kind: str, channels: int) -> Tensor:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        grey = np.array(image, dtype=np.float64)  # of either byte order
        values = torch.from_numpy(_scaled(grey, mode, kind)).float().unsqueeze(0)
        return values.expand(channels, -1, -1).contiguous()
    if image.has_transparency_data:
        image = _over_white(image)
    wanted = {1: "L", 3: "RGB"}[channels]
    if mode in ("CMYK", "LAB", "YCbCr", "HSV") and channels == 1:
        image = image.convert("RGB")
    pixels = np.array(image.convert(wanted))
    values = torch.from_numpy(pixels)
    return values.unsqueeze(0) if channels == 1 else values.permute(2, 0, 1).contiguous()


def _scaled(values: Any, mode: str, kind: str) -> Any:
    """Return grey values in [0, 1].

    Raises:
        ValueError: If the file does not say what white is.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if mode.startswith("I;16") or (mode == "I" and kind in _SIXTEEN_BIT):
        return values / _SIXTEEN
    if mode == "F" and 0 <= low <= high <= 1:
        return values
    what = "floating-point" if mode == "F" else "32-bit"
    raise ValueError(
        f"its {what} values, from {low:g} to {high:g}, have no known range: save floating-point "
        "values in [0, 1], or 16 bits"
    )


def _over_white(image: Any) -> Any:
    from PIL import Image

    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
    white.alpha_composite(seen)
    return white.convert("RGB")


def fitted(image: Tensor, size: int) -> Tensor:
    """Return the middle of an image, its shorter side resized to ``size``, as float32 in [0, 1].

    Args:
        image: As ``read_picture`` returns it.
        size: Side of the result.

    Raises:
        DataError: If the resized image would be too large to be held.
    """
    from PIL import Image
    from torchvision.transforms.v2 import functional

    short, long = sorted(image.shape[1:])
    limit = Image.MAX_IMAGE_PIXELS
    if short == 0 or (limit is not None and size * size * long / short > 2 * limit):
        raise DataError(
            f"it is {image.shape[2]} x {image.shape[1]} pixels, which cannot be resized"
        )
    image = functional.resize(image, [size], antialias=True)
    image = functional.center_crop(image, [size, size])
    return image.float().div_(255) if image.dtype == torch.uint8 else image.clamp(0, 1)
