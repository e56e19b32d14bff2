"""R8: 7,674 Reuters newswires in 8 topics, as `label<TAB>text` lines in train.txt and test.txt.

Source: yao8839836/text_gcn, commit 9622236, data/R8; the all-terms text, lower case.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tmbench.data import Dataset, missing, read_text
from tmbench.errors import DataError

URL = "https://raw.githubusercontent.com/yao8839836/text_gcn/962223652e9bb164ac2d83cd09fc7b8845ce860b/data/R8"
SHA256 = {
    "train.txt": "3ed60c905aaa95b96c3fc4afb6d14ad2e20106c59c5b9dda950dcb3075eecfbe",
    "test.txt": "2ba368c42e6808bc3dc68b8f7879eb07a2810ed137f0b304e2213b689677e561",
}
# In the order of the source recipe's label ids (jiangqy/LSTM-Classification-Pytorch).
LABELS = ("earn", "acq", "trade", "ship", "grain", "crude", "interest", "money-fx")

Document = tuple[int, list[str]]  # label id, words


class R8(Dataset):
    folder = "r8"

    def files(self) -> Iterable[Path]:
        for name in SHA256:
            if not (self.root / name).is_file():
                raise missing(self.root / name, "tc", f"put the file of {URL}/{name} there (sha256 {SHA256[name]})")
            yield self.root / name

    def is_official(self, digests: dict[str, str]) -> bool:
        return digests == SHA256

    def download(self) -> None:
        import torch

        for name, digest in SHA256.items():
            path = self.root / name
            if path.exists():
                continue
            print(f"downloading {URL}/{name}")
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(f"{URL}/{name}", str(path), hash_prefix=digest)
            except (OSError, RuntimeError) as error:
                raise missing(path, "tc", f"the download failed: {error}", f"put {URL}/{name} there") from None

    def read(self, split: str, variant: str = "clean") -> list[Document]:
        """The documents of `train` or `test`, in file order.

        `variant="stripped"` deletes the label string wherever it occurs, inside words too, as the source
        recipe's preparation did: "earnings" becomes "ings".

        Raises:
            DataError: names the first line that is not `label<TAB>text`.
        """
        path = self.root / f"{split}.txt"
        documents = []
        for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
            label, tab, text = line.partition("\t")
            if not tab:
                raise DataError(f"{path}, line {number}: expected label<TAB>text, got {line[:60]!r}")
            if label not in LABELS:
                raise DataError(f"{path}, line {number}: expected a label of {', '.join(LABELS)}, got {label[:60]!r}")
            if variant == "stripped":
                text = text.replace(label, "")
            documents.append((LABELS.index(label), text.split()))
        return documents

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        common = [f"word{i}" for i in range(80)]
        topics = {label: [label, *(f"{label.replace('-', '')}{i}" for i in range(9))] for label in LABELS}
        for split, count in (("train", 320), ("test", 160)):
            lines = []
            for i in range(count):
                label = LABELS[i % len(LABELS)]
                length = int(rng.integers(12, 48))
                on_topic = rng.random(length) < 0.5
                words = [str(rng.choice(topics[label] if topical else common)) for topical in on_topic]
                lines.append(f"{label}\t{' '.join(words)}")
            order = rng.permutation(count)
            (root / f"{split}.txt").write_text("\n".join(lines[i] for i in order), encoding="utf-8")
