"""Optimizers of the Taylor multi-step family; this package imports torch and itself alone."""

from .multistep import MultistepSGD
from .rescaled import RescaledSGD
from .stability import stability
from .switch import SwitchOptimizer
from .tmsgd import TMSGD, multistep_update

__all__ = ["TMSGD", "MultistepSGD", "RescaledSGD", "SwitchOptimizer", "multistep_update", "stability"]
