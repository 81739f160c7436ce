// Package p2pv1 is generated from proto/message.proto by
// scripts/generate-stubs-go. The comments there are the reference of the API.
package p2pv1
