#!/usr/bin/env bash
# Deploys an image to a Kubernetes overlay, proves it by `kaiten smoke`, and takes it back where
# either fails:
#
#   deploy/deploy.sh apply OVERLAY NAME@sha256:DIGEST URL [NAME:VERSION]
#   deploy/deploy.sh verify OVERLAY URL [NAME:VERSION]
#   deploy/deploy.sh rollback OVERLAY [REVISION]
#
# NAME:VERSION is the model that has to answer. TOKEN_FILE may name a file with a token for the smoke
# test, of the scopes predict and ops; without it, one is made in a pod, for five minutes.
#
# Exit codes: 0, deployed. 1, failed and rolled back. 2, nothing was changed.
# 3, failed and could not be rolled back, or another deployment interfered: check the cluster.
set -euo pipefail
umask 077

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Whatever `kaiten` is at hand, and else the checkout's.
PATH="$PATH:$root/.venv/bin"
# A rolling update replaces pod by pod; one that makes no progress ends by itself, much sooner.
rollout_timeout=20m
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

before=

say() { printf '%s\n' "$*" >&2; }

refuse() {
    say "error: $*"
    exit 2
}

in_cluster() { kubectl --namespace "$namespace" "$@"; }

# Runs a command so that a signal is answered at once, and not when the command ends.
run() {
    "$@" </dev/null &
    wait $!
}

choose() {
    overlay="$root/deploy/kubernetes/overlays/$1"
    [[ $1 =~ ^[a-z0-9-]+$ && -f $overlay/kustomization.yaml ]] ||
        refuse "there is no overlay '$1': see deploy/kubernetes/overlays."
    namespace=$(sed -n 's/^namespace: *//p' "$overlay/kustomization.yaml")
    [[ -n $namespace ]] || refuse "the overlay '$1' names no namespace in its kustomization.yaml."
}

# Prints the overlay with an image in it, in place of the overlay's own. The tree stays as it is; the
# cause is what `kubectl rollout history` shows.
render() {
    mkdir -p "$work/overlay"
    cat >"$work/overlay/kustomization.yaml" <<END
resources: [$(realpath --relative-to="$work/overlay" "$overlay")]
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: kaiten, annotations: {kubernetes.io/change-cause: "$1"}}
      spec: {template: {spec: {containers: [{name: kaiten, image: "$1"}]}}}
END
    kubectl kustomize "$work/overlay"
}

field() { in_cluster get deployment kaiten --ignore-not-found --output "jsonpath={$1}"; }

# Whether the cluster still has the image of this run: another deployment may have changed it.
is_ours() { [[ $(field '.spec.template.spec.containers[0].image') == "$image" ]]; }

not_ours() {
    if [[ -n $before && $(revision) == "$before" ]]; then
        say "Nothing was changed: revision $before still serves."
        exit 1
    fi
    say "error: another image than $image is in $namespace now: somebody else deployed, or went back." \
        "It is left as it is, and nothing is known of it: look at once (docs/runbook.md#deploy)."
    exit 3
}

revision() { field '.metadata.annotations.deployment\.kubernetes\.io/revision'; }

# Marks the image as failed, so that a later rollback does not return to it.
mark() { in_cluster annotate deployment kaiten --overwrite "kaiten/taken-back=$image" || true; }

await() {
    run kubectl --namespace "$namespace" rollout status deployment/kaiten \
        --timeout="$rollout_timeout"
}

# A first deployment has the pods that its autoscaler is to begin with.
begin() {
    local first
    first=$(sed -n 's|^ *kaiten/first-replicas: "\([0-9]*\)"$|\1|p' "$work/manifests.yaml")
    [[ -n $before || -z $first ]] || in_cluster scale deployment/kaiten --replicas="$first"
}

verify() {
    local url=$1 model=${2:-} token=${TOKEN_FILE:-$work/token}
    if [[ -z ${TOKEN_FILE:-} ]]; then
        in_cluster exec deployment/kaiten -- \
            kaiten token create --subject smoke --scope predict --scope ops --ttl 5m >"$token" || {
            say "No token could be made in a pod: name a file with one in TOKEN_FILE."
            return 1
        }
    fi
    run kaiten smoke "$url" --token-file "$token" ${model:+--model "$model"}
}

take_back() {
    # A rollback must not stop half-way.
    trap '' INT TERM HUP
    in_cluster get pods || true
    if [[ -z $before ]]; then
        say "Nothing served here before, so it is left as it is, to be looked at."
        exit 1
    fi
    is_ours || not_ours
    say "Going back to revision $before."
    if undo && await; then
        mark
        say "Revision $before serves again."
        exit 1
    fi
    lost
}

undo() { in_cluster rollout undo deployment/kaiten ${before:+--to-revision="$before"}; }

lost() {
    say "error: what served before${before:+ (revision $before)} could not be brought back." \
        "Look at once (docs/runbook.md#roll-back):"
    say "  kubectl --namespace $namespace get pods"
    say "  kubectl --namespace $namespace rollout history deployment/kaiten"
    exit 3
}

# An interrupted run does not wait: it starts the rollback, which the cluster completes by itself.
interrupted() {
    trap '' INT TERM HUP
    jobs -pr | xargs --no-run-if-empty kill || true
    say "Interrupted."
    [[ -n $before ]] || exit 1
    is_ours || not_ours
    undo || lost
    mark
    say "Revision $before is being brought back."
    exit 1
}

apply() {
    image=$1
    [[ $image =~ ^[a-z0-9][a-z0-9._/:-]*@sha256:[0-9a-f]{64}$ ]] ||
        refuse "the image '$image' is not NAME@sha256:DIGEST, which alone is always the same image."
    render "$image" >"$work/manifests.yaml" ||
        refuse "the overlay can not be rendered; it has to have a Deployment named kaiten."
    before=$(revision) || refuse "the cluster does not answer, or may not be asked: see KUBECONFIG."
    trap interrupted INT TERM HUP
    say "Deploying $image to $namespace; now there: revision ${before:-none}."
    if run kubectl apply --filename "$work/manifests.yaml" && begin && await && verify "${@:2}"; then
        is_ours || not_ours
        in_cluster annotate deployment kaiten kaiten/taken-back- >/dev/null || true
        say "$image serves in $namespace."
    else
        take_back
    fi
}

rollback() {
    say "Before, newest last:"
    in_cluster rollout history deployment/kaiten ||
        refuse "the cluster does not answer, or may not be asked: see KUBECONFIG."
    before=${1:-}
    [[ -n $before || -z $(field '.metadata.annotations.kaiten/taken-back') ]] ||
        refuse "the last deployment failed and was taken back, so what served before serves already;" \
            "to go further back, name a revision of those above."
    if undo && await; then
        say "Serving in $namespace: $(field '.spec.template.spec.containers[0].image')"
    else
        lost
    fi
}

usage() {
    sed -n '5,7s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

case "${1:-}:$#" in
apply:4 | apply:5 | verify:3 | verify:4 | rollback:2 | rollback:3)
    verb=$1
    choose "$2"
    "$verb" "${@:3}"
    ;;
*) usage ;;
esac
