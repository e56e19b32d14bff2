"""What can a person rely on in an optimizer? Short checks that certify any `torch.optim.Optimizer`.

From a test of one's own, with torch alone:

    from tmbench.certify import certify
    findings = certify(lambda params: MyOptimizer(params, lr=0.1))
    assert not [finding for finding in findings if finding.verdict == "does not"], findings

or `tmbench certify optimizer=adam`, for everything in conf/optimizer and for a person's own class. This module loads
torch only when it certifies.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .descent import NewOptimizer

Verdict = Literal["holds", "does not", "not applicable"]
Outcome = tuple[Verdict, str]  # with the detail

CHECKS = {
    "quadratic": "lowers a quadratic",
    "reference": "agrees with a reference",
    "paths": "for-loop, foreach and fused agree",
    "repeats": "repeats bitwise",
    "saving": "state_dict continues bitwise",
    "order": "order of tensors does not matter",
    "number": "number of tensors does not matter",
    "gradients": "leaves gradients as they were",
    "none": "None gradients are skipped",
    "zero": "zero gradients are harmless",
    "float16": "float16 parameters",
    "bfloat16": "bfloat16 parameters",
    "lr": "a changed lr takes effect",
    "group": "an added group is updated",
    "closure": "a closure's loss is returned",
    "modes": "train() and eval() leave no trace",
    "rows": "sparse rows = dense",
    "elementwise": "stacked = each by itself",
}


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    detail: str
    device: str = "cpu"


def certify(
    new_optimizer: "NewOptimizer",
    reference: "NewOptimizer | None" = None,
    devices: Sequence[str] | None = None,
    checks: Sequence[str] = tuple(CHECKS),
) -> list[Finding]:
    """One finding for each check and device, and first of all whether the optimizer takes a step.

    Args:
        new_optimizer: makes the optimizer from a list of parameters. If it is a `functools.partial` of the class, its
            foreach= and fused= are given to the constructor, else they are set in the parameter groups.
        reference: makes an optimizer that it must agree with; without it, a known formula where there is one.
        devices: the CPU, and CUDA if there is a GPU.
        checks: keys of CHECKS.

    A check that raises has failed, and stops no other. Threads, warnings and random state are left as they were.

    Raises:
        KeyError: there is no such check.
    """
    import torch

    from .checks import findings
    from .descent import Candidate

    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            candidates = [Candidate(new_optimizer, device, reference=reference) for device in devices]
            return [finding for candidate in candidates for finding in findings(candidate, checks)]
    finally:
        torch.set_num_threads(threads)
