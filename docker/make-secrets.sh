#!/usr/bin/env bash
# Make the secrets of compose.yaml in docker/secrets/, where git does not look and only you may read.
# What is there already stays as it is.
set -euo pipefail
umask 077

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/secrets
mkdir -p "$folder"
chmod 700 "$folder"
for name in ray_token bucket_user bucket_password; do
  # With noclobber an existing file is not written over.
  (set -C && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name") 2>/dev/null || true
  [[ -s $folder/$name ]] || { echo "make-secrets.sh: cannot write $folder/$name" >&2; exit 1; }
  chmod 600 "$folder/$name"
done
echo "The secrets are in $folder."
if (($(id -u) != 1000)); then
  echo "Your user is not 1000, that of the image, so say this before 'docker compose':"
  echo "  export BATCHTRAIN_UID=$(id -u) BATCHTRAIN_GID=$(id -g)"
fi
