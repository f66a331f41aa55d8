//! The archive format of an initramfs: `newc`, of Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const SYMLINK: u32 = 0o120_777;

/// An archive that grows. Parent directories come by themselves.
#[derive(Debug, Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Cpio {
    /// Adds a file that may be run. Of two with one name, the first stays.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &str) {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &Path, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Adds an empty directory.
    pub(super) fn dir(&mut self, path: &Path) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Ends the archive; the kernel reads the next one right after it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if let Some(parent) = relative.parent()
            && !parent.as_os_str().is_empty()
        {
            self.dir(parent);
        }
        let name = relative.to_string_lossy().into_owned();
        if self.names.insert(name.clone()) {
            self.write(&name, mode, device, content);
        }
    }

    fn write(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let number = |len: usize| u32::try_from(len).expect("no file of ours has 4 GiB");
        let inode = number(self.names.len());
        let fields = [
            inode,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time: equal contents make equal archives
            number(content.len()),
            0,
            0,
            major,
            minor,
            number(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_directories_once_and_is_padded() {
        let mut cpio = Cpio::default();
        cpio.file(Path::new("/bin/a"), b"12345");
        cpio.file(Path::new("/bin/b"), b"");
        cpio.file(Path::new("/bin/a"), b"other");
        let bytes = cpio.finish();
        let text = String::from_utf8(bytes.clone()).expect("this one is ASCII");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches("070701").count(), 4, "bin, a, b, trailer");
        assert_eq!(text.matches("12345").count(), 1);
        assert_eq!(text.matches("other").count(), 0);
        // Header (110 bytes) and "bin\0", to a multiple of 4.
        assert_eq!(
            text.find("070701").zip(text[1..].find("070701")),
            Some((0, 115))
        );
        let size_of_a = &text[116 + 6 + 6 * 8..][..8];
        assert_eq!(size_of_a, "00000005");
    }
}
