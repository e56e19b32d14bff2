"""The command line: `tmbench learn`, or `python -m tmbench.learn`."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..config.values import Setting
from ..errors import DataError, UsageError
from ..files import digest_of, folder_for, write
from ..progress import Lines
from ..verbs import JSON, Values, Verb, leave, out_dir

SAVE_EVERY = 100  # updates
SETTINGS = {
    "updates": Setting("a whole number >= 1", "updates of the network", 4000),
    "seed": Setting("a whole number >= 0", "of everything that is drawn", 0),
    "out": out_dir("./learned"),
    "json": JSON,
}


def do(values: Values, words: list[str]) -> int:
    """Trains the network, or goes on where an earlier command with the same settings ended."""
    if words:
        raise UsageError(f"learn takes key=value words alone, got {' '.join(words)}")
    import torch

    from .. import checkpoint
    from ..config.machine import git_commit
    from ..result import versions
    from ..training.learned import write_weights
    from .pes import MetaTraining, named

    out = folder_for("out", values["out"])
    asked = {key: values[key] for key in ("seed", "updates")}
    saved, weights = out / "learn.ckpt", out / "learned.safetensors"
    torch.set_num_threads(1)  # its tensors are small, and the result is the same on any machine of the kind
    training, curve = MetaTraining(**asked), list[tuple[int, str, float]]()
    if saved.exists():
        state = checkpoint.load(saved)
        if state["asked"] != asked:
            raise DataError(f"{saved}: is of {state['asked']}, not of {asked}\n  give another out=, or remove it")
        training.load(state["training"])
        curve = [tuple(row) for row in state["curve"]]
    lines = Lines()
    first = training.update
    while training.update < training.updates:
        curve.append((training.update + 1, *training.step()))
        lines.say(
            lambda: (
                f"update {training.update}/{training.updates}  loss over the first {_recent(curve):.3f}  "
                f"{lines.time_left(training.update - first, training.updates - first)}"
            )
        )
        if training.update % SAVE_EVERY == 0 or training.update == training.updates:
            state = {"asked": asked, "training": training.state(), "curve": [list(row) for row in curve]}
            checkpoint.save({"epoch": training.update, **state}, saved)
    write(out / "curve.csv", _table(curve))
    about = {
        "command": f"python -m tmbench.learn seed={values['seed']} updates={values['updates']}",
        "commit": git_commit() or "installed", "versions": json.dumps(versions()),
        "loss_over_first": f"{_recent(curve):.4f}",
    }  # fmt: skip
    write_weights(weights, named(training.theta.detach()), about)
    found: dict[str, Any] = {"weights": str(weights), "sha256": digest_of(weights), **about}
    if values["json"]:
        print(json.dumps(found, indent=2))
    else:
        print(f"weights    {weights}\nsha256     {found['sha256']}\ncurve      {out / 'curve.csv'}\n"
              f"use        tmbench task=tc optimizer=learned optimizer.weights={Path(weights)} "
              f"optimizer.digest={found['sha256']}")  # fmt: skip
    return 0


def _recent(curve: list[tuple[int, str, float]]) -> float:
    """The mean over the last 120 updates: ten of each training."""
    last = [loss for _, _, loss in curve[-120:]]
    return sum(last) / len(last)


def _table(curve: list[tuple[int, str, float]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["update", "problem", "loss over the first"])
    rows.writerows([update, kind, f"{loss:.5f}"] for update, kind, loss in curve)
    return text.getvalue()


main = Verb(
    "learn",
    "Trains the network of optimizer=learned by persistent evolution strategies, on small networks and tiny tasks.",
    do, SETTINGS, examples="tmbench learn seed=1 updates=500 out=mine    some minutes; the same command goes on",
)  # fmt: skip

if __name__ == "__main__":
    leave(main())
