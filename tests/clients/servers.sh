# Sourced by run.sh: three servers of the demo model, each on a port that the system chooses. Where one does not
# start, its variable stays empty, and the tests that need it fail with what it said.

server_pids=()

start_servers() {
    # As users have it.
    start FLOTILLA_URL open --queue 64
    # With keys and what limits them.
    make_keys
    start FLOTILLA_KEYED_URL keyed --workers 1 --api-keys "$folder/keys.toml"
    # For the fuzzer: answers end soon.
    start FLOTILLA_SMALL_URL small --workers 1 --kv-tokens 512 --request-timeout 20
    export FLOTILLA_LOGS="$logs"
}

# start VARIABLE NAME FLAGS...
start() {
    local variable="$1" name="$2" url=""
    shift 2
    (cd "$root" && exec "$flotilla" up --listen 127.0.0.1:0 --current-date 2026-11-23 "$@") \
        >"$logs/$name.log" 2>&1 &
    local pid=$!
    server_pids+=("$pid")
    for _ in $(seq 300); do
        url="$(sed -n 's|.* is served on \(http://[0-9.:]*\).*|\1|p' "$logs/$name.log")"
        [ -z "$url" ] && kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    [ -n "$url" ] || echo "the server \"$name\" did not start: $(tail -3 "$logs/$name.log")" >&2
    export "$variable=$url"
}

stop_servers() {
    for pid in "${server_pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
}

# Four keys: one without limits, one for each limit that a key can have. The file holds hashes only.
make_keys() {
    : >"$folder/keys.toml"
    make_key free
    make_key slow "requests_per_minute = 2"
    make_key short "tokens_per_minute = 200"
    make_key narrow "concurrent = 1"
}

# make_key NAME [LIMIT]: the entry is printed on stdout, the key itself, this once, as the last line of stderr.
make_key() {
    local entry
    if ! entry="$("$flotilla" key "$1" 2>"$logs/key")"; then
        echo "flotilla key $1: $(tail -3 "$logs/key")" >&2
    fi
    printf '%s\n%s\n\n' "$entry" "${2:-}" >>"$folder/keys.toml"
    export "FLOTILLA_KEY_$1=$(tail -n 1 "$logs/key")"
    rm -f "$logs/key"
}
