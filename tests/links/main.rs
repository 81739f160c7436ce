//! Links between real swarms on loopback, and peers that misuse them.

mod dialling;
mod flow;
mod hostile;
mod node;
mod raw;
