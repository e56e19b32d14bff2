"""Files that may be missing, broken or hostile: their digests, and how they are read."""

import io
import os
import pickle
import pickletools
import re
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import digest_of, digest_of_text, read_sealed, write_sealed
from ..progress import progress

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_BYTES = 2**28  # of a text or a pickle, which are read into memory at once; the largest real one has 155 MB
MAX_PIXELS = 2**26  # of a picture; a small file can unpack to gigabytes


def folder_digest(digests: dict[str, str]) -> str:
    """One digest for many files: the sha256 over the lines `sha256  name`, sorted by name."""
    return digest_of_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))


def digests_of(root: Path, files: Iterable[Path], cache: Path | None = None) -> dict[str, str]:
    """The sha256 of each file by its name under root.

    With a cache, a file is read again only when its size or a time stamp has changed. What escapes it is a file
    rewritten at the same size with both stamps, also that of the inode, set back. A damaged cache is not believed.
    """
    known: dict[str, tuple[int, int, int, str]] = {}
    found: dict[str, Any] = {}
    try:
        known = read_sealed(cache, dict[str, tuple[int, int, int, str]]) if cache else {}
    except DataError as error:
        print(f"{error}; all files are read again", file=sys.stderr)
    except FileNotFoundError:
        pass
    for path in sorted(files):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        found[path.relative_to(root).as_posix()] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    unknown = {name: stamp[0] for name, stamp in found.items() if name not in known or known[name][:3] != stamp}
    with progress("reading the data", 0, sum(unknown.values())) as advance:
        for name, stamp in found.items():
            digest = digest_of(root / name) if name in unknown else known[name][3]
            advance(unknown.get(name, 0))
            # A file changed within the clock's grain could change once more unseen: its stamp is not trusted.
            settled = time.time_ns() - max(stamp[1:]) > 2_000_000_000
            found[name] = (*(stamp if settled else (-1, -1, -1)), digest)
    if cache and found != known:
        with suppress(OSError):  # nowhere to write: the next run reads the files again
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(cache, found)
    return {name: entry[3] for name, entry in found.items()}


def missing(path: Path, what: str, *advice: str) -> DataError:
    """The error for a file that is not there: where it should be, and what can be done."""
    return DataError("\n  ".join([f"{what}: no {path}", *advice, "or use data=tiny, which needs no download"]))


def read_bytes(path: Path) -> bytes:
    """A file's content; DataError names the file if it cannot be read or is too large to be what it should be."""
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > MAX_BYTES:
                raise DataError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
            return f.read(MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """A text file's content; DataError names the file if it cannot be read or is not UTF-8."""
    try:
        return read_bytes(path).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found a byte that is not at {error.start}") from None


def read_picture(path: Path, as_stored: bool = False) -> "Image.Image":
    """A JPEG or PNG as it looks on white, in mode RGB.

    Of 16 bits the upper 8 are kept. The pixels stay where the file has them, whatever orientation its EXIF data name:
    boxes, masks and key points are given in the file's pixels. Colour profiles are not applied.

    Args:
        as_stored: in the file's own mode instead, for masks, whose values are not colours.

    Raises:
        DataError: names the file that is neither, is broken or too large.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:  # closes the file; what is loaded stays
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels")
            picture.load()
            if picture.mode == "P" and picture.palette is None:
                raise ValueError("the colours of its palette are missing")
            if picture.format == "PNG" and "transparency" in picture.info and not as_stored:
                picture.info["transparency"] = _as_loaded(picture.info["transparency"], picture.mode, bits_of(path))
        return picture if as_stored else _on_white(picture)
    except (OSError, SyntaxError, ValueError, *bombs) as error:
        raise DataError(f"{path}: not a readable picture ({error})") from None


def bits_of(png: Path) -> int:
    """How many bits a value of a PNG has, of its header."""
    with png.open("rb") as file:
        return file.read(25)[24]


def _as_loaded(key: Any, mode: str, bits: int) -> Any:
    """The transparent value or colour of a PNG, which Pillow leaves as the file has it, among the values that it loads.

    Of grey with less than 8 bits it loads shades up to 255; of colours with 16 bits the upper 8, so that colours which
    differ in the lower 8 alone from the transparent one become transparent as well.
    """
    if mode in ("1", "L") and bits < 8:
        return key * 255 // (2**bits - 1)
    return tuple(value >> 8 for value in key) if mode == "RGB" and bits == 16 else key


def _on_white(picture: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image

    key = picture.info.get("transparency")  # of a PNG: one value or colour, or the alpha of each entry of the palette
    if picture.mode.startswith("I"):  # 16-bit grey, of which Pillow's convert would make white all that is above 255
        values = np.asarray(picture)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
        if key is not None:
            picture.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    coloured = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), coloured).convert("RGB")


class _DType:
    """Stands for numpy.dtype in a pickle that is not trusted: takes what it is told, does nothing."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = _word(name), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _word(state[1])


class _Array:
    """Stands for a numpy array there, until all is read and checked."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.shape, self.dtype, self.fortran, self.raw = state[1:5]

    def array(self) -> "np.ndarray":
        import numpy as np

        kind = self.dtype.order + self.dtype.name
        if not re.fullmatch("[<>|=][biuf][1248]", kind) or type(self.raw) is not bytes:
            raise ValueError(f"an array of numbers was expected, not of {kind}")
        flat = np.frombuffer(self.raw, kind)
        return flat.reshape(self.shape, order="F" if self.fortran else "C").copy()


def _from_buffer(buffer: Any, dtype: _DType, shape: Any, order: Any) -> _Array:
    """The stand-in for an array as protocol 5 has it."""
    array = _Array()
    raw = bytes(buffer) if isinstance(buffer, bytearray) else buffer  # of a number, bytes() would take all memory
    array.__setstate__((1, shape, dtype, _word(order) == "F", raw))
    return array


def _word(text: Any) -> str:
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


class _Restricted(pickle.Unpickler):
    """Builds numbers, words, lists, dicts and stand-ins for arrays; no name in the file leads to other code."""

    ALLOWED: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes in protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data set does not need")
        return self.ALLOWED[module, name]


def read_pickle(path: Path) -> dict[Any, Any]:
    """The dict in a pickle of plain values and arrays; Python 2's strings come as bytes, Python 3's as they are.

    DataError if it is not such a pickle, or wants to run code; nothing of it was run.
    """
    content = read_bytes(path)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            # The memo is an array as long as its largest index: a few bytes could ask for all memory.
            if "PUT" in opcode.name and int(argument or 0) > len(content):
                raise ValueError(f"{opcode.name} {argument} in a file of {len(content)} bytes")
        values = _Restricted(io.BytesIO(content), encoding="bytes").load()
        return {key: value.array() if isinstance(value, _Array) else value for key, value in values.items()}
    except Exception as error:  # a broken pickle raises nearly anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a pickle that can be trusted ({type(error).__name__}: {reason})") from None
