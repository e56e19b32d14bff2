"""How a run is stopped by a signal."""

import signal
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Callback

from .module import Stopped


class StopOnSignal(Callback):
    """SIGINT and SIGTERM ask the run to stop at the next look; a second SIGINT does not wait for it."""

    def __init__(self, until: int | None = None) -> None:
        self.requested, self.until = False, until
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Here, not before: Lightning puts in its own SIGTERM handler when fit starts, which would end the process.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.requested = self.requested or trainer.current_epoch + 1 == self.until

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise Stopped
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
