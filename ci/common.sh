# What scripts of this folder share, which source it with `what` set to what they try: a directory of their
# own, processes that end with them, and the logs of those (`*.log` in the directory) when something fails.

directory="$(mktemp -d)"
processes=()
cleanup() {
    local status=$? process
    for process in "${processes[@]}"; do
        { kill -KILL "$process" && wait "$process"; } 2> /dev/null || true
    done
    if [ "$status" -ne 0 ]; then
        tail -n 40 "$directory"/*.log
        echo "${what:?} FAILED"
    fi
    rm -rf "$directory"
}
trap cleanup EXIT

fail() { printf 'error: %s\n' "$*"; exit 1; }
skip() { printf 'SKIPPED: %s\n' "$*"; }
have() { command -v "$1" > /dev/null 2>&1; }

# until_true SECONDS PROCESS COMMAND...: waits until a command succeeds, as long as a process runs.
until_true() {
    local tries=$(($1 * 10)) process="$2"
    shift 2
    until "$@" > /dev/null 2>&1; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ] || ! kill -0 "$process" 2> /dev/null; then return 1; fi
        sleep 0.1
    done
}

# start NAME ARGUMENT...: an engine whose log is NAME.log; waits until it serves. Sets `process`.
start() {
    local name="$1"
    shift
    "${engine:-pollux-engine}" serve --log-format json "$@" > /dev/null 2> "$directory/$name.log" &
    process=$!
    processes+=("$process")
    until_true 60 "$process" grep '"message":"serving"' "$directory/$name.log" || fail "$name does not serve"
}

# stop PROCESS: SIGTERM, and exit code 0.
stop() {
    kill -TERM "$1"
    wait "$1" || fail "an engine left with code $?"
}
