"""How gunicorn serves the yardstick: by the service's own settings, worker class and all."""

import runpy

globals().update(runpy.run_path("gunicorn.conf.py"))
del globals()["post_worker_init"]  # It closes what only the service has.
