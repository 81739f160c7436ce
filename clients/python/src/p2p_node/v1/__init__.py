"""Generated from the daemon's API, package p2p.v1: messages and the gRPC stub."""
