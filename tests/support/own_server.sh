#!/usr/bin/env bash
# A database server of one test's own, to be killed, frozen and started again. tests/support/own_server.rs calls it:
#
#     own_server.sh postgres|mysql
#     own_server.sh pgbouncer FOLDER MODE CONNECTIONS
#
# The latter is in front of the PostgreSQL whose socket is in FOLDER, with at most so many connections there.
#
# Says "folder PATH" once there is something to start, or "missing WHAT". Then each line on the input is an order (start, kill,
# freeze, thaw), and "done" is said when it has been carried out. The end of the input, which is also the end of a test that
# was killed, is the end of the server and of its folder.
#
# A commit that was answered outlives the server's process, as it must: it was handed to the kernel. It need not outlive the
# machine, so nothing waits for the disk. A page may be half written when the process is killed, so what protects from that
# (full_page_writes, the doublewrite buffer) stays on.
set -euo pipefail

kind=$1 arguments=("${@:2}") folder="" server=""

say() {
    echo "$*"
}

# The server and its children. Those of PostgreSQL are no process group: each is one of its own.
family() {
    local stat pid parent
    echo "$server"
    for stat in /proc/[0-9]*/stat; do
        read -r pid _ _ parent _ 2>/dev/null <"$stat" || continue
        [[ $parent != "$server" ]] || echo "$pid"
    done
}

# until_stopped PID…: each thread stops when it is scheduled next; on a busy machine it works until then.
until_stopped() {
    local pid tries
    for pid; do
        for ((tries = 0; tries < 1000; tries++)); do
            grep -sqv ') [TZ] ' "/proc/$pid/task/"*/stat || break
            sleep 0.01
        done
    done
}

# signal NAME: to all of them. The server is stopped before, so that no more children are born.
signal() {
    local pids
    kill -STOP "$server" 2>/dev/null || true
    until_stopped "$server"
    mapfile -t pids < <(family)
    kill "-$1" "${pids[@]}" 2>/dev/null || true
    [[ $1 != STOP ]] || until_stopped "${pids[@]}"
    [[ $1 == KILL ]] || return 0
    # Until the last one has let go of memory and files: a server does not start while others hold them.
    wait "$server" 2>/dev/null || true
    server=""
    local pid state
    for pid in "${pids[@]}"; do
        while read -r _ _ state _ 2>/dev/null <"/proc/$pid/stat" && [[ $state != Z ]]; do
            sleep 0.01
        done
    done
}

finish() {
    trap - EXIT
    trap '' INT TERM HUP
    [[ -z $server ]] || signal KILL
    [[ -z $folder ]] || rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP
trap '' PIPE # if the reader is gone, the input ends as well

# as_server SIGNAL COMMAND…: in place of this shell; as another user if we are root, which no server wants to be. It gets the
# signal if this script is killed in a way that leaves it no time to clean up.
as_server() {
    local signal=$1
    shift
    if ((EUID == 0)); then
        exec setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups --pdeathsig "$signal" "$@"
    elif command -v setpriv >/dev/null; then
        exec setpriv --pdeathsig "$signal" "$@"
    fi
    exec "$@"
}

prepare_postgres() {
    user=postgres
    # Debian keeps the server's tools off the PATH, a folder for each version.
    tools=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    [[ -x $tools/initdb ]] || tools=$(dirname "$(command -v initdb)") || return 1
    prepare=("$tools/initdb" -D data -U test --auth trust --encoding UTF8 --locale C --no-sync)
    last_word=QUIT
    run=("$tools/postgres" -D data -c listen_addresses= -c max_connections=100 -c fsync=off -c synchronous_commit=on)
}

prepare_mysql() {
    user=mysql
    command -v mariadb-install-db >/dev/null || return 1
    prepare=(mariadb-install-db --no-defaults --skip-test-db --auth-root-authentication-method=normal
        --innodb-log-file-size=8M)
    last_word=KILL
    run=("$(command -v mariadbd || echo /usr/sbin/mariadbd)" --no-defaults --skip-networking --skip-log-bin
        --max-connections=100 --innodb-flush-log-at-trx-commit=2 --innodb-log-file-size=8M)
}

prepare_pgbouncer() {
    user=postgres
    local program
    program=$(PATH=$PATH:/usr/sbin command -v pgbouncer) || return 1
    prepare=(true)
    last_word=KILL
    run=("$program" -q pgbouncer.ini)
}

[[ -r /proc/self/stat ]] || { say "missing /proc"; exit; }
"prepare_$kind" || { say "missing the programs of the server; tests/servers installs them"; exit; }
# Short, since the path of a socket must be.
folder=$(mktemp -d /tmp/servers.XXXXXX)
chmod 755 "$folder"
cd "$folder"
if ((EUID == 0)); then
    id "$user" >/dev/null 2>&1 || user=nobody
    chown "$user" .
fi
# A MariaDB that starts removes the temporary tables of all others that share their folder with it.
export TMPDIR=$folder
if [[ $kind == postgres ]]; then
    run+=(-k "$folder")
elif [[ $kind == pgbouncer ]]; then
    # sqlx names a parameter at the start that PgBouncer does not know, and the server may not be there yet. What matters
    # otherwise is as it is by default.
    cat >pgbouncer.ini <<INI
[databases]
* = host=${arguments[0]} port=5432
[pgbouncer]
unix_socket_dir = $folder
listen_port = 5432
auth_type = trust
auth_file = users
pool_mode = ${arguments[1]}
default_pool_size = ${arguments[2]}
max_client_conn = 200
server_login_retry = 1
ignore_startup_parameters = extra_float_digits
INI
    printf '"%s" ""\n' test guest >users
else
    cat >start.sql <<'SQL'
CREATE DATABASE IF NOT EXISTS test;
CREATE USER IF NOT EXISTS test@localhost;
GRANT ALL ON *.* TO test@localhost WITH GRANT OPTION;
SQL
    prepare+=(--datadir="$folder/data")
    run+=(--datadir="$folder/data" --socket="$folder/socket" --pid-file="$folder/pid" --init-file="$folder/start.sql")
fi
(as_server TERM "${prepare[@]}") </dev/null >>log 2>&1 || { cat log >&2; exit 1; }
say "folder $folder"

while read -r order; do
    case $order in
        start)
            (as_server "$last_word" "${run[@]}") </dev/null >>log 2>&1 &
            server=$!
            ;;
        kill) signal KILL ;;
        freeze) signal STOP ;;
        thaw) signal CONT ;;
    esac
    say "done"
done
