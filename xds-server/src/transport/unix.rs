//! The socket file: made with its mode before anybody can connect, replaced when stale, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket};

use super::TransportError;

/// Mode for the owner and the group: who may connect beyond that is the directory's and the group's business.
pub(super) const OWNER_AND_GROUP: u32 = 0o660;

/// Mode for the owner alone.
pub(super) const OWNER: u32 = 0o600;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// A listening Unix socket and its file.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub(super) listener: UnixListener,
    pub(super) file: OwnFile,
    /// The user whose file it is.
    pub(super) owner: u32,
}

/// A file that is removed at the end if it is still the one that was made.
#[derive(Debug)]
pub(super) struct OwnFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    /// Listens on `path`, in the place of a socket that nobody serves any more.
    pub(super) fn bind(
        path: &Path,
        permissions: u32,
        flag: &'static str,
    ) -> Result<Self, TransportError> {
        check_free(path, flag)?;
        let made = make(path, permissions);
        made.map_err(|source| TransportError::Socket {
            path: path.to_owned(),
            flag,
            source,
        })
    }
}

fn check_free(path: &Path, flag: &'static str) -> Result<(), TransportError> {
    let Ok(found) = fs::symlink_metadata(path) else {
        // Not there, or not to be seen: then making it fails and says why.
        return Ok(());
    };
    let path = path.to_owned();
    if !found.file_type().is_socket() {
        return Err(TransportError::NotASocket { path, flag });
    }
    match UnixStream::connect(&path) {
        Ok(_) => Err(TransportError::SocketInUse { path, flag }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => Err(TransportError::Socket { path, flag, source }),
    }
}

// Under another name first: nobody connects before the mode is right, and a rename replaces a stale socket without a
// moment when there is none.
fn make(path: &Path, permissions: u32) -> io::Result<SocketFile> {
    let draft = path.with_file_name(format!(".{}", std::process::id()));
    // Of a process of this number that was killed on the way.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(&draft)?;
    let made = fs::set_permissions(&draft, fs::Permissions::from_mode(permissions))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|listener| {
            let made = fs::symlink_metadata(&draft)?;
            fs::rename(&draft, path)?;
            Ok(SocketFile {
                listener,
                owner: made.uid(),
                file: OwnFile {
                    path: path.to_owned(),
                    device_and_inode: (made.dev(), made.ino()),
                },
            })
        });
    if made.is_err() {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&draft);
    }
    made
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode);
        if is_own {
            // A file that stays is stale, and replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}
