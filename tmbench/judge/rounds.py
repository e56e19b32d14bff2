"""A judgement, from its plan to its result: rounds of paired runs, with a look at them after each."""

import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.settle import Settings
from ..config.table import conf_dir
from ..errors import ConfigError, DataError, RunError, count
from ..files import clear_scratch, locked, read_sealed, write_sealed
from ..question import check_question
from ..result import Result
from .ledger import Ledger
from .plan import Contender, Plan, check_margin, metric_of

if TYPE_CHECKING:
    from .evidence import Evidence  # which needs scipy: a judgement that is known does without

RESULT = "result.json"
FAILED_IN_A_ROW = 2  # runs of a method, after which a judgement ends


def judge(plan: Plan) -> Settings:
    """Does what is left to do of a judgement; returns the content of its result.json.

    Raises:
        ConfigError: the folder holds another judgement, or this one can decide nothing.
        DataError: what the folder holds is damaged.
        RunError: runs of a method fail one after another.
    """
    with locked(plan.folder):
        clear_scratch(plan.folder)
        again = "give the same settings as before, or say name=... for a new judgement"
        check_question(plan.folder / "question.json", plan.question, "judgement", again)
        if (known := _known(plan)) is not None:
            return known
        from .evidence import Evidence

        evidence = Evidence(plan)
        evidence.metric = metric_of(plan, _any_results(plan))
        _check(evidence)
        ledger = Ledger.begun(plan)
        _do_rounds(evidence)
        from .judgement import content_of
        from .page import write_page

        content, report = content_of(evidence, ledger)
        write_sealed(plan.folder / RESULT, content)
        ledger.end(content)
        write_page(plan, content, report)
    return content


def _known(plan: Plan) -> Settings | None:
    """The result of an earlier command, if its runs are still those that it rests on and its page is there."""
    path = plan.folder / RESULT
    if not (path.exists() and (plan.page_folder / "judge.html").exists()):
        return None
    try:
        content: Settings = read_sealed(path)
    except DataError as error:
        print(f"{error}; it is made anew", file=sys.stderr)
        return None
    if content["failed"]:
        return None  # they are tried again
    by_name = {contender.name: contender for contender in plan.contenders}
    for run in content["runs"]:
        result = by_name[run["method"]].result(run["seed"])
        if result is None or run != run_facts(by_name[run["method"]], run["seed"], result):
            return None
    return content


def run_facts(contender: Contender, seed: int, result: Result) -> Settings:
    """What a judgement keeps of a run."""
    return {
        "method": contender.name, "seed": seed, "run": result.run_id, "status": result.status, "score": result.score,
        "device_seconds": result.own_seconds * contender.processes, "command": result.command,
    }  # fmt: skip


def _any_results(plan: Plan) -> list[Result]:
    first = (contender.result(plan.seeds[0]) for contender in plan.contenders)
    return [result for result in first if result]


def _check(evidence: "Evidence") -> None:
    """Raises ConfigError for a margin or a number of seeds that can never say better or worse."""
    if evidence.metric:
        check_margin(evidence.plan.settings["margin"], evidence.metric.name)
    design = evidence.design()
    if (least := replace(design, margin=None).least_seeds()) > design.max_seeds:
        raise ConfigError(
            f"max_seeds: expected at least {least}, since fewer pairs can never say better or worse with "
            f"alpha={design.alpha:g} and {count(design.comparisons, 'method')}, got {design.max_seeds}"
        )


# ---- rounds


def _do_rounds(evidence: "Evidence") -> None:
    """Takes seeds until every method is decided, or none is left."""
    plan = evidence.plan
    done, least, at_once = 0, evidence.design().least_seeds(), 0
    while evidence.undecided and done < len(plan.seeds):
        contenders = [plan.baseline, *evidence.undecided]
        if not all(contender.result(plan.seeds[done]) for contender in contenders):
            at_once = at_once or _at_once(plan)
            slots = max(contender.cfg["replicas"] for contender in contenders)  # a stack that lacks seeds wastes them
            count = slots * max(math.ceil((least - done) / slots), at_once // len(contenders), 1)
        else:
            count = 1  # it is known, so it costs nothing to look
        seeds = plan.seeds[done : done + count]
        _do_round(evidence, contenders, seeds)
        done += len(seeds)
        if evidence.metric is None:  # only a run could tell
            evidence.metric = metric_of(plan, evidence.results[plan.baseline.name].values())
            _check(evidence)
        if done >= least:
            evidence.look()
            _tell(evidence, done)


def _do_round(evidence: "Evidence", contenders: list[Contender], seeds: range) -> None:
    """Does the runs of these seeds that are not done yet."""
    due = [(contender, seed) for seed in seeds for contender in contenders if not contender.result(seed)]
    if due:
        try:
            failed = _trained(evidence.plan, due)
        except KeyboardInterrupt:
            asked = range(evidence.plan.seeds[0], seeds[-1] + 1)
            done = sum(all(contender.result(seed) for contender in contenders) for seed in asked)
            told = f"{done} of at most {len(evidence.plan.seeds)} seeds are done"
            raise KeyboardInterrupt(f"{told}, and each whole epoch of the others is saved") from None
        for contender, seed, message in failed:
            evidence.failed[contender.name][seed] = message
        for contender, seed in due:
            if not contender.result(seed) and seed not in evidence.failed[contender.name]:
                slots, name = contender.cfg["replicas"], contender.name
                raise RunError(
                    f"{name}: expected a run with seed {seed} and replicas={slots}, which is not there; if the lines "
                    f"above say that its runs cannot be stacked, say {name}.replicas=1"
                )
    for contender in contenders:
        evidence.seeds[contender.name] += len(seeds)
        evidence.results[contender.name] |= {seed: result for seed in seeds if (result := contender.result(seed))}
        _check_failures(contender.name, evidence.failed[contender.name], seeds)


def _check_failures(name: str, failed: dict[int, str], seeds: range) -> None:
    """Raises RunError where the last runs of a method have all failed: more of them would, too."""
    if failed and all(seed in failed for seed in range(seeds[-1] + 1 - FAILED_IN_A_ROW, seeds[-1] + 1)):
        message = next(reversed(failed.values()))
        raise RunError(
            f"{name}: its last {FAILED_IN_A_ROW} runs failed: {message}\n"
            "  correct the cause and give the same command again, which continues"
        )


def _trained(plan: Plan, due: list[tuple[Contender, int]]) -> list[tuple[Contender, int, str]]:
    """Does these runs as one sweep; returns those that failed, with their messages."""
    from hydra import compose, initialize_config_dir
    from rich.console import Console

    from ..sweeps.sweep import sweep

    jobs = [[*contender.words, f"seed={seed}"] for contender, seed in due]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [*plan.search, *jobs[0]], return_hydra_config=True)
        outcomes = sweep(jobs, config, Console(quiet=True))
    return [(*due[record.number], record.error) for record, _ in outcomes if record.error]


def _at_once(plan: Plan) -> int:
    """How many runs, or stacks of them, the launcher does at once."""
    if plan.baseline.raw["launcher"]["name"] == "serial":
        return 1
    from ..sweeps.launchers.base import launcher_of
    from ..sweeps.plan import Job

    trainer = plan.baseline.cfg["trainer"]
    launcher = launcher_of([Job(0, [], plan.baseline.raw)])
    return launcher.at_once(trainer["devices"] if trainer["accelerator"] == "cuda" else 0) if launcher else 1


def _tell(evidence: "Evidence", done: int) -> None:
    told = []
    for name, verdict in evidence.verdicts.items():
        looks = evidence.looks[name]
        p = f" (p = {min(looks[-1].p_better, looks[-1].p_worse):.2g})" if looks and verdict != "equivalent" else ""
        told.append(f"{name} {verdict}{p}")
    print(f"after {done} of at most {len(evidence.plan.seeds)} seeds: {', '.join(told)}", file=sys.stderr)
