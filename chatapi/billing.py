"""What the billing process runs: `python -m chatapi.consume chatapi.billing --queues billing`.

It loads no Gemini SDK.
"""

from __future__ import annotations

import dramatiq

from chatapi import metrics
from chatapi.app import create_app
from chatapi.broker import BILLING_QUEUE, declare_actor, worker_broker
from chatapi.subscriptions.closures import CLOSE_CUSTOMER, end_customer
from chatapi.subscriptions.events import HANDLE_EVENT, handle_event
from chatapi.subscriptions.reconcile import RECONCILE, run_reconciliation

app = create_app()
broker = worker_broker(app)
declare_actor(broker, HANDLE_EVENT, BILLING_QUEUE, handle_event)
declare_actor(broker, CLOSE_CUSTOMER, BILLING_QUEUE, end_customer)
declare_actor(broker, RECONCILE, BILLING_QUEUE, run_reconciliation)
dramatiq.set_broker(broker)
metrics.started("billing")
