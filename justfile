# Run with ./justw VERB, which makes the environment first.

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

# List the verbs
help:
    @just --list --unsorted

# Install everything into the environment, .venv, or what one verb needs
setup *verb:
    @./justw setup {{ verb }}

# Submit a sample face and voice, get a talking video: demo/result.mp4
demo *args:
    @python deploy/demo.py {{ args }}

# Lint, types and the quick tests; `test all`: every test; `test PATH…`: what pytest would run
[positional-arguments]
test *args: lint types
    @python -m tests "$@"

# Style and format
lint:
    ruff check --quiet . && ruff format --quiet --check .

# Types
types:
    mypy && for main in images/*/main.py; do mypy "$main" || exit 1; done

# Put the code into the form that lint asks for
fmt:
    ruff check --quiet --fix . && ruff format --quiet .

# Serve broker, edge and runner until stopped
up *args:
    @lamplighter up {{ args }}

# Serve the edge alone, as its settings say
edge *args:
    @lamplighter edge {{ args }}

# The figures of docs/performance.md
bench *args:
    python -m bench {{ args }}

# Write the pages that are made from tables
docs:
    python -m deploy.lifecycle_doc > docs/lifecycle.md
    python -m deploy.errors_doc > docs/errors.md
    python -m deploy.settings_doc > docs/settings.md
    python -m deploy.metrics_doc > docs/metrics.md
    python -m deploy.alerts_doc > docs/alerts.md
    python -m deploy.alert_rules > deploy/prometheus/rules.yaml
    python -m deploy.dashboards

# Take the pictures of docs/console.md
console-shots:
    @python -m tests.console.shots

# Run the tests that need an NVIDIA GPU and keep what they said in docs/gpu.md
gpu-page:
    @python -m deploy.gpu_page

# Run the steps of docs/kubernetes.md on the cluster of kubectl's current context and keep what they said there
cluster-page:
    @python -m deploy.cluster_page

# Play the attacks of the penetration test, and print which were held off
attack *args:
    @python -m tests.attack {{ args }}

# Feed random changes of valid inputs to every parser of foreign bytes: --minutes N [--target NAME] [--seed S]
fuzz *args:
    python -m tests.fuzz {{ args }}

# Change the modules of tests/mutants/plan.py, one place at a time, and count the changes that no test notices
mutants *args:
    @python -m tests.mutants {{ args }}

# A storm over a stream of jobs, then the checker: --minutes N [--seed S]
chaos *args:
    python -m tests.chaos.storm {{ args }}

# Mixed load in fair weather, and whether memory, descriptors, consumers or the index grow: --minutes N
soak *args:
    python -m tests.chaos.soak {{ args }}

# Kill everybody at every step, and put the table into docs/promises.md (a quarter of an hour)
chaos-matrix *args:
    python -m tests.chaos.matrix --write {{ args }}

# What a submission must pass, on a clean machine
ci:
    bash .ci/run

# Resolve the lock files again from pyproject.toml
lock:
    python deploy/lock.py

# Make the base image of our own images, without an image registry
base *args:
    deploy/docker/base.sh {{ args }}

# Start, stop or show a Docker engine of our own under DIR
engine verb dir *socket:
    deploy/docker/engine.sh {{ verb }} {{ dir }} {{ socket }}

# Build wheels, checksums, bills of materials and OCI images into dist/: --no-images, --base IMAGE
release *args:
    @python -m deploy.release {{ args }}
