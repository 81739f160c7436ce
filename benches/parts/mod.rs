//! The parts of the benchmark: what is measured, and how it is shown.

pub(crate) mod grpc;
pub(crate) mod idle;
pub(crate) mod link;
pub(crate) mod load;
pub(crate) mod product;
pub(crate) mod sqlite;
pub(crate) mod table;
