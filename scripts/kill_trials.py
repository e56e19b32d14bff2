"""Do runs and sweeps that are killed at random moments end bitwise like those that never stopped?

Each trial asks for a run of tc or ctr, or for a sweep of tc whose runs share trunks, by the command line in a process
of its own, kills it by SIGKILL at a random moment between its start and its end, asks again, and so on; at last it lets
it end. Then weights, optimizer states, curves and metrics must be those of a run that was never stopped, best.ckpt must
be of the best epoch, every file must match its digest, and nothing may be left over. TMPDIR is on another file system.
All of them step their embedding by the rows that are read.

Usage: python scripts/kill_trials.py [--kills 100] [--seed 0] [--tmp /dev/shm]
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bench_sweep import same

import tmbench.__main__
import tmbench.training.train
from tmbench import checkpoint
from tmbench.result import Result
from tmbench.runs import Run

torch.set_num_threads(1)  # a fork has but one
TC = ["task=tc", "epochs=8", "batch_size=20", "lr=1"]  # 16 steps an epoch, the last 8 of which step the whole table
KINDS = {
    "run": [*TC, "optimizer=tmsgd", "switch_epoch=4"],
    "sweep": ["-m", *TC, "optimizer=sgd,tmsgd", "switch_epoch=5,2"],
    "ctr": ["task=ctr", "optimizer=tmsgdm", "epochs=6", "switch_epoch=3", "batch_size=100"],
}
MOST = 6  # kills of one trial


def start(folder: Path, kind: str, attempt: int) -> int:
    """The process id of the command in a fork of this process, which has imported everything."""
    if pid := os.fork():
        return pid
    os.chdir(folder)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    where = [f"runs_dir={folder / 'runs'}"] + ([f"hydra.sweep.dir={folder}/{attempt}"] if kind == "sweep" else [])
    sys.argv = ["tmbench", *KINDS[kind], *where]
    code = 70
    try:
        tmbench.__main__.main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit status of a process that ends within so many seconds (negative: its signal), else None."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def trial(folder: Path, kind: str, seconds: float, kills: int) -> tuple[int, list[str]]:
    """Asks for a run or sweep until it ends; returns how often it was killed, and what went wrong.

    It takes so many seconds if it is not killed, and may be killed so many times.
    """
    folder.mkdir()
    for killed in range(kills + 1):
        pid = start(folder, kind, killed)
        # Later attempts have less to do.
        code = ended(pid, random.uniform(0, seconds / (1 + killed)) if killed < kills else 600)
        if code is not None or killed == kills:
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return killed, [f"{kind}: exit status {code}: {(folder / 'log').read_text()[-500:]}"] if code else []


def content(folder: Path) -> dict[str, Any]:
    """All of a run that must not depend on whether it was stopped."""
    states = {name: checkpoint.load(folder / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt")}
    run = Run.open(folder)
    assert run.result
    rows = [{key: v for key, v in row.items() if key != "seconds"} for row in csv.DictReader(run.curves.splitlines())]
    return {
        "status": run.result.status, "metrics": run.result.metrics, "curves": rows, "settings": run.config,
        **{f"{name} {key}": state[key] for name, state in states.items()
           for key in ("epoch", "state_dict", "optimizer_states", "lr_schedulers", "average")},
    }  # fmt: skip


def differences(runs: Path, reference: Path) -> list[str]:
    """What is wrong with the runs in a folder, beside the same ones that were never stopped."""
    names = sorted(path.parent.name for path in reference.glob("*/result.json"))
    if names != sorted(path.parent.name for path in runs.glob("*/result.json")):
        return ["not the same runs"]
    wrong = []
    for name in names:
        own, whole = content(runs / name), content(reference / name)
        own["settings"]["runs_dir"] = whole["settings"]["runs_dir"]
        wrong += [f"{name}: another {key}" for key in whole if not same(own[key], whole[key])]
        result = Result.load(runs / name)
        if result and own["best.ckpt epoch"] + 1 != result.metrics["best"]["epoch"]:
            wrong.append(f"{name}: best.ckpt is not of the best epoch")
    for path in runs.rglob(".*"):
        if path.name != ".lock" and not (reference / path.relative_to(runs)).exists():
            wrong.append(f"{path.relative_to(runs)}: left over")
    kept = {str(path.relative_to(runs)) for name in names for path in (runs / name).rglob("*")}
    if kept != {str(path.relative_to(reference)) for name in names for path in (reference / name).rglob("*")}:
        wrong.append("not the same files")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="a folder on another file system")
    options = parser.parse_args()
    random.seed(options.seed)
    total, counts, wrong = 0, Counter[str](), []
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(dir=options.tmp) as elsewhere:
        print(f"runs on device {os.stat(scratch).st_dev}, TMPDIR on device {os.stat(elsewhere).st_dev}")
        os.environ["TMPDIR"] = tempfile.tempdir = elsewhere
        durations = {}
        for kind in KINDS:
            began = time.monotonic()
            _, problems = trial(Path(scratch) / kind, kind, 0, 0)
            durations[kind] = time.monotonic() - began
            if problems:
                print(*problems, sep="\n")
                return 1
        print("never stopped:", ", ".join(f"a {kind} takes {seconds:.1f} s" for kind, seconds in durations.items()))
        while total < options.kills and not wrong:
            kind = list(KINDS)[counts.total() % len(KINDS)]
            folder = Path(scratch) / f"trial-{counts.total()}"
            kills = min(random.randint(1, MOST), options.kills - total)
            killed, wrong = trial(folder, kind, durations[kind], kills)
            wrong = wrong or differences(folder / "runs", Path(scratch) / kind / "runs")
            wrong += [f"{path}: left over in TMPDIR" for path in Path(elsewhere).iterdir()]
            total, counts = total + killed, counts + Counter({kind: 1})
            print(f"{total:4d} kills; {kind} killed {killed} times: {wrong or 'the same'}", flush=True)
            shutil.rmtree(folder)
    told = ", ".join(f"{count} times {kind}" for kind, count in counts.items())
    print(f"{total} kills of {told}: {'WRONG' if wrong else 'all the same'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
