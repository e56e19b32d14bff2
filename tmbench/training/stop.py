"""How a run is stopped by a signal."""

import signal
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Callback

from ..task import Stopped


class StopOnSignal(Callback):
    """SIGINT and SIGTERM ask the run to stop at the next look; a second SIGINT does not wait for it."""

    def __init__(self, until: int | None = None) -> None:
        self.asked, self.until = False, until
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.asked

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Here, not before: Lightning puts in its own SIGTERM handler when fit starts, which would end the process.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.asked = self.asked or trainer.current_epoch + 1 == self.until

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise Stopped
        self.asked = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
