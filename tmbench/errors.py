"""What a person can mend: shown as one message, without a traceback."""


class ConfigError(ValueError):
    """A setting is not what it must be; the message names the key, the expected and the given value."""


class DataError(ValueError):
    """A data file is missing or broken; the message names the file (and line) and what to do."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why, or which of its processes failed, and how."""


class UsageError(ConfigError):
    """The words of a command line make no command; the message names the word and what is possible."""
