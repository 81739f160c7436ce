//! Links between real swarms on loopback, and peers that misuse them.

// A test that cannot go on panics, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dialling;
mod flow;
mod hops;
mod hostile;
mod node;
mod raw;
mod silence;
