"""What the chores process runs: `dramatiq chatapi.chores --queues chores`. It needs no Gemini SDK, and loads none."""

from __future__ import annotations

import dramatiq

from chatapi.app import create_app
from chatapi.auth.delivery import DELIVER_OTP, deliver_otp
from chatapi.broker import CHORES_QUEUE, declare_actor, worker_broker
from chatapi.subscriptions.closures import CLOSE_CUSTOMER, end_customer
from chatapi.subscriptions.events import HANDLE_EVENT, handle_event
from chatapi.subscriptions.reconcile import RECONCILE, run_reconciliation

app = create_app()
broker = worker_broker(app)
declare_actor(broker, DELIVER_OTP, CHORES_QUEUE, deliver_otp)
declare_actor(broker, HANDLE_EVENT, CHORES_QUEUE, handle_event)
declare_actor(broker, CLOSE_CUSTOMER, CHORES_QUEUE, end_customer)
declare_actor(broker, RECONCILE, CHORES_QUEUE, run_reconciliation)
dramatiq.set_broker(broker)
