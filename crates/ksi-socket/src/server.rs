use std::{
    fs::{self, DirBuilder, Permissions},
    io, mem,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net,
    },
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use ksi_kernel::Kernel;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::{Admit, connection::Connection, place::Place, share::Share};

/// So many clients may have connected before they are accepted.
const BACKLOG: u32 = 1024;

/// How long to wait when the system has no descriptor left for one more connection.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Others may write, but not rename or remove what is not theirs, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// A bound socket; its file goes away with it, if it made it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// None when somebody else listens for us and looks after the file.
    file: Option<SocketFile>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket's folder could not be made or looked at.
    #[error("cannot use the folder {folder} for the socket; set KSI_SOCKET to another path")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else could put a socket of their own in the place of ours.
    #[error("other users can change the folder {folder}; set KSI_SOCKET to a path in your own")]
    Shared {
        /// The folder.
        folder: PathBuf,
    },
    /// Something that is no socket stands where the socket belongs.
    #[error("{path} is in the way and is not a socket; move it, or set KSI_SOCKET to another path")]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// Whoever listens for us does so where no client looks.
    #[error(
        "the socket that was handed over is {found}, and clients look at {path}; make both one"
    )]
    Elsewhere {
        /// Where clients look.
        path: PathBuf,
        /// Where it is, as far as it has a place.
        found: String,
    },
    /// The system refused the socket.
    #[error("cannot listen on {path}; set KSI_SOCKET to another path")]
    Bind {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Server {
    /// Listens on this path: folder 0700 if it is new, socket 0600.
    ///
    /// The caller holds the daemon's lock, so a socket that is there was left behind and is removed.
    /// Must be called on a tokio runtime.
    pub fn bind(path: &Path) -> Result<Server, BindError> {
        make_folder(folder_of(path))?;
        remove_stale(path)?;
        let (listener, file) =
            listen(path).map_err(|source| BindError::Bind { path: path.to_owned(), source })?;
        Ok(Server { listener, path: path.to_owned(), file: Some(file) })
    }

    /// Takes over a socket on which somebody else listens for us, at this path: its file is theirs.
    ///
    /// Must be called on a tokio runtime.
    pub fn take(listener: net::UnixListener, path: &Path) -> Result<Server, BindError> {
        let bind = |source| BindError::Bind { path: path.to_owned(), source };
        let address = listener.local_addr().map_err(bind)?;
        let is_there = |found| matches!((inode(found), inode(path)), (Ok(a), Ok(b)) if a == b);
        if !address.as_pathname().is_some_and(is_there) {
            let found = address.as_pathname().map(|found| found.display().to_string());
            let found = found.unwrap_or_else(|| "nowhere".to_owned());
            return Err(BindError::Elsewhere { path: path.to_owned(), found });
        }
        listener.set_nonblocking(true).map_err(bind)?;
        let listener = UnixListener::from_std(listener).map_err(bind)?;
        Ok(Server { listener, path: path.to_owned(), file: None })
    }

    /// Listens anew if the socket's file is gone, unless somebody else's has taken its place;
    /// returns those who had connected before and were not accepted yet.
    fn mend(&mut self, place: &mut Place) -> Vec<UnixStream> {
        let path = self.path.clone();
        if self.file.as_ref().is_none_or(SocketFile::is_there) {
            place.is_well();
            return Vec::new();
        }
        let before = self.listen_anew(&path);
        place.watch_again(&path);
        match before {
            Ok(before) => {
                tracing::warn!(path = %path.display(), "the socket was gone and is made anew");
                waiting(before).unwrap_or_default()
            }
            Err(error) => {
                place.is_lost(&error);
                Vec::new()
            }
        }
    }

    /// The listener that it was before.
    fn listen_anew(&mut self, path: &Path) -> Result<UnixListener, BindError> {
        make_folder(folder_of(path))?;
        if net::UnixStream::connect(path).is_ok() {
            return Err(BindError::Occupied { path: path.to_owned() });
        }
        remove_stale(path)?;
        let bind = |source| BindError::Bind { path: path.to_owned(), source };
        let (listener, file) = listen(path).map_err(bind)?;
        self.file = Some(file);
        Ok(mem::replace(&mut self.listener, listener))
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts connections until the kernel is closing, then removes the socket.
    ///
    /// Each connection is a task of the kernel. What its client may rely on:
    /// - Requests with a `correlation_id` run concurrently; those without one by one, in order.
    /// - Every line is answered, also one that is no request, and the connection lives on.
    /// - A client that goes away does not cancel its calls. `context.timeout_ms` ends the waiting,
    ///   not the work. After a half-close all that is pending is still answered.
    /// - Events are pushed with the lowest subscription that they match (`s1`, `s2`, …), or `sender`
    ///   when the connection's own request led to them. The connection's own news bears `s0`:
    ///   `monitor:lagged {"missed":n}` when it was so slow that signals were lost, and
    ///   `system:shutdown_notification`, once, whatever it subscribes to.
    /// - Who does not read is not read from, and costs a bounded amount of memory: all
    ///   together 64 MiB, and for each 16 KiB, what it was given last and one line.
    /// - A socket whose file is removed is made anew; who is connected notices nothing.
    pub async fn run(mut self, kernel: Kernel, admit: Admit) {
        let mut closing = pin!(kernel.ending().closing());
        let share = Share::default();
        let mut place = match self.file {
            Some(_) => Place::watch(&self.path),
            None => Place::unwatched(),
        };
        // It may have gone before it was watched.
        let mend = |server: &mut Server, place: &mut Place| {
            for stream in server.mend(place) {
                start(&kernel, &admit, &share, stream);
            }
        };
        mend(&mut self, &mut place);
        loop {
            let accepted = tokio::select! {
                () = &mut closing => return,
                () = place.changed() => {
                    mend(&mut self, &mut place);
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => start(&kernel, &admit, &share, stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                }
            }
        }
    }
}

/// Whose process is at the other end is looked at by the connection's own task: others need not
/// wait for it. The socket knows its peer as it was when it connected.
fn start(kernel: &Kernel, admit: &Admit, share: &Share, stream: UnixStream) {
    let (connected, admit, share) = (kernel.clone(), admit.clone(), share.clone());
    kernel.tasks().spawn("connection", async move {
        let guest = admit(&stream);
        Connection::new(connected, stream, guest, share).serve().await;
    });
}

/// Those who wait at a listener; they would be cut off with it.
fn waiting(listener: UnixListener) -> io::Result<Vec<UnixStream>> {
    let listener = listener.into_std()?;
    let mut streams = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true)?;
        streams.push(UnixStream::from_std(stream)?);
    }
    Ok(streams)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_folder(folder: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Folder { folder: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    // A name in `/tmp` can be guessed: a link there may lead to where its owner wants it.
    let entry = fs::symlink_metadata(folder).map_err(failed)?;
    let found = fs::metadata(folder).map_err(failed)?;
    let trusted = |it: &fs::Metadata| [rustix::process::getuid().as_raw(), 0].contains(&it.uid());
    let shared = found.mode() & 0o022 != 0 && found.mode() & STICKY == 0;
    match trusted(&entry) && trusted(&found) && !shared {
        true => Ok(()),
        false => Err(BindError::Shared { folder: folder.to_owned() }),
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(BindError::Occupied { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|source| BindError::Bind { path: path.to_owned(), source })
}

/// Nobody can connect before `listen`, so nobody can before the mode is set.
fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile { path: path.to_owned(), inode: inode(path)? };
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok((socket.listen(BACKLOG)?, file))
}

/// The socket's file, removed at the end unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn is_there(&self) -> bool {
        inode(&self.path).is_ok_and(|found| found == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
