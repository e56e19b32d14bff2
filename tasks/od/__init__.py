"""Object detection."""

from .. import lazily

__getattr__ = lazily(__name__, "OD")
