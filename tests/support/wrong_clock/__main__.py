"""`python -m tests.support.wrong_clock SECONDS MODULE [ARGUMENT ...]`: run a module by a clock wrong by SECONDS.

So are the processes that it starts: Python imports `sitecustomize`, found beside this file, before anything else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

seconds, *rest = sys.argv[1:]
os.environ["WRONG_CLOCK_SECONDS"] = str(float(seconds))
paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)
os.execv(sys.executable, [sys.executable, "-m", *rest])  # noqa: S606
