"""`python -m services.executor serve`."""

from __future__ import annotations

import sys

from services.executor.bootstrap import build
from services.executor.settings import ExecutorSettings
from services.kernel.command_line import main

if __name__ == "__main__":
    sys.exit(main("executor", ExecutorSettings, build))
