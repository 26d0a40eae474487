# For NVIDIA GPUs; the host brings the driver (580 or newer for cuda13, 525 for cuda12). From the top of a checkout:
#   docker build --file launch/docker/cuda.Dockerfile --build-arg CUDA=cuda12 --tag REGISTRY/ditto-jax:cuda12 .
#   docker run --rm --init --gpus all --ipc host REGISTRY/ditto-jax:cuda12 doctor
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.12-slim-bookworm AS build
ARG CUDA=cuda12
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY model model
COPY launch launch
COPY ditto_jax ditto_jax
RUN uv venv /opt/ditto-jax \
    && uv pip install --no-cache --python /opt/ditto-jax/bin/python ".[${CUDA}]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/ditto-jax /opt/ditto-jax
# CUDA's libraries come with the packages; these two let the container runtime pass in driver and devices.
ENV PATH=/opt/ditto-jax/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /runs
# SIGTERM is answered at the end of a training step; as the first process of a container (docker run without --init) the
# program would not see it before training has begun.
STOPSIGNAL SIGTERM
ENTRYPOINT ["ditto-jax"]
CMD ["doctor"]
