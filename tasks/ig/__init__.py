"""Image generation."""

from .. import lazily

__getattr__ = lazily(__name__, "IG")
