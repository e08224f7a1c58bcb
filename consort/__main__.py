"""`python -m consort`: the command line, where the `consort` script is not on the path."""

from __future__ import annotations

import sys

from consort.cli import main

if __name__ == "__main__":
    sys.exit(main())
