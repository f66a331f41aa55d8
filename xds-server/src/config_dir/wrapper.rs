//! A resource in discovery's own wrapper, `envoy.service.discovery.v3.Resource`: what it may have beside its
//! message (a name of its own, aliases, a time to live).

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::pb::envoy::service::discovery::v3::Resource;
use isthmus_xds_core::type_rules;
use prost::Message;
use prost_reflect::DescriptorPool;

use super::encode::{Finding, TYPE_URL_PREFIX, encode_resource};
use super::error::Problem;
use super::path::{push_index, push_key};
use super::yaml::Node;

const WRAPPER: &str = "envoy.service.discovery.v3.Resource";

/// The shortest time to live. A client hears of the resource twice in that time, from every server thread that
/// has it.
const MIN_TTL: Duration = Duration::from_secs(1);

/// What stands in a document: a message, and what was said around it.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    /// The message, a tree with `@type`.
    pub(super) body: &'a Node,
    /// Where it stands in its document.
    pub(super) path: String,
    /// The name given around it, with its place.
    pub(super) name: Option<Named>,
    pub(super) aliases: Vec<Arc<str>>,
    pub(super) ttl: Option<Duration>,
}

/// A name, and where it is written.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) path: String,
    pub(super) name: String,
}

/// The message that a resource's tree holds, in a wrapper or bare.
pub(super) fn body_of(node: &Node) -> &Node {
    if is_wrapper(node) {
        node.lookup("resource").unwrap_or(node)
    } else {
        node
    }
}

/// Opens the tree of a resource that stands at `path` in its document; one without a wrapper is its own body.
///
/// # Errors
///
/// All mistakes in the wrapper, and in the message if there are some in its form.
pub(super) fn open<'a>(
    pool: &DescriptorPool,
    node: &'a Node,
    path: &str,
) -> Result<Opened<'a>, Vec<Finding>> {
    if !is_wrapper(node) {
        return Ok(Opened {
            body: node,
            path: path.to_owned(),
            name: None,
            aliases: Vec::new(),
            ttl: None,
        });
    }
    let encoded = encode_resource(pool, node, path)?;
    // It was encoded by the descriptor of this very type.
    let wrapper = Resource::decode(&*encoded.value).unwrap_or_default();
    let mut findings = misuses(node, path, &wrapper);
    let body = node
        .lookup("resource")
        .filter(|_| wrapper.resource.is_some());
    let Some(body) = body.filter(|_| findings.is_empty()) else {
        if body.is_none() {
            let problem = Problem::MissingKey { key: "resource" };
            findings.push(finding(node.line, path.to_owned(), problem));
        }
        return Err(findings);
    };
    let named = (!wrapper.name.is_empty()).then(|| Named {
        line: node.lookup("name").map_or(node.line, |name| name.line),
        path: below(path, "name"),
        name: wrapper.name,
    });
    Ok(Opened {
        body,
        path: below(path, "resource"),
        name: named,
        aliases: wrapper.aliases.into_iter().map(Arc::from).collect(),
        ttl: wrapper
            .ttl
            .and_then(|ttl| Duration::try_from(to_prost(ttl)).ok()),
    })
}

/// Whether clients of a type take a name from the wrapper although the message has another.
pub(super) fn may_be_named_apart(type_url: &str, name: &str) -> bool {
    // VHDS asks for `ROUTE/HOST`, and xdstp names are those of the wrapper.
    type_url == type_rules::VIRTUAL_HOST || name.starts_with("xdstp://")
}

fn is_wrapper(node: &Node) -> bool {
    let url = node.lookup("@type").and_then(Node::text);
    url.and_then(|url| url.strip_prefix(TYPE_URL_PREFIX)) == Some(WRAPPER)
}

/// What a wrapper says that has no meaning here, or none at all.
fn misuses(node: &Node, path: &str, wrapper: &Resource) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fail = |field: &str, index: Option<usize>, problem| {
        let camel = camel_case(field);
        let spelled = [field, &*camel]
            .into_iter()
            .find(|key| node.lookup(key).is_some());
        let spelled = spelled.unwrap_or(field);
        let value = node.lookup(spelled);
        let line = value.map_or(node.line, |value| value.line);
        let mut path = below(path, spelled);
        if let Some(index) = index {
            push_index(&mut path, index);
        }
        findings.push(finding(line, path, problem));
    };
    let taken = |what, remedy| Problem::NotToBeSet { what, remedy };
    if !wrapper.version.is_empty() {
        let problem = taken("the version is a hash of the content", "leave it out");
        fail("version", None, problem);
    }
    if wrapper.resource_name.is_some() {
        let problem = taken(
            "dynamic parameters are not served",
            "give the name under `name`",
        );
        fail("resource_name", None, problem);
    }
    if wrapper.cache_control.is_some() {
        let problem = taken("it is for caching proxies", "leave it out");
        fail("cache_control", None, problem);
    }
    if wrapper.metadata.is_some() {
        let problem = taken(
            "no client reads it",
            "put it into the resource's own metadata",
        );
        fail("metadata", None, problem);
    }
    if let Some(ttl) = wrapper.ttl {
        let ttl = Duration::try_from(to_prost(ttl));
        if ttl.map_or(true, |ttl| ttl < MIN_TTL) {
            fail("ttl", None, Problem::ShortTtl { least: MIN_TTL });
        }
    }
    for (index, alias) in wrapper.aliases.iter().enumerate() {
        if alias.is_empty() {
            fail("aliases", Some(index), Problem::EmptyName);
        } else if *alias == wrapper.name || wrapper.aliases[..index].contains(alias) {
            fail("aliases", Some(index), Problem::RepeatedAlias);
        }
    }
    if node.lookup("resource").is_some_and(is_wrapper) {
        fail("resource", None, Problem::NestedWrapper);
    }
    findings
}

fn finding(line: usize, path: String, problem: Problem) -> Finding {
    Finding {
        line,
        path,
        problem,
    }
}

fn below(path: &str, key: &str) -> String {
    let mut path = path.to_owned();
    push_key(&mut path, key);
    path
}

fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

fn to_prost(
    duration: isthmus_proto::pb::google::protobuf::Duration,
) -> prost_reflect::prost_types::Duration {
    prost_reflect::prost_types::Duration {
        seconds: duration.seconds,
        nanos: duration.nanos,
    }
}
