"""Does by hand what an engine does with a Dockerfile, where there is none: its steps in real root file systems.

It knows the instructions that ours has, and refuses any other. What it needs is a root file system like that of the
base image; `.ci/check-containers` makes one. Only root can change the root, and only Linux has these namespaces.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
TAKES_NAMESPACES = ["unshare", "--mount", "--pid", "--fork"]


@dataclass
class Stage:
    """A root file system, and the settings that processes in it get."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def command(
        self,
        words: list[str],
        env: dict[str, str] | None = None,
        mounts: tuple[str, ...] = (),
        writable: tuple[str, ...] | None = None,
    ) -> list[str]:
        """Return what runs `words` in this stage, as process 1.

        `mounts` are folders of this host to be read there. With `writable` all of the root file system is read-only
        but for these, which are empty and in memory.
        """
        root = shlex.quote(str(self.root))
        steps = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        if writable is not None:
            steps = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}", *steps]
            steps += [f"mount -t tmpfs -o mode=1777 tmpfs {root}{path}" for path in writable]
        for path in mounts:
            place = f"{root}{path}"
            steps += [f"mkdir -p {place}", f"mount --bind {path} {place}", f"mount -o remount,bind,ro {place}"]
        return [*TAKES_NAMESPACES, "sh", "-ec", "\n".join([*steps, f"exec {shlex.join(self._inner(words, env))}"])]

    def command_beside(self, pid: int, words: list[str], env: dict[str, str]) -> list[str]:
        """Return what runs `words` beside a process 1 that `command` has started, by its number on this host."""
        return ["nsenter", f"--target={pid}", "--mount", "--pid", *self._inner(words, env)]

    def _inner(self, words: list[str], env: dict[str, str] | None) -> list[str]:
        settings = [f"{name}={value}" for name, value in {**self.env, **(env or {})}.items()]
        become = ["chroot", f"--userspec={self.user}", "--groups=", str(self.root), "/usr/bin/env", "-i"]
        # With a slash in them, words are looked up from the working directory, as an engine does.
        return [*become, "-C", self.workdir, *settings, *words]

    def run(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `words` to their end; their output is in what is returned."""
        timeout = options.pop("timeout", 60)
        return subprocess.run(
            self.command(words, **options), check=False, capture_output=True, text=True, timeout=timeout
        )


class Builder:
    """Builds the Dockerfile of `context`, beginning with `base` wherever it says FROM an image."""

    def __init__(self, context: Path, base: Path, folder: Path) -> None:
        self.context = context
        self.base = base
        self.folder = folder
        self.stages: dict[str, Stage] = {}
        self.images: list[str] = []
        self._arguments: dict[str, str] = {}
        self._stage: Stage | None = None

    def build(self) -> Stage:
        """Return the last stage."""
        for name, rest in instructions((self.context / "Dockerfile").read_text()):
            step = getattr(self, f"_do_{name.lower()}", None)
            assert step, f"{name} is not known here"
            step(rest)
        return self.stage

    @property
    def stage(self) -> Stage:
        assert self._stage, "no FROM yet"
        return self._stage

    def _do_arg(self, rest: str) -> None:
        assert self._stage is None, "only before the first FROM"
        name, _, value = rest.partition("=")
        self._arguments[name] = value

    def _do_from(self, rest: str) -> None:
        image, *name = re.sub(r"\$\{(\w+)\}", lambda found: self._arguments[found[1]], rest).split()
        root = self.folder / f"stage-{len(self.images)}"
        # Each of its own: what an earlier one had installed must not be there by chance.
        subprocess.run(["cp", "-a", "--reflink=auto", self.base, root], check=True)
        self.images.append(image)
        self._stage = Stage(root)
        if name:
            self.stages[name[1]] = self._stage

    def _do_workdir(self, rest: str) -> None:
        self.stage.workdir = str(Path(self.stage.workdir, rest))
        self._inside(self.stage.workdir).mkdir(parents=True, exist_ok=True)

    def _do_env(self, rest: str) -> None:
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            self.stage.env[name] = re.sub(r"\$(\w+)", lambda found: self.stage.env[found[1]], value)

    def _do_user(self, rest: str) -> None:
        self.stage.user = rest

    def _do_expose(self, rest: str) -> None:
        assert rest.isdigit()

    def _do_stopsignal(self, rest: str) -> None:
        self.stage.stop_signal = rest

    def _do_entrypoint(self, rest: str) -> None:
        self.stage.entrypoint = json.loads(rest)

    def _do_cmd(self, rest: str) -> None:
        self.stage.cmd = json.loads(rest)

    def _do_healthcheck(self, rest: str) -> None:
        _, _, command = rest.partition(" CMD ")
        self.stage.healthcheck = json.loads(command)

    def _do_run(self, rest: str) -> None:
        mounts, settings = host_pip()
        # The host's resolver, as an engine lends its own.
        shutil.copy("/etc/resolv.conf", self._inside("/etc/resolv.conf"))
        done = self.stage.run(["/bin/sh", "-c", rest], env=settings, mounts=mounts, timeout=600)
        assert done.returncode == 0, (rest, done.stdout[-2000:], done.stderr[-4000:])

    def _do_copy(self, rest: str) -> None:
        words = rest.split()
        if words[0].startswith("--from="):
            source_root = self.stages[words.pop(0).removeprefix("--from=")].root
            source, target = words
            destination = self._inside(target)
            destination.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{source_root}{source}", destination], check=True)
            return
        *sources, target = words
        sent = sent_to_builder(self.context)
        for pattern in sources:
            found = [path for path in sent if fnmatchcase(path, pattern) or path.startswith(f"{pattern}/")]
            assert found, f"COPY finds no {pattern}"
            for path in found:
                if (self.context / pattern).is_dir():
                    place = Path(target, Path(path).relative_to(pattern))
                else:
                    assert target.endswith("/")
                    place = Path(target, Path(path).name)
                destination = self._inside(str(Path(self.stage.workdir, place)))
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / path, destination)

    def _inside(self, path: str) -> Path:
        return self.stage.root / path.lstrip("/")


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what follows each, on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in found]


def sent_to_builder(context: Path) -> list[str]:
    """Return the files of `context` that .dockerignore lets through: of the rules that fit a file the last decides."""
    rules = [line for line in (context / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sent = []
    for folder, names, files in os.walk(context):
        names[:] = [name for name in names if name not in (".git", ".venv", "node_modules")]
        for name in files:
            path = Path(folder, name).relative_to(context).as_posix()
            is_out = False
            for rule in rules:
                if _fits(path, rule.removeprefix("!")):
                    is_out = not rule.startswith("!")
            if not is_out:
                sent.append(path)
    return sorted(sent)


def _fits(path: str, rule: str) -> bool:
    """Tell whether a rule names the file or a folder that it is in."""
    parts = path.split("/")
    ways = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    pattern = re.escape(rule).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    return any(re.fullmatch(pattern, way) for way in ways)


def host_pip() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the folders and the environment by which pip gets its packages on this host."""
    listed = subprocess.run(["pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings["PIP_" + name.split(".", 1)[-1].strip(".").replace("-", "_").upper()] = value.strip("'\"")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        if os.environ.get(name):
            settings[name] = os.environ[name]
    words = " ".join(settings.values()).replace("\\n", " ").split()
    paths = [word.removeprefix("file://") for word in words]
    # An index in a folder names files beside it. Certificates are a file, of which the base has its own.
    folders = {str(Path(*Path(path).parts[:3])) for path in paths if path.count("/") > 1 and Path(path).is_dir()}
    return tuple(sorted(folders)), settings
