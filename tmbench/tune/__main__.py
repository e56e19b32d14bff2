"""The command line: `python -m tmbench.tune`."""

import argparse
import shlex
import sys

from ..runs import show
from ..verbs import EXPECTED, explain, leave
from .study import Study, _optuna, table

PROGRAM = "python -m tmbench.tune"


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Gives every optimizer the same number of trials on a validation split, then confirms each choice "
        "with fresh seeds on the test split.",
        epilog="Example: python -m tmbench.tune task=tc optimizer=tmsgd,sgd trials=20 seeds=5. Its own settings are "
        "those of conf/tune.yaml: trials validation seeds sampler pruner name space; all others are a run's.",
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="Hydra overrides; optimizer=a,b,... compares")
    parser.add_argument("--config-dir", metavar="DIR", help="your own space/, task/ and optimizer/ files")
    asked = parser.parse_args(words)
    try:
        _optuna()
        study = Study(asked.words, asked.config_dir, f"{PROGRAM} {shlex.join(words)}")
        study.run()
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    console = show.console()
    table(study.result(), console)
    console.print(f"files      {study.folder}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    leave(main())
