"""How often a report gives a false verdict: studies whose truth is known go through the whole report, in memory.

    python scripts/simulate_report.py [studies=2000] [most=0.055] [seed=0]

A study is 2 to 4 methods on one problem whose score counts test examples (k of N, as float32), with seeds that are good
or bad for all, runs that diverge (each by itself, or all of a seed together, as runs of one trunk may), with a baseline
or without, and seeds that some methods lack. Half of the studies are of `equal` methods, where better and worse are
false; in the others, `apart`, all but the reference are a little more than the margin away, where equivalent, "by less
than the margin" and the wrong direction are false. All methods diverge equally often: what no seed has shown, no test
of these seeds can see. A study counts once, however many of its verdicts are false. Prints the shares, in all and by
what the studies differ in; exits with 1 if one of the two shares in all is larger than `most`.
"""

import copy
import sys
from typing import Any

import numpy as np

from tmbench.config.compose import composed
from tmbench.config.settle import Settings, settled
from tmbench.config.values import Setting
from tmbench.report.__main__ import main as report_command
from tmbench.report.answers import report
from tmbench.report.comparisons import Comparison
from tmbench.report.read import Record, read
from tmbench.result import Result, versions
from tmbench.verbs import Values, Verb

KEY, MARGIN, RATE = "test/accuracy", 0.005, 0.1
OPTIMIZERS = ("sgd", "sgd", "tmsgd", "adam", "sgdm")
CHOICES: dict[str, tuple[Any, ...]] = {
    "truth": ("equal", "apart"),
    "methods": (2, 3, 4),
    "seeds": (2, 3, 5, 6, 8, 10, 14, 20),
    "examples": (50, 200, 2189),
    "noise": (0.0, 0.002, 0.01),  # of a run, besides the rounding to whole examples
    "diverge": (0.0, 0.1, 0.3),  # the probability, of each run
    "together": (False, True),  # whether all methods diverge on the same seeds
    "missing": (0.0, 0.15),  # the probability, of each method and seed
    "baseline": (None, 0.1),
    "against": ("sgd", "all"),
    "test": ("permutation", "wilcoxon"),
}


def records(study: dict[str, Any], configs: dict[str, Settings], rng: np.random.Generator) -> list[Record]:
    """A study's runs; every method has a rate of its own."""
    chosen = ["sgd", *rng.choice(OPTIMIZERS, study["methods"] - 1)]
    center, good = rng.uniform(0.5, 0.95), rng.normal(0, 0.01, study["seeds"])
    # Where a diverged run has a value it narrows the gap, which is to be a little more than the margin all the same.
    study["gap"] = 1.02 * MARGIN / (1 - study["diverge"]) * (study["truth"] == "apart") * rng.choice((-1, 1))
    lost = rng.random((1 if study["together"] else len(chosen), study["seeds"])) < study["diverge"]
    found = []
    for place, optimizer in enumerate(chosen):
        config = copy.deepcopy(configs[optimizer]) | {"lr": RATE / (place + 1)}
        is_off = not is_reference(study, config)
        for seed in range(study["seeds"]):
            if rng.random() < study["missing"]:
                continue
            accuracy = center + good[seed] + rng.normal(0, study["noise"]) + is_off * study["gap"]
            # Rounded up or down at random, so that the mean stays what it is.
            count = np.clip(np.floor(accuracy * study["examples"] + rng.random()), 0, study["examples"])
            score = float(np.float32(count) / np.float32(study["examples"]))
            status = "diverged" if lost[place % len(lost), seed] else "completed"
            made = result(score, status, study, config)
            found.append(Record(f"{place}-{seed}", "", status, config | {"seed": seed}, made, ""))
    return found


def is_reference(study: dict[str, Any], config: Settings) -> bool:
    return config["optimizer"]["name"] == "sgd" if study["against"] == "sgd" else config["lr"] == RATE


def result(score: float, status: str, study: dict[str, Any], config: Settings) -> Result:
    return Result(
        "", status, "tc", config["optimizer"]["name"], 0, "full", "reconciled", *KEY.split("/"), True,
        {"last": {KEY: score}, "best": {KEY: score, "epoch": 1}}, 1.0, {"asked": 1, "trained": 1, "from_trunk": 0}, 1,
        1.0, 1, 1, {"requested": None, "effective": None, "step": None}, versions(), "", None, "", "",
        "2026-01-01T00:00:00Z", baseline={} if study["baseline"] is None else {KEY: study["baseline"]},
    )  # fmt: skip


def is_false(comparison: Comparison, gap: float) -> bool:
    """Whether a verdict is false if the true difference of the two methods is this, or 0."""
    verdict = comparison.verdict
    if gap:
        is_wrong_way = verdict.startswith("worse" if gap > 0 else "better")
        return is_wrong_way or verdict == "equivalent" or "less than the margin" in verdict
    return verdict.startswith(("better", "worse"))


def has_false_verdict(study: dict[str, Any], configs: dict[str, Settings], rng: np.random.Generator) -> bool:
    settings, _ = report_command.parse([f"against={study['against']}", f"test={study['test']}"])
    comparisons = report(read(records(study, configs, rng), "last", []), settings).comparisons
    pairs = [(c, is_reference(study, c.reference.config), is_reference(study, c.method.config)) for c in comparisons]
    return any(is_false(comparison, study["gap"] * (of_it - of_other)) for comparison, of_it, of_other in pairs)


def simulate(values: Values, _: list[str]) -> int:
    rng = np.random.default_rng(values["seed"])
    configs = {name: settled(composed(["task=tc", f"optimizer={name}", "data=full"])) for name in set(OPTIMIZERS)}
    outcomes: dict[tuple[str, Any], dict[str, list[bool]]] = {
        (key, choice): {truth: [] for truth in CHOICES["truth"]} for key in CHOICES for choice in CHOICES[key]
    }
    for number in range(2 * values["studies"]):
        study = {key: choices[rng.integers(len(choices))] for key, choices in CHOICES.items()}
        study["truth"] = CHOICES["truth"][number % 2]
        is_wrong = has_false_verdict(study, configs, rng)
        for key in CHOICES:
            outcomes[key, study[key]][study["truth"]].append(is_wrong)
    print(f"{'studies with a false verdict':30}{'equal':>16}{'apart':>16}")
    for (key, choice), by_truth in outcomes.items():
        if key != "truth":
            shares = [f"{np.mean(wrong):.2%} of {len(wrong)}" if wrong else "-" for wrong in by_truth.values()]
            print(f"{f'{key} {choice}':30}{shares[0]:>16}{shares[1]:>16}")
    shares_in_all = [float(np.mean(outcomes["truth", truth][truth])) for truth in CHOICES["truth"]]
    in_all = [f"{share:.2%} of {values['studies']}" for share in shares_in_all]
    print(f"{'all':30}{in_all[0]:>16}{in_all[1]:>16}")
    return int(max(shares_in_all) > values["most"])


main = Verb(
    "simulate_report", "Says how often a report gives a false verdict.", simulate,
    {
        "studies": Setting("a whole number > 0", "of each truth", 2000),
        "most": Setting("a number between 0 and 1", "the largest share of studies with a false verdict", 0.055),
        "seed": Setting("a whole number >= 0", "of the studies", 0),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
