"""Facial key points."""

from .. import lazily

__getattr__ = lazily(__name__, "FKPD")
