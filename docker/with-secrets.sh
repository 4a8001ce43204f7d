#!/bin/sh
# Run a command with secrets from files: for each NAME_FILE of the list, NAME is what that file holds.
# So no secret is in an image, a command line, or what `docker inspect` shows.
set -eu

for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; do
  eval "file=\${${name}_FILE:-}"
  [ -n "$file" ] || continue
  [ -r "$file" ] || { echo "with-secrets: expected a file that I may read in ${name}_FILE, found $file" >&2; exit 1; }
  value=$(cat "$file")
  export "$name=$value"
  unset "${name}_FILE"
done

exec "$@"
