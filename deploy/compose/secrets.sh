#!/bin/sh
# Creates the secrets of compose.yaml in ./secrets, with openssl, and never overwrites one.
# Only its owner may enter the folder. Its files are readable, because each container mounts its own
# and runs as a user that does not exist on the host.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/alertmanager
chmod 755 secrets/alertmanager
cd secrets

put() {
    if [ -s "$1" ]; then
        echo "kept secrets/$1"
        cat > /dev/null
    else
        cat > ".$1"
        mv ".$1" "$1"
        echo "made secrets/$1"
    fi
    chmod 644 "$1"
}

# Each by a variable first: sh does not stop where only the first command of a pipe fails.
secret=$(openssl rand -hex 32)
echo "$secret" | put kaiten_auth__secret
secret=$(openssl rand -hex 16)
echo "$secret" | put grafana_password
# The address holds the password, and Redis itself only its hash.
if [ ! -s kaiten_state__redis_url ] || [ ! -s redis_acl ]; then
    rm -f kaiten_state__redis_url redis_acl
    password=$(openssl rand -hex 32)
    hash=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
    printf 'redis://:%s@redis:6379/0\n' "$password" | put kaiten_state__redis_url
    printf 'user default on #%s ~* &* +@all\nuser health on nopass resetkeys resetchannels -@all +ping\n' \
        "$hash" | put redis_acl
else
    echo "kept secrets/kaiten_state__redis_url and secrets/redis_acl"
fi
: > made
