"""The stand-ins that the runner starts for providers that are not configured."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import config
from chatapi.dev.embedded import free_port
from chatapi.dev.logs import Logs
from chatapi.dev.processes import Child
from chatapi.dev.system import child_environment, get

STRIPE_KEY = "sk_test_stand_in"
STRIPE_PRICE_ID = "price_pro_monthly"


class StandIn(ABC):
    """A provider's stand-in, to be started on a port of its own."""

    name: str
    module: str
    health_path: str

    def __init__(self, environ: Mapping[str, str], data_dir: Path) -> None:
        self.environ = environ
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @staticmethod
    @abstractmethod
    def is_needed(environ: Mapping[str, str]) -> bool:
        """Return whether `environ` names neither an account of the provider nor another server in its place."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Return what the service must be told to use it."""

    def options(self, web_url: str) -> list[str]:  # noqa: ARG002 - not all of them call the service
        """Return what the stand-in itself must be told beside its port."""
        return []

    def child(self, environ: Mapping[str, str], logs: Logs, web_url: str) -> Child:
        """Return its process, not started. `environ` has the settings of all that is started."""
        command = [sys.executable, "-m", self.module, "--port", str(self.port), *self.options(web_url)]
        log = logs.shown(f"{self.name.lower()}-standin")
        return Child(f"{self.name}'s stand-in", command, env=child_environment(environ), log=log)

    def is_ready(self) -> bool:
        """Return whether it answers."""
        return get("127.0.0.1", self.port, self.health_path)[0] == 200


class GeminiStandIn(StandIn):
    """Answers prompts."""

    name = "Gemini"
    module = "chatapi.dev.gemini_standin"
    health_path = "/v1beta/models"

    @staticmethod
    def is_needed(environ: Mapping[str, str]) -> bool:
        """Return whether there is neither a key nor an endpoint."""
        return not environ.get("GEMINI_API_KEY") and not environ.get("GEMINI_API_ENDPOINT")

    def settings(self) -> dict[str, str]:
        """Return where it is; any key will do."""
        return {"GEMINI_API_ENDPOINT": self.url}


class StripeStandIn(StandIn):
    """Sells one price, and keeps its customers in the data folder as the service keeps its own."""

    name = "Stripe"
    module = "chatapi.dev.stripe.standin"
    health_path = "/_control/health"

    @staticmethod
    def is_needed(environ: Mapping[str, str]) -> bool:
        """Return whether there is neither a key nor a server in Stripe's place."""
        return not environ.get("STRIPE_SECRET_KEY") and not environ.get("STRIPE_API_BASE")

    def settings(self) -> dict[str, str]:
        """Return all that billing needs; without a front end, people come back to a page of the stand-in's own."""
        secret = config.development_secret(self.data_dir / "stripe_webhook_secret")
        return {
            "STRIPE_SECRET_KEY": STRIPE_KEY,
            "STRIPE_API_BASE": self.url,
            "STRIPE_PRICE_ID": STRIPE_PRICE_ID,
            "STRIPE_WEBHOOK_SECRET": f"whsec_{secret}",
            "FRONTEND_URL": self.environ.get("FRONTEND_URL") or f"{self.url}/frontend",
        }

    def options(self, web_url: str) -> list[str]:
        """Return where it keeps its state, what it sells, and where it delivers; the secret is in the environment."""
        state = str(self.data_dir / "stripe.json")
        return ["--state", state, "--price", STRIPE_PRICE_ID, "--webhook", f"{web_url}/webhook/stripe"]


def needed_stand_ins(environ: Mapping[str, str], data_dir: Path) -> list[StandIn]:
    """Return a stand-in for each provider that is not configured, not started."""
    return [kind(environ, data_dir) for kind in (GeminiStandIn, StripeStandIn) if kind.is_needed(environ)]
