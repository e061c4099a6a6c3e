"""`python -m chatapi.dev`: the whole system with one command."""

import signal
import sys

# The imports below take a moment. A stop that is wanted meanwhile waits until the runner can see to it: raised as an
# exception in the middle of an import it could end in a traceback, or in nothing at all.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

from chatapi.dev.run import main  # noqa: E402 - see above

sys.exit(main())
