"""What the worker process runs: `python -m chatapi.consume chatapi.worker --queues replies titles`."""

from __future__ import annotations

import dramatiq

from chatapi import metrics
from chatapi.app import create_app
from chatapi.broker import worker_broker
from chatapi.replies.actors import declare_actors

app = create_app()
broker = worker_broker(app)
declare_actors(app, broker)
dramatiq.set_broker(broker)
metrics.started("worker")
