"""The command line: `tmbench judge`, or `python -m tmbench.judge`."""

import json

from ..config.settle import Settings
from ..verbs import JSON, RUNS_DIR, Verb, leave, out_dir
from .plan import SETTINGS, plan_of

# Exit status by verdict; mixed: several methods with several verdicts.
STATUS = {"better": 0, "worse": 3, "equivalent": 4, "undecided": 5, "mixed": 6}


def do(values: Settings, words: list[str]) -> int:
    """Judges the methods that the words name, and prints the verdict; returns its status."""
    from .rounds import judge

    result = judge(plan_of(values, words))
    if values["json"]:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        from ..runs.show import console
        from .show import show

        show(result, console())
    return STATUS[result["verdict"]]


def do_table(values: Settings, words: list[str]) -> int:
    """Writes and prints the table of all judgements."""
    from .table import do_table

    return do_table(values, words)


table = Verb(
    "judge table",
    "One table for a paper of all judgements under runs_dir that have ended: a row a method, a column a task, the best "
    "mean in bold, and a mark for each verdict; as table.tex (booktabs) and table.csv.",
    do_table, {"runs_dir": RUNS_DIR, "out": out_dir("./judge"), "json": JSON},
)  # fmt: skip
main = Verb(
    "judge",
    "Says whether an optimizer is better than another, with as few seeds as an honest answer needs: it runs paired "
    "seeds until a sequential test decides, and then writes a page. All other words are settings of the runs; "
    "NAME.lr=0.1 is a setting of the method NAME alone. Ends with 0 better, 3 worse, 4 equivalent, 5 undecided, 6 "
    "mixed, 1 error, 2 no such words, 130 interrupted; the same command continues.",
    do, SETTINGS, "[KEY=VALUE ...]", "tmbench judge task=tc optimizer=adam against=sgd\n"
    "tmbench judge task=tc optimizer=tmsgd,adam against=sgd adam.lr=0.001 max_seeds=64 launcher=local\n"
    "tmbench judge task=tc optimizer=adam --json  one object for another program",
    {"table": table},
)  # fmt: skip

if __name__ == "__main__":
    leave(main())
