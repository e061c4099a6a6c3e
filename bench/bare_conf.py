"""How gunicorn serves the yardstick: as many processes and threads as the service has for ordinary requests."""

from config import load_settings

_settings = load_settings()

bind = f"127.0.0.1:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
worker_class = "gthread"
threads = _settings["WEB_THREADS"]
keepalive = 75
control_socket_disable = True
