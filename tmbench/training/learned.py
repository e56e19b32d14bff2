"""The weights of the learned optimizer's network: in this package, or in a file of the same form."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import DataError
from ..files import land, naming, read, scratch_folder
from ..optim.learned import Learned, check_weights

OURS = Path(__file__).with_name("learned.safetensors")


def learned(params: Iterable[Tensor], weights: str | None, digest: str, **settings: Any) -> Learned:
    """The optimizer with the weights of a file.

    Args:
        weights: a .safetensors file; None: those of this package.
        digest: sha256 of the file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read, has another digest, or is not of the form.
    """
    return Learned(params, read_weights(OURS if weights is None else Path(weights), digest), **settings)


def read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """The network's weights, by the names and shapes of `tmbench.optim.learned.SHAPES`."""
    return read(path, partial(_parsed, digest))


def _parsed(digest: str, content: bytes) -> dict[str, Tensor]:
    if (got := hashlib.sha256(content).hexdigest()) != digest.lower():
        raise DataError(
            f"expected sha256 {digest}, got {got}\n  take the file that was meant, or give optimizer.digest={got}"
        )
    try:
        found: dict[str, Tensor] = load(content)
        check_weights(found)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type of numbers that torch has not
        raise DataError(f"expected the weights of a learned optimizer as safetensors: {error}") from None
    return found


def write_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes the weights, with what made them, by rename."""
    check_weights(weights)
    # As one entry: safetensors 0.8 writes several in an order that changes from call to call, and so does the digest.
    content = save({name: t.contiguous() for name, t in weights.items()}, {"made_by": json.dumps(about)})
    with naming(path), scratch_folder(path.parent) as scratch:
        Path(scratch, path.name).write_bytes(content)
        land(Path(scratch, path.name), path)
