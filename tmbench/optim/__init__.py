"""Optimizers of the Taylor multi-step family; this package imports torch and itself alone."""

from .exchange import average_over_ranks
from .formula import multistep_update
from .multistep import MultistepSGD
from .rescaled import RescaledSGD
from .rows import LazyRows
from .stability import stability
from .switch import SwitchOptimizer
from .tmsgd import TMSGD

__all__ = [
    "TMSGD", "LazyRows", "MultistepSGD", "RescaledSGD", "SwitchOptimizer", "average_over_ranks", "multistep_update",
    "stability",
]  # fmt: skip
