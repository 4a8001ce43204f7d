#!/usr/bin/env bash
# A real Ray cluster of several nodes on this one machine, for trying things out and for tests.
#
#   needs    this package and Ray on the PATH (`. .venv/bin/activate`), Linux, about 1 GB a node
#   start    cluster/local.sh start [--nodes 2] [--cpus 1] [--head-cpus 0] [--memory-mb 150]
#                                   [--port 6379] [--dashboard-port 8265] [--folder DIR]
#   use      eval "$(cluster/local.sh env)"; batchtrain submit SPEC --set storage=/tmp/runs
#   look     cluster/local.sh status
#   stop     cluster/local.sh stop [--folder DIR]
#
# Each node is a raylet of its own with its own temporary folder, as on machines of their own; the
# head gives its cores to nobody unless told. All of it listens on 127.0.0.1 only, and whoever talks
# to it needs the token in DIR/secret/token, which only you can read. A port of 0 is any free one.
# `start` takes a folder that is new or empty. `stop` ends what `start` began there, found by its pid
# files, and deletes what it made but the logs, and nothing else.
set -euo pipefail
umask 077
shopt -s nullglob

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE ADDRESS=127.0.0.1
readonly START_LIMIT_S=60
readonly STOP_LIMIT_S=4
readonly MARKER=.made-by-local-sh

nodes=2 cpus=1 head_cpus=0 memory_mb=150 port=6379 dashboard_port=8265
# Sockets lie in this folder, and their paths may have about a hundred characters.
folder="/tmp/batchtrain-cluster-$(id -u)"

die() {
  echo "local.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

read_options() {
  while (($#)); do
    (($# >= 2)) || die "expected a value after $1"
    case $1 in
      --folder) folder=$2 ;;
      --nodes | --cpus | --head-cpus | --memory-mb | --port | --dashboard-port)
        [[ $2 =~ ^[0-9]{1,5}$ ]] || die "expected a whole number after $1, found '$2'"
        local name=${1#--}
        printf -v "${name//-/_}" '%s' "$2"
        ;;
      *) die "there is no option $1; 'cluster/local.sh help' lists all" ;;
    esac
    shift 2
  done
  # One folder, one name: processes are found by it.
  folder=$(realpath -ms -- "$folder") || die "expected a folder after --folder, found nothing"
  ((${#folder} <= 36)) || die "the name of the folder has more than 36 characters, too many for Ray's sockets: $folder"
}

# Whether `start` made what is in the folder: without the marker, what is there belongs to somebody.
was_started() {
  [[ -O $folder && ! -L $folder && -e $folder/$MARKER ]]
}

# What is in the folder besides the logs of an earlier cluster, or nothing.
strange_file() {
  find "$folder" -mindepth 1 -maxdepth 1 ! -name head.log ! -name 'node-*.log' -print -quit
}

take_folder() {
  [[ ! -e $folder && ! -L $folder ]] || [[ -O $folder && -d $folder && ! -L $folder ]] || die "$folder belongs to somebody else"
  [[ ! -e $folder ]] || was_started || [[ -z $(strange_file) ]] ||
    die "expected a folder that is new or empty, found $(strange_file); name another one with --folder"
  ! compgen -G "$folder/*.pid" >/dev/null || die "a cluster was started in $folder; stop it first: $0 stop --folder $folder"
}

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

is_free() {
  python -c 'import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(sys.argv[1])))' "$1" 2>/dev/null
}

# Whether a process is one that `start` began for this folder: pids are used again by others.
is_ours() {
  grep -qzxF "BATCHTRAIN_LOCAL_CLUSTER=$folder" "/proc/$1/environ" 2>/dev/null
}

# Every process of this cluster: drivers and workers of Ray leave the group of their node.
our_processes() {
  { grep -lzxF "BATCHTRAIN_LOCAL_CLUSTER=$folder" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d / -f 3
}

# start_node NAME WORDS...: start a raylet in a session of its own, and wait until it has joined.
# A job may wait a week for its turn before Ray gives it up; without the variable, 15 minutes.
start_node() {
  local name=$1 waited=0
  shift
  env BATCHTRAIN_LOCAL_CLUSTER="$folder" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/secret/token" \
    RAY_ADDRESS= RAY_API_SERVER_ADDRESS= RAY_JOB_START_TIMEOUT_SECONDS=604800 \
    setsid python "$HERE/loopback_ray.py" start "$@" --node-ip-address "$ADDRESS" --temp-dir "$folder/$name" --block \
    --object-store-memory "$((memory_mb * 1024 * 1024))" --dashboard-agent-listen-port 0 \
    --log-style record --log-color false >"$folder/$name.log" 2>&1 </dev/null &
  echo $! >"$folder/$name.pid"
  until grep -qs "This command will now block forever" "$folder/$name.log"; do
    is_ours "$(<"$folder/$name.pid")" || ((waited < 20)) ||
      { tail -n 20 "$folder/$name.log" >&2; die "the node '$name' did not start"; }
    ((waited < START_LIMIT_S * 5)) || die "the node '$name' is not ready after $START_LIMIT_S s; see $folder/$name.log"
    sleep 0.2
    waited=$((waited + 1))
  done
}

start() {
  take_folder
  python -c 'import ray' 2>/dev/null || die "the python on the PATH has no ray; activate the environment that has batchtrain first"
  ((port)) || port=$(free_port)
  ((dashboard_port)) || dashboard_port=$(free_port)
  is_free "$port" || die "something listens on port $port already; take another one with --port"
  is_free "$dashboard_port" || die "something listens on port $dashboard_port already; take another one with --dashboard-port"
  mkdir -p "$folder"
  touch "$folder/$MARKER"
  trap 'stop >/dev/null 2>&1 || true' EXIT
  mkdir -p "$folder/secret"
  chmod 700 "$folder" "$folder/secret"
  (set -C && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/secret/token") 2>/dev/null ||
    [[ -s $folder/secret/token ]] || die "cannot write $folder/secret/token"
  chmod 600 "$folder/secret/token"

  start_node head --head --port "$port" --num-cpus "$head_cpus" --num-gpus 0 --disable-usage-stats \
    --dashboard-host "$ADDRESS" --dashboard-port "$dashboard_port" --ray-client-server-port "$(free_port)"
  local number session
  session=$(basename "$(readlink "$folder/head/session_latest")")
  for ((number = 1; number <= nodes; number++)); do
    # Of several nodes on one machine Ray looks for the log of a job in the folder of the head,
    # wherever the job runs. So they have one folder for logs, and one process that reads them.
    mkdir -p "$folder/node-$number/$session"
    ln -s "$folder/head/$session/logs" "$folder/node-$number/$session/logs"
    start_node "node-$number" --address "$ADDRESS:$port" --num-cpus "$cpus" --include-log-monitor false
  done
  cat >"$folder/env" <<END
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH='$folder/secret/token'
export RAY_API_SERVER_ADDRESS=http://$ADDRESS:$dashboard_port
export RAY_ADDRESS=$ADDRESS:$port
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0  # or a driver takes 127.0.0.1 for the machine's address
END
  trap - EXIT
  echo "# A head and $nodes nodes with $cpus cores each. To use it from a shell:" >&2
  cat "$folder/env"
  echo "# To end it: $0 stop --folder $folder" >&2
}

stop() {
  was_started || die "no cluster was started in $folder"
  local file waited=0 signal
  for file in "$folder"/node-*.pid "$folder/head.pid"; do
    if [[ -e $file ]] && is_ours "$(<"$file")"; then kill -TERM "$(<"$file")" 2>/dev/null || true; fi
  done
  # What a node leaves behind, such as drivers and workers, is asked to go as well, and then made to.
  while [[ -n $(our_processes) ]]; do
    signal=0
    if ((waited == STOP_LIMIT_S * 2)); then signal=TERM; fi
    if ((waited >= STOP_LIMIT_S * 4)); then signal=KILL; fi
    our_processes | xargs -r kill -s "$signal" 2>/dev/null || true
    sleep 0.25
    waited=$((waited + 1))
  done
  for file in "$folder"/*; do
    if [[ ${file##*/} =~ ^((head|node-[0-9]+)(\.pid)?|secret|env)$ ]]; then rm -rf "$file"; fi
  done
  # Last, so that a `stop` that was ended itself can be said again.
  rm -f "$folder/$MARKER"
  echo "Nothing of $folder runs any more; the logs of its nodes are still there." >&2
}

# What `env` prints is run by a shell, so it comes from a folder that nobody else can have made.
expect_running() {
  was_started || die "no cluster was started in $folder"
  [[ -e $folder/env ]] || die "the cluster in $folder did not start; end it: $0 stop --folder $folder"
}

status() {
  expect_running
  local file pid
  for file in "$folder"/*.pid; do
    pid=$(<"$file")
    if is_ours "$pid"; then echo "$(basename "$file" .pid) runs as $pid"; else echo "$(basename "$file" .pid) is gone"; fi
  done
}

command=${1:-help}
(($# == 0)) || shift
case $command in
  start) read_options "$@" && start ;;
  stop) read_options "$@" && stop ;;
  status) read_options "$@" && status ;;
  env) read_options "$@" && expect_running && cat "$folder/env" ;;
  help | -h | --help) usage ;;
  *) die "expected start, stop, status, env or help, found '$command'" ;;
esac
