"""The command line: `tmbench tune`, or `python -m tmbench.tune`."""

import json

from ..config.settle import Settings
from ..verbs import Verb, leave
from .plan import SETTINGS, plan_of


def do(values: Settings, words: list[str]) -> int:
    """Does the study that the words ask for, and prints its result."""
    from ..runs.show import console
    from .study import study
    from .summary import show
    from .trials import load_optuna

    load_optuna()
    plan = plan_of(values, words)
    result = study(plan)
    if values["json"]:
        print(json.dumps(result, indent=2))
        return 0
    out = console()
    show(result, out)
    out.print(f"files      {plan.folder}", highlight=False, soft_wrap=True)
    return 0


main = Verb(
    "tune",
    "Gives every optimizer the same number of trials on a validation split, then confirms the best setting of each "
    "with fresh seeds on the test split. All other words are settings of the runs.",
    do, SETTINGS, "[KEY=VALUE ...]", "tmbench tune task=tc optimizer=tmsgd,sgd trials=20 seeds=5\n"
    "tmbench tune task=tc optimizer=tmsgd,sgd space=switch sampler=grid trials=9  the best of nine switch epochs",
)  # fmt: skip

if __name__ == "__main__":
    leave(main())
