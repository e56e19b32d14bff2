"""The one table of settings: what each key of a configuration is, and what it is to the result of a run."""

NUMBERS = "changes the numbers"  # of a run, but neither the method nor the problem: the seed
METHOD = "of the method"
PROBLEM = "of the problem"
BOOKKEEPING = "bookkeeping"  # changes no number

KINDS = {
    "seed": NUMBERS, "epochs": PROBLEM, "batch_size": PROBLEM, "validation": PROBLEM, "task": PROBLEM, "data": PROBLEM,
    "trainer": PROBLEM, "optimizer": METHOD, "lr": METHOD, "schedule": METHOD, "clip_norm": METHOD,
    "clip_value": METHOD, "ema": METHOD, "switch_epoch": METHOD,
}  # fmt: skip


def kind_of(key: str) -> str:
    """What a setting is to the result: one of the four above.

    Args:
        key: dotted, such as `optimizer.momentum`. A key that nothing is declared for is of its group's kind.
    """
    return KINDS.get(key.partition(".")[0], BOOKKEEPING)
