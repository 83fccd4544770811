# gcr.io/distroless/cc-debian12:nonroot, put together as that is: Debian's packages unpacked side by side, without what
# their scripts do, and without those that they depend on.
FROM docker.io/library/debian:12-slim AS packages
WORKDIR /packages
RUN apt-get update -qq \
    && apt-get download -qq base-files ca-certificates gcc-12-base libc6 libgcc-s1 libgomp1 libssl3 libstdc++6 media-types netbase tzdata \
    && for package in *.deb; do dpkg-deb -x "$package" /root-of-it; done \
    && cd /root-of-it \
    && mkdir -p etc/ssl/certs home/nonroot tmp \
    && find usr/share/ca-certificates -name '*.crt' | sort | xargs cat > etc/ssl/certs/ca-certificates.crt \
    && printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin \
        nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin > etc/passwd \
    && printf '%s\n' root:x:0: nobody:x:65534: tty:x:5: staff:x:50: nonroot:x:65532: > etc/group \
    && echo 'hosts: files dns' > etc/nsswitch.conf \
    && rm -rf usr/share/doc usr/share/man usr/share/lintian \
    && chmod 1777 tmp && chmod 700 root home/nonroot && chown 65532:65532 home/nonroot

FROM scratch
COPY --from=packages /root-of-it /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532
WORKDIR /home/nonroot
