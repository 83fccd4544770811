#!/usr/bin/env bash
# Checks of deploy/ by the tools that its users have, helm and the schemas of Kubernetes, and by checks of our own for
# what these do not see; and the pods' own commands and probes as processes, in network namespaces, as root.
#
#   run.sh [charts] [pods]      both by default
#   run.sh render               writes deploy/kubernetes/ anew
#   run.sh image, run.sh compose    of images that are built: image/run.sh calls them
#
# FLOTILLA_BIN is the program, target/debug/flotilla by default. FLOTILLA_DEPLOY_DIR is the folder for what is installed
# and written, FLOTILLA_DEPLOY_STORIES which stories are told (all). Nothing but the installation leaves the machine.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"
flotilla="${FLOTILLA_BIN:-$target/debug/flotilla}"
folder="${FLOTILLA_DEPLOY_DIR:-$target/deploy}"
parts=("$@")
[ $# -gt 0 ] || parts=(charts pods)

if [ ! -x "$flotilla" ]; then
    echo "error: there is no program at $flotilla" >&2
    echo "hint: cargo build, or name one with FLOTILLA_BIN" >&2
    exit 1
fi
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
FLOTILLA_BIN="$(realpath "$flotilla")"
export FLOTILLA_BIN PYTHONDONTWRITEBYTECODE=1 NO_PROXY='*' no_proxy='*'

# shellcheck source=install.sh
source "$here/install.sh"
install
# Settings of the user's are none of these.
export PATH="$folder/bin:$PATH" HELM_CONFIG_HOME="$folder/helm" HELM_CACHE_HOME="$folder/helm" HELM_DATA_HOME="$folder/helm"
unset FLOTILLA_LOG FLOTILLA_JOIN_TOKEN FLOTILLA_COORDINATOR FLOTILLA_WEIGHT_CACHE FLOTILLA_CACHE KUBECONFIG

# A test's last words stand at the end; each has a limit of its own.
tests() {
    timeout 560 "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider --tb=short -c "$here/pytest.ini" --rootdir "$here" "$@"
}

# A world of its own: its processes, networks and mounts end with it, however it ends.
world() {
    timeout --kill-after=10 500 unshare --net --mount --pid --uts --fork --kill-child --mount-proc -- "$folder/venv/bin/python" "$@"
}

need_root() {
    [ "$(id -u)" = 0 ] && return
    echo "error: pods are run by root: they have networks and mounts of their own" >&2
    echo "hint: sudo -E tests/deploy/run.sh pods, or tests/deploy/run.sh charts" >&2
    exit 1
}

status=0
for part in "${parts[@]}"; do
    case "$part" in
        charts) tests "$here/charts" || status=$? ;;
        pods) need_root; install_nft; world "$here/pods/world.py" ${FLOTILLA_DEPLOY_STORIES:-} || status=$? ;;
        image) need_root; tests "$here/image" || status=$? ;;
        compose) need_root; world "$here/image/compose.py" || status=$? ;;
        render) "$folder/venv/bin/python" "$here/render.py" ;;
        *) echo "error: there is no part $part; there are charts, pods, image, compose and render" >&2; exit 1 ;;
    esac
done
exit "$status"
