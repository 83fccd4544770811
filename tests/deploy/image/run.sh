#!/usr/bin/env bash
# Builds the images of deploy/Dockerfile from HEAD, as it is, and runs the program out of them: alone, as compose.yaml
# says, and as the chart's pods. No Docker is needed, and no registry of images: buildah builds, on bases made of Debian's
# packages. By hand, as root, on Debian 12: it compiles the program (some minutes) and takes 6 GB of disk.
#
#   run.sh [build] [check] [compose] [pods]      all by default
#   run.sh clean                                 removes images, bases and what builds have kept
#
# FLOTILLA_IMAGE_DIR is the folder for all of it, target/image by default.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
folder="${FLOTILLA_IMAGE_DIR:-${CARGO_TARGET_DIR:-$root/target}/image}"
parts=("$@")
[ $# -gt 0 ] || parts=(build check compose pods)

if [ "$(id -u)" != 0 ]; then
    echo "error: images are built and mounted by root" >&2
    echo "hint: sudo -E tests/deploy/image/run.sh" >&2
    exit 1
fi
for program in buildah mmdebstrap; do
    if ! command -v "$program" >/dev/null; then
        echo "error: $program is not here, with which images are made" >&2
        echo "hint: apt-get install buildah mmdebstrap" >&2
        exit 1
    fi
done
mkdir -p "$folder/tmp"
folder="$(cd "$folder" && pwd)"
containers=()

# shellcheck source=build.sh
source "$here/build.sh"

# Roots of the images, and what their configuration says, for the checks.
take_both() {
    [ -z "${FLOTILLA_IMAGE_CPU:-}" ] || return 0
    trap let_go EXIT
    take flotilla:test cpu
    export FLOTILLA_IMAGE_CPU="$taken"
    take flotilla:test-cuda cuda
    export FLOTILLA_IMAGE_CUDA="$taken" FLOTILLA_IMAGE_DIR="$folder"
    # The program that is tested is the image's, also where it is asked for keys and certificates.
    export FLOTILLA_BIN="$FLOTILLA_IMAGE_CPU/usr/local/bin/flotilla" FLOTILLA_DEPLOY_ROOT="$FLOTILLA_IMAGE_CPU"
}

status=0
for part in "${parts[@]}"; do
    case "$part" in
        build) bases; images ;;
        check) take_both; "$here/../run.sh" image || status=$? ;;
        compose) take_both; "$here/../run.sh" compose || status=$? ;;
        pods) take_both; "$here/../run.sh" pods || status=$? ;;
        clean) engine rmi --all --force >/dev/null; rm -rf "$folder" ;;
        *) echo "error: there is no part $part; there are build, check, compose, pods and clean" >&2; exit 1 ;;
    esac
done
exit "$status"
