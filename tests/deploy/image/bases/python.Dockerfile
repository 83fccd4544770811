# In the place of python:3.12-slim-bookworm: Debian's Python, which is 3.11. The wheels that are installed are for any.
FROM docker.io/library/debian:12-slim
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends ca-certificates python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
CMD ["python3"]
