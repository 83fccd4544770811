# debian:12-slim: a root that mmdebstrap made of Debian's packages, in the context as root.tar.
FROM scratch
ADD root.tar /
CMD ["bash"]
