"""Runs the checks on an optimizer."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from . import CHECKS, Finding, Outcome, effects, paths
from .descent import Candidate, Descent, NewOptimizer, problem, summary_of

FUNCTIONS: dict[str, Callable[[Candidate], Outcome]] = {
    "quadratic": effects.lowers_a_quadratic,
    "reference": paths.agrees_with_a_reference,
    "paths": paths.agrees_with_its_other_paths,
    "repeats": paths.repeats,
    "saving": paths.survives_saving,
    "order": paths.ignores_the_order,
    "number": paths.ignores_the_number,
    "gradients": effects.leaves_gradients,
    "none": effects.skips_none_gradients,
    "zero": effects.rests_on_zero_gradients,
    "float16": partial(effects.works_in, torch.float16),
    "bfloat16": partial(effects.works_in, torch.bfloat16),
    "lr": effects.takes_a_changed_lr,
    "group": effects.updates_an_added_group,
    "closure": effects.returns_the_closures_loss,
    "modes": paths.switches_modes,
}


def findings(
    new: NewOptimizer, reference: NewOptimizer | None, devices: Sequence[str] | None, checks: Sequence[str]
) -> list[Finding]:
    """See certify."""
    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            return [
                finding
                for device in devices
                for finding in _on_device(Candidate(new, device, reference=reference), checks)
            ]
    finally:
        torch.set_num_threads(threads)


def _on_device(candidate: Candidate, checks: Sequence[str]) -> list[Finding]:
    name, device = "takes a step", candidate.device
    errors: list[Exception] = []
    for closure, graph in ((False, False), (True, False), (False, True), (True, True)):
        candidate = replace(candidate, closure=closure, graph=graph)
        try:
            Descent(candidate, problem(5)).go(2)
        except Exception as error:
            errors.append(error)
            continue
        how = ["step(closure)" if closure else "step()"] + ["gradients that can be differentiated"] * graph
        first = Finding(name, "holds", f"by {' with '.join(how)}", device)
        return [first, *(_checked(candidate, key) for key in checks)]
    because = f"step() raises {summary_of(errors[0])}; with a closure {summary_of(errors[1])}"
    skipped = (Finding(CHECKS[key], "not applicable", "it takes no step", device) for key in checks)
    return [Finding(name, "does not", because, device), *skipped]


def _checked(candidate: Candidate, key: str) -> Finding:
    try:
        return Finding(CHECKS[key], *FUNCTIONS[key](candidate), candidate.device)
    except Exception as error:
        return Finding(CHECKS[key], "does not", f"raised {summary_of(error)}", candidate.device)
