"""Optimizers of the Taylor multi-step family; this package imports torch and itself alone."""

from .tmsgd import TMSGD, tm_update

__all__ = ["TMSGD", "tm_update"]
