"""What the chores process runs: `python -m chatapi.consume chatapi.chores --queues chores`.

It needs no Gemini SDK, and loads none.
"""

from __future__ import annotations

import dramatiq

from chatapi import metrics
from chatapi.app import create_app
from chatapi.auth.delivery import DELIVER_OTP, deliver_otp
from chatapi.broker import CHORES_QUEUE, declare_actor, worker_broker

app = create_app()
broker = worker_broker(app)
declare_actor(broker, DELIVER_OTP, CHORES_QUEUE, deliver_otp)
dramatiq.set_broker(broker)
metrics.started("chores")
