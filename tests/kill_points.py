"""Kills a run before each of its file operations in turn: `kill_points.py FOLDER PATTERN WORD... [--after WORD...]`.

Each run is a fork of this process. It dies by SIGKILL before its n-th operation that changes a file or a name that the
pattern fits, for n = 1, 2, ...; then the same words ask for it again, in FOLDER/n. FOLDER/whole is never stopped. With
--after, another run is there before, which shares its first epochs.
"""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from tmbench.config.compose import composed
from tmbench.run import run

CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")
REQUESTS = ((2, 2), (3, 2))  # (epoch, differences) of the states that a run publishes for others
torch.set_num_threads(1)
Figure.savefig = lambda *args, **kwargs: None  # type: ignore[method-assign]  # half of the time of such small runs


def die_before(number: int, pattern: str) -> None:
    """Ends this process before the n-th change of a path that the pattern fits."""
    left = number

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and any(re.search(pattern, str(path)) for path in arguments[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def ask(folder: Path, words: list[str], number: int = 0, pattern: str = "") -> int:
    """Asks for a run in a fork, and kills it before its n-th change; returns the exit status (negative: a signal)."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        cfg = OmegaConf.create(composed([*words, f"runs_dir={folder}"]))
        if number:
            die_before(number, pattern)
        run(cfg, requests=REQUESTS)
        code = 0
    finally:
        os._exit(code)


def main(place: Path, pattern: str, words: list[str], after: list[str]) -> None:
    def fresh(name: str) -> Path:
        if after:
            shutil.copytree(place / "after", place / name)
        return place / name

    if after:
        assert ask(place / "after", after) == 0
    assert ask(fresh("whole"), words) == 0
    number = 1
    while (code := ask(fresh(str(number)), words, number, f"{place}/{number}/.*{pattern}")) != 0:
        assert code == -signal.SIGKILL, f"{number}: {code}"
        assert ask(place / str(number), words) == 0, f"{number}: the same words do not work after the kill"
        number += 1
    print(number - 1)


if __name__ == "__main__":
    words, _, after = " ".join(sys.argv[3:]).partition(" --after ")
    main(Path(sys.argv[1]), sys.argv[2], words.split(), after.split())
