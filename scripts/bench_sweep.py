"""How much sharing trunks saves, and how fast known runs are recognized; all in one run, as ratios.

    python scripts/bench_sweep.py                           # tiny data
    python scripts/bench_sweep.py data=full data_dir=DIR    # the real R8 (some 20 minutes on 2 cores)

Does the same sweep twice, with shared trunks and without, in an unkind order (sgd first, late switches before early
ones), compares the results bit by bit, and counts the epochs trained against the least possible.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

POINTS, SEEDS, EPOCHS, KNOWN = range(10, 0, -1), (0, 1), 12, 1000


def sweep(folder: Path, *words: str) -> float:
    """Does a sweep; returns its seconds, start of the program included."""
    started = time.perf_counter()
    python("-m", "tmbench", "-m", *words, f"runs_dir={folder}")
    return time.perf_counter() - started


def python(*words: str) -> str:
    """The output of a Python process; ends with its errors if it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout


def content(folder: Path) -> tuple[Any, ...]:
    """What must not depend on who trained the trunk: metrics, curves but for the seconds, weights."""
    with (folder / "curves.csv").open() as f:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(f)]
    paths = [folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    return json.loads((folder / "result.json").read_text())["metrics"], rows, states


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def epochs(folder: Path) -> int:
    counts = [json.loads(path.read_text())["epochs"] for path in folder.glob("*/result.json")]
    return sum(count["trained"] - count["from_trunk"] for count in counts)


def recognize(folder: Path, words: list[str]) -> float:
    """Seconds for a sweep of a thousand runs that have all completed (copies of one result under their own names)."""
    done = next(folder.glob("*/result.json"))
    for name in python("-c", RUN_IDS, str(KNOWN), f"runs_dir={folder / 'known'}", *words).split():
        (folder / "known" / name).mkdir(parents=True)
        (folder / "known" / name / "result.json").write_text(done.read_text())
    return sweep(folder / "known", *words, f"seed=range({KNOWN})")


RUN_IDS = """
import sys
from hydra.utils import get_class
from omegaconf import OmegaConf
from tmbench.config.compose import composed
from tmbench.config.identity import run_id
from tmbench.config.settle import settled
from tmbench.data import open_dataset
cfg = composed(sys.argv[2:])
digest = open_dataset(OmegaConf.create(settled(cfg)), get_class(settled(cfg)["task"]["data"]))[2]
for seed in range(int(sys.argv[1])):
    print(run_id(settled(cfg | {"seed": seed}), digest))
"""


def main() -> None:
    data = sys.argv[1:]
    points, seeds = ",".join(map(str, POINTS)), ",".join(map(str, SEEDS))
    words = ["task=tc", "optimizer=sgd,tmsgd", f"switch_epoch={points}", f"seed={seeds}", f"epochs={EPOCHS}", *data]
    with tempfile.TemporaryDirectory() as scratch:
        shared, alone = Path(scratch) / "shared", Path(scratch) / "alone"
        seconds = {"shared": sweep(shared, *words), "alone": sweep(alone, *words, "trunk=off")}
        again = sweep(shared, *words)
        runs = sorted(path.parent.name for path in alone.glob("*/result.json"))
        unequal = [name for name in runs if not same(content(shared / name), content(alone / name))]
        least = len(SEEDS) * (EPOCHS + sum(EPOCHS - point for point in POINTS))
        print(f"tc on {' '.join(data) or 'tiny data'}: {len(runs)} runs of {EPOCHS} epochs; {torch.__version__}, CPU")
        print(f"results    {len(runs) - len(unequal)} of {len(runs)} bitwise equal with trunk=off")
        print(f"epochs     {epochs(shared)} trained (the least possible: {least}), {epochs(alone)} with trunk=off")
        ratio = seconds["shared"] / seconds["alone"]
        print(f"wall time  {seconds['shared']:.0f} s, {seconds['alone']:.0f} s with trunk=off: ratio {ratio:.2f}")
        print(f"           {again:.1f} s once all are known")
        if not data:
            known = recognize(shared, ["task=tc", "optimizer=tmsgd", "epochs=5"])
            print(f"known      {KNOWN} completed runs are recognized and listed in {known:.1f} s")
        if unequal or epochs(shared) != least:
            sys.exit(f"not as it should be: {unequal}")


if __name__ == "__main__":
    main()
