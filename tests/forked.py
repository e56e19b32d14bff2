"""Commands in processes of their own, forked from one that has imported what they need.

The imports take longer than so small a run, and a signal at a random moment would hit them alone.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tmbench.training.train", "tmbench.sweeps.sweep", "tmbench.tune.__main__"])


def do(words: tuple[str, ...], output: str, cwd: Path, environment: dict[str, str]) -> None:
    """What `tmbench WORDS` does, with its output in a file; ends with its exit status."""
    with Path(output).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tmbench", *words]
    from tmbench.__main__ import main

    try:
        main()
    except SystemExit as leaving:  # at once, as a process of its own would: a signal may be about to come
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)


class Forked:
    """`tmbench WORDS`, started; to be used like subprocess.Popen, with stdout and stderr in one text."""

    def __init__(self, *words: str, cwd: Path | None = None) -> None:
        handle, self._output = tempfile.mkstemp()
        os.close(handle)
        arguments = (words, self._output, cwd or Path.cwd(), dict(os.environ))
        self._process = CONTEXT.Process(target=do, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("tmbench", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return Path(self._output).read_text(), None
