# Sourced by run.sh: makes what the Dockerfile's stages begin with, and builds its images, without Docker and without a
# registry of images, by buildah. Everything lies in $folder.

# Where a system has no overlays FLOTILLA_IMAGE_STORAGE=vfs does without: each layer is a copy then, which takes more disk.
engine() {
    # What the Dockerfile's RUN --mount=type=cache keeps lies in the folder for what is passing.
    TMPDIR="$folder/tmp" buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver "${FLOTILLA_IMAGE_STORAGE:-overlay}" "$@"
}

is_there() {
    engine inspect --type image "$1" >/dev/null 2>&1
}

# A base that was made once is kept.
base() {
    local name="$1" file="$2"
    shift 2
    is_there "$name" && return
    echo "-- $name"
    engine build --isolation chroot --pull-never --layers=false -f "$here/bases/$file.Dockerfile" -t "$name" "$@" > "$folder/$file.log" 2>&1 && return
    tail -30 "$folder/$file.log" >&2
    return 1
}

# Debian's packages come from where this machine has its own from.
debian_root() {
    is_there docker.io/library/debian:12-slim && return
    local sources=/etc/apt/sources.list.d/debian.sources without=()
    [ -e "$sources" ] || sources=/etc/apt/sources.list
    for place in doc man locale info; do
        without+=("--dpkgopt=path-exclude=/usr/share/$place/*")
    done
    mmdebstrap --quiet --variant=minbase "${without[@]}" bookworm "$folder/debian/root.tar" "$sources"
}

bases() {
    mkdir -p "$folder/debian"
    debian_root
    base docker.io/library/debian:12-slim debian "$folder/debian"
    rm -f "$folder/debian/root.tar"
    base gcr.io/distroless/cc-debian12:nonroot distroless "$here/bases"
    base docker.io/library/python:3.12-slim-bookworm python "$here/bases"
    base docker.io/library/rust:1.95-bookworm rust --build-context "toolchain=$(cd "$root" && rustc --print sysroot)" "$here/bases"
}

# Of HEAD: what is not committed is not in it.
export_tree() {
    rm -rf "$folder/tree"
    mkdir -p "$folder/tree"
    git -C "$root" archive HEAD | tar -x -C "$folder/tree"
}

# What this machine needs to reach registries of packages comes from outside.
settings() {
    local file
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
        [ ! -e "$file" ] || printf '%s\n' --volume "$file:$file:ro"
    done
    [ ! -e "$HOME/.cargo/config.toml" ] || printf '%s\n' --volume "$HOME/.cargo/config.toml:/usr/local/cargo/config.toml:ro"
}

image() {
    local target="$1" name="$2" words
    mapfile -t words < <(settings)
    echo "-- $name"
    engine build --isolation chroot --pull-never --layers "${words[@]}" --label "org.opencontainers.image.revision=$(git -C "$root" rev-parse HEAD)" \
        -f "$folder/tree/deploy/Dockerfile" --target "$target" -t "$name" "$folder/tree" > "$folder/$target.log" 2>&1 && return
    tail -30 "$folder/$target.log" >&2
    return 1
}

images() {
    export_tree
    image cpu flotilla:test
    image cuda flotilla:test-cuda
}

# Where an image's root can be looked at; run.sh lets go of it.
take() {
    local container
    container="$(engine from --pull-never "$1")"
    containers+=("$container")
    engine inspect --type image "$1" > "$folder/$2.json"
    taken="$(engine mount "$container")"
}

let_go() {
    local container
    for container in "${containers[@]}"; do
        engine umount "$container" >/dev/null
        engine rm "$container" >/dev/null
    done
}
