"""Text classification."""

from .. import lazily

__getattr__ = lazily(__name__, "TC")
