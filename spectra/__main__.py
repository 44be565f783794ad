"""`python -m spectra` is the `spectra` command."""

import sys

from spectra.cli import main

sys.exit(main())
