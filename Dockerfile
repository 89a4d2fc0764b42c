# The command line on a CPU, from the wheel.
#   docker build -t gmail-align .
#   docker run --rm -v "$PWD:/work" gmail-align demo
# A build for CPUs alone is smaller: --build-arg TORCH_INDEX=ADDRESS of an index with such builds of torch.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
ARG TORCH_INDEX=""
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY --from=build /wheel /tmp/wheel
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheel/*.whl)[demo]" \
    && rm -r /tmp/wheel /tmp/constraints.txt \
    && useradd --create-home --uid 1000 user
USER user
WORKDIR /work
ENTRYPOINT ["gmail-align"]
CMD ["--help"]
