"""How often a judgement is wrong, and how many seeds it spends: studies whose truth is known.

    python scripts/simulate_judge.py [studies=10000] [jobs=2] [out=docs/judge]

A study is a sequence of paired differences with standard deviation 1, looked at after every pair. Prints a table with
the target of each number, writes all numbers as JSON and draws the figures of docs/judge-method.md. Exits with 1 if a
target is missed. 10,000 studies take about 5 minutes on two free cores.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from tmbench.config.values import Setting
from tmbench.figures import save
from tmbench.judge.design import EARLY, SLOWNESS, Design
from tmbench.judge.sequential import first_rejections, looks
from tmbench.report.statistics import Values
from tmbench.report.variance import split
from tmbench.verbs import Values as Settings
from tmbench.verbs import Verb

ALPHA, CHUNK = 0.05, 50
Draw = Callable[[np.random.Generator, tuple[int, int]], Values]
TIED = 0.53  # rounded to whole numbers, two normal numbers with this standard deviation are the same in 49 %


def paired(member: Draw, sd: float) -> Draw:
    """Differences of two runs, each with the member's distribution: symmetric whatever this is."""
    return lambda rng, shape: (member(rng, shape) - member(rng, shape)) / sd


DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": paired(lambda rng, shape: rng.standard_t(3, shape), 6**0.5),
    "ties": paired(lambda rng, shape: np.round(rng.normal(0, TIED, shape)), 0.838),
    "skewed": lambda rng, shape: rng.exponential(1, shape) - 1,
}


@dataclass(frozen=True)
class Spending(Design):
    """Another way to spend the level: as a power of the share of seeds seen."""

    power: float = 1.0

    def spent(self) -> Values:
        return (np.arange(1, self.max_seeds + 1) / self.max_seeds) ** self.power


# ---- studies


def draw(kind: str, effect: float, seeds: int, chunk: int) -> Values:
    """Differences (studies x seeds); the same noise for all effects and designs."""
    rng = np.random.default_rng([chunk, [*DRAWS].index(kind)])
    return DRAWS[kind](rng, (CHUNK, seeds)) + effect


def judged(kind: str, effect: float, design: Design, chunk: int, level: float = ALPHA / 2, shift: float = 0) -> Values:
    """The looks (studies x 2) that show the mean above the shift, and below it; 0 for none."""
    return np.array([first_rejections(d, design, level, shift) for d in draw(kind, effect, design.max_seeds, chunk)])


def equated(kind: str, effect: float, design: Design, chunk: int) -> Values:
    """The looks (studies x 1) that show the mean within the margin; 0 for none."""
    assert design.margin is not None
    decided = np.zeros((CHUNK, 1))
    for place, d in enumerate(draw(kind, effect, design.max_seeds, chunk)):
        if below := first_rejections(d, design, ALPHA, design.margin)[1]:
            above = first_rejections(d, design, ALPHA, -design.margin)[0]
            decided[place] = max(above, below) if above else 0
    return decided


def of_three(design: Design, chunk: int) -> Values:
    """The looks (studies x 6) at which Holm's first step shows one of three equal methods to differ from a baseline."""
    rng = np.random.default_rng([chunk, 98])
    members = rng.normal(size=(CHUNK, 4, design.max_seeds))
    return np.array([
        [look for member in of[1:] for look in first_rejections(member - of[0], design, ALPHA / 2 / 3)]
        for of in members
    ])  # fmt: skip


def bet(kind: str, effect: float, design: Design, chunk: int) -> Values:
    """As judged, by betting: each pair multiplies the capital by exp(x) / cosh(x), x = c d / (root mean square so far).

    Under symmetry the expected factor is 1. The capital is shared out between five values of c.
    """
    d = draw(kind, effect, design.max_seeds, chunk)
    scale = np.sqrt(np.cumsum(d**2, 1) / np.arange(1, d.shape[1] + 1))[:, :-1]
    crossed = []
    for sign in (1, -1):
        x = [np.c_[np.zeros(len(d)), c * sign * d[:, 1:] / scale] for c in (0.1, 0.2, 0.4, 0.8, 1.6)]
        capital = np.exp(np.cumsum(x - np.logaddexp(x, np.negative(x)) + np.log(2), -1)).mean(0)
        is_rich = capital >= 2 / ALPHA
        crossed.append(np.where(is_rich.any(1), is_rich.argmax(1) + 1, 0))
    return np.transpose(crossed)


def fixed(kind: str, effect: float, design: Design, chunk: int) -> Values:
    """As judged, by Student's t-test of all seeds."""
    d = draw(kind, effect, design.max_seeds, chunk)
    t = d.mean(1) / d.std(1, ddof=1) * design.max_seeds**0.5
    is_sure = np.abs(t) > stats.t.ppf(1 - ALPHA / 2, design.max_seeds - 1)
    return np.transpose([is_sure & (t > 0), is_sure & (t < 0)]) * design.max_seeds


def peeked(kind: str, effect: float, design: Design, chunk: int) -> Values:
    """The looks (studies x 1) at which an ordinary t-test, made after every seed from the third, is first below 5 %."""
    d, n = draw(kind, effect, design.max_seeds, chunk), np.arange(1, design.max_seeds + 1)
    means = d.cumsum(1) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        t = means / np.sqrt((np.cumsum(d**2, 1) - n * means**2) / (n - 1) / n)
        is_sure = (np.abs(t) > stats.t.ppf(1 - ALPHA / 2, n - 1)) & (n > 2)
    return np.where(is_sure.any(1), is_sure.argmax(1) + 1, 0)[:, None]


def bounded(kind: str, effect: float, design: Design, chunk: int) -> Values:
    """Whether the printed confidence sequence (studies x 1) covers the mean at all looks: 0 if so, else 1."""
    last = [looks(d, design)[-1] for d in draw(kind, effect, design.max_seeds, chunk)]
    return np.array([[not look.low <= effect <= look.high] for look in last], int)


def varied(of: str, chunk: int) -> Values:
    """Whether the intervals (studies x 2: of the training, of both) miss the truth; see report.variance."""
    rng = np.random.default_rng([chunk, 99])
    return np.array([_numbers(rng) if of == "numbers" else _answers(rng) for _ in range(CHUNK)], int)


def _numbers(rng: np.random.Generator, seeds: int = 8, examples: int = 400) -> list[bool]:
    of_examples = rng.normal(0, 0.3, examples)
    d = rng.normal(0, 0.02, (seeds, 1)) + of_examples + rng.normal(0, 0.5, (seeds, examples))
    return _misses(d, of_examples.mean())


def _answers(rng: np.random.Generator, seeds: int = 8, examples: int = 400) -> list[bool]:
    """Of right (1) and wrong (0) answers; each example is easy or hard for both, and suits one method better."""
    ease = rng.normal(1, 1, examples) + rng.normal(0, 0.5, (2, examples))
    skill = rng.normal(0, 0.05, (2, seeds))
    is_right = ease[:, None] + skill[..., None] + rng.normal(size=(2, seeds, examples)) > 0
    share = stats.norm.cdf(ease / np.sqrt(1 + 0.05**2)).mean(1)
    return _misses(is_right[0].astype(float) - is_right[1], share[0] - share[1])


def _misses(d: Values, on_these_examples: float) -> list[bool]:
    found = split(d, ALPHA)
    intervals = ((found.of_training, on_these_examples), (found.of_both, 0.0))
    return [not low <= truth <= high for (low, high), truth in intervals]


# ---- what is asked of them


class Numbers:
    """Runs studies, prints what comes of them, and keeps it."""

    def __init__(self, studies: int, jobs: int) -> None:
        self.studies, self.pool = studies, ProcessPoolExecutor(jobs)
        self.found: dict[str, float] = {}
        self.missed = 0

    def run(self, study: Callable[[int], Values], studies: int | None = None) -> Values:
        chunks = range(-(-(studies or self.studies) // CHUNK))
        return np.concatenate([*self.pool.map(study, chunks)])

    def say(self, name: str, value: float, least: float = -np.inf, most: float = np.inf) -> None:
        target = f"at least {least:g}" if np.isfinite(least) else f"at most {most:g}" if np.isfinite(most) else ""
        is_missed = not least <= value <= most
        self.missed += is_missed
        self.found[name] = round(float(value), 5)
        print(f"| {name} | {value:.4g} | {target}{' MISSED' if is_missed else ''} |", flush=True)


def share(first: Values) -> float:
    """Of the studies, those that any look decides."""
    return float((first > 0).any(1).mean())


def spent(first: Values, design: Design) -> float:
    decided = np.where(first > 0, first, design.max_seeds)
    return float(decided.min(1).mean())


def of_errors(numbers: Numbers) -> dict[str, list[float]]:
    """False verdicts; returns of each kind the share that is wrong up to each look."""
    design, curves = Design(64), {}
    for kind in DRAWS:
        first = numbers.run(partial(judged, kind, 0.0, design))
        most = np.inf if kind == "skewed" else 0.054
        numbers.say(f"false better or worse, 64 looks, {kind}", share(first), most=most)
        curves[kind] = _by_look(first, 64)
        covers = 1 - share(first)
        numbers.say(f"confidence sequence covers, 64 looks, {kind}", covers, -np.inf if kind == "skewed" else 0.946)
    first = numbers.run(partial(peeked, "normal", 0.0, design))
    numbers.say("false better or worse, 64 looks, t-test after every seed, normal", share(first))
    curves["t-test after every seed"] = _by_look(first, 64)
    first = numbers.run(partial(of_three, Design(34, comparisons=3)), numbers.studies // 5)
    numbers.say("any of three false, one baseline, 34 looks, Holm, normal", share(first))
    for kind in ("normal", "heavy tails", "ties"):
        first = numbers.run(partial(equated, kind, 1.0, Design(64, 1.0)))
        numbers.say(f"false equivalent, 64 looks, true difference = margin = 1 sd, {kind}", share(first), most=0.054)
        missing = share(numbers.run(partial(bounded, kind, 0.0, Design(34)), numbers.studies // 50))
        numbers.say(f"printed confidence sequence covers, 34 looks, {kind}", 1 - missing)
    return curves


def _by_look(first: Values, looks: int) -> list[float]:
    look = np.where((first > 0).any(1), np.where(first > 0, first, looks + 1).min(1), looks + 1)
    return [round(float((look <= n).mean()), 5) for n in range(1, looks + 1)]


def of_seeds(numbers: Numbers) -> dict[str, dict[str, list[float]]]:
    """Power and mean seeds; returns both by effect, for each max_seeds."""
    targets = {(34, 1.0): (0.0, 14.0), (34, 0.5): (0.75, 26.0)}
    curves = {}
    for most in (34, 64):
        design = Design(most)
        powers, means, effects = [], [], [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
        for effect in effects:
            is_asked = effect == 0.5 or (most, effect) in targets
            first = numbers.run(partial(judged, "normal", effect, design), None if is_asked else numbers.studies // 10)
            powers.append(round(float((first[:, 0] > 0).mean()), 5))
            means.append(round(spent(first, design), 3))
            if is_asked:
                without = float((numbers.run(partial(fixed, "normal", effect, design))[:, 0] > 0).mean())
                power, seeds = targets.get((most, effect), (without - 0.04, np.inf))
                numbers.say(f"power, {most} seeds at most, {effect:g} sd", powers[-1], power)
                numbers.say(f"power of the t-test of {most} seeds, {effect:g} sd", without)
                numbers.say(f"mean seeds, {most} at most, {effect:g} sd", means[-1], most=seeds)
        curves[str(most)] = {"effect": effects, "power": powers, "seeds": means}
    first = numbers.run(partial(equated, "normal", 0.0, Design(34, 0.75)), numbers.studies // 10)
    numbers.say("equivalent, 34 seeds at most, no difference, margin 0.75 sd", share(first))
    numbers.say("mean seeds of these studies", spent(first, Design(34)))
    return curves


def of_candidates(numbers: Numbers) -> dict[str, list[float]]:
    """Of each way to test, with 34 seeds at most: mean seeds at 1 and at 0.5 sd, and power at 0.5 sd."""
    candidates: dict[str, tuple[Any, Design]] = {
        "chosen": (judged, Design(34)),
        "level spent evenly": (judged, Spending(34)),
        "level spent as t^2": (judged, Spending(34, power=2)),
        "level spent as t^3": (judged, Spending(34, power=3)),
        "betting": (bet, Design(34)),
        "t-test of all 34": (fixed, Design(34)),
    }
    found = {}
    for name, (test, design) in candidates.items():
        one, half = (numbers.run(partial(test, "normal", e, design), numbers.studies // 5) for e in (1.0, 0.5))
        found[name] = [spent(one, design), spent(half, design), float((half[:, 0] > 0).mean())]
        for what, value in zip(
            ("mean seeds at 1 sd", "mean seeds at 0.5 sd", "power at 0.5 sd"), found[name], strict=True
        ):
            numbers.say(f"{name}: {what}", value)
    return found


def of_variance(numbers: Numbers) -> None:
    for kind in ("numbers", "answers"):
        misses = numbers.run(partial(varied, kind), numbers.studies // 2).mean(0)
        for name, value in zip(("the training", "the training and the test sample"), 1 - misses, strict=True):
            numbers.say(f"interval of {name} covers, {kind}", value, 0.93, 0.97)


# ---- figures


def drawn(curves: dict[str, list[float]], seeds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    errors, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for kind, shares in curves.items():
        style = "k:" if kind.startswith("t-test") else "--" if kind == "skewed" else "-"
        label = f"{kind} (not exchangeable)" if kind == "skewed" else kind
        ax.plot(range(1, len(shares) + 1), 100 * np.array(shares), style, label=label)
    ax.axhline(100 * ALPHA, color="grey", linewidth=1)
    ax.set(
        xlabel="seeds seen", ylabel="% of studies called\nbetter or worse", ylim=(0, 16), xlim=(1, 64),
        title="Studies whose mean difference is 0",
    )  # fmt: skip
    ax.legend(frameon=False, ncols=2)
    spending, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for color, (most, of) in zip(("C0", "C1"), seeds.items(), strict=True):
        left.plot(of["effect"], 100 * np.array(of["power"]), f"{color}o", label=f"max_seeds={most}")
        at = np.linspace(0, 1.5, 61)
        n, t = int(most), stats.t.ppf(1 - ALPHA / 2, int(most) - 1)
        left.plot(at, 100 * stats.nct.sf(t, n - 1, at * n**0.5), f"{color}:", label=f"t-test of {most}")
        right.plot(of["effect"], of["seeds"], f"{color}o-", label=f"max_seeds={most}")
        right.axhline(n, color=color, linestyle=":", label=f"t-test of {most}")
    left.set(xlabel="true difference in standard deviations", ylabel="% called better", title="Power")
    right.set(xlabel="true difference in standard deviations", ylabel="seeds", title="Mean seeds spent", ylim=(0, None))
    left.legend(frameon=False)
    return {"errors": errors, "seeds": spending}


def simulate(values: Settings, _: list[str]) -> int:
    plt.switch_backend("Agg")
    out = Path(values["out"])
    out.mkdir(parents=True, exist_ok=True)
    numbers = Numbers(values["studies"], values["jobs"])
    print("| | found | target |\n|---|---:|---|")
    with numbers.pool:
        seeds, candidates, errors = of_seeds(numbers), of_candidates(numbers), of_errors(numbers)
        of_variance(numbers)
    facts = {"studies": values["studies"], "early": EARLY, "slowness": SLOWNESS, "found": numbers.found}
    facts |= {"errors": errors, "seeds": seeds, "candidates": candidates}
    (out / "simulation.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, figure in drawn(errors, seeds).items():
        save(figure, out / f"{name}.png")
    return int(numbers.missed > 0)


main = Verb(
    "simulate_judge", "Says how often a judgement is wrong, and how many seeds it spends.", simulate,
    {
        "studies": Setting("a whole number > 0", "of each kind, where a target is set", 10000),
        "jobs": Setting("a whole number > 0", "processes", 2),
        "out": Setting("a folder", "where simulation.json and the figures go", "docs/judge"),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
