#!/usr/bin/env bash
# Runs Kaiten on one host as two instances, blue and green, of which nginx reaches one:
#
#   kaiten-host switch blue|green
#   kaiten-host run COMMAND [ARGUMENT ...]
#   kaiten-host status
#
# switch examines the bento of an instance, starts and tests it, sends new requests to it, and stops
# the other instance once its requests are answered. TOKEN_FILE may name a file with a token for the
# test, of the scopes predict and ops; without it, one is signed here.
#
# run is `kaiten COMMAND` with the environment and the account of the instance that nginx reaches,
# or of the one that INSTANCE names. docs/deploy.md has the installation.
#
# Exit codes of switch: 0, the instance serves. 1, it failed, and the other one serves as before.
# 2, nothing was changed. 3, it was interrupted while both run.
set -euo pipefail
umask 077

# Not KAITEN_..., because each of those is a setting of the server.
etc=${HOST_ETC:-/etc/kaiten}
opt=${HOST_OPT:-/opt/kaiten}
profile=${NGINX_PROFILE:-/etc/nginx/conf.d/kaiten.conf}
nginx_pid=${NGINX_PID:-/run/nginx.pid}
lock=${HOST_LOCK:-/run/kaiten-host.lock}
# A large model takes minutes to load.
ready_timeout_s=${READY_TIMEOUT_S:-300}
# Above proxy_read_timeout of the profile, for which nginx waits for an answer.
drain_timeout_s=90

# A switch continues after its terminal is gone.
say() { printf '%s\n' "$*" >&2 || true; }

refuse() {
    say "error: $*"
    exit 2
}

usage() {
    sed -n '4,6s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

# Exports the variables of an instance's environment files as systemd reads them: a shell would
# expand, split and run parts of their values.
export_environment() {
    local file line value
    local assignment='^[[:space:]]*([A-Za-z_][A-Za-z0-9_]*)=[[:space:]]*(.*)$'
    for file in "$etc/kaiten.env" "$etc/$1.env"; do
        while IFS= read -r line || [[ -n $line ]]; do
            [[ $line =~ $assignment ]] || continue
            line=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
            value=${value%"${value##*[![:space:]]}"}
            [[ $value != *\\* || $value == \'*\' ]] ||
                refuse "$line in $file contains a backslash; put its value into single quotes."
            case $value in \"*\" | \'*\') value=${value:1:-1} ;; esac
            export "$line=$value"
        done <"$file"
    done
}

# Prints a variable of an instance's environment files.
value_of() (
    unset -v "$2"
    export_environment "$1"
    printf '%s\n' "${!2:-}"
)

# Prints the port that nginx sends requests to.
served_port() {
    sed -n '/^upstream kaiten {/,/^}/s/^ *server 127\.0\.0\.1:\([0-9]*\);.*/\1/p' "$profile"
}

# Prints the instance that nginx sends requests to, nothing if it is neither.
serving() {
    local instance port
    port=$(served_port)
    for instance in blue green; do
        if [[ -f $etc/$instance.env && $(value_of "$instance" PORT) == "$port" ]]; then
            printf '%s\n' "$instance"
        fi
    done
}

# Prints the folder of an instance's bento.
bento_folder() {
    local bento
    bento=$(value_of "$1" BENTO)
    printf '%s\n' "$(value_of "$1" BENTOML_HOME)/bentos/${bento%%:*}/${bento##*:}"
}

# Runs the `kaiten` command of an instance's bento with the environment and the account of its unit,
# in a session of its own: with root's terminal, that account could type commands into it.
kaiten() (
    instance=$1
    shift
    export_environment "$instance"
    PYTHONPATH=$(bento_folder "$instance")/src
    export PYTHONPATH
    cd "$KAITEN_HOME" || exit 1
    setsid --wait env --default-signal=INT runuser --user kaiten -- \
        "$opt/$instance/bin/python" -P -m cli "$@" <&0 9<&- &
    command=$!
    # The terminal sends Ctrl-C to its own session only.
    trap 'kill -INT "$command" && wait "$command"; exit 130' INT TERM
    wait "$command"
)

require_active() {
    if ! systemctl is-active --quiet "kaiten@$1"; then
        say "kaiten@$1 has ended: journalctl --unit kaiten@$1 --lines 20"
        return 1
    fi
}

# Starts an instance, unless another process has its port and would pass for it.
start() {
    local instance=$1 port=$2
    systemctl stop "kaiten@$instance" || return 1
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        say "Port $port is in use by another process: ss -ltnp 'sport = :$port'"
        return 1
    fi
    systemctl start "kaiten@$instance"
}

# Waits until an instance is ready; fails as soon as it has ended.
await_readiness() {
    local instance=$1 url=$2/readyz deadline=$((SECONDS + ready_timeout_s))
    while require_active "$instance" || return 1; do
        ! curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$url" || return 0
        if ((SECONDS >= deadline)); then
            say "kaiten@$instance was not ready within $ready_timeout_s s; see $url and its log."
            return 1
        fi
        sleep 0.5
    done
}

# Runs a command, and prints its output only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || {
        say "$output"
        return 1
    }
}

prove() {
    local instance=$1 url=$2
    if [[ -z ${TOKEN_FILE:-} ]]; then
        quietly kaiten "$instance" smoke "$url" || {
            say "If this server signs no tokens, set TOKEN_FILE to a file with one of its issuer."
            return 1
        }
    else
        # Read here: the account of the service may not.
        quietly kaiten "$instance" smoke "$url" --token-file - <"$TOKEN_FILE"
    fi
}

# Prints the worker processes of nginx.
nginx_workers() { pgrep --parent "$(cat "$nginx_pid")" || true; }

# Lets nginx read its configuration again; fails if it starts no workers with it.
reload_nginx() {
    local tries worker
    old_workers=$(nginx_workers)
    nginx -t -q && nginx -s reload || return 1
    for ((tries = 0; tries < 100; tries++)); do
        for worker in $(nginx_workers); do
            [[ $'\n'$old_workers$'\n' == *$'\n'$worker$'\n'* ]] || return 0
        done
        sleep 0.1
    done
    say "nginx has not read its configuration again; see its error log."
    return 1
}

# Writes a port into the upstream of nginx's profile.
write_port() {
    sed --in-place --follow-symlinks \
        "/^upstream kaiten {/,/^}/s/^\( *server 127\.0\.0\.1:\)[0-9]*;/\1$1;/" "$profile" &&
        [[ $(served_port) == "$1" ]]
}

# Sends new requests to a port; on failure, everything is as before.
route_to() {
    local file
    file=$(readlink --canonicalize "$profile")
    backup=$(mktemp "$file.XXXXXX") && cp --preserve "$file" "$backup" || return 1
    if ! { write_port "$1" && reload_nginx; }; then
        trap '' INT TERM
        # Renamed, because a full disk would leave a profile that is written truncated.
        mv "$backup" "$file"
        nginx -s reload || true
        return 1
    fi
    rm "$backup"
}

# Waits until nginx has passed on the answers to the requests that it sent before.
await_old_requests() {
    local pid deadline=$((SECONDS + drain_timeout_s))
    for pid in $old_workers; do
        while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do
            sleep 0.1
        done
    done
}

# Ends a switch that failed before nginx had another port.
give_up() {
    trap '' INT TERM
    rm -f "$backup"
    systemctl stop "kaiten@$new" || true
    say "kaiten@$new is stopped. ${old:+kaiten@$old serves as before.}"
    exit 1
}

interrupted() {
    say "Interrupted."
    [[ $(served_port) == "$port" ]] || give_up
    rm -f "$backup"
    say "kaiten@$new is ready, and $profile names it. Finish with: nginx -s reload" \
        "${old:+&& systemctl disable --now kaiten@$old }&& systemctl enable kaiten@$new"
    exit 3
}

switch() {
    new=$1 old='' port='' backup='' old_workers=''
    local bento file url
    [[ $new == blue || $new == green ]] || usage
    for file in "$etc/kaiten.env" "$etc/$new.env" "$profile"; do
        [[ -f $file ]] || refuse "there is no $file; docs/deploy.md has the installation."
    done
    { exec 9>"$lock"; } 2>/dev/null || refuse "$lock cannot be written; run this as root."
    flock --nonblock 9 || refuse "another switch is running."
    port=$(value_of "$new" PORT) bento=$(value_of "$new" BENTO) url=http://127.0.0.1:$port
    [[ $port =~ ^[0-9]+$ ]] || refuse "$etc/$new.env has no PORT."
    [[ -n $(served_port) ]] ||
        refuse "the upstream kaiten in $profile has no line 'server 127.0.0.1:PORT;'."
    [[ $(served_port) != "$port" ]] ||
        refuse "$new serves already. Change the other instance, and switch to that one."
    nginx -t -q || refuse "nginx rejects its configuration as it is now; correct it first."
    [[ -d $(bento_folder "$new") ]] ||
        refuse "$etc/$new.env names the bento $bento, and there is no $(bento_folder "$new")."
    [[ -x $opt/$new/bin/python ]] || refuse "there is no $opt/$new/bin/python with its packages."
    [[ -z ${TOKEN_FILE:-} || -r $TOKEN_FILE ]] ||
        refuse "TOKEN_FILE names $TOKEN_FILE, which cannot be read."
    quietly kaiten "$new" doctor "$bento" || refuse "$bento would not start; see above."
    old=$(serving)

    trap interrupted INT TERM
    # A lost connection must not leave both instances running.
    trap '' HUP PIPE
    say "Starting kaiten@$new with $bento on port $port."
    start "$new" "$port" || give_up
    await_readiness "$new" "$url" || give_up
    prove "$new" "$url" || give_up
    # Another process on its port would have answered for it.
    require_active "$new" || give_up
    route_to "$port" || give_up
    await_old_requests
    # After a reboot, the instance that nginx reaches must start, and the other one must not.
    systemctl enable --quiet "kaiten@$new" || say "kaiten@$new would not start after a reboot."
    if [[ -n $old ]]; then
        systemctl disable --quiet "kaiten@$old" || say "kaiten@$old would start after a reboot."
        systemctl stop "kaiten@$old" || say "kaiten@$old did not end: systemctl status kaiten@$old"
    fi
    say "kaiten@$new serves $bento.${old:+ To go back: kaiten-host switch $old}"
}

status() {
    local instance mark
    for instance in blue green; do
        mark=
        [[ $(serving) != "$instance" ]] || mark='  <- nginx'
        printf '%-6s %-9s port %s  %s%s\n' "$instance" \
            "$(systemctl is-active "kaiten@$instance" || true)" \
            "$(value_of "$instance" PORT)" "$(value_of "$instance" BENTO)" "$mark"
    done
}

case "${1:-}:$#" in
switch:2) switch "$2" ;;
status:1) status ;;
run:*)
    (($# > 1)) || usage
    instance=${INSTANCE:-$(serving)}
    [[ -n $instance ]] || refuse "nginx reaches neither instance; set INSTANCE to blue or green."
    kaiten "$instance" "${@:2}"
    ;;
*) usage ;;
esac
