#!/usr/bin/env bash
# Makes gen/ from the protos, without a protoc on the machine: buf comes from npm, its two plugins from the Go proxy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
GOBIN="$PWD/bin" go install google.golang.org/protobuf/cmd/protoc-gen-go
GOBIN="$PWD/bin" go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest
npm install --loglevel=error --no-audit --no-fund --no-save --prefix . '@bufbuild/buf@^1.50'
node_modules/.bin/buf generate
