# The service, and the command `actstore` for the jobs beside it: no torch, no Ray. Build it with deploy/images/build,
# which asks for the digest of the base.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS service
# The user has a number, by which Kubernetes sees that it is not root, and a name, for libraries that ask for one.
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/actstore --shell /usr/sbin/nologin actstore \
    && mkdir /srv/actstore
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/images/requirements.py ./
RUN python requirements.py service trace > requirements.txt \
    && pip install --no-cache-dir --root-user-action=ignore --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps /wheel/*.whl && pip check && rm -rf /src /wheel
# Python imports from the folder in which it starts, and this one is empty; `-P` leaves it out all the same.
WORKDIR /srv/actstore
ENV PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["python", "-P"]
CMD ["-m", "actstore_service"]

# What is in the image, for whoever asks after the next vulnerability: Python's packages, and Debian's.
FROM service AS listing
USER 0
WORKDIR /sbom
RUN python -m venv /listing && /listing/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0 \
    && /listing/bin/cyclonedx-py environment --output-reproducible --output-file python.cdx.json /usr/local/bin/python \
    && dpkg-query --show > debian.tsv
USER 10001:10001

FROM scratch AS sbom
COPY --from=listing /sbom /
