//! What the tasks of both directions wait for.

use std::{future::Future, pin::Pin};

/// What a link has to tell.
pub(super) enum Told {
    /// There is room for frames that wait; false: it is gone.
    Room(bool),
    /// So many frames came; none: it is gone.
    Frames(usize),
}

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
