//! Offsets of kernel fields, from the running kernel's own type information.
//!
//! Format: Linux, `Documentation/bpf/btf.rst`. Only what is needed to find a field is read.

use std::{fs, path::Path};

use isthmus_accel_abi::global;

use crate::DatapathError;

/// Where the kernel shows its types. Linux 5.4 with `CONFIG_DEBUG_INFO_BTF`.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
/// Nesting that kernel structures do not reach; a damaged file must not recurse for ever.
const MAX_DEPTH: u32 = 8;

/// A field that the programs read.
struct Field {
    global: &'static str,
    holder: &'static str,
    path: &'static [&'static str],
    is_required: bool,
}

const fn required(
    global: &'static str,
    holder: &'static str,
    path: &'static [&'static str],
) -> Field {
    Field {
        global,
        holder,
        path,
        is_required: true,
    }
}

const fn optional(
    global: &'static str,
    holder: &'static str,
    path: &'static [&'static str],
) -> Field {
    Field {
        is_required: false,
        ..required(global, holder, path)
    }
}

const FIELDS: [Field; 24] = [
    required(
        global::SKC_COOKIE_OFFSET,
        "sock",
        &["__sk_common", "skc_cookie"],
    ),
    required(
        global::RECEIVE_QUEUE_LEN_OFFSET,
        "sock",
        &["sk_receive_queue", "qlen"],
    ),
    required(
        global::RMEM_ALLOC_OFFSET,
        "sock",
        &["sk_backlog", "rmem_alloc"],
    ),
    required(global::RCVBUF_OFFSET, "sock", &["sk_rcvbuf"]),
    required(global::RCVLOWAT_OFFSET, "sock", &["sk_rcvlowat"]),
    required(
        global::SK_FLAGS_OFFSET,
        "sock",
        &["__sk_common", "skc_flags"],
    ),
    required(global::SND_UNA_OFFSET, "tcp_sock", &["snd_una"]),
    required(global::WRITE_SEQ_OFFSET, "tcp_sock", &["write_seq"]),
    required(
        global::ULP_OPS_OFFSET,
        "inet_connection_sock",
        &["icsk_ulp_ops"],
    ),
    required(global::USER_DATA_OFFSET, "sock", &["sk_user_data"]),
    required(global::INGRESS_MSG_OFFSET, "sk_psock", &["ingress_msg"]),
    optional(global::IS_MPTCP_OFFSET, "tcp_sock", &["is_mptcp"]),
    optional(global::SK_SOCKET_OFFSET, "sock", &["sk_socket"]),
    optional(global::SOCKET_FILE_OFFSET, "socket", &["file"]),
    optional(global::FILE_CRED_OFFSET, "file", &["f_cred"]),
    optional(global::CRED_FSUID_OFFSET, "cred", &["fsuid"]),
    optional(global::CRED_FSGID_OFFSET, "cred", &["fsgid"]),
    // The sockmap does without these.
    optional(global::SKC_FAMILY_OFFSET, "sock_common", &["skc_family"]),
    optional(global::SKC_STATE_OFFSET, "sock_common", &["skc_state"]),
    optional(global::SKC_NUM_OFFSET, "sock_common", &["skc_num"]),
    optional(
        global::SKC_RCV_SADDR_OFFSET,
        "sock_common",
        &["skc_rcv_saddr"],
    ),
    optional(
        global::SKC_V6_RCV_SADDR_OFFSET,
        "sock_common",
        &["skc_v6_rcv_saddr"],
    ),
    optional(global::SKC_NET_OFFSET, "sock_common", &["skc_net", "net"]),
    optional(global::NET_COOKIE_OFFSET, "net", &["net_cookie"]),
];

/// Offsets of everything that the programs read, by name of the global.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelOffsets {
    values: Vec<(&'static str, u32)>,
    missing: Vec<String>,
}

impl KernelOffsets {
    /// Reads the running kernel's.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Missing`] if the kernel has no type information.
    pub fn of_running_kernel() -> Result<Self, DatapathError> {
        Self::read(Path::new(VMLINUX_BTF))
    }

    fn read(path: &Path) -> Result<Self, DatapathError> {
        let missing = |detail: String| DatapathError::Missing {
            feature: "kernel type information (BTF)",
            detail,
            remedy: "run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        };
        let bytes =
            fs::read(path).map_err(|error| missing(format!("{}: {error}", path.display())))?;
        let types = Types::parse(&bytes)
            .ok_or_else(|| missing(format!("{} is damaged", path.display())))?;
        Ok(Self::find(&types))
    }

    fn find(types: &Types<'_>) -> Self {
        let mut offsets = Self {
            values: Vec::new(),
            missing: Vec::new(),
        };
        for field in &FIELDS {
            let offset = types.offset_bytes(field.holder, field.path);
            if offset.is_none() && field.is_required {
                let path = field.path.join(".");
                offsets.missing.push(format!("{}.{path}", field.holder));
            }
            offsets
                .values
                .push((field.global, offset.unwrap_or(global::ABSENT)));
        }
        let bit = types.enum_value("sock_flags", "SOCK_ZEROCOPY");
        if bit.is_none() {
            offsets.missing.push("sock_flags.SOCK_ZEROCOPY".to_owned());
        }
        offsets
            .values
            .push((global::ZEROCOPY_BIT, bit.unwrap_or(global::ABSENT)));
        offsets
    }

    /// Returns the globals and their values.
    pub(crate) fn globals(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.values.iter().map(|(name, value)| (*name, value))
    }

    /// Returns the fields without which no message may skip TCP, as `struct.field`.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }
}

/// The types of one BTF blob, by id.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    // Where each type starts; id 0 is void.
    starts: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: u32,
    is_bitfield_struct: bool,
    target: u32,
    start: usize,
}

impl<'a> Types<'a> {
    fn parse(file: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(file.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = word(file, 4)? as usize;
        let section = |offset_at: usize| {
            let start = header.checked_add(word(file, offset_at)? as usize)?;
            let end = start.checked_add(word(file, offset_at + 4)? as usize)?;
            file.get(start..end)
        };
        let mut types = Self {
            bytes: section(8)?,
            strings: section(16)?,
            starts: vec![0],
        };
        let mut at = 0;
        while at < types.bytes.len() {
            types.starts.push(at);
            at += types.read(at)?.size_bytes();
        }
        Some(types)
    }

    fn read(&self, start: usize) -> Option<Type> {
        let info = word(self.bytes, start + 4)?;
        Some(Type {
            name: word(self.bytes, start)?,
            kind: (info >> 24) & 0x1f,
            members: info & 0xffff,
            is_bitfield_struct: info >> 31 == 1,
            target: word(self.bytes, start + 8)?,
            start,
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        self.read(*self.starts.get(id as usize)?)
    }

    fn name(&self, offset: u32) -> &[u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        let len = tail
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(tail.len());
        &tail[..len]
    }

    fn find(&self, kind: u32, name: &str) -> Option<Type> {
        self.starts
            .iter()
            .skip(1)
            .filter_map(|start| self.read(*start))
            .find(|ty| ty.kind == kind && self.name(ty.name) == name.as_bytes())
    }

    fn enum_value(&self, holder: &str, variant: &str) -> Option<u32> {
        let holder = self.find(KIND_ENUM, holder)?;
        (0..holder.members).find_map(|index| {
            let at = holder.start + 12 + index as usize * 8;
            let name = self.name(word(self.bytes, at)?);
            (name == variant.as_bytes()).then(|| word(self.bytes, at + 4))?
        })
    }

    fn offset_bytes(&self, holder: &str, path: &[&str]) -> Option<u32> {
        let mut holder = self.find(KIND_STRUCT, holder)?;
        let mut bits = 0;
        for (depth, field) in path.iter().enumerate() {
            let (target, offset) = self.member(&holder, field.as_bytes(), 0)?;
            bits += offset;
            if depth + 1 < path.len() {
                holder = self.resolve(target)?;
            }
        }
        Some(bits / 8)
    }

    // Finds a member, through anonymous structs and unions: its type and its offset in bits.
    fn member(&self, holder: &Type, field: &[u8], depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        for index in 0..holder.members {
            let at = holder.start + 12 + index as usize * 12;
            let (name, target) = (word(self.bytes, at)?, word(self.bytes, at + 4)?);
            let mut offset = word(self.bytes, at + 8)?;
            if holder.is_bitfield_struct {
                offset &= 0x00ff_ffff;
            }
            let name = self.name(name);
            if name == field {
                return Some((target, offset));
            }
            if name.is_empty()
                && let Some(inner) = self.resolve(target)
                && let Some((found, inner_offset)) = self.member(&inner, field, depth + 1)
            {
                return Some((found, offset + inner_offset));
            }
        }
        None
    }

    // Follows typedefs and qualifiers to a struct or union.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let ty = self.by_id(id)?;
            match ty.kind {
                KIND_STRUCT | KIND_UNION => return Some(ty),
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.target;
                }
                _ => return None,
            }
        }
        None
    }
}

impl Type {
    fn size_bytes(&self) -> usize {
        let members = self.members as usize;
        12 + match self.kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => members * 12,
            KIND_ENUM | KIND_FUNC_PROTO => members * 8,
            _ => 0,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_refused() {
        for file in [&b""[..], &[0xeb, 0x9f], &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]] {
            assert!(Types::parse(file).is_none(), "{file:?}");
        }
        let mut header = vec![0; 24];
        header[..2].copy_from_slice(&MAGIC.to_ne_bytes());
        header[4..8].copy_from_slice(&24_u32.to_ne_bytes());
        assert!(
            Types::parse(&header).is_some(),
            "a file without types is fine"
        );
        header[12] = 200;
        assert!(Types::parse(&header).is_none(), "types beyond the end");
    }

    #[test]
    fn the_running_kernel_has_every_field() {
        let offsets = KernelOffsets::of_running_kernel().expect("the kernel has BTF");
        assert_eq!(offsets.missing(), &[] as &[String]);
        let absent: Vec<_> = offsets
            .globals()
            .filter(|(_, offset)| **offset == global::ABSENT)
            .collect();
        assert_eq!(absent, [], "with CONFIG_MPTCP it has the optional ones too");
    }
}
