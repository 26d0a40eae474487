"""`python -m ditto_jax` is `ditto-jax`. The only module of this package that knows the command line."""

from __future__ import annotations

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
