"""`python -m train` with the toy models known."""

import sys

import tests.train.toys  # noqa: F401  registers them
from train.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
