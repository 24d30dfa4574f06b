"""The gRPC service: answers stored questions from the bucket, and forwards live questions to the workers.

It is stateless: all data is in the bucket, so any number of replicas can run side by side.
"""

import os

# Before Arrow is loaded. Arrow's usual pool keeps pages for each thread that ever used it; see memory.py.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
