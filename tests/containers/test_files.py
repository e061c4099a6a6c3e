"""That Dockerfile, compose file and manifests speak of the same processes and settings as the service itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from chatapi.dev.embedded import EmbeddedValkey, free_port
from chatapi.parsing import MAX_BODY_BYTES, MAX_WEBHOOK_BYTES
from config import ROOT, ConfigError, SettingsSchema, load_settings
from tests.support import wait_for

PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
K8S = ROOT / "deploy" / "k8s"
SWEEPER_SECONDS = 5


def grace_seconds(name: str) -> float:
    """Return what a process takes at the most to end, by what it is told."""
    if name == "web":
        found = re.search(r"^graceful_timeout = (\d+)$", (ROOT / "gunicorn.conf.py").read_text(), re.MULTILINE)
        assert found
        return float(found[1])
    found = re.search(r"--worker-shutdown-timeout (\d+)", PROCFILE[name])
    return int(found[1]) / 1000 if found else SWEEPER_SECONDS


NOT_THE_SERVICES = {"POSTGRES_PASSWORD", "HTTP_BIND", "CHATAPI_VERSION"}
"""What compose.yaml itself reads of .env."""


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(K8S.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def deployments() -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == "Deployment"}


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in manifests():
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def example_settings() -> dict[str, str]:
    lines = (ROOT / ".env.compose.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def test_every_process_has_a_service_and_a_deployment_with_time_to_end() -> None:
    assert set(PROCFILE) <= set(SERVICES)
    assert set(PROCFILE) == set(deployments())
    for name, line in PROCFILE.items():
        needed = grace_seconds(name)
        assert SERVICES[name]["command"] == [name]
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed
        pod = deployments()[name]["template"]["spec"]
        assert pod["containers"][0]["args"] == [name]
        assert pod["terminationGracePeriodSeconds"] > needed
        assert re.match(r"(\w+=\S+ )?exec ", line), "a shell would stay between"


def test_settings_named_are_settings_of_the_service() -> None:
    known = set(SettingsSchema().fields)
    (secret,) = (each for each in manifests() if each["kind"] == "Secret")
    (config_map,) = (each for each in manifests() if each["kind"] == "ConfigMap")

    assert set(example_settings()) - NOT_THE_SERVICES <= known
    assert set(SERVICES["web"]["environment"]) <= known
    assert set(secret["stringData"]) | set(config_map["data"]) <= known


def test_examples_are_refused_until_they_are_filled_in_and_then_taken() -> None:
    (secret,) = (each for each in manifests() if each["kind"] == "Secret")
    (config_map,) = (each for each in manifests() if each["kind"] == "ConfigMap")
    filled = {
        "JWT_SECRET": "only these tests know it, 0123456789",
        "GEMINI_API_KEY": "some-key",
        "OTP_WEBHOOK_URL": "https://sms-gateway.example/send",
        "OTP_WEBHOOK_SECRET": "only these tests know it",
    }
    compose = {**example_settings(), **SERVICES["web"]["environment"], "TRUSTED_PROXIES": "1"}
    compose["DATABASE_URL"] = "postgresql://chatapi:0a1b2c@postgres:5432/chatapi"
    # Of this machine and not of the image.
    del compose["PROMETHEUS_MULTIPROC_DIR"]
    for settings in (compose, {**secret["stringData"], **config_map["data"]}):
        with pytest.raises(ConfigError) as refused:
            load_settings(settings)
        assert {fault.split()[0] for fault in refused.value.faults} >= {"JWT_SECRET", "GEMINI_API_KEY"}
        assert load_settings({**settings, **filled})["TRUSTED_PROXIES"] == 1


def test_only_nginx_is_reached_from_outside_and_only_from_this_host_unless_told() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"nginx": ["${HTTP_BIND:-127.0.0.1:8080}:8080"]}
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name in ("postgres", "redis-queue", "redis-cache"):
        assert SERVICES[name]["networks"] == ["data"]
    assert {name for name, service in SERVICES.items() if "edge" in service["networks"]} == {"nginx", "web"}


def test_images_are_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert re.match(r"\d+\.\d+|\$\{CHATAPI_VERSION:-local\}", tag), name


def test_pods_have_no_rights_and_the_user_of_the_image() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    for name, pod in pod_specs():
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == tuple(
            int(number) for number in user.groups()
        )
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    for name in PROCFILE:
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert f"uid={user[1]},gid={user[2]}" in COMPOSE["volumes"]["metrics"]["driver_opts"]["o"]


def test_probes_ask_what_they_should() -> None:
    (container,) = deployments()["web"]["template"]["spec"]["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}

    assert asked == {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    (port,) = container["ports"]
    assert port["containerPort"] == SettingsSchema().fields["PORT"].load_default


def test_labels_that_select_pods_are_theirs() -> None:
    for name, spec in deployments().items():
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert spec["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == name
    for each in manifests():
        if each["kind"] in ("Service", "PodDisruptionBudget"):
            selector = each["spec"]["selector"]
            labels = selector.get("matchLabels", selector)
            assert labels == deployments()[each["metadata"]["name"]]["template"]["metadata"]["labels"]


def test_kustomization_has_every_manifest_but_the_example() -> None:
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())

    assert {*kustomization["resources"], "kustomization.yaml", "secret.example.yaml"} == {
        path.name for path in K8S.glob("*.yaml")
    }


def test_nginx_has_the_bounds_of_the_service() -> None:
    site = (ROOT / "deploy" / "nginx" / "site.conf").read_text()
    everything, webhook = re.findall(r"client_max_body_size (\d+)([km]);", site)

    assert int(everything[0]) * 1024 == MAX_BODY_BYTES
    assert int(webhook[0]) * 1024**2 == MAX_WEBHOOK_BYTES


@pytest.mark.parametrize(
    ("name", "is_kept", "policy"), [("redis-queue", "yes", "noeviction"), ("redis-cache", "no", "allkeys-lru")]
)
def test_servers_for_queue_and_cache_take_the_settings_and_have_them(
    tmp_path: Path, name: str, is_kept: str, policy: str
) -> None:
    port = free_port()
    binary = EmbeddedValkey(tmp_path / "unused", port).child().argv[0]
    _, *options = SERVICES[name]["command"]
    process = subprocess.Popen(
        [binary, *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)
    try:
        wait_for(lambda: _answers(client), seconds=10)
        assert client.config_get("appendonly") == {"appendonly": is_kept}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": policy}
        assert client.config_get("save") == {"save": ""}
        assert int(client.config_get("maxmemory")["maxmemory"]) >= 256 * 1024**2
    finally:
        client.close()
        process.terminate()
        process.wait(10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
