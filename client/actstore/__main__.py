"""`python -m actstore` is the command `actstore`."""

import sys

from actstore._cli.main import main

sys.exit(main())
