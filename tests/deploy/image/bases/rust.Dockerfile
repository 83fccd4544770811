# rust:1.95-bookworm, or less of it: this machine's Rust, a C and C++ compiler, authorities of the web.
FROM docker.io/library/debian:12-slim
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends ca-certificates g++ gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
COPY --from=toolchain bin /usr/local/rustup/bin
COPY --from=toolchain lib /usr/local/rustup/lib
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/rustup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["bash"]
