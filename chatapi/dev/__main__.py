"""`python -m chatapi.dev`: the whole system with one command."""

import signal
import sys

# The imports below take a moment in which a wanted stop must not end in a traceback either.
for _signal in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_signal, lambda *_: sys.exit(0))

from chatapi.dev.run import main  # noqa: E402 - see above

sys.exit(main())
