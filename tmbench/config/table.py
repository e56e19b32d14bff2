"""The one table of settings: what each key of a configuration must be, what it does, and what it is to the result.

The keys of every run are declared here. Those of a single task, optimizer, schedule, logger or launcher are declared
in its YAML; declared.py reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from .values import Setting

NUMBERS = "changes the numbers"  # of a run, but neither the method nor the problem: the seed
METHOD = "of the method"
PROBLEM = "of the problem"
BOOKKEEPING = "bookkeeping"  # changes no number

GROUPS = ("task", "optimizer", "data", "protocol", "schedule", "trainer", "logger", "study")  # of a settled run
NEVER = "never"
PRECISIONS = ("32", "bf16-mixed")
PROFILES = ("tiny", "full")
OTHER_FILE = "choose another file, or write one of your own (--config-dir DIR)"


@dataclass(frozen=True, kw_only=True)
class Key(Setting):
    """One key of a configuration.

    Args:
        null: what null means, where it may be given.
        through: the keys by which alone it reaches the numbers; they are part of a run's identity, it is not.
        only_with: the key of the same group without which nothing reads this one.
        fixed: what to do in place of setting it, if no word may.
    """

    null: str = ""
    through: str = ""
    only_with: str = ""
    fixed: str = ""

    def is_identity(self, group: Mapping[str, Any]) -> bool:
        """Whether its value makes a run another one, beside these values of its group."""
        is_read = not self.only_with or bool(group.get(self.only_with))
        return self.kind != BOOKKEEPING and not self.through and is_read


def _name(kind: str) -> Key:
    return Key(expects="a word", help="the name of this file", kind=kind, fixed="say {group}={value}")


def _target(kind: str) -> dict[str, Key]:
    return {
        "_target_": Key(expects="a word", help="the class or function in Python", kind=kind, fixed=OTHER_FILE),
        "_partial_": Key(
            expects="true or false", help="the run gives it further arguments", kind=kind, fixed=OTHER_FILE
        ),
    }


def _of_task(help: str, expects: str = "settings", fixed: str = "") -> Key:
    return Key(expects=expects, help=help, kind=BOOKKEEPING, fixed=fixed)  # what they fill in is in the identity


_TASKS = "the task's own value under the protocol"
_TRAINERS = "the trainer's own value"
KINDS = {"task": PROBLEM, "optimizer": METHOD, "schedule": METHOD, "data": PROBLEM, "trainer": PROBLEM}
TABLE: dict[str, Key] = {
    "seed": Key(
        expects="a whole number >= 0", help="what all that is random follows from: first weights, batches, noise",
        kind=NUMBERS,
    ),
    "epochs": Key(expects="a whole number >= 1", help="passes over the training examples", kind=PROBLEM, null=_TASKS),
    "batch_size": Key(
        expects="a whole number >= 1", help="examples a step: of all devices and accumulation steps together",
        kind=PROBLEM, null=_TASKS,
    ),
    "lr": Key(expects="a number > 0", help="learning rate", kind=METHOD, null=_TASKS, through="optimizer"),
    "switch_epoch": Key(
        expects=f"a whole number >= 0, or {NEVER}", kind=METHOD, null=_TASKS,
        help="first epoch with TM; 0: TM from the first step, never: plain SGD throughout",
    ),
    "clip_norm": Key(
        expects="a number > 0, or null", help="largest norm of the whole gradient", kind=METHOD, null="no limit"
    ),
    "clip_value": Key(
        expects="a number > 0, or null", help="largest absolute value in the gradient", kind=METHOD, null="no limit"
    ),
    "ema": Key(
        expects="a number between 0 and 1, or null", kind=METHOD, null="none",
        help="decay of an exponential moving average of the weights, evaluated beside them",
    ),
    "validation": Key(
        expects="a number between 0 and 1, or null", kind=PROBLEM, null="none",
        help="share of the training examples that is held out and evaluated in place of the test split",
    ),
    "data_dir": Key(expects="a folder", help="where the real data sets are", kind=BOOKKEEPING),
    "runs_dir": Key(expects="a folder", help="where the runs go", kind=BOOKKEEPING),
    "force": Key(expects="true or false", help="repeat a run that has completed", kind=BOOKKEEPING),
    "plan": Key(
        expects="true or false", kind=BOOKKEEPING,
        help="only show a sweep's runs and their cost (of a measured epoch; one is trained if there is none)",
    ),
    "trunk": Key(
        expects="one of auto, off", kind=BOOKKEEPING,
        help="auto: runs that are the same before their switch share that part; off: each trains it itself",
    ),
    "trunk_gib": Key(
        expects="a number >= 0", kind=BOOKKEEPING,
        help="GiB that the shared states may take under runs_dir; the least recently used are removed first",
    ),
    "devices": Key(
        expects="a whole number >= 1, or -1, or null", help="GPUs, or processes on the CPU, of each machine; -1: all",
        kind=PROBLEM, null=_TRAINERS, through="trainer.devices",
    ),
    "num_nodes": Key(
        expects="a whole number >= 1, or null", help="machines", kind=PROBLEM, null=_TRAINERS,
        through="trainer.num_nodes",
    ),
    "precision": Key(
        expects=f"one of {', '.join(PRECISIONS)}, or null", help="of the computation", kind=PROBLEM, null=_TRAINERS,
        through="trainer.precision",
    ),
    "data.profile": _name(PROBLEM),
    "data.download": Key(
        expects="true or false", help="fetch what is missing, where that is allowed", kind=BOOKKEEPING
    ),
    "protocol.name": _name(BOOKKEEPING),  # the epochs, lr, batch size and switch that it fills in are in the identity
    "trainer.name": _name(BOOKKEEPING),
    "trainer.accelerator": Key(
        expects="one of auto, cpu, cuda", help="what trains; auto: a GPU where there is one, else the CPU", kind=PROBLEM
    ),
    "trainer.strategy": Key(
        expects="one of auto, ddp", help="auto: one process; ddp: one a device", kind=BOOKKEEPING
    ),
    "trainer.devices": Key(
        expects="a whole number >= 1, or -1", help="devices of each machine; -1: all", kind=PROBLEM,
        through="world_size",
    ),
    "trainer.num_nodes": Key(expects="a whole number >= 1", help="machines", kind=PROBLEM, through="world_size"),
    "trainer.precision": Key(expects=f"one of {', '.join(PRECISIONS)}", help="of the computation", kind=PROBLEM),
    "trainer.accumulate": Key(
        expects="a whole number >= 1", help="parts that each batch is split into, to save memory", kind=PROBLEM
    ),
    "trainer.num_workers": Key(
        expects="a whole number >= 0", help="processes that prepare images", kind=BOOKKEEPING,
        null="0 on the CPU and for tiny data, else up to 8",
    ),
    "study.name": _name(BOOKKEEPING),
    "study.arms": Key(expects="settings", help="the words of the runs that it adds to each run", kind=BOOKKEEPING),
    "schedule.name": _name(METHOD),
    **{f"schedule.{name}": key for name, key in _target(METHOD).items()},
    "logger.name": _name(BOOKKEEPING),
    **{f"logger.{name}": key for name, key in _target(BOOKKEEPING).items()},
    "launcher.name": _name(BOOKKEEPING),
    "optimizer.name": _name(METHOD),
    **{f"optimizer.{name}": key for name, key in _target(METHOD).items()},
    "optimizer.switch_step": Key(
        expects="anything, or null", help="switch_epoch in steps; an optimizer with this key has a switch", kind=METHOD,
        null="the run fills it in", fixed="the run fills it in; say switch_epoch",
    ),
    "optimizer.trunk": Key(
        expects="settings", help="what it is before its switch; see identity.before_switch", kind=BOOKKEEPING,
        fixed=OTHER_FILE,
    ),
    "task.name": _name(PROBLEM),
    "task._target_": _target(PROBLEM)["_target_"],
    "task.data": Key(
        expects="anything", help="the class that reads the data, or several by name", kind=PROBLEM, fixed=OTHER_FILE
    ),
    "task.data_by": _of_task("the key that chooses one of several", "a word", OTHER_FILE),
    "task.choices": _of_task("the values that these keys may have"),
    "task.protocols": _of_task("epochs, lr, batch size and switch epoch under each protocol"),
    "task.full": _of_task("the values of null on the real data"),
    "task.tiny": _of_task("the values of null on tiny data"),
    "task.models": _of_task("what differs for a model"),
    "task.schedule": _of_task("what schedule=source makes of its null"),
}  # fmt: skip


def conf_dir() -> Path:
    """The folder of our YAML files: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def choices(group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def kind_of(key: str) -> str:
    """What a setting is to the result: one of the four kinds above.

    Args:
        key: dotted, such as `optimizer.momentum`. A key that nothing is declared for is of its group's kind.
    """
    group = key.partition(".")[0]
    return TABLE[key].kind if key in TABLE else KINDS.get(group, PROBLEM if key == "world_size" else BOOKKEEPING)


def settings_help() -> str:
    """The keys that stand in no group, for --help."""
    lines = []
    for key, setting in TABLE.items():
        if "." not in key:
            null = f"; null: {setting.null}" if setting.null else ""
            text = f"{setting.help} ({setting.expects}{null})"
            lines += wrap(text, 120, initial_indent=f"  {key:<14}", subsequent_indent=" " * 16)
    return "\n".join(lines)
