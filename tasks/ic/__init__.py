"""Image classification."""

from .. import lazily

__getattr__ = lazily(__name__, "IC")
