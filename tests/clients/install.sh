# Sourced by run.sh: what the clients need, into $folder, with the versions of requirements.txt and
# package-lock.json. What is there already, of the same versions, is left as it is.

install_python() {
    local mark="$folder/venv/.installed"
    cmp -s "$here/requirements.txt" "$mark" && return
    rm -rf "$folder/venv"
    if command -v uv >/dev/null; then
        uv venv --quiet "$folder/venv"
        uv pip install --quiet --python "$folder/venv/bin/python" -r "$here/requirements.txt"
    elif python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python3 -m venv "$folder/venv"
        "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    else
        echo "error: neither uv nor Python's venv is here to install the clients" >&2
        echo "hint: install uv, or Debian's python3-venv" >&2
        exit 1
    fi
    cp "$here/requirements.txt" "$mark"
}

# Node finds packages beside the file that asks for them, so the tests are copied to where these are.
install_js() {
    local mark="$folder/js/.installed"
    mkdir -p "$folder/js"
    if ! cmp -s "$here/js/package-lock.json" "$mark"; then
        cp "$here/js/package.json" "$here/js/package-lock.json" "$folder/js/"
        (cd "$folder/js" && npm ci --silent --no-audit --no-fund --ignore-scripts)
        cp "$here/js/package-lock.json" "$mark"
    fi
    rm -f "$folder/js"/*.mjs
    cp "$here/js"/*.mjs "$folder/js/"
}
