"""The Taylor multi-step family, and optimizers that libraries lack; this package imports torch and itself alone."""

from .apollo import Apollo
from .clars import CLARS, example_norms
from .curvature import Curvature, top_curvature
from .eg import EG
from .exchange import average_over_ranks
from .formula import multistep_update
from .learned import Learned
from .lmo import LMO
from .madam import Madam
from .multiplicative import Multiplicative
from .multistep import MultistepSGD
from .rescaled import RescaledSGD
from .rows import LazyRows
from .stability import preconditioned_limit, stability
from .switch import SwitchOptimizer
from .tmsgd import TMSGD

__all__ = [
    "CLARS", "EG", "LMO", "TMSGD", "Apollo", "Curvature", "LazyRows", "Learned", "Madam", "Multiplicative",
    "MultistepSGD", "RescaledSGD", "SwitchOptimizer", "average_over_ranks", "example_norms", "multistep_update",
    "preconditioned_limit", "stability", "top_curvature",
]  # fmt: skip
