"""What the tasks that look at pictures share: published initial weights and their pixels, batches of unequal sizes."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from tmbench.errors import DataError
from tmbench.files import digest_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue in [0, 1]
RANDOM = "train from random weights with task.weights=none (and a larger lr)"


def weights_file(task: str, url: str, *others: str, instead: str = RANDOM) -> Path:
    """The file of published weights, in torch.hub's folder under its own or another name; downloaded if need be.

    A name ends with the first digits of the file's sha256, which are checked: torch does so after a download alone.

    Args:
        instead: what else a person may do, for the message.

    Raises:
        DataError: it is damaged, or it is not there and cannot be downloaded; says where to put it.
    """
    folder, name = Path(torch.hub.get_dir()) / "checkpoints", Path(urlparse(url).path).name
    prefix = Path(name).stem.rpartition("-")[2]
    for path in (folder / known for known in (name, *others)):
        if path.is_file():
            if not (digest := digest_of(path)).startswith(prefix):
                wrong = f"its sha256 begins with {digest[: len(prefix)]}, not {prefix}"
                raise DataError(f"{path}: not the published weights ({wrong}); remove it, to have it downloaded again")
            return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(folder / name), prefix, progress=False)
    except (OSError, RuntimeError) as error:  # no way there; or another file came
        raise DataError(
            f"{task}: no {folder / name}, and it could not be downloaded: {error}\n  put {url}\n  into {folder}\n"
            f"  or {instead}"
        ) from None
    return folder / name


def padded(pictures: Sequence[Tensor], value: float) -> Tensor:
    """One tensor of all pictures (..., H, W), padded with `value` at the right and below to the largest of them."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    batch = pictures[0].new_full((len(pictures), *pictures[0].shape[:-2], height, width), value)
    for into, picture in zip(batch, pictures, strict=True):
        into[..., : picture.shape[-2], : picture.shape[-1]] = picture
    return batch
