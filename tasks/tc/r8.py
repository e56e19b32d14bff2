"""R8: 7,674 Reuters newswires in 8 topics, as `label<TAB>text` lines in train.txt and test.txt.

Source: yao8839836/text_gcn, commit 9622236, data/R8; the all-terms text, lower case.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset, entry, read_text
from tmbench.errors import DataError

# In the order of the source recipe's label ids (jiangqy/LSTM-Classification-Pytorch).
LABELS = ("earn", "acq", "trade", "ship", "grain", "crude", "interest", "money-fx")

SPLITS = ("train", "test")

Document = tuple[int, list[str]]  # label id, words


class R8(Dataset):
    folder = "r8"
    entry = entry("r8", "tc")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._documents: dict[tuple[str, str], list[Document]] = {}  # as read, by split and variant

    def files(self) -> Iterable[Path]:
        return [self.file(f"{split}.txt") for split in SPLITS]

    def counts(self) -> dict[str, int]:
        return {split: len(self.read(split)) for split in SPLITS}

    def prepare(self, out: Path, **settings: Any) -> None:
        """The stripped text in files of the same format, to look at; a run strips as it reads."""
        for split in SPLITS:
            lines = [f"{LABELS[label]}\t{' '.join(words)}" for label, words in self.read(split, "stripped")]
            (out / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")

    def read(self, split: str, variant: str = "clean") -> list[Document]:
        """The documents of `train` or `test`, in file order; read once, so that several tasks may share them.

        `variant="stripped"` deletes the label string wherever it occurs, inside words too, as the source
        recipe's preparation did: "earnings" becomes "ings".

        Raises:
            DataError: names the first line that is not `label<TAB>text`.
        """
        if known := self._documents.get((split, variant)):
            return known
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
        self._documents[split, variant] = documents
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
