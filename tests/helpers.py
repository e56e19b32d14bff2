"""What several test files use."""

import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

from tmbench.__main__ import main


def draw_nothing(*args: Any, **kwargs: Any) -> None:
    """In place of Figure.savefig, which takes half of the time of so small runs."""


def tmbench(*words: str, cwd: Path | str = ".") -> subprocess.CompletedProcess[str]:
    """What `tmbench WORDS` does, but in this process, which has torch already, and without figures."""
    out, err, status = StringIO(), StringIO(), None
    with (
        redirect_stdout(out), redirect_stderr(err), chdir(cwd), mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["tmbench", *words]), mock.patch.object(Figure, "savefig", draw_nothing),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
