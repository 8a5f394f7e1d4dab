#!/bin/sh
# Makes the Secrets of the dev overlay, with passwords that nobody knows; once they are there it leaves them alone.
# Run it before or after `kubectl apply -k k8s/overlays/dev`: pods wait for what they need.
set -eu
namespace=${1:-jos-dev}
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

if kubectl -n "$namespace" get secret jos-redis jos-objects jos-secrets >/dev/null 2>&1; then
  echo "The Secrets are there already."
  exit 0
fi
password=$(new) access=$(new) secret=$(new)
kubectl apply --server-side -f - <<END
apiVersion: v1
kind: Namespace
metadata: {name: $namespace}
---
apiVersion: v1
kind: Secret
metadata: {name: jos-redis, namespace: $namespace}
stringData:
  password: "$password"
---
apiVersion: v1
kind: Secret
metadata: {name: jos-objects, namespace: $namespace}
stringData:
  s3.json: |
    {"identities": [{"name": "jos", "actions": ["Admin"],
      "credentials": [{"accessKey": "$access", "secretKey": "$secret"}]}]}
---
apiVersion: v1
kind: Secret
metadata: {name: jos-secrets, namespace: $namespace}
stringData:
  JOS_REDIS_URL: redis://:$password@jos-redis:6379/0
  AWS_ACCESS_KEY_ID: "$access"
  AWS_SECRET_ACCESS_KEY: "$secret"
END
