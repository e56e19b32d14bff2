"""Click-through rate."""

from .. import lazily

__getattr__ = lazily(__name__, "CTR")
