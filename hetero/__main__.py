"""`python -m hetero`: the same as the `hetero` command."""

import sys

from hetero.cli.main import main

sys.exit(main())
