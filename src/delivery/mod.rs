//! Durable delivery.

pub mod effects;
