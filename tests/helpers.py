"""What several test files share."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from torch import nn


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
