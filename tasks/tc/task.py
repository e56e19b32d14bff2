"""tc: R8 newswires into 8 topics with one LSTM layer, after jiangqy/LSTM-Classification-Pytorch@d4e5440.

Legend: B batch, T tokens of a document, E embedding, H LSTM units, C classes, N documents.
"""

from functools import partial

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tmbench.errors import ConfigError
from tmbench.task import Figures, Table
from tmbench.training.mup import built

from ..classification import Classifier
from .r8 import LABELS, R8, Document


def vocabulary(train: list[Document], test: list[Document], kind: str) -> dict[str, int]:
    """Word -> index, by first occurrence.

    `train`: words of the training documents, after <pad> (0) and <unk> (1). `train_test`: the source's, words of
    both splits and its <eos> after the first document; its padding, index 0, is thus a real word too.
    """
    words = {"<pad>": 0, "<unk>": 1} if kind == "train" else {}
    for _, text in train if kind == "train" else train + test:
        for word in text if kind == "train" else [*text, "<eos>"]:
            words.setdefault(word, len(words))
    return words


class LSTMClassifier(nn.Module):
    """Embedding, one LSTM layer, a linear layer on the output at the last position (padding included)."""

    def __init__(
        self, num_words: int, embedding: int, num_classes: int, width: int, readout: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding)
        self.lstm = nn.LSTM(embedding, width, batch_first=True)
        self.head = readout(width, num_classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of shape (B, C)."""
        outputs_BTH, _ = self.lstm(self.embedding(tokens_BT))
        return self.head(outputs_BTH[:, -1])


class TC(Classifier):
    data: R8

    def __init__(self, cfg: DictConfig, data: R8) -> None:
        super().__init__(cfg, data)
        self.documents = {"train": data.read("train", cfg.variant)}
        test = self.read("test") if cfg.vocabulary == "train_test" else []
        self.words = vocabulary(self.documents["train"], test, cfg.vocabulary)
        self.model: LSTMClassifier = built(cfg, partial(LSTMClassifier, len(self.words), cfg.embedding, len(LABELS)))
        self.set_classes(LABELS)

    def tables(self) -> list[Table]:
        return [Table(self.model.embedding)]

    def read(self, split: str) -> list[Document]:
        """The split's documents, read when they are first wanted."""
        if split not in self.documents:
            self.documents[split] = self.data.read(split, self.cfg.variant)
        return self.documents[split]

    def hold_out(self, held_out_N: np.ndarray) -> None:
        if self.cfg.vocabulary != "train":
            raise ConfigError("validation: task.vocabulary=train_test reads the test documents; use train")
        super().hold_out(held_out_N)

    def examples(self, split: str) -> TensorDataset:
        """Tokens (N, T), right-padded with 0, and labels (N,)."""
        documents = self.read(split)
        unknown = self.words.get("<unk>", 0)
        tokens_NT = torch.zeros(len(documents), self.cfg.tokens, dtype=torch.long)
        for n, (_, text) in enumerate(documents):
            ids = [self.words.get(word, unknown) for word in text[: self.cfg.tokens]]
            tokens_NT[n, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return TensorDataset(tokens_NT, torch.tensor([label for label, _ in documents]))

    def pictures(self) -> Figures:
        return self.confusion_figure("test documents by topic", (7, 6))
