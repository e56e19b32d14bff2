"""tmbench: is this optimizer really better?"""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"

# A wheel carries conf/ and tasks/ inside this package; in a source checkout they lie beside it.
# Looking there too gives `tmbench.tasks` one import name in both, whatever else is called `tasks`.
_root = Path(__file__).parent.parent
if not (Path(__file__).parent / "tasks").is_dir() and (_root / "tasks").is_dir():
    __path__.append(str(_root))

# The first of our code that runs in `python -m tmbench...`, and in the script `tmbench`.
_words = [word for word in sys.orig_argv[1:3] if word != "-m"]
if _words and os.path.basename(_words[0]).split(".")[0] == "tmbench":
    from .signals import own

    own()
