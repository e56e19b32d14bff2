"""What several test files use."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from matplotlib.figure import Figure
from torch import nn

from tmbench.__main__ import main


def draw_nothing(*args: Any, **kwargs: Any) -> None:
    """In place of Figure.savefig, which takes half of the time of so small runs."""


def tmbench(*words: str, cwd: Path | str = ".") -> subprocess.CompletedProcess[str]:
    """What `tmbench WORDS` does, but in this process, which has torch already, and without figures."""
    out, err, status = StringIO(), StringIO(), None
    with (
        redirect_stdout(out), redirect_stderr(err), chdir(cwd), mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["tmbench", *words]), mock.patch.object(Figure, "savefig", draw_nothing),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def pairwise(**choices: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by a few cases among which any two values of two parameters occur together."""
    values = [list(each) for each in choices.values()]
    cases = list(itertools.product(*(range(len(each)) for each in values)))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    picked = [tuple(each[i] for each, i in zip(values, case, strict=True)) for case in chosen]
    return pytest.mark.parametrize(tuple(choices), picked)


def count(model: nn.Module) -> int:
    """How many numbers a model's parameters are."""
    return sum(p.numel() for p in model.parameters())
