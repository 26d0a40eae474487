# For TPU nodes of GKE. From the top of a checkout:
#   docker build --file launch/docker/tpu.Dockerfile --tag REGISTRY/ditto-jax:tpu .
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.12-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY model model
COPY launch launch
COPY ditto_jax ditto_jax
RUN uv venv /opt/ditto-jax \
    && uv pip install --no-cache --python /opt/ditto-jax/bin/python ".[tpu]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/ditto-jax /opt/ditto-jax
ENV PATH=/opt/ditto-jax/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JAX_PLATFORMS=tpu,cpu
WORKDIR /runs
# SIGTERM is answered at the end of a training step; as the first process of a container (docker run without --init) the
# program would not see it before training has begun.
STOPSIGNAL SIGTERM
ENTRYPOINT ["ditto-jax"]
CMD ["doctor"]
