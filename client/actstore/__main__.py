"""`python -m actstore` is the command `actstore`."""

import sys

from actstore._command import main

sys.exit(main())
