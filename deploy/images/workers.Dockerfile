# The workers, for every node of a Ray cluster. Build it with deploy/images/build, which asks for the digest of the base.
#
# One layer has PyTorch with CUDA's libraries, one the other locked dependencies, one the code: a node that has the first
# two pulls megabytes. The driver is the node's own.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS workers
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ray's operator probes pods with wget. Its version is that of the base, which has a digest.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --home-dir /home/actstore --shell /bin/bash actstore \
    && mkdir /srv/actstore
WORKDIR /src
COPY constraints.txt ./
RUN grep --extended-regexp '^torch==' constraints.txt > torch.txt \
    && pip install --no-cache-dir --root-user-action=ignore --requirement torch.txt
COPY pyproject.toml deploy/images/requirements.py ./
RUN python requirements.py worker trace --without torch > requirements.txt \
    && pip install --no-cache-dir --root-user-action=ignore --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps /wheel/*.whl && pip check && rm -rf /src /wheel
WORKDIR /srv/actstore
# Ray's operator starts `ray` in a login shell, which finds /usr/local/bin. Ours is Ray's, and tells a raylet the ports of
# its agents, for which it would wait.
COPY --chmod=0755 deploy/images/ray /usr/local/bin/ray
ENV PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1
USER 10001:10001
CMD ["python", "-P", "-m", "actstore_worker"]

# What is in the image, for whoever asks after the next vulnerability: Python's packages, and Debian's.
FROM workers AS listing
USER 0
WORKDIR /sbom
RUN python -m venv /listing && /listing/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0 \
    && /listing/bin/cyclonedx-py environment --output-reproducible --output-file python.cdx.json /usr/local/bin/python \
    && dpkg-query --show > debian.tsv
USER 10001:10001

FROM scratch AS sbom
COPY --from=listing /sbom /
