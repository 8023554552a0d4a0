"""From the bytes somebody sent to pixels, or to a refusal that says what is wrong with them."""

import io
import warnings

import numpy as np
from PIL import Image

from applications.face_id.refusal import Refusal
from keras_hybrid.data.files import UnreadableImageError, decode_image

__all__ = ["MAX_BYTES", "MAX_PIXELS", "read_photograph"]

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000

_FORMATS = ("JPEG", "PNG", "WEBP")


def read_photograph(data: bytes) -> np.ndarray:
    """Decode a photograph that comes from anywhere.

    What the file is called and declared to be does not count. Its size in pixels is read from its
    header and judged before anything is decoded.

    Args:
        data: The file's content.

    Returns:
        uint8 (height, width, 3), RGB, upright: turned as its EXIF orientation says.

    Raises:
        Refusal: If it is empty, too large, of another format, or damaged.
    """
    if not data:
        raise Refusal(422, "empty", "The file is empty.")
    if len(data) > MAX_BYTES:
        raise Refusal(413, "too_large", f"The file is larger than {MAX_BYTES // 2**20} MB.")
    if not _begins_like_a_photograph(data):
        raise Refusal(
            415,
            "not_a_photograph",
            "This is not a JPEG, PNG or WebP photograph, whatever its name says.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("far more than 50") from error
    except Exception as error:  # a damaged header leads a decoder anywhere
        raise _damaged() from error
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(f"{width * height / 1e6:.0f}")
    try:
        return decode_image(data, "the photograph")
    except UnreadableImageError as error:
        raise _damaged() from error


def _begins_like_a_photograph(data: bytes) -> bool:
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _too_many_pixels(megapixels: str) -> Refusal:
    return Refusal(
        413,
        "too_many_pixels",
        f"The photograph has {megapixels} megapixels; {MAX_PIXELS // 10**6} are accepted. "
        "Make it smaller.",
    )


def _damaged() -> Refusal:
    return Refusal(422, "damaged", "The file is damaged: it cannot be decoded to its end.")
