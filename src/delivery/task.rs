//! What the tasks of both directions wait for.

use std::{future::Future, pin::Pin};

/// Waits for the operation of the store that is under way, if one is, and
/// leaves its place free.
pub(super) async fn answered<T>(store: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match store {
        Some(answer) => {
            let done = answer.await;
            *store = None;
            done
        }
        None => std::future::pending().await,
    }
}
