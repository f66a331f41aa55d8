//! A resource from a program: checked by Envoy's rules, under the name by which clients ask for it.
//!
//! A configuration directory goes the same way (`config_dir`), from text and with lines.
//!
//! ```
//! use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
//! use isthmus_xds::resources;
//!
//! let cluster = Cluster { name: "backend".to_owned(), ..Cluster::default() };
//! let draft = resources::draft_of(&cluster).expect("Envoy takes it");
//! assert_eq!(&*draft.name, "backend");
//!
//! let nameless = resources::draft_of(&Cluster::default()).unwrap_err();
//! assert_eq!(nameless.to_string(), "name: must not be empty");
//! ```

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use isthmus_proto::descriptor_pool;
use isthmus_xds_core::{Draft, Extras, Name, TypeUrl, limits, xdstp};
use prost_reflect::MessageDescriptor;

use crate::config_dir;
use crate::documents::endpoints_of;
use crate::validate::path::Step;
use crate::validate::{MAX_VIOLATIONS, rules, wire_text};

/// What every type URL starts with.
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// Other names of one resource: a virtual host has one for each of its domains.
pub const MAX_ALIASES: usize = 1000;

/// Everything that is wrong with a resource; never empty.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", Lines(.0))]
pub struct InvalidResource(pub Vec<Mistake>);

/// One thing that is wrong, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// From the message that was given to the field; empty for the whole.
    pub path: String,
    /// What is wrong and, where that does not say it, what to do.
    pub problem: String,
}

/// What may be said of a resource beside its message.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    /// The name by which clients ask for it; that in the message if it is empty.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// How long a client may go on using it unheard of.
    pub ttl: Option<Duration>,
}

/// Makes a resource of a message.
///
/// # Errors
///
/// Returns everything that Envoy would refuse.
pub fn draft_of<M: prost::Message + prost::Name>(message: &M) -> Result<Draft, InvalidResource> {
    let type_url = format!("{TYPE_URL_PREFIX}{}", M::full_name());
    draft(
        &type_url,
        message.encode_to_vec().into(),
        Envelope::default(),
    )
}

/// Makes a resource of proto3 JSON with an `@type`, as it stands in a configuration directory.
///
/// # Errors
///
/// Returns everything that is wrong with it.
pub fn draft_of_json(text: &str, envelope: Envelope) -> Result<Draft, InvalidResource> {
    let mistake = |[path, problem]: [String; 2]| Mistake { path, problem };
    let (type_url, value) = config_dir::encode_text(text)
        .map_err(|found| InvalidResource(found.into_iter().map(mistake).collect()))?;
    draft(&type_url, value.into(), envelope)
}

/// Makes a resource of an encoded message. One of a type that this program has no descriptor of needs a name in
/// its envelope, and is not looked into.
///
/// # Errors
///
/// Returns everything that Envoy would refuse.
pub fn draft(type_url: &str, value: Bytes, envelope: Envelope) -> Result<Draft, InvalidResource> {
    let mut mistakes = Vec::new();
    let full_name = type_url.strip_prefix(TYPE_URL_PREFIX).unwrap_or_default();
    if full_name.is_empty() {
        mistakes.push(Mistake::new(
            "",
            format!(
                "the type URL {type_url:?} must be {TYPE_URL_PREFIX} and the full name of a message"
            ),
        ));
        return Err(InvalidResource(mistakes));
    }
    let violations = rules::check(full_name, &value);
    let message = descriptor_pool().get_message_by_name(full_name);
    let name = name_of(message.as_ref(), &value, &envelope, &mut mistakes);
    let is_unnamed = mistakes.iter().any(|it| it.path == name.field);
    let violations = violations.into_iter().map(|violation| Mistake {
        path: render(&violation.path),
        problem: violation.requirement.to_string(),
    });
    // The rules would say again that there is no name.
    mistakes.extend(violations.filter(|it| !(is_unnamed && it.path == name.field)));
    check_envelope(&envelope, &mut mistakes);
    mistakes.truncate(MAX_VIOLATIONS);
    if !mistakes.is_empty() {
        return Err(InvalidResource(mistakes));
    }
    let name = match xdstp::canonical(&Name::from(name.text)) {
        Cow::Borrowed(name) => Name::clone(name),
        Cow::Owned(name) => name,
    };
    Ok(Draft {
        type_url: TypeUrl::from(type_url),
        extras: Extras {
            endpoints: endpoints_of(type_url, &name, &value),
            aliases: envelope.aliases.into_iter().map(Name::from).collect(),
            ttl: envelope.ttl,
        },
        name,
        value,
    })
}

struct Named {
    text: String,
    field: String,
}

fn name_of(
    message: Option<&MessageDescriptor>,
    value: &[u8],
    envelope: &Envelope,
    mistakes: &mut Vec<Mistake>,
) -> Named {
    let field = message.and_then(config_dir::name_field);
    let inner = field
        .as_ref()
        .map(|field| wire_text(value, field.number()).to_owned());
    let named = Named {
        text: match (&*envelope.name, &inner) {
            ("", Some(inner)) => inner.clone(),
            (outer, _) => outer.to_owned(),
        },
        field: field.map_or_else(String::new, |field| field.name().to_owned()),
    };
    match &inner {
        Some(inner) if inner.is_empty() && envelope.name.is_empty() => {
            mistakes.push(Mistake::new(&named.field, "must not be empty".to_owned()));
        }
        None if envelope.name.is_empty() => mistakes.push(Mistake::new(
            "",
            "its type has no name that a client could ask for; give one beside the message"
                .to_owned(),
        )),
        Some(_) | None => {}
    }
    if named.text.len() > limits::NAME_BYTES {
        let problem = format!("a name has at most {} bytes", limits::NAME_BYTES);
        mistakes.push(Mistake::new(&named.field, problem));
    }
    named
}

fn check_envelope(envelope: &Envelope, mistakes: &mut Vec<Mistake>) {
    let is_bad = |alias: &String| alias.is_empty() || alias.len() > limits::NAME_BYTES;
    if envelope.aliases.len() > MAX_ALIASES || envelope.aliases.iter().any(is_bad) {
        let problem = format!(
            "at most {MAX_ALIASES} aliases, each of 1 to {} bytes",
            limits::NAME_BYTES
        );
        mistakes.push(Mistake::new("aliases", problem));
    }
    if envelope.ttl == Some(Duration::ZERO) {
        mistakes.push(Mistake::new(
            "ttl",
            "must be more than nothing; leave it out for a resource that does not expire"
                .to_owned(),
        ));
    }
}

impl Mistake {
    /// A mistake at a path.
    pub fn new(path: &str, problem: String) -> Self {
        Self {
            path: path.to_owned(),
            problem,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.path {
            "" => out.write_str(&self.problem),
            path => write!(out, "{path}: {}", self.problem),
        }
    }
}

/// One a line.
pub(crate) struct Lines<'a>(pub(crate) &'a [Mistake]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(out, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

/// A path with the names of the proto files: `load_assignment.endpoints[0]`.
pub(crate) fn render(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Field { name, .. } => config_dir::push_key(&mut path, name),
            Step::Index(index) => config_dir::push_index(&mut path, *index),
            Step::Key(key) => config_dir::push_key(&mut path, key),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
    use isthmus_proto::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use prost::Message;

    use super::*;

    #[test]
    fn a_resource_goes_by_the_name_in_its_message_or_beside_it() {
        let endpoints = ClusterLoadAssignment {
            cluster_name: "backend".to_owned(),
            ..ClusterLoadAssignment::default()
        };
        assert_eq!(&*draft_of(&endpoints).unwrap().name, "backend");
        let beside = Envelope {
            name: "xdstp://a/t/x?b=1&a=2".to_owned(),
            ..Envelope::default()
        };
        let cluster = Cluster {
            name: "inner".to_owned(),
            ..Cluster::default()
        };
        let value: Bytes = cluster.encode_to_vec().into();
        let type_url = isthmus_xds_core::type_rules::CLUSTER;
        let named = draft(type_url, value, beside.clone()).unwrap();
        assert_eq!(&*named.name, "xdstp://a/t/x?a=2&b=1", "in canonical form");
        let unknown = "type.googleapis.com/acme.Thing";
        assert!(draft(unknown, Bytes::from_static(b"x"), beside).is_ok());
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_its_path() {
        let cluster = |text: &str| {
            let json = format!(
                r#"{{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", {text}}}"#
            );
            draft_of_json(&json, Envelope::default())
        };
        let said = |result: Result<Draft, InvalidResource>| result.unwrap_err().to_string();
        assert!(cluster(r#""name": "a", "connectTimeout": "1s""#).is_ok());
        let both = said(cluster(r#""connectTimeout": "0s""#));
        assert_eq!(
            both,
            "name: must not be empty\nconnect_timeout: must be greater than 0s"
        );
        let typo = said(cluster(r#""name": "a", "conectTimeout": "1s""#));
        assert!(typo.contains("conectTimeout"), "{typo}");
        assert!(typo.contains("connectTimeout"), "{typo}");

        let no_bytes = Bytes::from_static(b"\xff");
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        assert!(draft(url, no_bytes.clone(), Envelope::default()).is_err());
        let bare = draft("Cluster", no_bytes.clone(), Envelope::default());
        assert!(said(bare).contains("must be type.googleapis.com/"));
        let unknown = "type.googleapis.com/acme.Thing";
        let unknown = draft(unknown, no_bytes, Envelope::default());
        assert!(said(unknown).contains("give one beside the message"));
        let eternal = Envelope {
            ttl: Some(Duration::ZERO),
            ..Envelope::default()
        };
        assert!(said(draft(url, Bytes::from_static(b"\x0a\x01a"), eternal)).starts_with("ttl: "));
    }
}
