//! The threads that own the store's connections, and the handle to them.

use std::{
    fmt, fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc as std_mpsc},
    thread::JoinHandle,
};

use tokio::sync::{Semaphore, oneshot};

use super::{Db, Reader, StoreError, StoreOptions};

/// Writes that wait: bounds the memory of their messages together with the
/// bounds of those who ask.
const MAX_WAITING: usize = 4096;
/// Operations committed together at most: more would only make the first wait.
const MAX_BATCH: usize = 1024;
/// Reads that wait.
const MAX_READS: usize = 1024;
/// Mode of the file.
const STORE_MODE: u32 = 0o600;

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Write = Box<dyn FnOnce(&mut Db) -> Answer + Send>;
type Read = Box<dyn FnOnce(&Reader) + Send>;

enum Job {
    Write(Write),
    Close(oneshot::Sender<()>),
}

/// A handle to the store; clones share it. One thread writes: it takes what
/// waits, runs it as one transaction, and answers only after the commit.
#[derive(Clone)]
pub struct Store {
    writes: std_mpsc::SyncSender<Job>,
    reads: std_mpsc::SyncSender<Read>,
    /// Callers wait here, not in the channel, so that no send ever blocks.
    write_slots: Arc<Semaphore>,
    read_slots: Arc<Semaphore>,
    path: Arc<PathBuf>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates the store in a file, and starts its threads.
    ///
    /// # Errors
    /// See [`Db::open`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<(Self, Vec<JoinHandle<()>>), StoreError> {
        keep_private(path).map_err(|error| StoreError::open_io(path, &error))?;
        let db = Db::open(path, options)?;
        let path = Arc::new(path.to_owned());
        let reader = Reader::open(&path)?;
        let (writes, write_jobs) = std_mpsc::sync_channel(MAX_WAITING + 1);
        let (reads, read_jobs) = std_mpsc::sync_channel::<Read>(MAX_READS + 1);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map_err(|error| StoreError::open_io(&path, &error))
        };
        let threads = vec![
            spawn("store-write", Box::new(move || write_loop(db, &write_jobs)))?,
            spawn(
                "store-read",
                Box::new(move || {
                    while let Ok(read) = read_jobs.recv() {
                        read(&reader);
                    }
                }),
            )?,
        ];
        let write_slots = Arc::new(Semaphore::new(MAX_WAITING));
        let read_slots = Arc::new(Semaphore::new(MAX_READS));
        Ok((Self { writes, reads, write_slots, read_slots, path }, threads))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Runs an operation in the next transaction; answers once that is on disk.
    /// Operations run in the order in which they were asked for.
    ///
    /// # Errors
    /// Those of the operation, which then has changed nothing, or
    /// [`StoreError::Commit`].
    pub async fn write<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.write_then(operation, |_| ()).await
    }

    /// As [`Store::write`], and calls `then` with what was committed, on the
    /// store's thread, in commit order. `then` must not block.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn write_then<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Db) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let slot = self.write_slots.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let write: Write = Box::new(move |db| {
            let result = db.isolated(operation);
            Box::new(move |committed| {
                drop(slot);
                let result = committed.and(result);
                if let Ok(value) = &result {
                    then(value);
                }
                // The caller may have gone; what was asked for is done.
                drop(reply.send(result));
            })
        });
        self.writes.try_send(Job::Write(write)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Reads what is committed.
    ///
    /// # Errors
    /// Those of the operation.
    pub async fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slot = self.read_slots.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let read: Read = Box::new(move |reader| {
            drop(reply.send(operation(reader)));
            drop(slot);
        });
        self.reads.try_send(read).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what waits, notes the clean stop and closes the file.
    pub async fn close(&self) {
        self.write_slots.close();
        self.read_slots.close();
        let (done, closed) = oneshot::channel();
        if self.writes.try_send(Job::Close(done)).is_ok() {
            drop(closed.await);
        }
    }
}

/// Messages are nobody else's business: the file is its owner's alone, and
/// SQLite gives the files beside it the same mode.
fn keep_private(path: &Path) -> io::Result<()> {
    let file = fs::File::options().create(true).truncate(false).write(true).mode(STORE_MODE).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(STORE_MODE))
}

fn write_loop(mut db: Db, jobs: &std_mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut next = Some(first);
        let mut answers = Vec::new();
        let mut close = None;
        let begun = db.begin();
        while let Some(job) = next.take() {
            match job {
                Job::Write(write) => answers.push(write(&mut db)),
                Job::Close(done) => {
                    close = Some(done);
                    break;
                }
            }
            if answers.len() < MAX_BATCH {
                next = jobs.try_recv().ok();
            }
        }
        let committed = begun.and_then(|()| db.commit());
        answer(answers, &committed);
        if let Some(done) = close {
            if let Err(error) = db.end_session() {
                tracing::warn!(%error, "the store could not note its clean stop");
            }
            drop(db);
            // Whoever closed it may have stopped waiting.
            let _ = done.send(());
            return;
        }
    }
}

fn answer(answers: Vec<Answer>, committed: &Result<(), StoreError>) {
    let cause = committed.as_ref().err().map(ToString::to_string);
    if let Some(cause) = &cause {
        tracing::error!(cause, operations = answers.len(), "the store could not commit; nothing of it was kept");
    }
    for answer in answers {
        answer(cause.clone().map_or(Ok(()), |cause| Err(StoreError::Commit(cause))));
    }
}
