"""Image files and tables in a folder or a zip archive: listing, reading, decoding, resizing."""

import csv
import io
import os
import struct
import threading
import unicodedata
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
IMAGE_SUFFIXES = frozenset(
    _JPEG | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
CROPS_TABLE = "index.csv"  # what `write_crops` puts beside the identities' folders


class UnreadableImageError(ValueError):
    """An image that is missing, empty, truncated or damaged.

    Attributes:
        path: Where it lies.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


def decode_image(data: bytes, path: str) -> np.ndarray:
    """Decode an encoded image to upright RGB.

    Args:
        data: The file's content.
        path: Its name, for messages.

    Returns:
        uint8 (height, width, 3). Transparency is shown over white, 16-bit grey is scaled to 8 bits.

    Raises:
        UnreadableImageError: If it cannot be decoded completely.
        ImportError: If Pillow is not installed.
    """
    image_module = import_pillow()
    if not data:
        raise UnreadableImageError(path, "the file is empty")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            image.load()
            upright = _upright(image)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
                has_16_bits = upright.mode.startswith("I;16") or image.format == "PNG"
                grey = _eight_bits(np.asarray(upright), 257.0 if has_16_bits else None)
                return np.repeat(grey[..., None], 3, axis=-1)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                paper = image_module.new("RGB", upright.size, "white")
                paper.paste(upright, mask=upright)
                return np.array(paper)
            return np.array(upright.convert("RGB"))
    except (
        OSError,
        ValueError,
        SyntaxError,  # Pillow's word for a broken PNG
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        struct.error,
        zlib.error,
        image_module.DecompressionBombError,
    ) as error:
        reason = str(error).replace(r"<_io.BytesIO object", "<file")
        if isinstance(error, image_module.UnidentifiedImageError):
            reason = "not an image that Pillow knows"
        raise UnreadableImageError(path, reason or type(error).__name__) from error


def _upright(image):
    """Turn a photograph as its Exif says."""
    from PIL import ExifTags, Image

    # Pillow's `exif_transpose` writes the other tags anew, and fails where one is damaged.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged Exif raises nearly anything; the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: np.ndarray, divisor: float | None) -> np.ndarray:
    """Return grey values as uint8, divided; without a divisor by what their largest suggests."""
    largest = values.max(initial=0)
    if divisor is None:
        divisor = 257.0 if largest > 255 else 1.0
        if values.dtype.kind == "f" and 0 < largest <= 1:
            divisor = 1 / 255
    if values.dtype.kind == "f":
        return np.clip(np.rint(values / divisor), 0, 255).astype(np.uint8)
    # By a table: a large photograph in float64 takes gigabytes.
    table = np.clip(np.rint(np.arange(2**16) / divisor), 0, 255).astype(np.uint8)
    return table[np.clip(values, 0, 2**16 - 1)]


def to_range(images: np.ndarray, value_range: Sequence[float] | None) -> np.ndarray:
    """Return images in [0, 255] in another range, float32; as they are where it is that or None."""
    if value_range is None or tuple(value_range) == (0, 255):
        return images
    low, high = value_range
    return low + images.astype("float32") / 255 * (high - low)


def encode_image(image: np.ndarray, quality: int | None = None) -> bytes:
    """Encode an image as PNG, or as JPEG of a quality.

    Args:
        image: uint8 (height, width, 3).
        quality: Of JPEG, in [1, 100]; None: PNG.

    Returns:
        The file's content.

    Raises:
        ImportError: If Pillow is not installed.
    """
    file = io.BytesIO()
    options = {"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality}
    import_pillow().fromarray(image).save(file, **options)
    return file.getvalue()


def resize_image(image: np.ndarray, image_size: int | tuple[int, int]) -> np.ndarray:
    """Resize to a fixed height and width, antialiased bilinear; proportions are not kept.

    Args:
        image: uint8 (height, width, 3).
        image_size: Side, or (height, width), in pixels.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If the size is not one or two positive integers.
        ImportError: If Pillow is needed and not installed.
    """
    height, width = size_pair(image_size)
    if image.shape[:2] == (height, width):
        return image
    pillow = import_pillow()
    resized = pillow.fromarray(image).resize((width, height), pillow.Resampling.BILINEAR)
    return np.array(resized)


def size_pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from a side or a pair.

    Args:
        image_size: Side, or (height, width), in pixels.

    Returns:
        (height, width).

    Raises:
        ValueError: If it is not one or two positive integers.
    """
    sizes = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    whole = all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) for s in sizes)
    if len(sizes) != 2 or not whole or min(sizes) < 1:
        raise ValueError(
            f"`image_size` must be a positive integer or (height, width), got {image_size!r}."
        )
    return int(sizes[0]), int(sizes[1])


def import_pillow():
    """Import ``PIL.Image``.

    Returns:
        The module.

    Raises:
        ImportError: With the extra to install, if Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading and resizing image files needs Pillow: pip install 'keras-hybrid[face]'"
        ) from error
    return Image


# Files: a folder or a zip archive


class Folder:
    """Files below a folder, named by POSIX paths relative to it."""

    def __init__(self, root: Path):
        self.root = root

    def listing(self) -> tuple[list[str], list[str]]:
        """All files and all folders, sorted, without hidden ones."""
        files, folders = [], []
        trails = {str(self.root): (os.path.realpath(self.root),)}
        for base, names, members in os.walk(self.root, followlinks=True):
            trail = trails.pop(base)
            inside = {name: os.path.realpath(os.path.join(base, name)) for name in names}
            # A link to a folder that it lies in would list everything below that once more.
            names[:] = sorted(n for n in names if not _is_hidden(n) and inside[n] not in trail)
            trails.update((os.path.join(base, name), (*trail, inside[name])) for name in names)
            prefix = Path(base).relative_to(self.root)
            folders += [(prefix / name).as_posix() for name in names]
            files += [(prefix / name).as_posix() for name in members if not _is_hidden(name)]
        return sorted(files), sorted(folders)

    def size(self, name: str) -> int:
        """Bytes of a file, −1 where it is missing."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return -1

    def stamp(self, name: str) -> str:
        """What changes when the file is replaced."""
        try:
            status = (self.root / name).stat()
        except OSError:
            return "-"
        return f"{status.st_size}/{status.st_mtime_ns}"

    def where(self, name: str) -> str:
        """The file's path, for messages."""
        return str(self.root / name)

    def bytes(self, name: str) -> bytes:
        """A file's content."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise UnreadableImageError(self.where(name), error.strerror or str(error)) from error


class Zip:
    """Members of a zip archive; every process opens it for itself."""

    def __init__(self, path: Path):
        self.root = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {_member_name(item.filename): item for item in archive.infolist()}
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a complete zip archive: {error}") from error
        self._opened: _OpenedZip | None = None

    def __getstate__(self):
        return {"root": self.root, "_members": self._members}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._opened = None

    def listing(self) -> tuple[list[str], list[str]]:
        """All files and all folders, sorted, without hidden ones."""
        names = [n for n in self._members if not any(_is_hidden(p) for p in PurePosixPath(n).parts)]
        files = sorted(name for name in names if not name.endswith("/"))
        folders = {name.rstrip("/") for name in names if name.endswith("/")}
        folders.update(str(p) for name in files for p in PurePosixPath(name).parents if p.name)
        return files, sorted(folders)

    def size(self, name: str) -> int:
        """Bytes of a member, −1 where it is missing."""
        return self._members[name].file_size if name in self._members else -1

    def stamp(self, name: str) -> str:
        """What changes when the member is replaced."""
        if name not in self._members:
            return "-"
        return f"{self._members[name].file_size}/{self._members[name].CRC}"

    def where(self, name: str) -> str:
        """The member's path, for messages."""
        return f"{self.root}/{name}"

    def bytes(self, name: str) -> bytes:
        """A member's content."""
        if name not in self._members:
            raise UnreadableImageError(self.where(name), "No such file in the archive")
        try:
            opened = self._opened
            # A handle inherited through fork shares its file position with the parent.
            if opened is None or opened.process != os.getpid():
                opened = self._opened = _OpenedZip(self.root)
            return opened.read(self._members[name])
        except Exception as error:  # of each compression its own, and of a member with a password
            raise UnreadableImageError(self.where(name), str(error) or repr(error)) from error


class _OpenedZip:
    """A process's handle of an archive, for all its threads: each directory takes much memory."""

    def __init__(self, path: Path):
        self.process = os.getpid()
        self._archive = zipfile.ZipFile(path)
        self._lock = threading.Lock()

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """A member's content, read and unpacked beside other threads'."""
        with self._lock:
            file = self._archive.open(member)
        try:
            return file.read()
        finally:
            with self._lock:
                file.close()


def posix_name(name: str) -> str:
    """A file's name as a table or an archive has it, written as this library writes it."""
    return str(PurePosixPath(name.strip().replace("\\", "/")))


def _member_name(name: str) -> str:
    """A zip member's name, which some programs begin with ``./`` or write with backslashes."""
    name = name.replace("\\", "/")
    return str(PurePosixPath(name.lstrip("/"))) + "/" * name.endswith("/")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def open_files(path: str | os.PathLike, argument: str) -> Folder | Zip:
    """Open a folder or zip archive."""
    if not os.fspath(path):  # a path made of it would be the current folder
        raise ValueError(f"`{argument}` is empty; a folder or a .zip is expected.")
    path = Path(path)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return Zip(path)
    if path.is_file():
        raise ValueError(f"`{argument}` must be a folder or a .zip, got the file {path}.")
    raise ValueError(f"`{argument}`: there is no {path}; a folder or a .zip is expected.")


def read_text(path: str | os.PathLike, argument: str) -> str:
    """Read a text file, which may lie in a zip archive (``faces.zip/index.csv``)."""
    path = Path(path)
    try:
        if path.is_file():
            return path.read_bytes().decode("utf-8-sig")
        for parent in path.parents:
            if parent.is_file() and zipfile.is_zipfile(parent):
                member = path.relative_to(parent).as_posix()
                return Zip(parent).bytes(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    raise ValueError(f"`{argument}`: there is no file {path}.")


def read_table(
    path: str | os.PathLike, argument: str
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Read a comma-separated table with a header, which may lie in a zip archive.

    Returns:
        Its columns, and its rows, each with the line that it ends in.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, argument), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: {error}.") from error
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"{path} has two columns of one name: {some(twice)}.")
    return columns, _rows(reader, path)


def _rows(reader: csv.DictReader, path: str | os.PathLike) -> Iterator[tuple[int, dict[str, str]]]:
    end = reader.line_num
    try:
        for row in reader:
            end = reader.line_num
            yield end, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {end + 1}: {error}; is a quotation mark not closed?"
        ) from error


def archive_of(path: Path) -> Path:
    """The folder or the zip archive that a text file lies in."""
    if not path.exists():
        for parent in path.parents:
            if parent.is_file():
                return parent
    return path.parent


def empty_folder(folder: str | os.PathLike) -> Path:
    """Make a folder to write to; one that holds something is refused."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in folder.iterdir())
    if present:
        raise ValueError(f"The folder {folder} must be new or empty; it holds {some(present)}.")
    return folder


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write .npz beside the file, then replace it in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files nobody else may read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def composed(name: str) -> str:
    """A name with each accented letter as one character, where macOS stores letter and accent."""
    return unicodedata.normalize("NFC", name)


def some(names: Sequence[Any], limit: int = 5) -> str:
    """The first few of a list, for messages."""
    text = ", ".join(str(name) for name in names[:limit])
    return text + (f", … ({len(names)} in all)" if len(names) > limit else "")
