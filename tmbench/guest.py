"""How a function works in somebody else's program: the process stays as it was, errors are what a caller expects."""

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from io import StringIO

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from . import signals
from .config.table import conf_dir
from .errors import ConfigError, DataError, RunError
from .sweeps.job import SWEEP
from .verbs import explain, is_expected

_only_one = threading.RLock()  # random generators, signals and Hydra's state are the process's


@contextmanager
def as_guest(progress: bool) -> Iterator[None]:
    """Works in somebody else's program: one call at a time, which leaves the process as it was.

    What a person can mend becomes a ConfigError, DataError or RunError of one message; a request to stop
    KeyboardInterrupt.
    """
    with _only_one, ExitStack() as stack:
        _check_torch()
        if not progress:
            stack.enter_context(redirect_stderr(StringIO()))
        for restore in _host_state():
            stack.callback(restore)
        stack.callback(signals.forget)
        try:
            with signals.raising():
                yield
                signals.check()  # a request that came when all was done: no next call is to begin
        except (Exception, KeyboardInterrupt) as error:
            if signals.is_interrupt(error):
                raise error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt from None
            if isinstance(error, (ConfigError, DataError, RunError)) or not is_expected(error):
                raise
            of_hydra = isinstance(error, HydraException)  # which may be an OSError as well
            raise (DataError if isinstance(error, OSError) and not of_hydra else ConfigError)(explain(error)) from None


def _check_torch() -> None:
    """Raises ConfigError for a setting of torch by the host that would change a run's numbers, or stop it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    wrong = {
        f"torch.set_default_dtype({torch.get_default_dtype()})": torch.get_default_dtype() != torch.float32,
        "torch.autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "torch.inference_mode": torch.is_inference_mode_enabled(),
        f"torch.set_default_device({torch.get_default_device()})": torch.get_default_device().type != "cpu",
        "torch.backends.mkldnn.enabled=False": not torch.backends.mkldnn.enabled,
    }
    if found := [name for name, is_set in wrong.items() if is_set]:
        raise ConfigError(
            f"{found[0]} is set in this program and would change the numbers; call tmbench where it is not set"
        )


@contextmanager
def our_hydra() -> Iterator[None]:
    """Hydra composes our conf/, and then the host's files again, if it is a program of Hydra's."""
    hosts, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = hosts


def _host_state() -> Iterator[Callable[[], object]]:
    """What brings back the host's random numbers, choice of kernels and variables, as they are now."""
    before = {name: os.environ.get(name) for name in (SWEEP, "OMP_NUM_THREADS")}
    yield lambda: [os.environ.pop(k, None) if v is None else os.environ.update({k: v}) for k, v in before.items()]
    state = random.getstate()
    yield lambda: random.setstate(state)
    if numpy := sys.modules.get("numpy"):
        of_numpy = numpy.random.get_state()
        yield lambda: numpy.random.set_state(of_numpy)
    if torch := sys.modules.get("torch"):
        here = torch.get_rng_state()
        on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        is_strict = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        yield lambda: torch.set_rng_state(here)
        yield lambda: torch.cuda.set_rng_state_all(on_gpus)
        yield lambda: torch.use_deterministic_algorithms(is_strict, warn_only=warns)
