#!/bin/sh
# A Docker engine of our own: engine.sh start|stop|status DIR [SOCKET]
#
# Everything it owns lives under DIR (data, run, log, pid files); SOCKET defaults to DIR/docker.sock. It has a
# containerd of its own, so that it never shares containers with an engine that is there already, and no bridge
# and no iptables rules: jobs run with `--network none`, builds that need a network say `--network host`.
# LIVE_RESTORE=off: containers end with the daemon, as they do where live-restore is not set.
# DAEMON_CONFIG: the text of daemon.json, as in {"runtimes": {"runsc": {"path": "/usr/bin/runsc"}}}.
set -eu

usage() { echo "usage: engine.sh start|stop|status DIR [SOCKET]" >&2; exit 2; }
fail() { echo "engine: $*" >&2; exit 1; }

[ $# -ge 2 ] || usage
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
socket=${3:-$dir/docker.sock}
shim_socket=$dir/run/containerd.sock

# A pid file outlives a crash and pids are reused: the process must still be the program that we started.
pid_of() { # NAME -> pid, or status 1
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && echo "$pid"
}

ours() { env -u DOCKER_TLS_VERIFY -u DOCKER_CONTEXT DOCKER_HOST="unix://$socket" docker "$@"; }

until_true() { # SECONDS COMMAND...
  tenths=$(($1 * 10)); shift
  until "$@" >/dev/null 2>&1; do
    tenths=$((tenths - 1)); [ "$tenths" -gt 0 ] || return 1
    sleep 0.1
  done
}

launch() { # NAME ARGS...: setsid, because the engine outlives the shell that starts it
  name=$1; shift
  setsid sh -c 'echo $$ >"$1"; shift; exec "$@"' sh "$dir/$name.pid" "$name" "$@" >>"$dir/$name.log" 2>&1 </dev/null &
}

start() {
  if pid_of dockerd >/dev/null && ours version >/dev/null 2>&1; then echo "engine: already up on unix://$socket"; return; fi
  for program in containerd dockerd docker; do
    command -v "$program" >/dev/null || fail "$program is not installed: install Debian's docker.io, or use the process engine"
  done
  [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo, or point DOCKER_HOST at an engine that runs already"
  [ ${#shim_socket} -le 100 ] || fail "$dir is too long for a unix socket: choose a shorter folder"
  mkdir -p "$dir/run"
  printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$dir/containerd.toml"
  [ -n "${DAEMON_CONFIG:-}" ] || DAEMON_CONFIG={}
  printf '%s\n' "$DAEMON_CONFIG" >"$dir/daemon.json" # or the settings of the machine's own engine would be read
  pid_of containerd >/dev/null || launch containerd --config "$dir/containerd.toml" \
    --root "$dir/containerd" --state "$dir/run/containerd" --address "$shim_socket"
  until_true 30 test -S "$shim_socket" || fail "containerd did not start, see $dir/containerd.log"
  rm -f "$dir/docker-own.pid"
  live_restore=--live-restore
  [ "${LIVE_RESTORE:-on}" = on ] || live_restore=--live-restore=false
  launch dockerd --config-file "$dir/daemon.json" --host "unix://$socket" --containerd "$shim_socket" \
    --data-root "$dir/data" --exec-root "$dir/run/docker" --pidfile "$dir/docker-own.pid" \
    --storage-driver overlay2 "$live_restore" --bridge none --iptables=false --ip6tables=false \
    --ip-forward=false --ip-masq=false
  until_true 60 ours version || fail "dockerd did not start, see $dir/dockerd.log"
  echo "engine: up on unix://$socket"
}

end() { # NAME: TERM, then KILL after 20 s
  pid=$(pid_of "$1") || return 0
  kill -TERM "$pid"
  until_true 20 test ! -e "/proc/$pid" || kill -KILL "$pid" 2>/dev/null || true
  rm -f "$dir/$1.pid"
}

unmounted() { # a daemon that was killed leaves the mounts of its namespaces and containers
  grep -F " $dir/" /proc/self/mounts | cut -d " " -f 2 | sort -r | while read -r point; do umount -l "$point"; done || true
}

stop() {
  if pid_of dockerd >/dev/null; then # live-restore would leave the containers running
    left=$(ours ps -aq 2>/dev/null || true)
    [ -z "$left" ] || ours rm -f $left >/dev/null
  fi
  end dockerd
  end containerd
  unmounted
  rm -f "$socket"
  echo "engine: stopped"
}

case $verb in
  start | stop) "$verb" ;;
  status)
    pid=$(pid_of dockerd) && ours version >/dev/null 2>&1 || { echo "engine: down"; exit 1; }
    echo "engine: up on unix://$socket, pid $pid"
    ;;
  *) usage ;;
esac
