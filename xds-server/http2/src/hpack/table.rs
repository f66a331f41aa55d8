//! Header names and values by number: the static table of the RFC, and the one that a peer fills.

use std::collections::VecDeque;

/// What an entry is taken to cost beside its bytes (RFC 7541, section 4.1).
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// RFC 7541, appendix A; the first has number 1.
pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The entries that a peer has added, newest first. Holds no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct DynamicTable {
    // Name and value in one piece, and where the value begins.
    entries: VecDeque<(Box<[u8]>, usize)>,
    size_bytes: usize,
    max_bytes: usize,
}

impl DynamicTable {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            ..Self::default()
        }
    }

    /// Changes the bound and drops what is above it.
    pub(super) fn resize(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.evict(0);
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }

    /// Adds an entry; one that is larger than the table empties it (RFC 7541, section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size_bytes = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        self.evict(size_bytes);
        if size_bytes <= self.max_bytes {
            self.size_bytes += size_bytes;
            self.entries
                .push_front(([name, value].concat().into(), name.len()));
        }
    }

    /// Name and value of a number in either table.
    pub(super) fn get(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let index = number.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let (field, value_at) = self.entries.get(index - STATIC.len())?;
        Some(field.split_at(*value_at))
    }

    fn evict(&mut self, room_bytes: usize) {
        while self.size_bytes + room_bytes > self.max_bytes
            && let Some((field, _)) = self.entries.pop_back()
        {
            self.size_bytes -= field.len() + ENTRY_OVERHEAD_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_entries_make_room_and_an_empty_table_holds_nothing() {
        let mut table = DynamicTable::new(3 * 34);
        for name in ["a", "b", "c", "d"] {
            table.insert(name.as_bytes(), b"1");
        }
        assert_eq!(table.get(62), Some((&b"d"[..], &b"1"[..])));
        assert_eq!(table.get(64), Some((&b"b"[..], &b"1"[..])));
        assert_eq!(table.get(65), None, "the oldest had to go");
        table.insert(&[b'x'; 100], b"");
        assert_eq!(table.get(62), None, "one too large empties the table");
        table.insert(b"a", b"");
        table.resize(0);
        assert_eq!(table.entries.capacity(), 0);
        assert_eq!(table.size_bytes, 0);
    }
}
