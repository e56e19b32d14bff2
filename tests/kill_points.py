"""Ends a run before each of its file operations in turn: `kill_points.py FOLDER PATTERN WORD... [--after WORD...]`.

A run that is never stopped, FOLDER/whole, copies its runs_dir before its n-th operation that changes a file or a name
that the pattern fits: what SIGKILL would leave there. From each copy the same words ask for the run again, in a fork of
this process and under the path of the first; then it is FOLDER/n. With --after, another run is there before, which
shares its first epochs.
"""

import os
import re
import subprocess
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


def copy_before_changes(runs: Path, pattern: str) -> None:
    """Copies a folder to 1, 2, ... beside it before each change of a path in it that the pattern fits."""
    done, copying = 0, False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done, copying
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if copying or not (event in CHANGES or writes):
            return
        if any(re.search(f"{runs}/.*{pattern}", str(path)) for path in arguments[:2]):
            copying, done = True, done + 1
            subprocess.run(["cp", "-a", runs, runs.with_name(str(done))], check=True)  # with its hard links
            copying = False

    sys.addaudithook(watch)


def ask(runs: Path, words: list[str], pattern: str | None = None) -> None:
    """Asks for a run in a fork, which leaves copies if there is a pattern."""
    cfg = OmegaConf.create(composed([*words, f"runs_dir={runs}"]))
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0, "the run failed"
        return
    code = 70
    try:
        if pattern is not None:
            copy_before_changes(runs, pattern)
        run(cfg, requests=REQUESTS)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(place: Path, pattern: str, words: list[str], after: list[str]) -> None:
    runs = place / "runs"
    run(OmegaConf.create(composed([*words, f"runs_dir={place / 'warm'}"])))  # imports what a run needs
    if after:
        ask(runs, after)
    ask(runs, words, pattern)
    runs.rename(place / "whole")
    number = 1
    while (copy := place / str(number)).exists():
        copy.rename(runs)
        print("before operation", number, file=sys.stderr)
        ask(runs, words)
        runs.rename(copy)
        number += 1
    print(number - 1)


if __name__ == "__main__":
    words, _, after = " ".join(sys.argv[3:]).partition(" --after ")
    main(Path(sys.argv[1]), sys.argv[2], words.split(), after.split())
