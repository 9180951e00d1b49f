#!/bin/sh
# Make the base image of our own images without an image registry: base.sh [IMAGE]
#
# A Debian 12 root file system with Python 3.11 from the machine's own package mirror, imported into the engine at
# DOCKER_HOST. Does nothing when the image is there. Elsewhere any Python base image does: --build-arg BASE=….
set -eu

image=${1:-lamplighter-base:bookworm}
suite=${image##*:}

fail() { echo "base: $*" >&2; exit 1; }

if docker image inspect "$image" >/dev/null 2>&1; then echo "base: $image is there"; exit 0; fi
docker version >/dev/null 2>&1 || fail "no Docker engine answers: start one (deploy/docker/engine.sh) or set DOCKER_HOST"
command -v mmdebstrap >/dev/null || fail "mmdebstrap is not installed: install Debian's mmdebstrap"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# The machine's Debian mirrors, whatever format its sources are in; without one, mmdebstrap falls back to its own.
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
  grep -E " $suite(-updates|-security)? main\$" | sort -u >"$work/sources" || true
apt-config dump | grep -E '^Acquire::(https?::|Check-)' >"$work/apt.conf" || true # proxy and date rules of this machine

echo "base: making $image (Debian $suite, about a minute)"
set -- --quiet --variant=apt --include=python3,ca-certificates --aptopt="$work/apt.conf" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*' \
  "$suite" "$work/root.tar"
if [ -s "$work/sources" ]; then mmdebstrap "$@" "$work/sources"; else mmdebstrap "$@"; fi
docker import --change 'CMD ["python3"]' --change 'ENV LANG=C.UTF-8 PYTHONUNBUFFERED=1' "$work/root.tar" "$image" >/dev/null
echo "base: $image is ready, $(docker image inspect --format '{{.Size}}' "$image" | awk '{print int($1/1e6)}') MB"
