//! A file of a network namespace, by the number that the kernel gives for it.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// The namespace of this thread; those of others are in the same filesystem.
const OWN: &str = "/proc/thread-self/ns/net";

/// Finds a file of the namespace with this inode: where it is said to be, among the mounts (`ip netns`, container
/// runtimes), with the processes, and with each of their threads.
pub(super) fn find(inode: u64, known: Option<&Path>) -> Option<PathBuf> {
    let device = fs::metadata(OWN).ok()?.dev();
    let is_it = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.ino() == inode && found.dev() == device)
    };
    let known = known.map(Path::to_owned).into_iter();
    let processes = || numbered(Path::new("/proc"));
    let of_processes = processes().map(|process| process.join("ns/net"));
    let threads = processes().flat_map(|process| numbered(&process.join("task")));
    let of_threads = threads.map(|thread| thread.join("ns/net"));
    known
        .chain(mounted())
        .chain(of_processes)
        .chain(of_threads)
        .find(is_it)
}

fn mounted() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter_map(namespace_mount)
        .collect()
}

// `ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS`
fn namespace_mount(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ');
    let mount_point = words.by_ref().nth(4)?;
    let mut behind = words.skip_while(|word| *word != b"-").skip(1);
    (behind.next()? == b"nsfs").then(|| path_of(mount_point))
}

// Blanks are written as three octal digits behind a backslash.
fn path_of(mut escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    while let Some((first, rest)) = escaped.split_first() {
        let digits = rest.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            escaped = &rest[3..];
        } else {
            bytes.push(*first);
            escaped = rest;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

// The entries of a directory in /proc that are processes or threads.
fn numbered(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let dir = dir.to_owned();
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let is_number = |name: &OsString| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    names.filter(is_number).map(move |name| dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_told_from_others() {
        let cases = [
            (
                "25 30 0:4 net:[4026532177] /run/netns/a rw shared:5 - nsfs nsfs rw",
                Some("/run/netns/a"),
            ),
            (
                "25 30 0:4 net:[4026532177] /run/my\\040netns rw - nsfs nsfs rw",
                Some("/run/my netns"),
            ),
            ("26 30 8:1 / / rw,relatime - ext4 /dev/vda rw", None),
            ("26 30 8:1 / /nsfs rw,relatime", None),
            ("", None),
        ];
        for (line, path) in cases {
            let found = namespace_mount(line.as_bytes());
            assert_eq!(found.as_deref(), path.map(Path::new), "{line}");
        }
    }

    #[test]
    fn the_namespace_of_a_process_is_found_by_its_inode() {
        let inode = fs::metadata(OWN).expect("it is there").ino();
        let found = find(inode, None).expect("this process has it");
        assert_eq!(fs::metadata(&found).expect("it is there").ino(), inode);
        assert_eq!(find(0, None), None);
        let known = Path::new(OWN);
        assert_eq!(find(inode, Some(known)).as_deref(), Some(known));
    }
}
